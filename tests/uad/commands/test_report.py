"""`uad report`: from model files and a folder of images to a page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
from graphs import save_tiny, with_readout
from image_folders import bolts_and_nuts

from uad import cli
from uad.commands.report import _images_of

pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def test_a_page_compares_files_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bolts_and_nuts(tmp_path / "images")
    first, second = (str(save_tiny(tmp_path / f"{name}.onnx", with_readout())) for name in ("one", "two"))
    flags = ["--data.root", str(root), "--seconds", "0.1", "--runtime", "onnxruntime"]
    assert cli.main(["report", first, second, *flags, "--out", str(tmp_path / "report.html")]) == 0
    assert "report.html: open it in a browser" in capsys.readouterr().out
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>1.0000</td><td>0.0%</td>" in html  # Spearman of a file with its copy, and no decision flipped
    assert html.count("data:image/jpeg") == 4 and str(tmp_path) not in html  # false alarms; no path of this machine
    assert "two.onnx: how right, how fast, how big" in html and "Speed and size" in html


def test_a_run_knows_its_classes(tmp_path: Path) -> None:
    root, run = bolts_and_nuts(tmp_path / "images"), tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {{root: '{root}', classes: [nut]}}")
    assert _images_of(run) == (root, ["nut"])


def test_a_class_that_the_model_does_not_know_is_in_no_sentence(tmp_path: Path) -> None:
    root = bolts_and_nuts(tmp_path / "images", good=3, defects=2)
    shutil.copytree(root / "nut", root / "gear")
    model = save_tiny(tmp_path / "one.onnx", with_readout())
    flags = ["--data.root", str(root), "--seconds", "0.1", "--runtime", "onnxruntime"]
    assert cli.main(["report", str(model), *flags, "--out", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "gear, not known" in html and re.search(r"\bof 4 defects", html) and "of 6 defects" not in html


@pytest.mark.slow
def test_a_run_knows_its_images(real_run: Any, tmp_path: Path) -> None:
    flags = ["--seconds", "0.1", "--out", str(tmp_path / "report.html")]
    assert cli.main(["report", str(real_run.out), str(real_run.onnx("int8")), *flags]) == 0
    assert f"{real_run.out.name}, fp32, torch" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_mistakes(error_of: Callable[..., str], tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "one.onnx")
    assert "--data.root is missing" in error_of("report", model, "--out", tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    flags = ["--data.root", tmp_path / "empty", "--out", tmp_path / "r.html"]
    assert "empty" in error_of("report", model, *flags)
    assert "--out" in error_of("report", model, "--data.root", tmp_path, "--out", model / "r.html")
