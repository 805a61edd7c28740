"""What the ONNX parser of TensorRT 8.5 refuses of each operator, and what it or the builder gets wrong in silence.

Sources: onnx/onnx-tensorrt, branches 8.5-GA, 8.6-GA and 10.1-GA: docs/operators.md, builtin_op_importers.cpp (in 10.1
onnxOpImporters.cpp), onnx2trt_utils.cpp. A rule of a later release is named: a file for TensorRT is for all of them.
"""

import dataclasses
import re
from typing import Callable, Dict, List, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from engines.graph import attribute, constants, text, whole_numbers

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GRU HardSigmoid HardSwish
    Identity If ImageScaler InstanceNormalization IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Loop
    LpNormalization LpPool LRN LSTM MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg
    NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)

# Inputs that must be constants: operator -> positions.
CONSTANT_INPUTS = {"TopK": (1,), "Slice": (3,), "ReduceSum": (1,), "Squeeze": (1,), "Unsqueeze": (1,)}

CASTS = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)
TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
MOST_K = 3840  # of TopK, which is the builder's limit


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What is known of the tensors of a graph."""

    values: Mapping[str, np.ndarray]  # of initializers and Constant nodes
    types: Mapping[str, int]  # `onnx.TensorProto.DataType`, as far as ONNX infers it


def operator_problems(model: onnx.ModelProto) -> List[str]:
    """What a parser or a builder would refuse or misread, one line each, with the node's name."""
    tensors = Tensors(fixed_values(model), _types(model))
    problems = []
    for node in model.graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            problems.append(f"{node.name}: no operator {node.op_type}")
            continue
        for index in CONSTANT_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name and name not in tensors.values:
                problems.append(f"{node.name}: input {index} of {node.op_type} must be a constant")
        problem = RULES[node.op_type](node, tensors) if node.op_type in RULES else ""
        problems += [f"{node.name}: {problem}"] if problem else []
        problems += [f"{node.name}: {clamped}" for clamped in _clamped(node, tensors)]
    return problems


def fixed_values(model: onnx.ModelProto) -> Dict[str, np.ndarray]:
    """Tensor name -> value, of every initializer and Constant node."""
    values = constants(model)
    for node in model.graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            values[node.output[0]] = onnx.numpy_helper.to_array(value)
    return values


def _types(model: onnx.ModelProto) -> Dict[str, int]:
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:  # of an operator that is named as unknown
        graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return {**types, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def _clamped(node: onnx.NodeProto, tensors: Tensors) -> List[str]:
    """Constants that releases 8 clamp in silence. An end of a Slice says 'to the end' so, and means it clamped too."""
    read = node.input[3:] if node.op_type == "Slice" else node.input
    limits = np.iinfo(np.int32)
    problems = []
    for name in read:
        value = tensors.values.get(name, np.empty(0))
        if value.dtype == np.int64 and ((value < limits.min) | (value > limits.max)).any():
            problems.append(f"{name} holds INT64 values beyond INT32, which releases 8 clamp")
    return problems


def _convolution(node: onnx.NodeProto, tensors: Tensors) -> str:
    if attribute(node, "kernel_shape") is None and node.input[1] not in tensors.values:
        return "its weights are computed, or come through Q/DQ, so it needs kernel_shape"
    return ""


def _pooling(node: onnx.NodeProto, tensors: Tensors) -> str:
    if any(node.output[1:]):
        return f"{node.op_type} gives no indices"
    if any(dilation != 1 for dilation in whole_numbers(node, "dilations", 1)):
        return f"{node.op_type} takes no dilations"
    return ""


def _resize(node: onnx.NodeProto, tensors: Tensors) -> str:
    transformation = text(node, "coordinate_transformation_mode", "half_pixel")
    rounding = text(node, "nearest_mode", "round_prefer_floor")
    if transformation not in TRANSFORMATIONS:
        return f"Resize takes no {transformation}"
    if transformation == "tf_half_pixel_for_nn" and rounding != "round_prefer_floor":
        return f"Resize takes tf_half_pixel_for_nn with round_prefer_floor, not {rounding}"
    return ""


def _transpose(node: onnx.NodeProto, tensors: Tensors) -> str:
    is_bytes = tensors.types.get(node.input[0]) == TensorProto.UINT8
    return "TensorRT 8.6 and 10 transpose no UINT8: put the Cast before it" if is_bytes else ""


def _reduction(node: onnx.NodeProto, tensors: Tensors) -> str:
    has_input = len(node.input) > 1 and node.input[1]
    return "releases 8 reduce over all axes where axes is an input: give an attribute" if has_input else ""


def _product(node: onnx.NodeProto, tensors: Tensors) -> str:
    whole = [name for name in node.input if tensors.types.get(name) in (TensorProto.INT32, TensorProto.INT64)]
    return f"MatMul takes no integers, and {whole[0]} holds them" if whole else ""


def _cast(node: onnx.NodeProto, tensors: Tensors) -> str:
    target = attribute(node, "to")
    if not isinstance(target, int) or target in CASTS:
        return ""
    return f"Cast gives no {TensorProto.DataType.Name(target)}"


def _top(node: onnx.NodeProto, tensors: Tensors) -> str:
    counts = tensors.values.get(node.input[1], np.zeros(1))
    return f"TopK takes K up to {MOST_K:,}, not {int(counts.max()):,}" if counts.max() > MOST_K else ""


def _einsum(node: onnx.NodeProto, tensors: Tensors) -> str:
    equation = text(node, "equation", "")
    return "" if re.match("[a-z,> -]*$", equation) else f"Einsum takes letters a to z and no ellipsis, not '{equation}'"


RULES: Dict[str, Callable[[onnx.NodeProto, Tensors], str]] = {
    "Conv": _convolution,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    "Resize": _resize,
    "Transpose": _transpose,
    "MatMul": _product,
    "Cast": _cast,
    "TopK": _top,
    "Einsum": _einsum,
    **dict.fromkeys(
        """
        ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare
        """.split(),  # noqa: SIM905
        _reduction,
    ),
}
