"""Makes the shared builders importable: `import graphs` from any test.

The root goes in front, because an editable install is found only after sys.path, where the folder `tests/engines`
would pass for the package `engines`.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent

sys.path[:0] = [str(TESTS.parent), str(TESTS)]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Call it with a release, and TensorRT and pycuda seem to be installed: gives that `tensorrt`, and the GPU."""
    from fake_cuda import Gpu
    from fake_tensorrt import fake_tensorrt

    def install(release: str = "8.5.2", gpu: Gpu | None = None) -> tuple[Any, Gpu]:
        gpu = gpu or Gpu()
        trt = fake_tensorrt(release, gpu)
        for module in (trt, gpu.package, gpu.driver):
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        _forget_polygraphy()
        return trt, gpu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield install
    _forget_polygraphy()


def _forget_polygraphy() -> None:
    """It keeps the tensorrt that it has seen first."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
        del sys.modules[name]
