"""Cross-layer equalisation: give the channels of a tensor one common range, so that one INT8 scale serves them all.

A tensor between two convolutions may be multiplied by a positive factor for each channel, if the convolution before it
multiplies its filters and bias by that factor and the convolution behind it divides its weights by it (Nagel et al.,
'Data-Free Quantization Through Weight Equalization and Bias Correction', ICCV 2019, section 4.1). Here that is done in
front of depthwise convolutions only: their weights have a scale for each channel anyway and lose nothing, while the
ranges of the channels that they read differ by orders of magnitude.

The factors come from calibration images. They bring every channel to the range of the widest one, but for a margin: a
channel that reaches 0.5 beside one that reaches 6 is multiplied by 8, so that 0.75 would still be within. A Relu in
between changes nothing, because no factor is negative. A Clip at 6 (ReLU6) does: it now cuts the first channel off at
0.75, and so does the INT8 range. Where values end on good images, those of a defect may go on: without a margin the
scores of defects fell. benchmarks/margin.py measures what it costs and brings.
"""

from typing import Dict, Iterable, List, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import attribute, constants, consumers, copy_of, in_backbone, producers, remove_unused_constants
from export.quantize import observe

LIMIT = 64.0  # the greatest factor: a channel that is nearly dead is not blown up
MARGIN = 1.5  # of a channel's range above its values on good images: defects go further (benchmarks/results/margin.md)


def equalize(model: onnx.ModelProto, images: Iterable[np.ndarray]) -> onnx.ModelProto:
    """Return a copy of a float32 graph that computes the same on these images from equalised channels.

    Args:
        model: the graph; it is not changed.
        images: (H, W, 3) uint8 each.

    Raises:
        CalibrationError: no image, or activations that are not finite.
    """
    pairs = equalizable(model)
    equalized = copy_of(model)
    if not pairs:
        return equalized
    amax: Dict[str, np.ndarray] = {}
    for values in observe(model, list(pairs), images):
        for name, value in values.items():
            amax[name] = np.maximum(amax.get(name, 0.0), np.abs(value).max(axis=(0, 2, 3)))
    fixed = constants(model)
    nodes = {node.name: node for node in equalized.graph.node}

    def multiply(node: str, index: int, factor: np.ndarray) -> None:
        """Scale the weights (1) or the bias (2) of a convolution along its output channels."""
        value = fixed[nodes[node].input[index]]
        nodes[node].input[index] = f"{node}/equalized_{index}"
        fixed[nodes[node].input[index]] = (value * factor.reshape(-1, *[1] * (value.ndim - 1))).astype(np.float32)

    for name, (before, behind) in pairs.items():
        factor = _factors(amax[name])
        for index in range(1, len(nodes[before].input)):
            multiply(before, index, factor)
        for reader in behind:
            multiply(reader, 1, 1.0 / factor)
    known = {tensor.name for tensor in equalized.graph.initializer}
    used = {name for node in equalized.graph.node for name in node.input}
    new = [numpy_helper.from_array(value, name) for name, value in fixed.items() if name in used - known]
    equalized.graph.initializer.extend(new)
    remove_unused_constants(equalized)
    return equalized


def equalizable(model: onnx.ModelProto) -> Dict[str, Tuple[str, List[str]]]:
    """Tensor -> the convolution it comes from and the depthwise convolutions that read it, in graph order.

    Between the first and the tensor there may be a Relu, or a Clip from 0 on. Nobody else reads either.
    """
    made_by, read_by, fixed = producers(model), consumers(model), constants(model)
    outputs = {value.name for value in model.graph.output}
    sources = {}
    for node in model.graph.node:
        name = node.output[0]
        readers = read_by.get(name, [])
        if not in_backbone(node) or name in outputs or not readers:
            continue
        if not all(_is_depthwise(reader, fixed) and reader.input[0] == name for reader in readers):
            continue
        source = node
        if node.op_type == "Relu" or (node.op_type == "Clip" and _is_from_zero(node, fixed)):
            if len(read_by[node.input[0]]) > 1 or node.input[0] not in made_by:
                continue
            source = made_by[node.input[0]]
        if source.op_type == "Conv" and in_backbone(source) and all(name in fixed for name in source.input[1:]):
            sources[name] = source.name, [reader.name for reader in readers]
    return sources


def _factors(amax: np.ndarray) -> np.ndarray:
    """(channels,) -> what brings each to the greatest but for the margin; 1 for a dead channel."""
    alive = np.where(amax > 0, amax, amax.max())
    return np.clip(amax.max() / (MARGIN * alive), 1.0, LIMIT) if amax.any() else np.ones_like(amax)


def _is_depthwise(node: onnx.NodeProto, fixed: Dict[str, np.ndarray]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in fixed:
        return False
    return fixed[node.input[1]].shape[:2] == (attribute(node, "group") or 1, 1)


def _is_from_zero(clip: onnx.NodeProto, fixed: Dict[str, np.ndarray]) -> bool:
    return len(clip.input) == 3 and clip.input[1] in fixed and float(fixed[clip.input[1]]) == 0.0
