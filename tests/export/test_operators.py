"""export.operators: each thing that a parser of TensorRT refuses or misreads, in a graph that does this one thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.operators import MOST_K, OPERATORS, RULES, operator_problems

FLOAT = TensorProto.FLOAT
SIZE = (1, 4, 8, 8)


def graph(
    *nodes: onnx.NodeProto, opset: int = 17, image: int = FLOAT, shape: tuple[int, ...] = SIZE, **constants: Any
) -> onnx.ModelProto:
    """A graph of `image` and some constants, whose output is the first of the last node."""
    made = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("image", image, shape)],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])


def node(operator: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs or ["out"], name=f"/{operator}", **attributes)


def only_problem(model: onnx.ModelProto) -> str:
    problems = operator_problems(model)
    assert len(problems) == 1, problems
    return problems[0]


def test_every_rule_is_of_an_operator_that_is_known() -> None:
    assert set(RULES) <= OPERATORS


def test_operator_that_tensorrt_does_not_know() -> None:
    norm = node("LayerNormalization", ["image", "gamma"])
    assert (
        only_problem(graph(norm, gamma=np.ones(8, np.float32))) == "/LayerNormalization: no operator LayerNormalization"
    )


def test_operator_of_another_domain() -> None:
    assert only_problem(graph(node("Relu", ["image"], domain="com.microsoft"))) == "/Relu: no operator Relu"


# Inputs that must be constants ----------------------------------------------------------------------------------------

K, AXES = np.array([3]), np.array([1])


@pytest.mark.parametrize(
    ("operator", "inputs", "index"),
    [
        ("TopK", ["k"], 1),
        ("Slice", ["starts", "ends", "axes"], 3),
        ("ReduceSum", ["axes"], 1),
        ("Squeeze", ["axes"], 1),
        ("Unsqueeze", ["axes"], 1),
    ],
)
def test_computed_input(operator: str, inputs: list[str], index: int) -> None:
    constants = {"k": K, "starts": np.array([0]), "ends": np.array([2]), "axes": AXES}
    outputs = ["out", "indices"] if operator == "TopK" else None
    assert operator_problems(graph(node(operator, ["image", *inputs], outputs), **constants)) == []
    last = inputs[-1]
    value = numpy_helper.from_array(constants[last])
    as_node = helper.make_node("Constant", [], [f"{last}_node"], name="/C", value=value)
    constant = node(operator, ["image", *inputs[:-1], f"{last}_node"], outputs)
    assert operator_problems(graph(as_node, constant, **constants)) == []
    computed = node(operator, ["image", *inputs[:-1], "computed"], outputs)
    model = graph(node("Identity", [last], ["computed"]), computed, **constants)
    assert only_problem(model) == f"/{operator}: input {index} of {operator} must be a constant"


@pytest.mark.parametrize("absent", [["image", "low", ""], ["image", "", "high"], ["image", "computed", "high"]])
def test_bounds_of_a_clip_may_be_absent_or_computed(absent: list[str]) -> None:
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    assert operator_problems(graph(node("Identity", ["low"], ["computed"]), node("Clip", absent), **bounds)) == []


# Attributes and types -------------------------------------------------------------------------------------------------


def quantized_weights(*, name: str = "Conv", **attributes: Any) -> onnx.ModelProto:
    scales = ["scale", "zero"]
    return graph(
        node("QuantizeLinear", ["weight", *scales], ["q"], axis=0),
        node("DequantizeLinear", ["q", *scales], ["dq"], axis=0),
        node(name, ["image", "dq"], **attributes),
        weight=np.ones((4, 4, 3, 3), np.float32),
        scale=np.ones(4, np.float32),
        zero=np.zeros(4, np.int8),
    )


def test_convolution_with_quantized_weights_needs_its_kernel_shape() -> None:
    assert operator_problems(quantized_weights(kernel_shape=[3, 3])) == []
    assert "/Conv: its weights are computed, or come through Q/DQ" in only_problem(quantized_weights())
    assert operator_problems(quantized_weights(name="ConvTranspose")) == []  # it asks the weights themselves
    plain = graph(node("Conv", ["image", "weight"]), weight=np.ones((4, 4, 3, 3), np.float32))
    assert operator_problems(plain) == []


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pooling(operator: str) -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    assert operator_problems(graph(node(operator, ["image"], **pool))) == []
    assert operator_problems(graph(node(operator, ["image"], dilations=[1, 1], **pool), opset=19)) == []
    dilated = graph(node(operator, ["image"], dilations=[1, 2], **pool), opset=19)
    assert only_problem(dilated) == f"/{operator}: {operator} takes no dilations"


def test_indices_of_a_max_pool() -> None:
    with_indices = node("MaxPool", ["image"], ["out", "indices"], kernel_shape=[2, 2])
    assert only_problem(graph(with_indices)) == "/MaxPool: MaxPool gives no indices"


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("transformation", ["half_pixel", "asymmetric", "align_corners", None])
def test_resizing(mode: str, transformation: str | None) -> None:
    resize = node("Resize", ["image", "", "scales"], mode=mode, coordinate_transformation_mode=transformation)
    assert operator_problems(graph(resize, scales=np.float32([1, 1, 2, 2]))) == []


def test_computed_sizes_of_a_resize() -> None:
    resize = node("Resize", ["image", "", "", "computed"], mode="linear")
    sizes = {"sizes": np.array([1, 4, 16, 16])}
    assert operator_problems(graph(node("Identity", ["sizes"], ["computed"]), resize, **sizes)) == []


@pytest.mark.parametrize(
    ("transformation", "rounding", "problem"),
    [
        ("tf_crop_and_resize", "floor", "Resize takes no tf_crop_and_resize"),
        ("tf_half_pixel_for_nn", "round_prefer_floor", ""),
        (
            "tf_half_pixel_for_nn",
            "floor",
            "Resize takes tf_half_pixel_for_nn with round_prefer_floor, not floor",
        ),
    ],
)
def test_transformations_of_a_resize(transformation: str, rounding: str, problem: str) -> None:
    how = {"mode": "nearest", "coordinate_transformation_mode": transformation, "nearest_mode": rounding}
    model = graph(
        node("Resize", ["image", "roi", "scales"], **how), scales=np.float32([1, 1, 2, 2]), roi=np.float32([])
    )
    assert operator_problems(model) == ([f"/Resize: {problem}"] if problem else [])


def test_bytes_are_cast_before_they_are_transposed() -> None:
    cast, transpose = ["image"], ["cast"]
    good = graph(node("Cast", cast, ["cast"], to=FLOAT), node("Transpose", transpose), image=TensorProto.UINT8)
    assert operator_problems(good) == []
    bad = graph(node("Transpose", ["image"], ["bytes"]), node("Cast", ["bytes"], to=FLOAT), image=TensorProto.UINT8)
    assert only_problem(bad) == "/Transpose: TensorRT 8.6 and 10 transpose no UINT8: put the Cast before it"


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax", "ReduceL2"])
def test_axes_of_a_reduction_as_input(operator: str) -> None:
    assert operator_problems(graph(node(operator, ["image"], axes=[1]))) == []
    model = graph(node(operator, ["image", "axes"]), opset=18, axes=AXES)
    assert "releases 8 reduce over all axes" in only_problem(model)


@pytest.mark.parametrize(
    ("integer", "is_taken"), [(FLOAT, True), (TensorProto.INT32, False), (TensorProto.INT64, False)]
)
def test_product_of_integers(integer: int, is_taken: bool) -> None:
    cast = node("Cast", ["image"], ["cast"], to=integer)
    model = graph(cast, node("MatMul", ["cast", "cast"]))
    assert operator_problems(model) == ([] if is_taken else ["/MatMul: MatMul takes no integers, and cast holds them"])


def test_cast_to_a_type_that_no_release_8_has() -> None:
    for target in (FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.BOOL):
        assert operator_problems(graph(node("Cast", ["image"], to=target))) == []
    assert only_problem(graph(node("Cast", ["image"], to=TensorProto.BFLOAT16))) == "/Cast: Cast gives no BFLOAT16"


@pytest.mark.parametrize("count", [MOST_K, MOST_K + 1])
def test_most_k_of_top_k(count: int) -> None:
    model = graph(node("TopK", ["image", "k"], ["out", "indices"]), shape=(1, 5000), k=np.array([count]))
    wanted = [] if count == MOST_K else ["/TopK: TopK takes K up to 3,840, not 3,841"]
    assert operator_problems(model) == wanted


@pytest.mark.parametrize(
    ("equation", "is_taken"), [("nchw,nkhw->nck", True), ("...c,...k->...ck", False), ("Nc,Nk->ck", False)]
)
def test_equation_of_an_einsum(equation: str, is_taken: bool) -> None:
    problems = operator_problems(graph(node("Einsum", ["image", "image"], equation=equation)))
    assert problems == ([] if is_taken else [f"/Einsum: Einsum takes letters a to z and no ellipsis, not '{equation}'"])


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1])
def test_whole_numbers_beyond_int32(value: int) -> None:
    cast = node("Cast", ["image"], ["cast"], to=TensorProto.INT64)
    problems = operator_problems(graph(cast, node("Add", ["cast", "value"]), value=np.array([value])))
    line = "/Add: value holds INT64 values beyond INT32, which releases 8 clamp"
    assert problems == ([] if -(2**31) <= value < 2**31 else [line])


def test_end_of_a_slice_beyond_int32_is_the_end() -> None:
    bounds = {"starts": np.array([0]), "ends": np.array([2**63 - 1]), "axes": AXES}
    assert operator_problems(graph(node("Slice", ["image", *bounds]), **bounds)) == []
