"""export.placement: one rule per test, on a tiny graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import FEATURES, Builder, node_of, random_images, runtime_outputs, set_constant, tiny

from engines.graph import constants, consumers, in_backbone, producers
from engines.qdq import for_tensorrt
from export.check import check_model
from export.placement import CONVOLUTIONS, QuantizedTensor, QuantizedWeight, place
from export.quantize import collect_histograms, insert_qdq

INPUT = "/normalize/Div_output_0"
both_orders = pytest.mark.parametrize("skip_first", [False, True], ids=["f(x) + x", "x + f(x)"])


def pairs(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Tensor with a Q/DQ pair -> the nodes that read it behind the pair."""
    placed = place(model).activations
    assert len({tensor.name for tensor in placed}) == len(placed), "two pairs for one tensor"
    return {tensor.name: tensor.readers for tensor in placed}


def add(b: Builder, x: str, y: str, place: str, swapped: bool) -> str:
    return b.add(y, x, place) if swapped else b.add(x, y, place)


def conv_transpose(b: Builder, x: str, place: str, channels: int, group: int = 1) -> str:
    weight = b.constant(
        f"{place}.weight", b.random.standard_normal((b.channels[x], channels // group, 2, 2)).astype("f")
    )
    y = b.node("ConvTranspose", [x, weight], place, kernel_shape=[2, 2], strides=[2, 2], group=group)
    b.channels[y] = channels
    return y


# Rule 1: inputs of convolutions ---------------------------------------------------------------------------------------


def test_input_of_a_convolution_gets_a_pair() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    model = b.tap(b.relu(b.conv(x, "teacher/b", 4), "teacher/last"))
    assert pairs(model) == {INPUT: ["/teacher/a/Conv"], x: ["/teacher/b/Conv"]}


def test_input_that_two_convolutions_share_gets_one_pair() -> None:
    b = Builder()
    x = b.normalize()
    model = b.tap(b.conv(x, "teacher/a", 4), b.conv(x, "student/a", 4))
    assert place(model).activations == [QuantizedTensor(INPUT, ["/teacher/a/Conv", "/student/a/Conv"], INPUT)]


def test_input_of_a_transposed_convolution_gets_a_pair() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "student/a", 4), "student/relu")
    model = b.tap(conv_transpose(b, x, "student/up", 4))
    assert pairs(model)[x] == ["/student/up/ConvTranspose"]


def test_tensor_that_no_convolution_reads_gets_none() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    assert list(pairs(b.tap(b.max_pool(x, "teacher/pool")))) == [INPUT]


@pytest.mark.parametrize("backbone", FEATURES)
def test_nothing_stands_between_a_convolution_and_what_it_fuses_with(backbone: str) -> None:
    model = tiny(backbone)
    made_by, read_by = producers(model), consumers(model)
    for tensor in place(model).activations:
        if made_by[tensor.name].op_type in CONVOLUTIONS:
            assert not {reader.op_type for reader in read_by[tensor.name]} & {"Relu", "Clip"}, tensor.name


# Rule 3: skip branch of Add -------------------------------------------------------------------------------------------


@both_orders
def test_identity_skip_branch_shares_the_pair_of_the_block_input(skip_first: bool) -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/stem", 4), "teacher/relu")
    y = b.conv(x, "teacher/main", 4)
    model = b.tap(add(b, y, x, "teacher", skip_first))
    assert pairs(model) == {INPUT: ["/teacher/stem/Conv"], x: ["/teacher/main/Conv", "/teacher/Add"]}


@both_orders
def test_downsampling_skip_branch_gets_a_pair_behind_its_convolution(skip_first: bool) -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/stem", 4), "teacher/relu")
    y = b.relu(b.conv(x, "teacher/main1", 6, stride=2), "teacher/main_relu")
    main = b.conv(y, "teacher/main2", 6)
    skip = b.conv(x, "teacher/downsample", 6, kernel=1, stride=2)
    placed = pairs(b.tap(add(b, main, skip, "teacher", skip_first)))
    assert placed[skip] == ["/teacher/Add"]
    assert placed[x] == ["/teacher/main1/Conv", "/teacher/downsample/Conv"]
    assert main not in placed


@both_orders
def test_skip_branch_from_a_linear_bottleneck_is_the_block_input(skip_first: bool) -> None:
    # MobileNetV2: x comes straight from a convolution, and so does f(x); x, which others read too, is the skip branch.
    # torch writes `x + self.conv(x)`, so x is the first input of the Add.
    b = Builder()
    x = b.conv(b.clip(b.conv(b.normalize(), "teacher/stem", 4), "teacher/clip"), "teacher/bottleneck", 4, kernel=1)
    y = b.clip(b.conv(x, "teacher/expand", 8, kernel=1), "teacher/clip1")
    main = b.conv(y, "teacher/project", 4, kernel=1)
    placed = pairs(b.tap(add(b, main, x, "teacher", skip_first)))
    assert placed[x] == ["/teacher/expand/Conv", "/teacher/Add"]
    assert main not in placed


@both_orders
def test_skip_branch_from_another_sum_is_that_sum(skip_first: bool) -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/a", 4)
    total = b.add(b.conv(x, "teacher/b", 4), x, "teacher/first")
    main = b.conv(b.relu(b.conv(total, "teacher/c", 4), "teacher/relu"), "teacher/d", 4)
    placed = pairs(b.tap(add(b, main, total, "teacher/second", skip_first)))
    assert placed[total] == ["/teacher/c/Conv", "/teacher/second/Add"]
    assert main not in placed


def test_add_of_two_tensors_without_convolution_gets_one_pair() -> None:
    b = Builder()
    x = b.normalize()
    y = b.relu(b.conv(x, "teacher/a", 4), "teacher/relu1")
    z = b.relu(b.conv(x, "teacher/b", 4), "teacher/relu2")
    placed = pairs(b.tap(b.add(y, z, "teacher")))
    assert len(placed) == 2 and len({y, z} & set(placed)) == 1


def test_add_of_a_constant_is_no_residual() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    offset = b.constant("offset", np.ones((1, 4, 1, 1), np.float32))
    assert list(pairs(b.tap(b.add(x, offset, "teacher")))) == [INPUT]


# Rules 4 and 5: pools -------------------------------------------------------------------------------------------------


def test_input_of_a_max_pool_gets_a_pair_with_the_scale_of_its_output() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    pooled = b.max_pool(x, "teacher/pool")
    placed = place(b.tap(b.conv(pooled, "teacher/b", 4))).activations
    assert placed[1:] == [
        QuantizedTensor(x, ["/teacher/pool/MaxPool"], range_of=pooled),
        QuantizedTensor(pooled, ["/teacher/b/Conv"], range_of=pooled),
    ]


def test_an_average_pool_has_one_scale_that_of_its_input() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    pooled = b.node("AveragePool", [x], "teacher/pool", kernel_shape=[2, 2], strides=[2, 2])
    model = b.tap(b.conv(pooled, "teacher/b", 4))
    placed = place(model)
    assert placed.activations[1:] == [
        QuantizedTensor(x, ["/teacher/pool/AveragePool"], range_of=x),
        QuantizedTensor(pooled, ["/teacher/b/Conv"], range_of=x),
    ]
    assert placed.ranged() == sorted([INPUT, x])
    quantized, _ = insert_qdq(model, ranges(model), placed)
    scales = constants(quantized)
    assert scales[f"{x}_scale"] == scales[f"{pooled}_scale"] > 0
    assert check_model(for_tensorrt(quantized), "jetson-xavier-nx") == []


def test_an_average_pool_that_the_head_reads_stays_in_float() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    pooled = b.node("AveragePool", [x], "teacher/pool", kernel_shape=[2, 2], strides=[2, 2])
    placed = place(b.tap(b.conv(pooled, "teacher/b", 4), b.node("Identity", [pooled], "head"))).activations
    assert placed[1:] == [QuantizedTensor(pooled, ["/teacher/b/Conv"], range_of=pooled)]


def test_max_pool_between_quantized_tensors_changes_nothing() -> None:
    # Rounding and taking the maximum commute, so the pair in front of the pool is free.
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    pooled = b.max_pool(x, "teacher/pool")
    model = b.tap(b.conv(pooled, "teacher/b", 4))
    quantized, _ = insert_qdq(model, ranges(model), place(model))
    without = onnx.ModelProto()
    without.CopyFrom(quantized)
    node_of(without, "/teacher/pool/MaxPool").input[0] = x
    images = random_images(2)
    expected, found = (runtime_outputs(graph, images, ["feature0"])[0] for graph in (without, quantized))
    np.testing.assert_array_equal(found, expected)
    set_constant(quantized, f"{x}_scale", np.float32(0.5))  # with another scale it would not be
    assert (runtime_outputs(quantized, images, ["feature0"])[0] != expected).any()


def test_input_that_a_max_pool_and_a_convolution_share_gets_one_pair() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    down = b.conv(x, "teacher/down", 4, stride=2)
    pooled = b.max_pool(x, "teacher/pool")
    model = b.tap(down, b.conv(pooled, "teacher/b", 4))
    quantized, _ = insert_qdq(model, ranges(model), place(model))
    onnx.checker.check_model(quantized)
    assert set(pairs(model)) == {INPUT, x, pooled}


def test_input_that_two_max_pools_share_gets_one_pair() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    pools = [b.max_pool(x, f"teacher/pool{index}") for index in range(2)]
    model = b.tap(*(b.conv(pool, f"teacher/b{index}", 4) for index, pool in enumerate(pools)))
    quantized, _ = insert_qdq(model, ranges(model), place(model))
    onnx.checker.check_model(quantized)
    assert pairs(model)[x] == ["/teacher/pool0/MaxPool", "/teacher/pool1/MaxPool"]


def test_max_pool_that_the_head_reads_too_pools_in_float() -> None:
    # The head reads the features before they are quantized.
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    pooled = b.max_pool(x, "teacher/pool")
    placed = pairs(b.tap(pooled, b.conv(pooled, "teacher/b", 4)))
    assert placed[pooled] == ["/teacher/b/Conv"]
    assert x not in placed


def ranges(model: onnx.ModelProto) -> dict[str, float]:
    names = sorted({tensor.range_of for tensor in place(model).activations})
    found = collect_histograms(model, names, random_images(1))
    return {name: histogram.amax for name, histogram in found.items()}


def test_max_pool_that_a_float_layer_reads_too_pools_in_float() -> None:
    # The first reads the pool, the Add of the second reads it too.
    for kept in ("/teacher/layer1/conv1/Conv", "/teacher/layer1/conv2/Conv"):
        placed = {tensor.name for tensor in place(tiny(), keep_float=[kept]).activations}
        assert "/teacher/maxpool/MaxPool_output_0" in placed
        assert "/teacher/relu/Relu_output_0" not in placed
        assert "/student/relu/Relu_output_0" in placed


# Rule 2: weights ------------------------------------------------------------------------------------------------------


def test_weight_of_a_convolution_keeps_axis_0_and_of_a_transposed_one_has_one_scale() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "student/a", 4)
    model = b.tap(conv_transpose(b, x, "student/up", 4))
    assert place(model).weights == [
        QuantizedWeight("student/a.weight", "/student/a/Conv", 0),
        QuantizedWeight("student/up.weight", "/student/up/ConvTranspose", None),
    ]


def test_weight_that_two_convolutions_share_comes_once() -> None:
    b = Builder()
    x = b.normalize()
    y, z = b.conv(x, "teacher/a", 4), b.conv(x, "student/a", 4)
    model = b.tap(y, z)
    node_of(model, "/student/a/Conv").input[1] = "teacher/a.weight"
    assert place(model).weights == [QuantizedWeight("teacher/a.weight", "/teacher/a/Conv", 0)]


def test_depthwise_weight_keeps_axis_0() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/a", 4)
    model = b.tap(b.conv(x, "teacher/depthwise", 4, group=4))
    assert place(model).weights[1] == QuantizedWeight("teacher/depthwise.weight", "/teacher/depthwise/Conv", 0)


def test_weight_of_a_grouped_transposed_convolution_is_left_in_float() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "student/a", 4)
    model = b.tap(conv_transpose(b, x, "student/up", 4, group=2))
    assert [weight.name for weight in place(model).weights] == ["student/a.weight"]


def test_input_of_a_convolution_left_in_float_gets_no_pair() -> None:
    # TensorRT refuses a convolution of which one side is quantized.
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "student/a", 4), "student/relu")
    model = b.tap(conv_transpose(b, x, "student/up", 4, group=2))
    assert list(pairs(model)) == [INPUT]


def test_weight_that_is_computed_is_left_in_float() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/a", 4)
    y = b.conv(x, "teacher/b", 4)
    computed = b.node("Abs", ["teacher/b.weight"], "teacher")
    b.nodes.insert(0, b.nodes.pop())
    model = b.tap(y)
    node_of(model, "/teacher/b/Conv").input[1] = computed
    assert [weight.name for weight in place(model).weights] == ["teacher/a.weight"]


# What stays in float --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", FEATURES)
def test_nothing_of_the_normalisation_or_the_head_reads_a_pair(backbone: str) -> None:
    model = tiny(backbone)
    for tensor in place(model).activations:
        assert all(in_backbone(node_of(model, reader)) for reader in tensor.readers)
    assert all(in_backbone(node_of(model, weight.node)) for weight in place(model).weights)


def test_convolutions_and_adds_of_the_head_stay_in_float() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/a", 4)
    smooth = b.conv(x, "head/smooth", 4)
    model = b.tap(b.add(smooth, x, "head/sum"))
    assert pairs(model) == {INPUT: ["/teacher/a/Conv"]}
    assert [weight.name for weight in place(model).weights] == ["teacher/a.weight"]


# Sums that ONNX Runtime cannot fuse -----------------------------------------------------------------------------------


def test_convolution_before_an_add_is_unfused_where_the_sum_is_quantized_later() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/stem", 4), "teacher/relu")
    main = b.conv(x, "teacher/main", 4)
    total = b.relu(b.add(main, x, "teacher"), "teacher/last")
    assert place(b.tap(b.conv(total, "teacher/next", 4))).residuals == [main]


def test_sum_without_activation_counts_too() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/stem", 4)
    main = b.conv(b.relu(b.conv(x, "teacher/a", 4), "teacher/relu"), "teacher/main", 4)
    total = b.add(main, x, "teacher")
    assert place(b.tap(b.conv(total, "teacher/next", 4))).residuals == [main]


def test_sum_that_only_the_head_reads_is_left_alone() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/stem", 4), "teacher/relu")
    total = b.add(b.conv(x, "teacher/main", 4), x, "teacher")
    assert place(b.tap(b.relu(total, "teacher/last"))).residuals == []


def test_unfused_residuals_of_the_tiny_networks() -> None:
    nets = ("teacher", "student")
    assert place(tiny("residual")).residuals == [f"/{net}/layer1/conv2/Conv_output_0" for net in nets]
    # Of block2 the skip branch comes from a convolution as well; it has its own pair.
    blocks = [f"/{net}/{block}/project/Conv_output_0" for net in nets for block in ("block2", "block3")]
    assert place(tiny("inverted")).residuals == blocks
