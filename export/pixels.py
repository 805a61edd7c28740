"""The image on its own grid: a photograph has 8-bit integers already, and INT8 takes them as they are.

The backbone reads normalised pixels, (p - mean) / std. Quantized like any tensor they lie on another grid, 1.2 grey
levels apart: 13% of the error of INT8 came from that alone (benchmarks/results/error.md). So the graph is rewritten,
before its ranges are found, to read p - 128 instead, whose scale is 1 and whose rounding changes nothing: a weight is
divided by std, and the bias makes up for what the mean and 128 differ. The graph computes the same.

Around the image the first convolutions see zeros, which are mean pixels, not 128. So p - mean is padded with zeros,
before mean - 128 is added, and the convolutions themselves are not padded. The division by std is gone.
"""

from typing import Dict, List, Optional, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engines.graph import (
    NORMALIZE,
    constants,
    consumers,
    copy_of,
    drop_nodes,
    in_backbone,
    producers,
    remove_unused_constants,
    sort_nodes,
    text,
    whole_numbers,
)
from engines.metadata import ModelInfo
from export.quantize import observe

PIXELS = f"{NORMALIZE}pixels"  # the tensor p - 128
RANGE = 127.0  # of it: the scale is 1; -128 is an integer of INT8, too
MIDDLE = 128.0


def on_pixels(model: onnx.ModelProto, info: ModelInfo) -> onnx.ModelProto:
    """Return a copy of a float32 graph that reads p - 128 from `PIXELS`.

    It is the graph itself where not all that read the image are convolutions, padded alike on all sides, or where it
    normalises pixels in another way than its description says.

    Args:
        model: the graph; it is not changed.
        info: its description: mean and std.
    """
    divide = _division(model, info)
    readers = [] if divide is None else _readers(model, divide.output[0])
    if divide is None or not readers:
        return model
    rewritten = copy_of(model)
    graph, fixed = rewritten.graph, constants(model)
    pad = whole_numbers(readers[0], "pads", 0)[0]
    std, offset = grid_of(info)
    added: Dict[str, np.ndarray] = {
        "pads": np.array([0, 0, pad, pad, 0, 0, pad, pad], np.int64),
        "nothing": np.array(0.0, np.float32),
        "offset": offset.astype(np.float32),
    }
    names = {key: f"{PIXELS}/{key}" for key in added}
    graph.initializer.extend(numpy_helper.from_array(value, names[key]) for key, value in added.items())
    padded, inputs = f"{PIXELS}/padded", [divide.input[0], names["pads"], names["nothing"]]
    graph.node.append(helper.make_node("Pad", inputs, [padded], f"{PIXELS}/Pad"))
    graph.node.append(helper.make_node("Add", [padded, names["offset"]], [PIXELS], f"{PIXELS}/Add"))
    drop_nodes(rewritten, {divide.name})
    nodes = {node.name: node for node in graph.node}
    for reader in readers:
        node = nodes[reader.name]
        weight = fixed[node.input[1]].astype(np.float64) / std
        bias = -(weight * offset).sum(axis=(1, 2, 3))
        bias += fixed[node.input[2]] if len(node.input) > 2 else 0.0
        inputs = [PIXELS]
        for key, value in (("weight", weight), ("bias", bias)):
            inputs.append(f"{node.name}/{key}_of_pixels")
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), inputs[-1]))
        node.input[:] = inputs
        kept = [each for each in node.attribute if each.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", [0, 0, 0, 0])])
    sort_nodes(rewritten)
    remove_unused_constants(rewritten)
    return rewritten if _reads_pixels(rewritten, info, pad) else model


def grid_of(info: ModelInfo) -> Tuple[np.ndarray, np.ndarray]:
    """std and offset of p - 128 = x * std + offset, where x is a normalised pixel: (1, 3, 1, 1) each, float64."""
    std, mean = (255.0 * np.array(each, np.float64).reshape(1, 3, 1, 1) for each in (info.std, info.mean))
    return std, mean - MIDDLE


def _reads_pixels(model: onnx.ModelProto, info: ModelInfo, pad: int) -> bool:
    """Whether `PIXELS` holds p - 128, of an image with every p."""
    image = (np.arange(info.height * info.width * 3) % 256).astype(np.uint8).reshape(info.height, info.width, 3)
    (seen,) = observe(model, [PIXELS], [image])
    inside = seen[PIXELS][0, :, pad : pad + info.height, pad : pad + info.width]
    return bool(np.abs(inside - (image.transpose(2, 0, 1) - MIDDLE)).max() < 0.01)


def _division(model: onnx.ModelProto, info: ModelInfo) -> Optional[onnx.NodeProto]:
    """The last step of the normalisation, by std, which gives all that the backbone reads of the image."""
    made_by, fixed = producers(model), constants(model)
    read = {name for node in model.graph.node if in_backbone(node) for name in node.input}
    names = [name for name in read if name in made_by and made_by[name].name.startswith(NORMALIZE)]
    node = made_by[names[0]] if len(names) == 1 else None
    if node is None or node.op_type != "Div" or node.input[1] not in fixed:
        return None
    return node if np.allclose(fixed[node.input[1]], grid_of(info)[0]) else None


def _readers(model: onnx.ModelProto, name: str) -> List[onnx.NodeProto]:
    """The convolutions that read a tensor; none where something else reads it, or they are not padded alike."""
    readers, fixed = consumers(model)[name], constants(model)
    pads = {pad for node in readers for pad in whole_numbers(node, "pads", 0)}
    return readers if len(pads) == 1 and all(_is_first(node, fixed, name) for node in readers) else []


def _is_first(node: onnx.NodeProto, fixed: Dict[str, np.ndarray], name: str) -> bool:
    """Whether it is a convolution of three colours whose weights are known."""
    if node.op_type != "Conv" or node.input[0] != name or not all(each in fixed for each in node.input[1:]):
        return False
    return text(node, "auto_pad", "NOTSET") == "NOTSET" and fixed[node.input[1]].shape[1] == 3
