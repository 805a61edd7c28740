"""The two forms of an INT8 graph. They mean the same to the last bit.

- For a CPU: a weight is an INT8 initializer and a DequantizeLinear. The file is small.
- For TensorRT: a weight is a float32 initializer, a QuantizeLinear and a DequantizeLinear with the same scales, because
  releases below 10 refuse INT8 constants (NVIDIA/TensorRT, tag 8.5.2, README of trt-engine-explorer). Each reader has a
  DequantizeLinear of its own, because TensorRT fuses the two (microsoft/onnxruntime#9720). The builder folds all of
  this away: the plan holds INT8 weights.
"""

from typing import Dict, List, Set, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engines.graph import (
    attribute,
    constants,
    consumers,
    copy_of,
    drop_nodes,
    remove_unused_constants,
    rename_input,
    sort_nodes,
)


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the form that every TensorRT release takes; the form of `model` does not matter."""
    written = _copy(model)
    values = constants(written)
    read_by = consumers(written)
    for node in [node for node in written.graph.node if node.op_type == "DequantizeLinear"]:
        for number, reader in enumerate(read_by.get(node.output[0], [])[1:], start=1):
            alone = f"{node.output[0]}_{number}"
            copied = helper.make_node(node.op_type, node.input, [alone], name=f"{node.name}_{number}")
            copied.attribute.extend(node.attribute)
            written.graph.node.append(copied)
            rename_input(reader, node.output[0], alone)
    for name, node in {node.input[0]: node for node in _dequantizers(written, values)}.items():
        axis = axis_of(node)
        scale = values[node.input[1]]
        floats = (values[name].astype(np.float32) * along(axis, scale, values[name].ndim)).astype(np.float32)
        source = name[: -len("_int8")] if name.endswith("_int8") else f"{name}_float"
        quantize = helper.make_node("QuantizeLinear", [source, *node.input[1:]], [name], name=f"{source}/Q", axis=axis)
        written.graph.initializer.append(numpy_helper.from_array(floats, source))
        written.graph.node.append(quantize)
    _drop_initializers(written, {output for node in written.graph.node for output in node.output})
    sort_nodes(written)
    return written


def for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the small form; the form of `model` does not matter."""
    written = _copy(model)
    values = constants(written)
    removed: Set[str] = set()
    for node in written.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in values:
            floats, scale, zero = (values[name] for name in node.input)
            steps = np.rint(floats / along(axis_of(node), scale, floats.ndim))
            limits = np.iinfo(zero.dtype)
            integers = np.clip(steps, limits.min, limits.max).astype(zero.dtype)  # the zero point is 0
            written.graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
            removed.add(node.name)
    first: Dict[Tuple[str, ...], str] = {}
    read_by = consumers(written)
    for node in written.graph.node:
        if node.op_type == "DequantizeLinear":
            output = first.setdefault(tuple(node.input), node.output[0])
            if output != node.output[0]:
                removed.add(node.name)
                for reader in read_by.get(node.output[0], []):
                    rename_input(reader, node.output[0], output)
    drop_nodes(written, removed)
    remove_unused_constants(written)
    return written


def integer_weights(model: onnx.ModelProto) -> List[str]:
    """The INT8 initializers that DequantizeLinear reads, which TensorRT below 10 refuses."""
    return [node.input[0] for node in _dequantizers(model, constants(model))]


def _dequantizers(model: onnx.ModelProto, values: Dict[str, np.ndarray]) -> List[onnx.NodeProto]:
    """The DequantizeLinear nodes that read a constant."""
    return [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]


def axis_of(node: onnx.NodeProto) -> int:
    """Along which axis of a tensor Q or DQ has a scale for each channel."""
    axis = attribute(node, "axis")
    return axis if isinstance(axis, int) else 1  # ONNX's default


def along(axis: int, scale: np.ndarray, dimensions: int) -> np.ndarray:
    """Scales, shaped to multiply a tensor along an axis; one scale as it is."""
    return scale.reshape([-1 if index == axis else 1 for index in range(dimensions)]) if scale.size > 1 else scale


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = copy_of(model)
    del copied.graph.value_info[:]
    return copied


def _drop_initializers(model: onnx.ModelProto, names: Set[str]) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
