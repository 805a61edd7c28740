"""Makes the shared builders importable: `import graphs` from any test.

The root goes in front, because an editable install is found only after sys.path, where the folder `tests/engines`
would pass for the package `engines`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent

sys.path[:0] = [str(TESTS.parent), str(TESTS)]
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: their threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--longest", type=float, help="seconds that a test may take which is not marked slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """An unmarked test that takes longer than --longest fails: `make test` has no room for it.

    What its fixtures take is shared, and counts for none.
    """
    report, longest = (yield), item.config.getoption("longest")
    may_take_long = longest is None or item.get_closest_marker("slow") is not None
    if call.when == "call" and report.passed and not may_take_long and call.duration > longest:
        report.outcome = "failed"
        report.longrepr = f"it took {call.duration:.1f} s, more than {longest:g}: make it quicker, or mark it slow"
    return report


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Call it with a release, and TensorRT and pycuda seem to be installed: gives that `tensorrt`, and the GPU."""
    from fakes.cuda import Gpu
    from fakes.tensorrt import fake_modules

    def install(release: str = "8.5.2", gpu: Gpu | None = None) -> tuple[Any, Gpu]:
        gpu = gpu or Gpu()
        modules = fake_modules(release, gpu)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        _forget_polygraphy()
        return modules["tensorrt"], gpu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield install
    _forget_polygraphy()


def _forget_polygraphy() -> None:
    """It keeps the tensorrt that it has seen first."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
        del sys.modules[name]
