"""engines.unsigned: the graph for ONNX Runtime on x86 computes what the signed graph says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import FEATURES, Builder, node_of, quantize, random_images, runtime_outputs, set_constant, tiny, tiny_info

from engines.graph import constants, consumers, producers
from engines.unsigned import to_unsigned
from export.calibrate import calibrator

IMAGES = random_images(4)


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(model, tiny_info(), IMAGES, calibrator("minmax"))[0]


def assert_same(signed: onnx.ModelProto, unsigned: onnx.ModelProto, names: list[str]) -> None:
    onnx.checker.check_model(unsigned)
    expected, found = (runtime_outputs(model, IMAGES, names) for model in (signed, unsigned))
    for index, name in enumerate(names):
        assert np.ptp(expected[index]) > 0, name  # two constant outputs would be no agreement
        np.testing.assert_array_equal(found[index], expected[index], err_msg=name)


@pytest.mark.parametrize("backbone", FEATURES)
def test_without_residual_scales_the_outputs_are_bit_identical(backbone: str) -> None:
    signed = quantized(tiny(backbone))
    assert_same(signed, to_unsigned(signed, {}), ["score", "anomaly_map"])


def test_relu_becomes_a_clamp_of_integers_behind_the_convolution() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    signed = quantized(b.tap(b.conv(x, "teacher/b", 4)))
    unsigned = to_unsigned(signed, {})
    assert_same(signed, unsigned, ["feature0"])
    assert not any(node.op_type == "Relu" for node in unsigned.graph.node)
    quantize_node = node_of(unsigned, "/teacher/relu/Relu_output_0/Q")
    assert quantize_node.input[0] == "/teacher/a/Conv_output_0"
    clamp = consumers(unsigned)[quantize_node.output[0]]
    assert [node.op_type for node in clamp] == ["Clip"]
    assert [int(constants(unsigned)[name]) for name in clamp[0].input[1:]] == [128, 255]


# The last bounds leave no grid point at their edges: they are rounded like any other value.
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (0.0, 0.5), (-0.3, 0.47)])
def test_clip_becomes_a_clamp_of_integers(low: float, high: float) -> None:
    b = Builder()
    x = b.clip(b.conv(b.normalize(), "teacher/a", 4), "teacher/clip", low, high)
    signed = quantized(b.tap(b.conv(x, "teacher/b", 4)))
    unsigned = to_unsigned(signed, {})
    assert_same(signed, unsigned, ["feature0"])
    assert not any(node.name == "/teacher/clip/Clip" for node in unsigned.graph.node)


def test_clip_at_6_has_the_integer_of_6() -> None:
    # A range of [0, 6] has the scale 6 / 127, so 6 is 127 signed and 255 unsigned.
    b = Builder()
    wide = b.conv(b.normalize(), "teacher/a", 4)
    b.constants["teacher/a.weight"] *= 10
    x = b.clip(wide, "teacher/clip")
    unsigned = to_unsigned(quantized(b.tap(b.conv(x, "teacher/b", 4))), {})
    clamp = next(node for node in unsigned.graph.node if node.op_type == "Clip")
    assert [int(constants(unsigned)[name]) for name in clamp.input[1:]] == [128, 255]


def test_clip_narrower_than_the_range_keeps_its_bound() -> None:
    # One Q/DQ pair of scale 0.1 behind Clip(0, 6), by hand: 6 is the integer 60, that is 188 unsigned.
    b = Builder()
    x = b.clip(b.conv(b.normalize(), "teacher/a", 4), "teacher/clip")
    signed = quantized(b.tap(b.conv(x, "teacher/b", 4)))
    set_constant(signed, "/teacher/clip/Clip_output_0_scale", np.float32(0.1))
    unsigned = to_unsigned(signed, {})
    assert_same(signed, unsigned, ["feature0"])
    clamp = next(node for node in unsigned.graph.node if node.op_type == "Clip")
    assert [int(constants(unsigned)[name]) for name in clamp.input[1:]] == [128, 188]


@pytest.mark.parametrize("bounds", ["min", "max", "none"])
def test_clip_with_one_bound_or_none_keeps_its_values(bounds: str) -> None:
    b = Builder()
    x = b.clip(b.conv(b.normalize(), "teacher/a", 4), "teacher/clip", 0.1, 0.5)
    model = b.tap(b.conv(x, "teacher/b", 4))
    clip = node_of(model, "/teacher/clip/Clip")
    kept = {"min": clip.input[:2], "max": [clip.input[0], "", clip.input[2]], "none": clip.input[:1]}[bounds]
    kept = list(kept)
    del clip.input[:]
    clip.input.extend(kept)
    signed = quantized(model)
    assert_same(signed, to_unsigned(signed, {}), ["feature0"])


def test_activation_that_two_convolutions_read_is_clamped_once() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    total = b.add(b.conv(x, "teacher/b", 4), b.conv(x, "teacher/c", 4), "teacher")
    signed = quantized(b.tap(total))
    unsigned = to_unsigned(signed, {})
    assert_same(signed, unsigned, ["feature0"])
    assert sum(node.op_type == "Clip" for node in unsigned.graph.node) == 1


def test_activation_that_the_head_reads_too_stays() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    y = b.conv(x, "teacher/b", 4)
    signed = quantized(b.tap(x, y))
    unsigned = to_unsigned(signed, {})
    assert_same(signed, unsigned, ["feature0", "feature1"])
    assert node_of(unsigned, "/head/tap0/Identity").input[0] == x
    assert len(np.unique(runtime_outputs(unsigned, IMAGES, ["feature0"])[0])) > 256  # never quantized


def test_zero_points_of_activations_are_unsigned_and_of_weights_signed() -> None:
    unsigned = to_unsigned(quantized(tiny()), {})
    values, made_by = constants(unsigned), producers(unsigned)
    for node in unsigned.graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[2]].dtype == np.uint8 and values[node.input[2]] == 128
        if node.op_type == "DequantizeLinear" and node.input[0] not in made_by:
            assert values[node.input[0]].dtype == np.int8 and not values[node.input[2]].any()


def test_no_quantize_stands_behind_an_activation_that_the_backbone_alone_reads() -> None:
    unsigned = to_unsigned(quantized(tiny("inverted")), {})
    made_by = producers(unsigned)
    sources = [made_by[node.input[0]] for node in unsigned.graph.node if node.op_type == "QuantizeLinear"]
    assert {node.op_type for node in sources} == {"Div", "Conv", "Add"}


def test_residual_scales_add_a_pair_before_the_add() -> None:
    name = "/teacher/layer1/conv2/Conv_output_0"
    signed = quantized(tiny())
    unsigned = to_unsigned(signed, {name: 0.25})
    onnx.checker.check_model(unsigned)
    dequantize = producers(unsigned)[node_of(unsigned, "/teacher/layer1/Add").input[0]]
    assert dequantize.op_type == "DequantizeLinear"
    quantize_node = producers(unsigned)[dequantize.input[0]]
    assert quantize_node.op_type == "QuantizeLinear" and quantize_node.input[0] == name
    assert [reader.name for reader in consumers(unsigned)[name]] == [quantize_node.name]
    assert len(unsigned.graph.node) == len(to_unsigned(signed, {}).graph.node) + 2
    before, after = runtime_outputs(unsigned, IMAGES, [name, dequantize.output[0]])
    np.testing.assert_array_equal(after, np.clip(np.rint(before / 0.25), -128, 127) * 0.25)


def test_residual_pair_is_not_read_by_the_head() -> None:
    # The head reads the features before they are quantized, also where a feature is a convolution's output.
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    y = b.conv(x, "teacher/b", 4)
    signed = quantized(b.tap(y, b.conv(b.add(y, x, "teacher"), "teacher/c", 4)))
    unsigned = to_unsigned(signed, {y: 0.25})
    assert node_of(unsigned, "/teacher/Add").input[0] != y
    assert node_of(unsigned, "/head/tap0/Identity").input[0] == y


@pytest.mark.parametrize("backbone", FEATURES)
def test_every_residual_scale_that_quantize_stores_is_used(backbone: str) -> None:
    signed, info, _ = quantize(tiny(backbone), tiny_info(), IMAGES, calibrator("minmax"))
    unsigned = to_unsigned(signed, info.residual_scales)
    onnx.checker.check_model(unsigned)
    made_by = producers(unsigned)
    assert info.residual_scales
    for name in info.residual_scales:
        assert [node.op_type for node in consumers(unsigned)[name]] == ["QuantizeLinear"]
    for node in unsigned.graph.node:
        if node.op_type == "Add" and info.residual_scales.keys() & set(node_of(signed, node.name).input):
            assert {made_by[name].op_type for name in node.input} == {"DequantizeLinear"}


def test_the_original_is_not_changed() -> None:
    signed = quantized(tiny("inverted"))
    before = signed.SerializeToString(deterministic=True)
    to_unsigned(signed, {"/teacher/block2/project/Conv_output_0": 0.1})
    assert signed.SerializeToString(deterministic=True) == before


def test_no_constant_is_left_over() -> None:
    unsigned = to_unsigned(quantized(tiny("inverted")), {})
    used = {name for node in unsigned.graph.node for name in node.input}
    assert set(constants(unsigned)) <= used


def test_float_graph_is_left_as_it_is() -> None:
    model = tiny("inverted")
    assert to_unsigned(model, {}).graph == model.graph
