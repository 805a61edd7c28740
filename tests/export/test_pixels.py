"""export.pixels: the first convolutions read 8-bit pixels as they are."""

from __future__ import annotations

from typing import Callable

import numpy as np
import onnx
import pytest
from graphs import Builder, node_of, quantize, random_images, reference_outputs, tiny, tiny_info, with_readout

from engines.graph import attribute, constants
from export.calibrate import calibrator
from export.explain import layer_reports, observed_tensors
from export.pixels import PIXELS, RANGE, on_pixels
from export.placement import place
from export.quantize import collect_histograms, with_ranges

IMAGES = random_images(4)


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The INT8 graph of a rewritten one."""
    histograms = collect_histograms(model, place(model).ranged(), IMAGES)
    amax = {name: calibrator("minmax")(histogram) for name, histogram in histograms.items()}
    return with_ranges(model, tiny_info(), {**amax, PIXELS: RANGE}, place(model))[0]


@pytest.mark.parametrize("backbone", ["residual", "inverted"])
def test_the_graph_computes_the_same_up_to_the_border(backbone: str) -> None:
    model = with_readout(backbone)
    rewritten = on_pixels(model, tiny_info())
    onnx.checker.check_model(rewritten, full_check=True)
    assert PIXELS in place(rewritten).ranged()
    for one, other in zip(*(reference_outputs(each, IMAGES, ["score", "anomaly_map"]) for each in (model, rewritten))):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def test_int8_reads_every_pixel_as_it_is() -> None:
    (integers,) = reference_outputs(in_int8(on_pixels(tiny(), tiny_info())), IMAGES, [f"{PIXELS}_dq"])
    pad = attribute(next(node for node in tiny().graph.node if node.op_type == "Conv"), "pads")[0]  # type: ignore[index]
    assert pad == 1
    inside = integers[:, :, pad:-pad, pad:-pad].transpose(0, 2, 3, 1).astype(np.int64) + 128
    np.testing.assert_array_equal(inside, IMAGES)
    border = integers[:, :, 0, :].reshape(len(IMAGES), 3, -1)
    mean = np.rint(255 * np.array(tiny_info().mean)).reshape(1, 3, 1) - 128
    assert np.abs(border - mean).max() <= 1  # a mean pixel, as zeros are


def test_no_pixel_is_said_to_be_clipped() -> None:
    model = on_pixels(tiny(), tiny_info())
    placement, black = place(model), np.zeros_like(IMAGES)
    histograms = collect_histograms(model, observed_tensors(placement), black)
    amax = {**{name: calibrator("minmax")(histogram) for name, histogram in histograms.items()}, PIXELS: RANGE}
    assert histograms[PIXELS].amax == 128
    reports = [each for each in layer_reports(model, placement, histograms, amax, {}, []) if each.tensor == PIXELS]
    assert reports and all(each.clipped_percent == 0 and each.activation_sqnr_db == np.inf for each in reports)


def test_what_the_first_convolution_computes_is_nearer_to_float() -> None:
    b = Builder()
    model = b.tap(b.conv(b.normalize(), "student/first", 8))
    (expected,) = reference_outputs(model, IMAGES, ["feature0"])
    before = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))[0]
    errors = []
    for each in (before, in_int8(on_pixels(model, tiny_info()))):
        errors.append(float(np.square(reference_outputs(each, IMAGES, ["feature0"])[0] - expected).mean()))
    assert errors[1] < 0.7 * errors[0]


def test_a_convolution_without_a_bias_gets_one() -> None:
    b = Builder()
    model = b.tap(b.conv(b.normalize(), "student/first", 8))
    del node_of(model, "/student/first/Conv").input[2]
    (one,), (other,) = (
        reference_outputs(each, IMAGES, ["feature0"]) for each in (model, on_pixels(model, tiny_info()))
    )
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def test_weights_of_before_are_gone_and_the_given_model_stays() -> None:
    model = tiny()
    before = model.SerializeToString(deterministic=True)
    rewritten = on_pixels(model, tiny_info())
    assert model.SerializeToString(deterministic=True) == before
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    assert first.input[1] in constants(model) and first.input[1] not in constants(rewritten)
    names, kept = ({node.name for node in each.graph.node} for each in (model, rewritten))
    assert names - kept == {"/normalize/Div"}


def read_by_a_pool(b: Builder) -> onnx.ModelProto:
    x = b.normalize()
    return b.tap(b.conv(x, "student/first", 4), b.max_pool(x, "student/pool"))


def padded_in_two_ways(b: Builder) -> onnx.ModelProto:
    x = b.normalize()
    return b.tap(b.conv(x, "teacher/first", 4), b.conv(x, "student/first", 4, kernel=5))


def padded_on_one_side(b: Builder) -> onnx.ModelProto:
    model = b.tap(b.conv(b.normalize(), "student/first", 4))
    node = node_of(model, "/student/first/Conv")
    kept = [each for each in node.attribute if each.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [0, 0, 1, 1])])
    return model


def padded_by_itself(b: Builder) -> onnx.ModelProto:
    model = b.tap(b.conv(b.normalize(), "student/first", 4))
    node = node_of(model, "/student/first/Conv")
    kept = [each for each in node.attribute if each.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("auto_pad", "SAME_UPPER")])
    return model


def depthwise(b: Builder) -> onnx.ModelProto:
    return b.tap(b.conv(b.normalize(), "student/first", 3, group=3))


@pytest.mark.parametrize(
    "build",
    [read_by_a_pool, padded_in_two_ways, padded_on_one_side, padded_by_itself, depthwise],
    ids=lambda build: build.__name__,
)
def test_left_alone(build: Callable[[Builder], onnx.ModelProto]) -> None:
    model = build(Builder())
    assert on_pixels(model, tiny_info()) is model


def test_a_graph_that_normalises_in_another_way_is_left_alone() -> None:
    assert on_pixels(tiny(), tiny_info(mean=[0.5, 0.5, 0.5])).graph.node[-1].name == tiny().graph.node[-1].name
    model = tiny()
    assert on_pixels(model, tiny_info(mean=[0.5, 0.5, 0.5])) is model
    assert on_pixels(model, tiny_info(std=[0.25, 0.25, 0.25])) is model
