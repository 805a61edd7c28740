"""Which layers of a file a DLA of a Jetson Xavier NX would run, in what precision, and why not the others.

Found without the device.

Sources: TensorRT Developer Guide 8.5, 'DLA Supported Layers and Restrictions'
(https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-852/developer-guide/index.html#dla-lay-supp-rest), and
the operators that NVIDIA/Deep-Learning-Accelerator-SW lists for TensorRT 8.5. The guide has one more limit, the room
for the weights of one convolution in the DLA's buffer, that cannot be told from a file: on the device TensorRT is asked
itself (`export.tensorrt.put_on_dla`). A layer that lacks a range runs in float16 there.
"""

import dataclasses
from typing import Callable, Collection, Dict, List, Mapping, Sequence

import numpy as np
import onnx

from engines.graph import constants, in_backbone, text, whole_numbers
from export.implicit import without_qdq

CHANNELS = 8192  # the most, in and out; also of groups


@dataclasses.dataclass(frozen=True)
class Layer:
    """A node of the graph, and what keeps it from a DLA; "" if nothing does."""

    name: str
    operator: str
    reason: str
    precision: str  # on a DLA: int8 where the ranges of all that it reads and gives are known, or else fp16


def layers_on_dla(
    model: onnx.ModelProto, residual_scales: Mapping[str, float], float_layers: Collection[str] = ()
) -> List[Layer]:
    """Every node but Q/DQ, in graph order.

    Args:
        model: a graph of any precision.
        residual_scales: of the convolutions that a residual Add reads; see `engines.metadata.ModelInfo`.
        float_layers: names of nodes that stay in float32; see there too.
    """
    plain, amax = without_qdq(model, residual_scales)
    values = constants(plain)
    layers = []
    for node in plain.graph.node:
        tensors = [name for name in (*node.input, *node.output) if name and name not in values]
        precision = "int8" if all(name in amax for name in tensors) else "fp16"
        layers.append(Layer(node.name, node.op_type, _reason(node, values, float_layers), precision))
    return layers


def _reason(node: onnx.NodeProto, values: Mapping[str, np.ndarray], float_layers: Collection[str]) -> str:
    if not in_backbone(node):
        return "normalisation and head compute in float32"
    if node.name in float_layers:
        return "it is kept in float32"
    if node.op_type not in RULES:
        return f"a DLA has no {node.op_type}"
    return RULES[node.op_type](node, values)


def _convolution(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    weight = values[node.input[1]].shape
    kernel, padding = weight[2:], whole_numbers(node, "pads", 0)
    return (
        _outside("kernel", kernel, 1, 32)
        or _outside("padding", padding, 0, min(31, min(kernel) - 1))
        or _outside("stride", whole_numbers(node, "strides", 1), 1, 8)
        or _outside("dilation", whole_numbers(node, "dilations", 1), 1, 32)
        or _outside("output channels", weight[:1], 1, CHANNELS)
    )


def _deconvolution(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    weight = values[node.input[1]].shape
    return (
        _outside("kernel", weight[2:], 1, 22)  # TensorRT leaves 23 to 32 to the GPU
        or _outside("padding", whole_numbers(node, "pads", 0), 0, 0)
        or _outside("stride", whole_numbers(node, "strides", 1), 1, 22)
        or _outside("dilation", whole_numbers(node, "dilations", 1), 1, 1)
        or _outside("groups", whole_numbers(node, "group", 1), 1, 1)
        or _outside("channels", weight[:2], 1, CHANNELS)
    )


def _pooling(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    return (
        _outside("window", whole_numbers(node, "kernel_shape", 1), 1, 8)
        or _outside("padding", whole_numbers(node, "pads", 0), 0, 7)
        or _outside("stride", whole_numbers(node, "strides", 1), 1, 16)
    )


def _clip(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    bounds = [float(values[name]) for name in node.input[1:3] if name in values]
    if len(bounds) < 2:
        return "its bounds are not two constants"
    low, high = bounds
    return "" if low == 0 and 1 <= high <= 127 else f"it clips to [{low:g}, {high:g}], not to [0, 1 to 127]"


def _concatenation(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    return _outside("axis", whole_numbers(node, "axis", 0), 1, 1)


def _resize(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    mode = text(node, "mode", "nearest")
    transformation = text(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "linear" and transformation != "half_pixel":
        return f"linear resizing by {transformation}, not half_pixel"
    scales = values.get(node.input[2]) if len(node.input) > 2 else None
    if scales is None or len(scales) != 4:
        return "its scales are not four constants"
    most = 32 if mode == "nearest" else 4
    if (scales[:2] != 1).any() or (scales % 1).any() or scales.max() > most:
        return f"its scales are {', '.join(f'{scale:g}' for scale in scales)}, not 1, 1, and whole numbers to {most}"
    return ""


def _any(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> str:
    return ""


RULES: Dict[str, Callable[[onnx.NodeProto, Mapping[str, np.ndarray]], str]] = {
    "Conv": _convolution,
    "ConvTranspose": _deconvolution,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    "Clip": _clip,
    "Concat": _concatenation,
    "Resize": _resize,
    **dict.fromkeys(("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Add", "Sub", "Mul", "Max", "Transpose"), _any),
}


def _outside(what: str, values: Sequence[int], least: int, most: int) -> str:
    if all(least <= each <= most for each in values):
        return ""
    span = f"{least} to {most}" if least < most else str(most)
    return f"{what} {' x '.join(str(each) for each in values)}, not {span}"
