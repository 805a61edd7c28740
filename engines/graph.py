"""ONNX nodes and tensors: the small vocabulary that engines, quantization, float16 and the checks share.

Imports onnx, so the modules of `engines` import this one where they need it.

The exporter names a node after the submodule it comes from, so `/normalize/...` is the input normalisation,
`/head/...` the distance head, and all between them is the backbone, whose precision may change.
"""

from typing import Collection, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

NORMALIZE = "/normalize/"
HEAD = "/head/"
CONVOLUTIONS = ("Conv", "ConvTranspose")


def in_backbone(node: onnx.NodeProto) -> bool:
    """Whether a node lies between the input normalisation and the distance head."""
    return not node.name.startswith((NORMALIZE, HEAD))


def backbone_convolutions(model: onnx.ModelProto) -> List[onnx.NodeProto]:
    """The convolutions and transposed convolutions of the backbone, in graph order."""
    return [node for node in model.graph.node if node.op_type in CONVOLUTIONS and in_backbone(node)]


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def constants(model: onnx.ModelProto) -> Dict[str, np.ndarray]:
    """Tensor name -> value, of every initializer."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> Dict[str, onnx.NodeProto]:
    """Tensor name -> the node that computes it."""
    return {output: node for node in model.graph.node for output in node.output}


def consumers(model: onnx.ModelProto) -> Dict[str, List[onnx.NodeProto]]:
    """Tensor name -> the nodes that read it, in graph order, each once."""
    readers: Dict[str, List[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return readers


def attribute(node: onnx.NodeProto, name: str) -> Optional[object]:
    """The value of an attribute, or None where the node leaves it to its default."""
    for entry in node.attribute:
        if entry.name == name:
            value: object = onnx.helper.get_attribute_value(entry)
            return value
    return None


def whole_numbers(node: onnx.NodeProto, name: str, default: int) -> Sequence[int]:
    """The numbers of an attribute."""
    value = attribute(node, name)
    if isinstance(value, int):
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else [default]


def text(node: onnx.NodeProto, name: str, default: str) -> str:
    """The text of an attribute."""
    value = attribute(node, name)
    return value.decode() if isinstance(value, bytes) else default


def rename_input(node: onnx.NodeProto, old: str, new: str) -> None:
    """Make a node read `new` wherever it reads `old`."""
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def bypass(model: onnx.ModelProto, operators: Tuple[str, ...]) -> None:
    """Remove the nodes of these operators; who read their output reads their first input."""
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in operators}
    kept = [node for node in model.graph.node if node.op_type not in operators]
    for node in kept:
        for index, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[index] = name
    del model.graph.node[:]
    model.graph.node.extend(kept)


def drop_nodes(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Remove the nodes of these names; who read them must have been rewired."""
    kept = [node for node in model.graph.node if node.name not in names]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def remove_unused_constants(model: onnx.ModelProto) -> None:
    """Drop the initializers that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put nodes in an order in which each follows what it reads, as ONNX demands; otherwise the order is kept."""
    known = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input} | {""}
    waiting = list(model.graph.node)
    ordered: List[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in known for name in node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"the graph has a cycle, or reads a tensor nobody computes, at {later[0].name}")
        waiting = later
    del model.graph.node[:]
    model.graph.node.extend(ordered)
