"""A signed Q/DQ graph to the unsigned one that ONNX Runtime is fast at on x86.

TensorRT wants symmetric signed INT8 activations. ONNX Runtime's x86 kernels want unsigned ones, and a QuantizeLinear
right behind each convolution. The graph is rewritten in three steps; the first two change no value:

1. An int8 with zero point 0 becomes a uint8 with zero point 128 and the same scale: the same grid, shifted.
2. Q(relu(x)) becomes max(Q(x), 128), and Q(clip(x, 0, 6)) the same with a maximum: rounding and clamping commute.
   So the QuantizeLinear moves in front of the activation, next to the convolution or Add.
3. The output of a convolution before a residual Add gets a Q/DQ pair with the scale that calibration stored for it.
   This one does round once more, which TensorRT and OpenVINO do not.
"""

from typing import Dict, List, Optional, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engines.graph import (
    constants,
    consumers,
    drop_nodes,
    in_backbone,
    producers,
    remove_unused_constants,
    rename_input,
    sort_nodes,
)
from engines.qdq import for_cpu

ZERO = 128  # the unsigned integer that stands for 0.0


def to_unsigned(model: onnx.ModelProto, residual_scales: Dict[str, float]) -> onnx.ModelProto:
    """Return the rewritten graph.

    Args:
        model: a graph written by `export.quantize`, in either form of `engines.qdq`; it is not changed.
        residual_scales: see `ModelInfo`.
    """
    unsigned = for_cpu(model)
    _shift_zero_points(unsigned)
    _move_quantize_before_activation(unsigned)
    _quantize_before_add(unsigned, residual_scales)
    sort_nodes(unsigned)
    remove_unused_constants(unsigned)
    return unsigned


def _shift_zero_points(model: onnx.ModelProto) -> None:
    zero_points = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in zero_points:
            tensor.CopyFrom(numpy_helper.from_array(np.array(ZERO, np.uint8), tensor.name))


def _move_quantize_before_activation(model: onnx.ModelProto) -> None:
    values = constants(model)
    made_by = producers(model)
    read_by = consumers(model)
    removed = set()
    for quantize in [node for node in model.graph.node if node.op_type == "QuantizeLinear"]:
        activation = made_by.get(quantize.input[0])
        if activation is None or len(read_by[quantize.input[0]]) > 1 or not in_backbone(activation):
            continue  # the float activation is read elsewhere, by the distance head
        bounds = _integer_bounds(activation, values, float(values[quantize.input[1]]))
        if bounds is None:
            continue
        integer = quantize.output[0]
        limits = [f"{integer}_min", f"{integer}_max"]
        for name, bound in zip(limits, bounds):
            model.graph.initializer.append(numpy_helper.from_array(np.array(bound, np.uint8), name))
        quantize.input[0] = activation.input[0]
        quantize.output[0] = f"{integer}_unclamped"
        clamp = helper.make_node("Clip", [quantize.output[0], *limits], [integer], name=f"{integer}/Clip")
        model.graph.node.append(clamp)
        removed.add(activation.name)
    drop_nodes(model, removed)


def _integer_bounds(
    activation: onnx.NodeProto, values: Dict[str, np.ndarray], scale: float
) -> Optional[Tuple[int, int]]:
    """The clamp of a Relu or Clip on the unsigned grid; None for any other node."""
    if activation.op_type == "Relu":
        return ZERO, 255
    if (
        activation.op_type == "Clip"
        and len(activation.input) == 3
        and all(name in values for name in activation.input[1:])
    ):
        low, high = (float(values[name]) for name in activation.input[1:])
        lower, upper = (
            int(np.clip(np.rint(np.float32(bound) / np.float32(scale)) + ZERO, 0, 255)) for bound in (low, high)
        )
        return lower, upper
    return None


def _quantize_before_add(model: onnx.ModelProto, residual_scales: Dict[str, float]) -> None:
    read_by = consumers(model)
    for name, scale in residual_scales.items():
        integer, output, scale_name, zero_name = (f"{name}_residual_{end}" for end in ("q", "dq", "scale", "zero"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), scale_name))
        model.graph.initializer.append(numpy_helper.from_array(np.array(ZERO, np.uint8), zero_name))
        parameters = [scale_name, zero_name]
        pair: List[onnx.NodeProto] = [
            helper.make_node("QuantizeLinear", [name, *parameters], [integer], name=integer),
            helper.make_node("DequantizeLinear", [integer, *parameters], [output], name=output),
        ]
        for node in read_by.get(name, []):
            if in_backbone(node):
                rename_input(node, name, output)
        model.graph.node.extend(pair)
