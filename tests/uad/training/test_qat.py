"""uad.training.fake_quant and .qat: fake quantization is that of the exported file, and training goes on under it."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import random_images, runtime_outputs
from image_folders import held_out_digests, make_class

from engines.graph import constants, in_backbone  # noqa: E402
from engines.images import RESIZE_RULE
from engines.metadata import ModelInfo
from engines.model_file import info_of, load_model
from engines.qdq import for_tensorrt
from export.check import check_model
from export.pixels import PIXELS, on_pixels
from export.placement import place
from export.quantize import with_ranges
from uad import cli

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_quantization")

import small_fit  # noqa: E402, F401  (the backbone tiny)

from export.onnx import export_network  # noqa: E402
from uad.data.batches import Batch, GoodImages  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training.checkpoint import Quantization, load_checkpoint, save_checkpoint  # noqa: E402
from uad.training.fake_quant import (  # noqa: E402
    QuantAdd,
    TensorQuantizer,
    insert_quantizers,
    quantized_convolution,
)
from uad.training.fold import Add, fold  # noqa: E402
from uad.training.qat import QuantizationAware  # noqa: E402
from uad.training.torch_engine import TorchEngine  # noqa: E402

nn = torch.nn
CONFIG = Path(__file__).resolve().parents[3] / "configs" / "stfpm_qat.yaml"
REAL = ("resnet18", "mobilenet_v2")
each_backbone = pytest.mark.parametrize("backbone", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
SIZE = 32
CLASSES = ["bolt", "nut"]


def patches(count: int = 12, seed: int = 0) -> Any:
    """(count, SIZE, SIZE, 3) uint8: noisy patches of colour, dark for the first class and bright for the second."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 96, (count, 4, 4, 3)) + 128 * (np.arange(count) % 2).reshape(-1, 1, 1, 1)
    images = colours.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    return torch.from_numpy((images + random.integers(0, 32, images.shape)).astype(np.uint8))


IMAGES = patches()
BATCH = (IMAGES, torch.arange(len(IMAGES)) % 2)


# A float run that takes no training -----------------------------------------------------------------------------------


def float_model(backbone: str, change: Callable[[Any], object] = lambda network: None) -> Any:
    """A random network with BatchNorm statistics of its own, its head fitted to `IMAGES`."""
    torch.manual_seed(0)
    model = STFPM(backbone, "none")
    for layer in model.network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    change(model.network)
    model.eval()
    model.prepare(good())
    model.fit_readout(good(), good())
    return model


def save_float(model: Any, path: Path) -> Path:
    info = ModelInfo(
        **model.description,
        classes=CLASSES,
        thresholds=dict.fromkeys(CLASSES, 1.0),
        threshold=1.0,
        false_positive_rate=0.05,
        held_out={name: held_out_digests(name, 6, 0.1, 0) for name in CLASSES},
        height=SIZE,
        width=SIZE,
        resize=RESIZE_RULE,
    )
    save_checkpoint(path, model.network.state_dict(), model.config, info)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("float")
    return WhenAsked(lambda name: save_float(float_model(name), folder / f"{name}.ckpt"))


class WhenAsked(dict[str, Any]):
    """Makes what is asked for, once."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Any:
        self[name] = self._make(name)
        return self[name]


@pytest.fixture(scope="module")
def prepared(checkpoints: dict[str, Path]) -> dict[str, Any]:
    """Calibrated, with quantizers in place, not trained. Tests that train take a copy."""

    def calibrated(name: str) -> Any:
        model = QuantizationAware(checkpoints[name], calibrator="minmax")
        model.prepare(good())
        return model

    return WhenAsked(calibrated)


def maps(network: Any, images: Any = IMAGES) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(network(images)[1].numpy())


def assert_agree(found: np.ndarray, expected: np.ndarray, plain: np.ndarray) -> None:
    """Maps agree on most images, and are far from those of the network in float.

    A value on the border of two integers may round the other way, for float32 sums depend on their order; such a step
    grows from layer to layer, so that some images differ. A quantizer at another place, or of another scale, would
    move every image.
    """
    scale = np.ptp(expected)
    away, from_plain = (np.median(np.abs(found - other).max(axis=(1, 2))) for other in (expected, plain))
    assert away < 1e-4 * scale
    assert from_plain > 1e-2 * scale


def float_network(model: Any) -> Any:
    """The equalised network without its quantizers, as `load_checkpoint` makes it."""
    network = fold(load_checkpoint(model.ckpt).network)
    network.load_state_dict(model.state_to_save())
    return network


def _with_ranges(graph: Any, model: Any) -> Any:
    return with_ranges(graph, model.start, model.quantization.amax, place(graph))[0]


def good(images: Any = IMAGES) -> GoodImages:
    return GoodImages(images, torch.arange(len(images)) % 2, CLASSES)


def exported(model: Any) -> Any:
    network = float_network(model)
    return _with_ranges(on_pixels(export_network(network, (SIZE, SIZE)), model.start), model)


# (a) Where the quantizers are, and what they compute ------------------------------------------------------------------


def quantizer_of(module: Any) -> Any:
    """The quantizer of what a module reads, or None."""
    if isinstance(module, QuantAdd):
        return module.quantizer
    if isinstance(module, nn.Sequential) and isinstance(module[0], TensorQuantizer):
        return module[0]
    return getattr(module, "_input_quantizer", None)


@pytest.mark.parametrize("pixels", [True, False])  # a run of before has none
@each_backbone
def test_quantizers_are_exactly_where_the_file_has_them(
    backbone: str, pixels: bool, checkpoints: dict[str, Path]
) -> None:
    checkpoint = load_checkpoint(checkpoints[backbone])
    network = fold(checkpoint.network)
    adds = sum(isinstance(module, Add) for module in network.modules())
    model = export_network(network, (SIZE, SIZE))
    if pixels:
        model = on_pixels(model, checkpoint.info)
    placed = place(model).activations
    amax = {name: 1.0 + index for index, name in enumerate(sorted({tensor.range_of for tensor in placed}))}
    assert (PIXELS in amax) == pixels
    insert_quantizers(network, checkpoint.info, Quantization(8, amax))
    expected = {
        reader.strip("/").rpartition("/")[0].replace("/", "."): amax[tensor.range_of]
        for tensor in placed
        for reader in tensor.readers
    }
    found = {name: quantizer_of(module) for name, module in network.named_modules()}
    assert {name: float(each.amax) for name, each in found.items() if each is not None} == expected
    weighted = [module for module in network.modules() if hasattr(module, "_weight_quantizer")]
    assert len(weighted) == len(place(model).weights)
    weights = {id(module._weight_quantizer) for module in weighted}
    everything = {id(module) for module in network.modules() if isinstance(module, TensorQuantizer)}
    assert len(everything - weights) == len(amax)  # one for each tensor, however many read it
    skips = [module for module in network.modules() if isinstance(module, QuantAdd)]
    assert len(skips) == adds == {"resnet18": 12, "mobilenet_v2": 16}[backbone]


def test_weights_of_a_transposed_convolution_share_one_scale() -> None:
    # As in the file: releases of TensorRT disagree about the axis of more.
    torch.manual_seed(0)
    convolution = nn.ConvTranspose2d(4, 3, 2, 2)
    with torch.no_grad():
        convolution.weight *= torch.tensor([1.0, 10.0, 0.1]).reshape(1, 3, 1, 1)
    step = float(convolution.weight.detach().abs().max()) / 127
    expected = copy.deepcopy(convolution)
    with torch.no_grad():
        expected.weight.copy_((expected.weight / step).round() * step)
    image = torch.randn(1, 4, 5, 5)
    found = quantized_convolution(convolution, nn.Identity(), 8)(image)
    torch.testing.assert_close(found, expected(image), rtol=1e-5, atol=1e-5)


@each_backbone
def test_fake_quantization_is_that_of_the_exported_file(backbone: str, prepared: dict[str, Any]) -> None:
    model = prepared[backbone]
    expected = runtime_outputs(exported(model), IMAGES.numpy(), ["anomaly_map"])[0]
    found = maps(model.network)
    assert_agree(found, expected, maps(model.reference))


@each_backbone
def test_equalised_network_in_float_is_the_one_it_was_before(backbone: str, checkpoints: dict[str, Path]) -> None:
    model = QuantizationAware(checkpoints[backbone], calibrator="minmax", bits=6)  # whose biases are not corrected
    model.prepare(good())
    before = maps(load_checkpoint(model.ckpt).network)
    np.testing.assert_allclose(maps(model.reference), before, rtol=0, atol=1e-4 * before.max())
    np.testing.assert_allclose(maps(float_network(model)), before, rtol=0, atol=1e-3 * before.max())
    weights = [dict(each.named_parameters()) for each in (model.reference, float_network(model))]
    changed = any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert changed == (backbone == "mobilenet_v2")  # the other has no depthwise convolution


def test_biases_are_corrected_before_training(prepared: dict[str, Any]) -> None:
    model = prepared["resnet18"]  # nothing of it is equalised
    one, other = (dict(each.named_parameters()) for each in (model.reference, float_network(model)))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed and all(name.endswith(".bias") for name in changed)


@each_backbone
def test_ranges_bear_the_names_of_tensors_in_the_exported_file(backbone: str, prepared: dict[str, Any]) -> None:
    model = prepared[backbone]
    graph = on_pixels(export_network(float_network(model), (SIZE, SIZE)), model.start)
    assert set(model.quantization.amax) >= {tensor.range_of for tensor in place(graph).activations}
    outputs = {name for node in graph.graph.node for name in node.output}
    assert set(model.quantization.amax) <= outputs


def test_teacher_may_stay_in_float_for_comparison(checkpoints: dict[str, Path]) -> None:
    model = QuantizationAware(checkpoints["resnet18"], quantized_teacher=False)
    model.prepare(good())
    for part, expected in (("teacher", False), ("student", True)):
        modules = getattr(model.network, part).modules()
        assert any(isinstance(module, TensorQuantizer) for module in modules) == expected
    model.loss(Batch(*BATCH)).backward()
    changed = {name.partition(".")[0] for name, each in model.network.named_parameters() if each.grad is not None}
    assert changed == {"student"}


# (b) A training step --------------------------------------------------------------------------------------------------


@each_backbone
def test_gradients_reach_every_weight_and_bias_of_the_backbone(backbone: str, prepared: dict[str, Any]) -> None:
    model = copy.deepcopy(prepared[backbone])
    model.train()
    model.loss(Batch(*BATCH)).backward()
    for part in (model.network.teacher, model.network.student):
        parameters = dict(part.named_parameters())
        assert {name.rpartition(".")[2] for name in parameters} == {"weight", "bias"}
        without = [name for name, each in parameters.items() if each.grad is None or not each.grad.abs().sum() > 0]
        assert without == []
        assert all(each.grad.isfinite().all() for each in parameters.values())
    others = [*model.reference.parameters(), *model.network.head.parameters()]
    assert all(each.grad is None for each in others)


def test_no_gradient_of_the_distances_reaches_the_teacher(prepared: dict[str, Any]) -> None:
    # A student that is wrong changes the gradient of the student alone.
    gradients = []
    for factor in (1.0, 2.0):
        model = copy.deepcopy(prepared["resnet18"])
        with torch.no_grad():
            for parameter in model.network.student.parameters():
                parameter *= factor
        model.loss(Batch(*BATCH)).backward()
        gradients.append({name: each.grad for name, each in model.network.named_parameters() if each.grad is not None})
    one, other = gradients
    same = {name for name in one if torch.equal(one[name], other[name])}
    assert same == {name for name in one if name.startswith("teacher.")} != set()


def test_what_no_image_changes_has_an_error_and_a_gradient(prepared: dict[str, Any]) -> None:
    # Else its error would stand beside a variance of 0.
    model = copy.deepcopy(prepared["resnet18"])
    black = Batch(torch.zeros_like(IMAGES), BATCH[1])
    for network in (model.reference, model.network):
        with torch.no_grad():
            for parameter in network.student.parameters():
                parameter.zero_()
    loss = model.loss(black)
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad.isfinite().all() for each in model.network.parameters() if each.grad is not None)


@each_backbone
def test_loss_falls_while_the_ranges_of_activations_stay(backbone: str, prepared: dict[str, Any]) -> None:
    model = copy.deepcopy(prepared[backbone])
    model.train()
    before = activation_ranges(model)
    parameters = {name: each for name, each in model.network.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for name, each in parameters.items():
            each += 0.02 * name.endswith(".bias")  # or little is wrong with so small a network
    optimizer = torch.optim.AdamW(parameters.values(), 1e-4, weight_decay=0.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(Batch(*BATCH))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < 0.5 * losses[0]
    assert activation_ranges(model) == before
    # What was trained is what is exported.
    expected = runtime_outputs(exported(model), IMAGES.numpy(), ["anomaly_map"])[0]
    assert_agree(maps(model.network.eval()), expected, maps(float_network(model)))


def activation_ranges(model: Any) -> dict[str, float]:
    found = {name: quantizer_of(module) for name, module in model.network.named_modules()}
    return {name: float(each.amax) for name, each in found.items() if each is not None}


# (c) Dead channels ----------------------------------------------------------------------------------------------------


def kill(network: Any) -> None:
    """A channel without weights and a tensor that is always 0, in teacher and student."""
    for pyramid in (network.teacher, network.student):
        first, second = [layer for layer in pyramid.modules() if isinstance(layer, nn.BatchNorm2d)][:2]
        with torch.no_grad():
            first.weight[2] = 0.0
            first.bias[2] = -1.0
            second.weight.fill_(0.0)
            second.bias.fill_(-1.0)


@pytest.fixture(params=["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def dead(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A network of which a part is dead, calibrated."""
    model = QuantizationAware(save_float(float_model(request.param, kill), tmp_path / "dead.ckpt"))
    model.prepare(good(IMAGES[:6]))
    return model


def test_dead_channels_and_a_tensor_that_is_always_0_work(dead: Any) -> None:
    model = dead
    assert 0.0 in model.quantization.amax.values()
    model.train()
    loss = model.loss(Batch(*BATCH))
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad.isfinite().all() for each in model.network.student.parameters() if each.grad is not None)
    found = maps(model.network.eval())
    assert np.isfinite(found).all()
    graph = exported(model)
    assert check_model(for_tensorrt(graph), "jetson-xavier-nx") == []
    expected = runtime_outputs(graph, IMAGES.numpy(), ["anomaly_map"])[0]
    assert_agree(found, expected, maps(float_network(model)))


# (d) From end to end --------------------------------------------------------------------------------------------------

FIT = ["--data.image_size", "64", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
FIT += ["--model.calibration_images", "10"]


def fit(ckpt: Path, root: Path, out: Path, *more: str) -> Path:
    command = ["fit", "--config", str(CONFIG), "--ckpt", str(ckpt), "--data.root", str(root), "--out", str(out)]
    assert cli.main([*command, *FIT, *more]) == 0
    return out / "model.ckpt"


@dataclass(frozen=True)
class Runs:
    trained: Path
    untrained: Path  # calibrated only


@pytest.fixture(scope="module")
def runs(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("qat")
    ckpt = tiny_run.out / "model.ckpt"
    trained = fit(ckpt, tiny_run.root, folder / "trained", "--trainer.max_epochs", "2")
    return Runs(trained, fit(ckpt, tiny_run.root, folder / "untrained", "--trainer.max_epochs", "0"))


def test_a_run_leaves_its_files_and_a_checkpoint_of_plain_values(runs: Runs) -> None:
    names = {path.name for path in runs.trained.parent.iterdir()}
    assert names == {"config.yaml", "run.json", "train.csv", "last.ckpt", "best.ckpt", "model.ckpt", "metrics.json"}
    assert json.loads((runs.trained.parent / "metrics.json").read_text())["image_auroc"] is not None
    content = torch.load(runs.trained, weights_only=True)
    assert content["program"] == "uad" and content["quantization"]["bits"] == 8
    assert not [name for name in content["state_dict"] if "quantizer" in name]
    checkpoint = load_checkpoint(runs.trained)
    assert checkpoint.quantization is not None and checkpoint.info.classes == ["bolt", "nut"]
    assert checkpoint.info.precision == "int8 simulated"
    assert not any(isinstance(module, TensorQuantizer) for module in checkpoint.network.modules())


def test_training_changes_every_parameter_of_the_backbone_and_nothing_else(runs: Runs) -> None:
    before = torch.load(runs.untrained, weights_only=True)
    after = torch.load(runs.trained.with_name("last.ckpt"), weights_only=True)
    assert before["quantization"] == after["quantization"]
    parameters = [name for name in before["state_dict"] if name.startswith(("teacher.", "student."))]
    changed = [
        name
        for name, value in before["state_dict"].items()
        if not torch.equal(value, after["state_dict"][f"network.{name}"])
        and not name.startswith("head.readout.")  # which is fitted in the end
    ]
    assert changed == parameters and len(parameters) == 20


def test_training_that_does_not_help_leaves_the_weights_from_before_it(
    runs: Runs, tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = fit(tiny_run.out / "model.ckpt", tiny_run.root, tmp_path / "spoilt", "--model.lr", "1")
    assert "training did not help: the weights from before it are kept" in capsys.readouterr().out
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (runs.untrained, spoilt))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def export(ckpt: Path, out: Path) -> Path:
    assert cli.main(["export", str(ckpt), "--precision", "int8", "--out", str(out)]) == 0
    return out


def test_the_exported_file_scores_as_the_checkpoint(runs: Runs, tiny_run: Any, tmp_path: Path) -> None:
    out = export(runs.trained, tmp_path / "int8.onnx")
    info = info_of(load_model(out), out)
    assert info.precision == "int8" and info.calibration is not None and info.calibration["images"] == 10
    assert cli.main(["check", str(out), "--target", "jetson-xavier-nx"]) == 0
    written = tmp_path / "scores.csv"
    test = ["test", str(out), "--reference", str(runs.trained), "--data.root", str(tiny_run.root)]
    test += ["--runtime", "onnxruntime"]  # OpenVINO saturates where the CPU has no VNNI
    assert cli.main([*test, "--scores", str(written)]) == 0
    for row in csv.DictReader(written.read_text().splitlines()):
        # No closer: a head that was fitted to ten images of noise makes much of one rounding step.
        assert float(row["score"]) == pytest.approx(float(row["reference_score"]), rel=0.5)
    # The checkpoint itself runs under fake quantization.
    images = random_images(1, 64)
    plain = maps(load_checkpoint(runs.trained).network, torch.from_numpy(images))
    assert np.abs(TorchEngine(runs.trained).infer(images).anomaly_map - plain).max() > 0


def test_calibrated_but_untrained_is_post_training_quantization(
    checkpoints: dict[str, Path], tiny_run: Any, tmp_path: Path
) -> None:
    ckpt = checkpoints["tiny"]  # it has channels to equalise
    more = ["--trainer.max_epochs", "0", "--model.calibrator", "minmax", "--data.image_size", str(SIZE)]
    learned = export(fit(ckpt, tiny_run.root, tmp_path / "run", *more), tmp_path / "learned.onnx")
    command = ["export", str(ckpt), "--precision", "int8", "--calibrator", "minmax", "--calibration-images", "10"]
    command += ["--calibration-data", str(tiny_run.root), "--out", str(tmp_path / "ptq.onnx")]
    assert cli.main(command) == 0
    quantized = [load_model(path) for path in (learned, tmp_path / "ptq.onnx")]
    one, other = (constants(model) for model in quantized)
    pairs = list(zip(*(model.graph.node for model in quantized)))
    assert len(quantized[0].graph.node) == len(quantized[1].graph.node) == len(pairs)
    for node, twin in pairs:  # names of equalised weights differ
        assert node.op_type == twin.op_type
        if node.op_type == "DequantizeLinear":
            for name, other_name in zip(node.input[1:], twin.input[1:]):
                np.testing.assert_array_equal(one[name], other[other_name])
            if node.input[0] in one:  # a weight
                np.testing.assert_array_equal(one[node.input[0]], other[twin.input[0]])
        if node.op_type == "Conv" and in_backbone(node):  # the images are added up in another order
            np.testing.assert_allclose(one[node.input[2]], other[twin.input[2]], rtol=1e-4, atol=1e-5)
    infos = [info_of(model, learned) for model in quantized]
    assert infos[0].residual_scales == infos[1].residual_scales


def test_resuming_keeps_the_ranges(runs: Runs, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    whole = QuantizationAware.training_step

    def failing(self: Any, batch: Any, index: int) -> Any:
        if self.current_epoch == 1:
            raise MemoryError
        return whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(QuantizationAware, "training_step", failing)
        with pytest.raises(MemoryError):
            fit(tiny_run.out / "model.ckpt", tiny_run.root, out, "--trainer.max_epochs", "2")
    assert not (out / "model.ckpt").exists()
    assert cli.main(["fit", "--resume", str(out)]) == 0
    rows = list(csv.DictReader((out / "train.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    expected, found, last = (
        torch.load(path, weights_only=True) for path in (runs.untrained, out / "model.ckpt", out / "last.ckpt")
    )
    assert last["global_step"] == 4
    assert found["quantization"] == last["quantization"] == expected["quantization"]
    for name in found["state_dict"]:
        if name.startswith("head.readout."):  # which is fitted in the end
            continue
        trained = last["state_dict"][f"network.{name}"]  # model.ckpt holds the best, which may be the start
        is_trained = name.startswith(("teacher.", "student."))
        assert torch.equal(trained, expected["state_dict"][name]) != is_trained, name


def test_a_checkpoint_that_was_quantized_is_exported_in_one_way_only(
    error_of: Callable[..., str], runs: Runs, tiny_run: Any, tmp_path: Path
) -> None:
    command = ("export", runs.untrained, "--out", tmp_path / "x.onnx", "--precision")
    for precision in ("fp32", "fp16", "auto"):
        assert "was trained for int8: export it with --precision int8" in error_of(*command, precision)
    for flag in (("--calibration-data", tiny_run.root), ("--calibrator", "minmax"), ("--percentile", "99")):
        assert f"brings its own ranges: leave out {flag[0]}" in error_of(*command, "int8", *flag)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "brings its own ranges" in error_of(*command, "int8", "--explain", tmp_path / "why")
    assert not (tmp_path / "x.onnx").exists()


def test_other_widths_are_for_study_and_not_exported(
    error_of: Callable[..., str], checkpoints: dict[str, Path], prepared: dict[str, Any], tmp_path: Path
) -> None:
    model = QuantizationAware(checkpoints["tiny"], bits=4, calibrator="minmax")
    model.prepare(good())
    with torch.no_grad():
        assert model.loss(Batch(*BATCH)) > 10 * prepared["tiny"].loss(Batch(*BATCH)) > 0
    info = dataclasses.replace(model.start, **model.description)
    assert info.precision == "int4 simulated"
    save_checkpoint(tmp_path / "int4.ckpt", model.state_to_save(), model.config, info, model.quantization)
    message = error_of("export", tmp_path / "int4.ckpt", "--precision", "int8", "--out", tmp_path / "x.onnx")
    assert "was trained for a simulation of int4: only int8 runs" in message
    engine = TorchEngine(tmp_path / "int4.ckpt")  # but it can be tested
    np.testing.assert_array_equal(engine.infer(IMAGES[:1].numpy()).anomaly_map, maps(model.network, IMAGES[:1]))


# (e) Mistakes ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_serve(
    error_of: Callable[..., str], runs: Runs, tiny_run: Any, tmp_path: Path
) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    fit = ("fit", "--config", CONFIG, "--data.root", tiny_run.root, "--out", tmp_path / "run", *FIT, "--ckpt")
    assert "is not a model of uad" in error_of(*fit, tmp_path / "other.ckpt")
    assert "no such file" in error_of(*fit, tmp_path / "absent.ckpt")
    assert "give the model.ckpt that uad fit writes" in error_of(*fit, tiny_run.out / "last.ckpt")
    assert "is quantized already" in error_of(*fit, runs.untrained)
    message = error_of(*fit[:-1])
    assert "--model.calibrator is no setting of STFPM" in message and "give --ckpt" in message
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_that_of_the_checkpoint(error_of: Callable[..., str], tiny_run: Any, tmp_path: Path) -> None:
    ckpt = tiny_run.out / "model.ckpt"
    make_class(tmp_path / "images", "screw")
    fit = ("fit", "--config", CONFIG, "--ckpt", ckpt, *FIT)
    message = error_of(*fit, "--data.root", tmp_path / "images", "--out", tmp_path / "run")
    assert "was trained on bolt, nut" in message and "holds screw" in message
    good = (*fit, "--data.root", tiny_run.root, "--out")
    message = error_of(*good, tmp_path / "run", "--data.classes", "[nut]")
    assert "was trained on bolt, nut" in message and "holds nut" in message
    assert "give --data.image_size 64" in error_of(*good, tmp_path / "run", "--data.image_size", 96)
    before = ckpt.read_bytes()
    assert "give another folder" in error_of(*good, tiny_run.out)
    assert ckpt.read_bytes() == before and (tiny_run.out / "train.csv").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("bits", "9", "--model.bits 9: give 2 to 8"),
        ("bits", "1", "--model.bits 1: give 2 to 8"),
        ("lr", "-0.1", "--model.lr -0.1"),
        ("calibration_images", "0", "--model.calibration_images 0"),
        ("percentile", "0", "percentile 0"),
        ("percentile", "101", "percentile 101"),
        ("calibrator", "mse", "mse"),
        ("backbone", "resnet18", "--model.backbone is no setting of QuantizationAware"),
    ],
)
def test_settings_out_of_range(
    flag: str, value: str, said: str, error_of: Callable[..., str], tiny_run: Any, tmp_path: Path
) -> None:
    fit = ("fit", "--config", CONFIG, "--ckpt", tiny_run.out / "model.ckpt", "--data.root", tiny_run.root)
    assert said in error_of(*fit, *FIT, "--out", tmp_path / "run", f"--model.{flag}={value}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # the tiny network clips what grows
@pytest.mark.parametrize(
    ("steps", "lr"), [(1, "3e42"), (2, "3e37")], ids=["after the last step", "before the last step"]
)
def test_a_loss_that_is_not_a_number(
    steps: int, lr: str, error_of: Callable[..., str], real_run: Any, tmp_path: Path
) -> None:
    """With one step the cycle of the learning rate ends at a 250,000th of `lr`; more than 3e38 is no float32."""
    fit = ("fit", "--config", CONFIG, "--ckpt", real_run.out / "model.ckpt", "--data.root", real_run.root, *FIT)
    more = ("--trainer.limit_train_batches", steps, "--trainer.max_epochs", 1, "--model.lr", lr)
    assert "not a number" in error_of(*fit, *more, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "model.ckpt").exists()


def test_a_network_that_is_not_finite(error_of: Callable[..., str], tiny_run: Any, tmp_path: Path) -> None:
    content = torch.load(tiny_run.out / "model.ckpt", weights_only=True)
    content["state_dict"]["student.body.first.0.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    fit = ("fit", "--config", CONFIG, "--ckpt", tmp_path / "nan.ckpt", "--data.root", tiny_run.root, *FIT)
    message = error_of(*fit, "--out", tmp_path / "run")
    assert "student.body.first.0.weight holds values that are not finite: train the model again" in message
