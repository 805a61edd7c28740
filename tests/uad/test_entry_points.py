"""A model and a runtime of somebody else's package train, export and open as those of the project."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_folders import make_class

import engines
from uad import cli

pytest.importorskip("lightning", reason="training is not installed")
pytest.importorskip("setuptools")

from uad import models  # noqa: E402

PACKAGE = Path(__file__).resolve().parents[1] / "foreign"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package is installed, in a folder of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(PACKAGE, folder / "source")  # a build leaves files behind
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        _forget()
        yield
    _forget()


def _forget() -> None:
    """What was looked up is looked up again."""
    engines.runtimes.cache_clear()
    models.models.cache_clear()


def test_what_is_not_installed_is_not_there() -> None:
    _forget()
    assert "edges" not in models.models() and "reference" not in engines.runtimes()


def test_a_foreign_model_goes_from_images_to_figures_on_a_foreign_runtime(installed: None, tmp_path: Path) -> None:
    root, run = tmp_path / "images", tmp_path / "run"
    make_class(root, "nut", train=12)
    fit = ["fit", "--model", "edges", "--model.channels", "4", "--data.root", str(root), "--data.image_size", "64"]
    assert cli.main([*fit, "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--out", str(run)]) == 0
    int8 = ["--precision", "int8", "--calibration-data", str(root)]
    for name, more in (("fp32", []), ("int8", int8)):
        assert cli.main(["export", str(run / "model.ckpt"), *more, "--out", str(run / f"{name}.onnx")]) == 0
    figures = {}
    ours = ("int8.onnx", "onnxruntime", "onnxruntime")  # ONNX's reference knows no Q/DQ of opset 17
    for model, asked, runtime in (("model.ckpt", "reference", "torch"), ("fp32.onnx", "reference", "reference"), ours):
        flags = ["--data.root", str(root), "--runtime", asked, "--json", str(tmp_path / "figures.json")]
        assert cli.main(["test", str(run / model), *flags]) == 0
        figures[model] = json.loads((tmp_path / "figures.json").read_text())
        assert figures[model]["runtime"] == runtime
    assert figures["model.ckpt"]["image_auroc"] == figures["fp32.onnx"]["image_auroc"] > 0.9


def test_what_is_installed_is_named_where_there_is_no_such_thing(installed: None) -> None:
    assert list(models.models())[-1] == "edges" and list(engines.runtimes())[-1] == "reference"
    with pytest.raises(engines.UserError, match="choose one of .*, edges"):
        models.model_class("vit")
    with pytest.raises(engines.UserError, match="choose one of .*, reference"):
        engines.check_runtime("tflite")
