"""export.check: each thing that TensorRT 8.5 refuses, in a graph that is broken in this one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import FEATURES, node_of, quantize, random_images, set_constant, tiny, tiny_info
from onnx import helper

from engines.graph import consumers, rename_input, sort_nodes
from engines.qdq import for_cpu, for_tensorrt
from export.calibrate import calibrator
from export.check import TARGETS, check_model
from export.errors import ExportError
from export.float16 import to_float16
from export.placement import place
from export.quantize import with_ranges

RELU = "/teacher/layer1/relu1/Relu"
CONV = "/teacher/layer1/conv2/Conv"  # reads RELU
WEIGHT = "teacher/layer1/conv2.weight"


def int8(backbone: str = "residual") -> onnx.ModelProto:
    return for_tensorrt(quantize(tiny(backbone), tiny_info(), random_images(2), calibrator("minmax"))[0])


def only_problem(model: onnx.ModelProto, target: str = "jetson-xavier-nx") -> str:
    problems = check_model(model, target)
    assert len(problems) == 1, problems
    return problems[0]


def insert_after(model: onnx.ModelProto, tensor: str, nodes: list[onnx.NodeProto]) -> None:
    """Put a chain of nodes between a tensor and those who read it; the first reads it, and the last is read instead."""
    for reader in consumers(model)[tensor]:
        rename_input(reader, tensor, nodes[-1].output[0])
    model.graph.node.extend(nodes)
    sort_nodes(model)


def pair(tensor: str, name: str) -> list[onnx.NodeProto]:
    """A Q/DQ pair that borrows a good scale."""
    parameters = [f"{RELU}_output_0_scale", f"{RELU}_output_0_zero_point"]
    return [
        helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{name}_q"], name=f"{name}_q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"], name=f"{name}_dq"),
    ]


# What is accepted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("backbone", FEATURES)
@pytest.mark.parametrize("convert", [lambda model: model, to_float16], ids=["fp32", "fp16"])
def test_float_graphs_have_no_problem(target: str, backbone: str, convert: Callable[[Any], Any]) -> None:
    assert check_model(convert(tiny(backbone)), target) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("backbone", FEATURES)
def test_int8_graph_has_no_problem(target: str, backbone: str) -> None:
    assert check_model(int8(backbone), target) == []


def test_checking_does_not_change_the_graph() -> None:
    model = int8()
    before = model.SerializeToString(deterministic=True)
    check_model(model, "tensorrt")
    assert model.SerializeToString(deterministic=True) == before


def test_cpu_takes_what_tensorrt_refuses() -> None:
    model = int8()
    node_of(model, RELU).op_type = "Mish"
    set_constant(model, f"{RELU}_output_0_zero_point", np.array(3, np.int8))
    model.opset_import[0].version = 21
    assert check_model(model, "cpu") == []
    assert check_model(model, "tensorrt") != []


@pytest.mark.parametrize("target", ["", "jetson", "TensorRT"])
def test_unknown_target_lists_the_known(target: str) -> None:
    with pytest.raises(ExportError, match=f"unknown target '{target}': choose one of cpu, tensorrt, jetson-xavier-nx"):
        check_model(tiny(), target)


# The opset ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "newest"), [("tensorrt", 17), ("jetson-xavier-nx", 17), ("cpu", 21)])
def test_newer_opset(target: str, newest: int) -> None:
    model = tiny()
    model.opset_import[0].version = newest
    assert check_model(model, target) == []
    model.opset_import[0].version = newest + 1
    assert only_problem(model, target) == f"opset {newest + 1} is newer than {newest}"


def test_opset_of_the_standard_domain_counts_by_either_name() -> None:
    model = tiny()
    model.opset_import[0].domain = "ai.onnx"
    model.opset_import[0].version = 18
    assert "opset 18" in only_problem(model)


def compute(model: onnx.ModelProto, node: str, index: int) -> None:
    """Let an input of a node come out of another node, though its value stays what it was."""
    target = node_of(model, node)
    model.graph.node.append(helper.make_node("Identity", [target.input[index]], ["computed"], name="/computed"))
    target.input[index] = "computed"
    sort_nodes(model)
    onnx.checker.check_model(model)


# Scales and zero points -----------------------------------------------------------------------------------------------


def named(problems: list[str], words: str) -> set[str]:
    """The nodes of which that is said; nothing else may be said."""
    assert all(words in line for line in problems), problems
    return {line.split(":")[0] for line in problems}


BOTH = {f"{RELU}_output_0/Q", f"{RELU}_output_0/DQ"}


@pytest.mark.parametrize("backbone", FEATURES)
def test_any_layers_left_in_float_are_accepted(backbone: str) -> None:
    model = tiny(backbone)
    layers = place(model).layers
    amax = {name: 1.0 for name in place(model).ranged()}
    random = np.random.default_rng(0)
    some = [random.permutation(layers)[: random.integers(2, len(layers))] for _ in range(40)]
    for float_layers in [*([layer] for layer in layers), *some, layers]:
        mixed = with_ranges(model, tiny_info(), amax, place(model, list(float_layers)))[0]
        assert check_model(for_tensorrt(mixed), "jetson-xavier-nx") == []


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_scale_that_is_not_above_0(value: float) -> None:
    model = int8()
    set_constant(model, f"{RELU}_output_0_scale", np.array(value, np.float32))
    assert named(check_model(model, "tensorrt"), "every scale must be") == BOTH


def test_zero_scale_of_one_channel_of_a_weight() -> None:
    # A dead channel as pytorch-quantization writes it.
    model = int8()
    set_constant(model, f"{WEIGHT}_scale", np.array([0.1, 0.0, 0.1, 0.1], np.float32))
    assert named(check_model(model, "tensorrt"), "every scale must be") == {f"{WEIGHT}/Q", f"{WEIGHT}/DQ"}


def test_scale_that_is_computed() -> None:
    model = int8()
    compute(model, f"{RELU}_output_0/Q", 1)
    line = only_problem(model)
    assert f"{RELU}_output_0/Q" in line and "every scale must be a constant" in line


def test_scale_of_a_weight_that_is_computed() -> None:
    model = int8()
    compute(model, f"{WEIGHT}/DQ", 1)
    assert named(check_model(model, "tensorrt"), "every scale must be a constant") == {f"{WEIGHT}/DQ"}


def test_scale_in_a_constant_node_is_a_constant() -> None:
    # As torch's exporter writes it for quantization-aware training.
    model = int8()
    for index, end in ((1, "scale"), (2, "zero_point")):
        name = f"{RELU}_output_0_{end}"
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        model.graph.node.insert(
            0, helper.make_node("Constant", [], [f"constant{index}"], name=f"/C{index}", value=tensor)
        )
        for name in BOTH:
            node_of(model, name).input[index] = f"constant{index}"
    onnx.checker.check_model(model)
    assert check_model(model, "tensorrt") == []


def test_zero_point_that_is_not_0() -> None:
    model = int8()
    set_constant(model, f"{RELU}_output_0_zero_point", np.array(3, np.int8))
    assert named(check_model(model, "tensorrt"), "zero point must be a signed int8 0") == BOTH


@pytest.mark.parametrize("value", [0, 128])
def test_zero_point_that_is_unsigned(value: int) -> None:
    model = int8()
    set_constant(model, f"{RELU}_output_0_zero_point", np.array(value, np.uint8))
    onnx.checker.check_model(model)
    assert named(check_model(model, "tensorrt"), "zero point must be a signed int8 0") == BOTH


def test_dequantize_without_a_zero_point() -> None:
    model = int8()
    del node_of(model, f"{RELU}_output_0/DQ").input[2:]
    onnx.checker.check_model(model)
    assert f"{RELU}_output_0/DQ: the zero point" in only_problem(model)


def test_zero_points_that_differ_from_the_scales_in_size() -> None:
    model = int8()
    set_constant(model, f"{WEIGHT}_zero_point", np.array([0], np.int8))
    assert named(check_model(model, "tensorrt"), "differ in size") == {f"{WEIGHT}/Q", f"{WEIGHT}/DQ"}


def test_activation_with_a_scale_for_each_channel() -> None:
    model = int8()
    set_constant(model, f"{RELU}_output_0_scale", np.full(4, 0.1, np.float32))
    set_constant(model, f"{RELU}_output_0_zero_point", np.zeros(4, np.int8))
    assert f"{RELU}_output_0/Q: activations take one scale" in only_problem(model)


# Where Q/DQ stands ----------------------------------------------------------------------------------------------------


def test_one_scale_for_a_whole_weight() -> None:
    model = int8()
    set_constant(model, f"{WEIGHT}_scale", np.array(0.01, np.float32))
    set_constant(model, f"{WEIGHT}_zero_point", np.array(0, np.int8))
    assert f"{CONV}: the weights need one scale" in only_problem(model)


def with_transposed() -> onnx.ModelProto:
    """The tiny graph with a ConvTranspose behind RELU, quantized."""
    model = tiny()
    set_constant(model, "up.weight", np.random.default_rng(0).standard_normal((4, 4, 1, 1), np.float32))
    set_constant(model, "up.bias", np.float32([0.1, -0.2, 0.3, 0.4]))
    inputs = [f"{RELU}_output_0", "up.weight", "up.bias"]
    insert_after(
        model, inputs[0], [helper.make_node("ConvTranspose", inputs, ["up"], name="/teacher/up/ConvTranspose")]
    )
    return for_tensorrt(quantize(model, tiny_info(), random_images(2), calibrator("minmax"))[0])


def test_transposed_convolution_with_a_scale_for_each_channel() -> None:
    model = with_transposed()
    assert check_model(model, "jetson-xavier-nx") == []
    set_constant(model, "up.weight_scale", np.full(4, 0.01, np.float32))
    set_constant(model, "up.weight_zero_point", np.zeros(4, np.int8))
    line = only_problem(model)
    assert line.startswith("/teacher/up/ConvTranspose: the weights of a ConvTranspose need one scale in all")


@pytest.mark.parametrize("count", [1, 3])
def test_bias_beyond_int32(count: int) -> None:
    model = int8()
    scale = np.full(4, 0.01, np.float32)
    scale[:count] = 1e-13
    set_constant(model, f"{WEIGHT}_scale", scale)
    set_constant(model, "teacher/layer1/conv2.bias", np.full(4, -0.5, np.float32))
    assert f"{CONV}: the biases of {count} channels are beyond int32" in only_problem(model)


def test_weights_that_are_not_quantized() -> None:
    model = int8()
    set_constant(model, "float", np.ones((4, 4, 3, 3), np.float32))
    node_of(model, CONV).input[1] = "float"
    assert f"{CONV}: the input is quantized, the weights are not" in only_problem(model)


@pytest.mark.parametrize("target", ["tensorrt", "jetson-xavier-nx"])
def test_integer_weights_are_refused_by_tensorrt_below_10(target: str) -> None:
    model = for_cpu(int8())
    line = only_problem(model, target)
    assert "teacher/conv1.weight_int8" in line and "below 10" in line and "11 more" in line
    assert check_model(model, "cpu") == []


def test_batch_norm_that_was_not_folded() -> None:
    model = int8()
    parameters = {name: np.ones(4, np.float32) for name in ("gamma", "beta", "mean", "var")}
    for name, value in parameters.items():
        set_constant(model, name, value)
    tensor = f"{CONV}_output_0"
    norm = helper.make_node("BatchNormalization", [tensor, *parameters], ["normed"], name="/teacher/layer1/bn2/BN")
    insert_after(model, tensor, [norm])
    line = only_problem(model)
    assert "/teacher/layer1/bn2/BN" in line and "must be folded" in line


def test_batch_norm_in_a_float_graph_is_accepted() -> None:
    model = tiny()
    parameters = {name: np.ones(4, np.float32) for name in ("gamma", "beta", "mean", "var")}
    for name, value in parameters.items():
        set_constant(model, name, value)
    tensor = f"{CONV}_output_0"
    insert_after(model, tensor, [helper.make_node("BatchNormalization", [tensor, *parameters], ["normed"], name="/bn")])
    assert check_model(model, "tensorrt") == []


@pytest.mark.parametrize(
    ("backbone", "add", "skip"),
    [
        ("inverted", "/teacher/block3/Add", "/teacher/block2/Add_output_0"),
        ("residual", "/student/layer2/Add", "/student/layer2/downsample/Conv_output_0"),
    ],
    ids=["identity", "downsample"],
)
def test_skip_branch_without_a_pair(backbone: str, add: str, skip: str) -> None:
    model = int8(backbone)
    quantized = next(name for name in node_of(model, add).input if name.startswith(f"{skip}_dq"))
    rename_input(node_of(model, add), quantized, skip)
    line = only_problem(model)
    assert add in line and "skip branch" in line


def test_pair_on_the_wrong_branch_of_an_add() -> None:
    # The Add then fuses with nothing, as if there were no pair.
    model = int8()
    main, skip = (f"/teacher/layer2/{place}/Conv_output_0" for place in ("conv2", "downsample"))
    rename_input(node_of(model, "/teacher/layer2/Add"), f"{skip}_dq", skip)
    insert_after(model, main, pair(main, "wrong"))
    assert "/teacher/layer2/" in only_problem(model)


def test_pair_between_a_convolution_and_its_relu() -> None:
    model = int8()
    tensor = "/teacher/layer1/conv1/Conv_output_0"
    insert_after(model, tensor, pair(tensor, "wrong"))
    onnx.checker.check_model(model)
    line = only_problem(model)
    assert "/teacher/layer1/conv1/Conv" in line and RELU in line


def test_pair_between_a_convolution_and_its_clip() -> None:
    model = int8("inverted")
    tensor = "/teacher/block2/expand/Conv_output_0"
    scale, zero = "/teacher/stem/clip/Clip_output_0_scale", "/teacher/stem/clip/Clip_output_0_zero_point"
    nodes = pair(tensor, "wrong")
    for node in nodes:
        node.input[1], node.input[2] = scale, zero
    insert_after(model, tensor, nodes)
    onnx.checker.check_model(model)
    assert "/teacher/block2/expand/Conv" in only_problem(model)


def test_several_problems_are_all_listed() -> None:
    model = int8()
    set_constant(model, f"{RELU}_output_0_scale", np.array(0.0, np.float32))
    compute(model, "/head/TopK", 1)
    model.opset_import[0].version = 18
    problems = check_model(model, "tensorrt")
    assert len(problems) == 4  # Q and DQ
    assert all("\n" not in line for line in problems)


def test_a_file_without_a_graph() -> None:
    assert check_model(onnx.ModelProto(), "cpu") == ["there is no graph in it"]
