"""The path from real images and real ImageNet weights to INT8; skipped where they are absent."""

import csv
import json
import os
from pathlib import Path
from typing import List

import numpy as np
import pytest

from uad import cli

DATA = os.environ.get("UAD_DATA")
WEIGHTS = os.environ.get("UAD_WEIGHTS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA and WEIGHTS), reason="UAD_DATA and UAD_WEIGHTS are not set"),
]


def test_a_few_steps_on_real_images_reach_int8(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    root = small_copy(tmp_path)
    run = tmp_path / "run"
    weights = str(Path(str(WEIGHTS)) / "mobilenet_v2-imagenet.pth")
    settings = ["--model.backbone", "mobilenet_v2", "--model.weights", weights, "--trainer.max_epochs", "4"]
    settings += ["--data.image_size", "128"]
    assert cli.main(["fit", "--data.root", str(root), "--data.batch_size", "8", "--out", str(run), *settings]) == 0
    for precision in ("fp32", "int8"):
        export = ["export", str(run / "model.ckpt"), "--precision", precision, "--out", str(run / f"{precision}.onnx")]
        images = ["--calibration-data", str(root), "--calibration-images", "16"] if precision == "int8" else []
        assert cli.main([*export, *images]) == 0
        assert cli.main(["check", str(run / f"{precision}.onnx"), "--target", "jetson-xavier-nx"]) == 0
    checkpoint = scores(run / "model.ckpt", root)
    np.testing.assert_allclose(scores(run / "fp32.onnx", root), checkpoint, rtol=1e-3)
    report = tmp_path / "report.json"
    test = ["test", str(run / "int8.onnx"), "--reference", str(run / "fp32.onnx"), "--data.root", str(root)]
    # ONNX Runtime: OpenVINO's INT8 sums saturate at 16 bits on x86 without VNNI.
    assert cli.main([*test, "--runtime", "onnxruntime", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["agreement"]["spearman"] > 0.9


def small_copy(folder: Path) -> Path:
    """Links to a few images of two classes."""
    root = folder / "images"
    for name in ("magnetic_tile", "deep_pcb"):
        source = Path(str(DATA)) / name
        for kind in ["train/good", *(f"test/{path.name}" for path in sorted((source / "test").iterdir()))]:
            (root / name / kind).mkdir(parents=True)
            for path in sorted((source / kind).iterdir())[: 24 if kind == "train/good" else 6]:
                (root / name / kind / path.name).symlink_to(path.resolve())
    return root


def scores(model: Path, root: Path) -> List[float]:
    file = model.with_suffix(".csv")
    assert cli.main(["test", str(model), "--data.root", str(root), "--scores", str(file)]) == 0
    return [float(row["score"]) for row in csv.DictReader(file.read_text().splitlines())]
