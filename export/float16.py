"""A float32 ONNX graph to one whose backbone is float16; the normalisation and the distance head stay float32.

The head stays because squared feature norms overflow float16 at 65504 and a score is a small difference. Nodes of the
backbone whose numbers do not fit stay too: see `beyond_float16`.
"""

from typing import Collection, Dict, Iterable, List

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.graph import constants, copy_of, in_backbone, remove_unused_constants, rename_input
from export.equalize import MARGIN
from export.quantize import observe

# Inputs that ONNX defines as float32 (or integers) whatever the data is.
KEEPS_TYPE = {"Resize": (1, 2, 3)}


BOUNDS = {"Clip": (1, 2)}  # inputs that may be clipped to float16's range: nothing in float16 lies beyond
LARGEST = float(np.finfo(np.float16).max)  # 65504


def beyond_float16(model: onnx.ModelProto, images: Iterable[np.ndarray] = ()) -> List[str]:
    """The nodes of the backbone that must stay in float32, in graph order.

    They have a constant beyond 65504, or write or read a tensor that passes 65504 / 1.5 = 43669 on one of the images:
    where good images end a defect may go on, and INT8 keeps the same room (`equalize.MARGIN`).

    Args:
        model: the float32 graph.
        images: (height, width, 3) uint8 each; without any, only constants are looked at.

    Raises:
        CalibrationError: values that are not finite.
    """
    values = constants(model)
    backbone = [node for node in model.graph.node if in_backbone(node)]
    wide = {name for name, value in values.items() if value.dtype == np.float32 and (np.abs(value) > LARGEST).any()}
    images = list(images)
    if images:
        for seen in observe(model, _float_outputs(model, backbone), images):
            wide.update(name for name, value in seen.items() if np.abs(value).max() > LARGEST / MARGIN)
    return [
        node.name
        for node in backbone
        if any(
            name in wide and index not in BOUNDS.get(node.op_type, ())
            for index, name in enumerate([*node.input, *node.output])
        )
    ]


def vanishing_weights(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> int:
    """The number of weights that are not 0 and become 0 in float16: those below 3e-8.

    Args:
        model: the float32 graph.
        keep_float: names of nodes of the backbone that stay in float32.
    """
    values = constants(model)
    halved = {
        name
        for node in model.graph.node
        if in_backbone(node) and node.name not in keep_float
        for index, name in enumerate(node.input)
        if index not in KEEPS_TYPE.get(node.op_type, ()) and name in values and values[name].dtype == np.float32
    }
    return sum(int(((values[name] != 0) & (_half(values[name]) == 0)).sum()) for name in halved)


def _half(values: np.ndarray) -> np.ndarray:
    half: np.ndarray = np.clip(values, -LARGEST, LARGEST).astype(np.float16)
    return half


def _float_outputs(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> List[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return [name for node in nodes for name in node.output if name in floats]


def to_float16(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return a copy whose backbone computes in float16, with a Cast wherever the type changes.

    Args:
        model: the float32 graph.
        keep_float: names of nodes of the backbone that stay in float32; see `beyond_float16`.
    """
    half = copy_of(model)
    del half.graph.value_info[:]
    graph = half.graph
    values = constants(half)
    backbone = [node for node in graph.node if in_backbone(node) and node.name not in keep_float]
    inside = {output for node in backbone for output in node.output}
    casts: Dict[str, int] = {}
    for node in backbone:
        for index, name in enumerate(node.input):
            if not name or index in KEEPS_TYPE.get(node.op_type, ()) or name in inside:
                continue
            if name in values and values[name].dtype == np.float32:
                _add_half_constant(graph, name, values[name])
                rename_input(node, name, f"{name}_fp16")
            elif name not in values:
                casts[name] = TensorProto.FLOAT16
                rename_input(node, name, f"{name}_fp16")
    halves = {node.name for node in backbone}
    for node in graph.node:
        if node.name not in halves:
            for name in list(node.input):
                if name in inside:
                    casts[name] = TensorProto.FLOAT
                    rename_input(node, name, f"{name}_fp32")
    _insert_casts(graph, casts)
    remove_unused_constants(half)
    return half


def _add_half_constant(graph: onnx.GraphProto, name: str, values: np.ndarray) -> None:
    if any(tensor.name == f"{name}_fp16" for tensor in graph.initializer):
        return
    graph.initializer.append(numpy_helper.from_array(_half(values), f"{name}_fp16"))


def _insert_casts(graph: onnx.GraphProto, casts: Dict[str, int]) -> None:
    """Put each Cast right behind the node that computes its input, so that the order stays valid."""
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for name in node.output:
            if name in casts:
                to = casts[name]
                output = f"{name}_fp16" if to == TensorProto.FLOAT16 else f"{name}_fp32"
                nodes.append(onnx.helper.make_node("Cast", [name], [output], name=f"{name}/Cast", to=to))
    del graph.node[:]
    graph.node.extend(nodes)
