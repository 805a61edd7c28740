"""export.sensitivity: noise in dB, and the layer that hurts is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Builder, node_of, random_images, reference_outputs, set_constant, tiny, tiny_info, with_blind_weights

import engines
from export.calibrate import calibrator
from export.placement import place
from export.quantize import collect_histograms, with_ranges
from export.sensitivity import class_mean_sqnr_db, power_ratio_db, sensitivity, sqnr_db

IMAGES = random_images(6)


def ranges(model: onnx.ModelProto) -> dict[str, float]:
    histograms = collect_histograms(model, place(model).ranged(), IMAGES)
    return {name: calibrator("minmax")(histogram) for name, histogram in histograms.items()}


def test_sqnr_of_a_worked_example() -> None:
    # Power 100, noise 1.
    assert sqnr_db(np.array([6.0, -8.0]), np.array([6.0, -7.0])) == pytest.approx(20.0)
    assert sqnr_db(np.full(10, 2.0), np.full(10, 1.0)) == pytest.approx(10 * np.log10(4.0))


def test_sqnr_ends_where_float32_does() -> None:
    exact = sqnr_db(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert exact == power_ratio_db(0.0, 0.0) == pytest.approx(144.49, abs=0.01)
    assert sqnr_db(np.zeros(3), np.ones(3)) == -np.inf
    assert power_ratio_db(1.0, 1e-30) == exact


def test_sqnr_does_not_overflow_in_float32() -> None:
    assert sqnr_db(np.full(4, 1e30, np.float32), np.full(4, 0.9e30, np.float32)) == pytest.approx(20.0, abs=0.01)


def test_a_class_with_faint_maps_counts_as_much_as_one_with_strong_maps() -> None:
    reference = np.array([[1000.0], [1.0], [1.0]])
    noisy = np.array([[1000.0 - 0.1], [0.0], [0.0]])  # 80 dB, and 0 dB
    assert class_mean_sqnr_db(reference, noisy, ["strong", "faint", "faint"]) == pytest.approx(40.0)
    assert class_mean_sqnr_db(reference, noisy) > 50.0


def test_layers_are_the_convolutions_that_can_be_quantized() -> None:
    b = Builder()
    x = b.conv(b.conv(b.normalize(), "teacher/a", 4), "teacher/b", 4)
    x = b.conv(x, "teacher/c", 4)
    b.constant("up.weight", b.random.standard_normal((4, 2, 2, 2)).astype(np.float32))
    x = b.node("ConvTranspose", [x, "up.weight"], "teacher/up", kernel_shape=[2, 2], strides=[2, 2], group=2)
    model = b.tap(b.conv(x, "head/smooth", 4))
    node_of(model, "/teacher/c/Conv").input[1] = "teacher/b.weight"  # shared
    assert place(model).layers == ["/teacher/a/Conv", "/teacher/b/Conv", "/teacher/c/Conv"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", engines.installed_runtimes(".onnx"))
def test_the_layer_with_outliers_in_its_weights_is_the_worst(runtime: str) -> None:
    bad = "student/layer2/conv2"
    plain, spoiled = tiny(), with_blind_weights(tiny(), bad)
    classes = ["bolt", "nut"] * 3
    before, after = (
        sensitivity(model, tiny_info(), ranges(model), place(model).layers, IMAGES, classes, runtime)
        for model in (plain, spoiled)
    )
    assert sorted(after) == sorted(place(plain).layers)
    assert list(after.values()) == sorted(after.values())
    assert next(iter(after)) == f"/{bad}/Conv" != next(iter(before))
    assert after[f"/{bad}/Conv"] < before[f"/{bad}/Conv"] - 10


def test_the_layer_with_a_range_far_too_wide_is_the_worst() -> None:
    model = tiny("inverted")
    amax = ranges(model)
    amax["/student/block3/clip1/Clip_output_0"] *= 300
    damage = sensitivity(model, tiny_info(), amax, place(model).layers, IMAGES, runtime="onnxruntime")
    assert next(iter(damage)) == "/student/block3/depthwise/Conv"


def test_damage_is_that_of_one_layer_alone() -> None:
    model = tiny()
    amax = ranges(model)
    layers = place(model).layers
    damage = sensitivity(model, tiny_info(), amax, place(model).layers, IMAGES, runtime="onnxruntime")
    reference = reference_outputs(model, IMAGES, ["anomaly_map"])[0]
    for layer in layers[:3]:
        quantized = with_ranges(model, tiny_info(), amax, place(model, [name for name in layers if name != layer]))[0]
        noisy = reference_outputs(quantized, IMAGES, ["anomaly_map"])[0]
        # A value on the border of two steps may fall either way: a few of some thousand.
        assert damage[layer] == pytest.approx(sqnr_db(reference, noisy), abs=0.5)


def test_every_layer_is_a_step_of_progress() -> None:
    model = tiny()
    steps: list[int] = []
    sensitivity(
        model,
        tiny_info(),
        ranges(model),
        place(model).layers,
        IMAGES[:1],
        runtime="onnxruntime",
        progress=lambda: steps.append(1),
    )
    assert len(steps) == len(place(model).layers) == 12


def test_a_dead_layer_does_no_damage() -> None:
    model = tiny()
    for part in ("weight", "bias"):
        shape = (4, 4, 3, 3) if part == "weight" else (4,)
        set_constant(model, f"teacher/layer1/conv1.{part}", np.zeros(shape, np.float32))
    damage = sensitivity(model, tiny_info(), ranges(model), place(model).layers, IMAGES, runtime="onnxruntime")
    assert damage["/teacher/layer1/conv1/Conv"] > 140  # nor does the residual Add beside it read its input quantized
