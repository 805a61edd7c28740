"""export.implicit: a range for each tensor says what the Q/DQ nodes say, and TensorRT's cache keeps it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Builder, quantize, random_images, reference_outputs, set_constant, tiny, tiny_info, with_readout

from engines.graph import constants
from engines.qdq import for_tensorrt
from export.calibrate import calibrator
from export.errors import CalibrationError
from export.implicit import (
    activation_ranges,
    dead_channels,
    read_cache,
    without_dead_channels,
    without_qdq,
    write_cache,
)

IMAGES = random_images(4)
BACKBONES = ("residual", "inverted")


def implicit(backbone: str) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, float]]:
    """The graph with Q/DQ, the one without, and the ranges."""
    quantized, info, _ = quantize(tiny(backbone), tiny_info(), IMAGES, calibrator("minmax"))
    return (quantized, *without_qdq(quantized, info.residual_scales))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_nothing_is_left_of_the_nodes_and_every_scale_is_kept(backbone: str) -> None:
    quantized, plain, amax = implicit(backbone)
    onnx.checker.check_model(plain, full_check=True)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in plain.graph.node}
    values = constants(quantized)
    nodes = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert len(nodes) > 5
    for node in nodes:
        assert amax[node.input[0]] == pytest.approx(127 * float(values[node.input[1]]), rel=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_weights_are_those_that_int8_holds(backbone: str) -> None:
    quantized, plain, _ = implicit(backbone)
    written, kept = constants(for_tensorrt(quantized)), constants(plain)
    weights = [name for name in kept if name.endswith(".weight")]
    assert len(weights) > 5
    for name in weights:
        np.testing.assert_array_equal(kept[name], written[name])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_inside_a_fusion_has_the_range_of_its_end(backbone: str) -> None:
    _, plain, amax = implicit(backbone)
    readers = {name: [node for node in plain.graph.node if name in node.input] for name in amax}
    inside = [
        node
        for node in plain.graph.node
        if node.op_type == "Conv" and len(read := [n for n in plain.graph.node if node.output[0] in n.input]) == 1
        if read[0].op_type in ("Relu", "Clip") and read[0].output[0] in amax
    ]
    assert inside and readers
    for node in inside:
        (reader,) = readers[node.output[0]]
        assert amax[node.output[0]] == amax[reader.output[0]]


def test_a_convolution_before_an_add_keeps_its_own_range() -> None:
    quantized, info, _ = quantize(tiny(), tiny_info(), IMAGES, calibrator("minmax"))
    name, scale = next(iter(info.residual_scales.items()))
    _, amax = without_qdq(quantized, {name: 3 * scale})
    assert amax[name] == pytest.approx(3 * 127 * scale)


def test_normalisation_and_head_have_no_range() -> None:
    model = with_readout()
    quantized, info, _ = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))
    plain, amax = without_qdq(quantized, info.residual_scales)
    made = {name: node.name for node in plain.graph.node for name in node.output}
    assert not [name for name in amax if made[name].startswith("/head/")]
    assert [name for name in amax if made[name].startswith("/normalize/")] == ["/normalize/Div_output_0"]


def test_all_that_is_joined_has_one_range() -> None:
    # The first is read by another convolution too, so it has a range of its own; the second has none.
    b = Builder()
    x = b.normalize()
    parts = [b.relu(b.conv(x, f"teacher/{name}", 4), f"teacher/{name}/relu") for name in "ab"]
    b.constants["teacher/b.bias"] = b.constants["teacher/b.bias"] + np.float32(20)
    alone = b.conv(parts[0], "teacher/c", 4)
    joined = b.node("Concat", parts, "student", axis=1)
    b.channels[joined] = 8
    model = b.tap(alone, b.conv(joined, "student/d", 4))
    quantized, info, _ = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))
    own = activation_ranges(for_tensorrt(quantized))
    assert set(own) == {x, parts[0], joined} and own[parts[0]] < own[joined]
    _, amax = without_qdq(quantized, info.residual_scales)
    inside = [node.output[0] for node in model.graph.node if node.name in ("/teacher/a/Conv", "/teacher/b/Conv")]
    assert {amax[name] for name in (*parts, *inside, joined)} == {own[joined]}


def with_dead_channels(transposed: bool = False) -> onnx.ModelProto:
    """A convolution whose channels 1 and 3 are all zero, and 2 is next to nothing."""
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "student/a", 4), "student/relu")
    weight = b.random.standard_normal((4, 4, 2, 2)).astype(np.float32)
    weight[1] = weight[3] = 0
    weight[2] = -1e-12
    axes = weight.swapaxes(0, 1) if transposed else weight
    b.constant("student/b.weight", np.ascontiguousarray(axes))
    operator = "ConvTranspose" if transposed else "Conv"
    return b.tap(b.node(operator, [x, "student/b.weight"], "student/b", kernel_shape=[2, 2]))


@pytest.mark.parametrize("transposed", [False, True])
def test_every_channel_gets_a_weight_that_changes_nothing(transposed: bool) -> None:
    model = with_dead_channels(transposed)
    name = f"/student/b/{'ConvTranspose' if transposed else 'Conv'}"
    assert dead_channels(model) == [f"{name}: 2 channels are all zero, at which INT8 without Q/DQ ends"]
    before = model.SerializeToString(deterministic=True)
    alive = without_dead_channels(model)
    assert dead_channels(alive) == [] and model.SerializeToString(deterministic=True) == before
    old, new = (constants(each)["student/b.weight"] for each in (model, alive))
    old, new = (each.swapaxes(0, 1) if transposed else each for each in (old, new))
    greatest = np.abs(old).max()
    np.testing.assert_array_equal(new[0], old[0])
    assert np.float16(new[1].max()) == np.float16(greatest * 2**-14) > 0 and new[2].min() == -new[1].max()
    assert [np.count_nonzero(new[channel] != old[channel]) for channel in range(4)] == [0, 1, 1, 1]
    plain, woken = (reference_outputs(each, IMAGES, ["feature0"])[0] for each in (model, alive))
    assert 0 < np.abs(plain - woken).max() < 2e-4 * np.abs(plain).max()


def test_a_layer_that_is_all_zero_gets_what_float16_keeps() -> None:
    model = with_dead_channels()
    set_constant(model, "student/b.weight", np.zeros((4, 4, 2, 2), np.float32))
    weight = constants(without_dead_channels(model))["student/b.weight"]
    assert (np.abs(weight.astype(np.float16)).reshape(4, -1).max(axis=1) > 0).all() and weight.max() < 1e-7


def test_the_graph_without_nodes_has_no_dead_channel() -> None:
    quantized, info, _ = quantize(with_dead_channels(), tiny_info(), IMAGES, calibrator("minmax"))
    assert dead_channels(without_qdq(quantized, info.residual_scales)[0]) == []


def test_the_graph_without_nodes_computes_as_the_one_with_them_up_to_the_rounding() -> None:
    quantized, plain, _ = implicit("residual")
    (with_nodes,), (without,) = (reference_outputs(each, IMAGES, ["score"]) for each in (quantized, plain))
    assert not np.array_equal(with_nodes, without)
    np.testing.assert_allclose(with_nodes, without, rtol=0.2)


def test_a_cache_is_what_tensorrt_writes() -> None:
    # NVIDIA's own caches for pixels from 0 to 1 hold `data: 3c010a14`: a scale of 0.0078759, so an amax of 1.0002.
    assert write_cache({"data": 1.000244140625}, "8.5.2.2") == b"TRT-8502-EntropyCalibration2\ndata: 3c010a14\n"


def test_a_cache_keeps_names_and_ranges() -> None:
    amax = {"/a: b/Conv_output_0": 1.5, "c": 0.001, "d": 0.0}
    assert read_cache(write_cache(amax, "8.6.1.6")) == pytest.approx(amax, rel=1e-6)


@pytest.mark.parametrize(
    "content", [b"", b"TRT-8502-EntropyCalibration2\nno scale", b"x: 00000000", b"\xff\xfe", b"TRT-1\na: 3c"]
)
def test_what_is_no_cache_is_refused(content: bytes) -> None:
    with pytest.raises(CalibrationError, match="a calibration cache that cannot be read"):
        read_cache(content)
