"""What a target would refuse in an ONNX file, found before the target is at hand.

Sources: onnx/onnx-tensorrt, branch 8.5-GA: docs/operators.md for the operators, builtin_op_importers.cpp for Q/DQ.
"""

import dataclasses
from typing import Dict, FrozenSet, List, Optional

import numpy as np
import onnx

from engines.graph import CONVOLUTIONS, attribute, bypass, constants, consumers, copy_of, in_backbone, producers
from engines.qdq import integer_weights
from export import placement
from export.errors import ExportError

TENSORRT_8_5_OPERATORS = frozenset(
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


@dataclasses.dataclass(frozen=True)
class Target:
    """What a target reads."""

    opset: int  # the newest
    operators: Optional[FrozenSet[str]] = None  # None: all of ONNX
    tensorrt: bool = False  # whether Q/DQ must obey TensorRT's rules, those of releases below 10 among them


TARGETS: Dict[str, Target] = {
    "cpu": Target(opset=21),
    "tensorrt": Target(opset=17, operators=TENSORRT_8_5_OPERATORS, tensorrt=True),  # any release from 8.5 on
    "jetson-xavier-nx": Target(opset=17, operators=TENSORRT_8_5_OPERATORS, tensorrt=True),  # TensorRT 8.5.2
}

# Inputs that TensorRT 8.5 wants as constants: operator -> positions.
CONSTANT_INPUTS = {"Clip": (1, 2), "Resize": (1, 2, 3), "TopK": (1,), "Slice": (3,)}


def check_model(model: onnx.ModelProto, target: str) -> List[str]:
    """What the target would refuse, one line each, with the node's name; empty where nothing is known.

    Raises:
        ExportError: an unknown target.
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target '{target}': choose one of {', '.join(TARGETS)}")
    if not model.graph.node:
        return ["there is no graph in it"]
    rules = TARGETS[target]
    problems = []
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset > rules.opset:
        problems.append(f"opset {opset} is newer than {rules.opset}")
    if rules.operators is not None:
        problems += [
            f"{node.name}: no operator {node.op_type}"
            for node in model.graph.node
            if node.op_type not in rules.operators or node.domain not in ("", "ai.onnx")
        ]
        problems += _computed_inputs(model)
    if rules.tensorrt:
        problems += _asymmetric(model) + _misplaced(model) + _integer_weights(model)
    return problems


def _computed_inputs(model: onnx.ModelProto) -> List[str]:
    fixed = constants(model)
    constant_nodes = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    problems = []
    for node in model.graph.node:
        for index in CONSTANT_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name and name not in fixed and name not in constant_nodes:
                problems.append(f"{node.name}: input {index} of {node.op_type} must be a constant")
        if node.op_type == "Resize" and _text(attribute(node, "mode")) not in ("linear", "nearest"):
            problems.append(f"{node.name}: Resize mode must be linear or nearest")
    return problems


def _asymmetric(model: onnx.ModelProto) -> List[str]:
    """Scales and zero points that TensorRT's parser refuses."""
    values = _fixed(model)
    problems = []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = values.get(node.input[1])
        if scale is None or not (scale > 0).all():
            problems.append(f"{node.name}: every scale must be a constant above 0")
        zero = values.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.dtype != np.int8 or zero.any():
            problems.append(f"{node.name}: the zero point must be a signed int8 0")
        elif scale is not None and zero.size != scale.size:
            problems.append(f"{node.name}: scale and zero point differ in size")
    return problems


def _integer_weights(model: onnx.ModelProto) -> List[str]:
    mend = "TensorRT below 10 wants float32, QuantizeLinear, DequantizeLinear: uad export the file again for it"
    names = integer_weights(model)
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{names[0]}{others}: INT8 initializer; {mend}"] if names else []


def _misplaced(model: onnx.ModelProto) -> List[str]:
    """Q/DQ that is missing or where TensorRT cannot use it; nothing for a graph without Q/DQ."""
    made_by = producers(model)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return []
    values = _fixed(model)
    read_by = consumers(model)
    plain = copy_of(model)
    bypass(plain, ("QuantizeLinear", "DequantizeLinear"))
    plain_adds = {node.name: node for node in plain.graph.node if node.op_type == "Add"}
    plain_made_by, plain_read_by = producers(plain), consumers(plain)
    problems = []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            problems.append(f"{node.name}: BatchNormalization must be folded into the convolution before it")
        if node.op_type in CONVOLUTIONS and _is_dequantized(node.input[0], made_by):
            weight = made_by.get(node.input[1])
            if weight is None or weight.op_type != "DequantizeLinear":
                problems.append(f"{node.name}: the input is quantized, the weights are not")
            elif (
                values.get(weight.input[1], np.ones(2)).size == 1
                and _output_channels(node, weight, made_by, values) > 1
            ):
                problems.append(f"{node.name}: the weights need one scale for each output channel")
        activation = node.op_type == "QuantizeLinear" and node.input[0] not in values
        if activation and values.get(node.input[1], np.ones(1)).size > 1:
            problems.append(f"{node.name}: activations take one scale a tensor")
        residual = node.op_type == "Add" and in_backbone(node) and not any(name in values for name in node.input)
        if residual:
            add = plain_adds[node.name]
            skip = list(add.input).index(placement.skip_branch(add, plain_made_by, plain_read_by))
            fused = made_by.get(node.input[1 - skip])
            in_float = fused is not None and fused.op_type in CONVOLUTIONS
            in_float = in_float and not _is_dequantized(fused.input[0], made_by)  # type: ignore[union-attr]
            if not in_float and not _is_dequantized(node.input[skip], made_by):
                problems.append(f"{node.name}: the skip branch of the residual Add has no Q/DQ")
        if node.op_type in CONVOLUTIONS:
            pairs = [reader for reader in read_by.get(node.output[0], []) if reader.op_type == "QuantizeLinear"]
            behind = [
                reader
                for quantize in pairs
                for dequantize in read_by.get(quantize.output[0], [])
                for reader in read_by.get(dequantize.output[0], [])
            ]
            fusable = [reader for reader in behind if reader.op_type in ("Relu", "Clip", "BatchNormalization")]
            if fusable:
                problems.append(f"{node.name}: Q/DQ stands between the convolution and {fusable[0].name}")
    return problems


def _fixed(model: onnx.ModelProto) -> Dict[str, np.ndarray]:
    """Tensor name -> value, of every initializer and Constant node."""
    values = constants(model)
    for node in model.graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            values[node.output[0]] = onnx.numpy_helper.to_array(value)
    return values


def _is_dequantized(name: str, made_by: Dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes out of DequantizeLinear, directly or through MaxPool, which keeps the grid."""
    node = made_by.get(name)
    while node is not None and node.op_type == "MaxPool":
        node = made_by.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _output_channels(
    node: onnx.NodeProto, weight: onnx.NodeProto, made_by: Dict[str, onnx.NodeProto], values: Dict[str, np.ndarray]
) -> int:
    name = weight.input[0]
    while name not in values:
        if name not in made_by:
            return 1  # an input of the graph: `check_model` names it elsewhere
        name = made_by[name].input[0]
    axis = 0 if node.op_type == "Conv" else 1
    return int(values[name].shape[axis])


def _text(value: Optional[object]) -> str:
    return value.decode() if isinstance(value, bytes) else "nearest"
