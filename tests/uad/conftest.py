"""One tiny trained model for all the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from image_folders import make_class


@dataclass(frozen=True)
class TinyRun:
    """A run of `uad fit` on two classes of tiny images, and its exports."""

    root: Path  # the images
    out: Path  # the run

    def onnx(self, precision: str) -> Path:
        return self.out / f"{precision}.onnx"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    pytest.importorskip("lightning", reason="training is not installed")
    from small_fit import FIT

    return fit_and_export(tmp_path_factory.mktemp("tiny"), FIT)


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same with a backbone that a process of its own knows."""
    pytest.importorskip("lightning", reason="training is not installed")
    from small_fit import FIT, REAL

    return fit_and_export(tmp_path_factory.mktemp("real"), [*FIT, *REAL])


def fit_and_export(folder: Path, flags: list[str]) -> TinyRun:
    from uad import cli

    for name in ("bolt", "nut"):
        make_class(folder / "images", name)
    run = TinyRun(folder / "images", folder / "run")
    fit = ["fit", "--data.root", str(run.root), "--out", str(run.out), "--trainer.max_epochs", "2", *flags]
    assert cli.main(fit) == 0
    for precision in ("fp32", "fp16", "int8"):
        export = ["export", str(run.out / "model.ckpt"), "--precision", precision, "--out", str(run.onnx(precision))]
        images = ["--calibration-data", str(run.root), "--calibration-images", "4"] if precision != "fp32" else []
        assert cli.main([*export, *images]) == 0
    return run


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `uad` with arguments that must be refused; returns the one line that says why."""

    def run(*arguments: object) -> str:
        from uad import cli

        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert lines[-1].startswith("uad: error: ")
        assert not any("Traceback" in line for line in lines)
        return lines[-1]

    return run
