"""A float32 ONNX graph to one whose backbone is float16; the normalisation and the distance head stay float32.

The head stays because squared feature norms overflow float16 at 65504 and a score is a small difference.
"""

from typing import Dict

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.graph import constants, in_backbone, remove_unused_constants, rename_input

# Inputs that ONNX defines as float32 (or integers) whatever the data is.
KEEPS_TYPE = {"Resize": (1, 2, 3)}


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose backbone computes in float16, with one Cast where it begins and one where it ends.

    Constants beyond float16's range are clipped to it.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    del half.graph.value_info[:]
    graph = half.graph
    values = constants(half)
    backbone = [node for node in graph.node if in_backbone(node)]
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
    for node in graph.node:
        if not in_backbone(node):
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
    limit = float(np.finfo(np.float16).max)
    graph.initializer.append(numpy_helper.from_array(np.clip(values, -limit, limit).astype(np.float16), f"{name}_fp16"))


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
