"""What a target would refuse in an ONNX file, found before the target is at hand.

What each operator may be is in `export.operators`; here are the targets, and TensorRT's rules for Q/DQ. Sources:
onnx/onnx-tensorrt, branch 8.5-GA, builtin_op_importers.cpp; NVIDIA/TensorRT, its issues, which are named.
"""

import dataclasses
from typing import Dict, List

import numpy as np
import onnx

from engines.graph import CONVOLUTIONS, bypass, consumers, copy_of, in_backbone, producers
from engines.qdq import integer_weights
from export import placement
from export.errors import ExportError
from export.operators import fixed_values, operator_problems


@dataclasses.dataclass(frozen=True)
class Target:
    """What a target reads."""

    opset: int  # the newest
    tensorrt: bool = False  # whether TensorRT's rules hold, those of releases below 10 among them


TARGETS: Dict[str, Target] = {
    "cpu": Target(opset=21),
    "tensorrt": Target(opset=17, tensorrt=True),  # any release from 8.5 on
    "jetson-xavier-nx": Target(opset=17, tensorrt=True),  # TensorRT 8.5.2
}


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
    if rules.tensorrt:
        problems += operator_problems(model) + _asymmetric(model) + _misplaced(model) + _integer_weights(model)
    return problems


def _asymmetric(model: onnx.ModelProto) -> List[str]:
    """Scales and zero points that TensorRT's parser refuses."""
    values = fixed_values(model)
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
    values = fixed_values(model)
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
            elif weight.input[1] in values:
                problems += _scales_of_weights(node, weight, made_by, values)
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


def _is_dequantized(name: str, made_by: Dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes out of DequantizeLinear, directly or through MaxPool, which keeps the grid."""
    node = made_by.get(name)
    while node is not None and node.op_type == "MaxPool":
        node = made_by.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _scales_of_weights(
    node: onnx.NodeProto, weight: onnx.NodeProto, made_by: Dict[str, onnx.NodeProto], values: Dict[str, np.ndarray]
) -> List[str]:
    """What is wrong with the scales of the weights of a convolution whose input is quantized."""
    scale = values[weight.input[1]]
    if node.op_type == "ConvTranspose":
        if scale.size > 1:
            # NVIDIA/TensorRT#2380, #1694, #1519: below 9.3 axis 0 is taken for that of the output channels.
            mend = "releases disagree about the axis of more: uad export the file again"
            return [f"{node.name}: the weights of a ConvTranspose need one scale in all; {mend}"]
    elif scale.size == 1 and _output_channels(weight, made_by, values) > 1:
        return [f"{node.name}: the weights need one scale for each output channel"]
    source = made_by[node.input[0]]
    bias = values.get(node.input[2]) if len(node.input) > 2 else None
    while source.op_type != "DequantizeLinear":
        source = made_by[source.input[0]]
    input_scale = values.get(source.input[1])
    if bias is not None and input_scale is not None and (scale > 0).all() and (input_scale > 0).all():
        steps = np.abs(bias.astype(np.float64)) / input_scale.astype(np.float64) / scale.astype(np.float64)
        beyond = int((steps > np.iinfo(np.int32).max).sum())
        if beyond:
            mend = "their scales are too small: uad export the file again"
            return [f"{node.name}: the biases of {beyond} channels are beyond int32; {mend}"]
    return []


def _output_channels(weight: onnx.NodeProto, made_by: Dict[str, onnx.NodeProto], values: Dict[str, np.ndarray]) -> int:
    name = weight.input[0]
    while name not in values:
        if name not in made_by:
            return 1  # an input of the graph: `check_model` names it elsewhere
        name = made_by[name].input[0]
    return int(values[name].shape[0])
