"""Bias correction: what rounding shifts in the mean of a channel is taken back by the bias of its convolution.

Nagel et al., 'Data-Free Quantization Through Weight Equalization and Bias Correction', ICCV 2019, section 4.2, in its
empirical form: both networks see the same images. The few weights of a depthwise filter do not round to the same mean,
so every output of its channel is off by the same amount, and every layer behind it sees that.
"""

from typing import Callable, Dict, Iterable, List, Sequence, Set

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import backbone_convolutions, constants, copy_of, producers, remove_unused_constants
from export.quantize import observe

CORRECTION_IMAGES = 32  # spread over the classes


def correct_biases(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    images: Sequence[np.ndarray],
    progress: Callable[[], object] = lambda: None,
) -> onnx.ModelProto:
    """Return a copy of a quantized graph in which the mean of every channel is that of the float graph.

    Layers are corrected in the order in which they compute, those of one depth together, each with all before it
    corrected already. A convolution without a bias is passed over.

    Args:
        model: the float32 graph that was quantized.
        quantized: the same with Q/DQ.
        images: (H, W, 3) uint8 each.
        progress: called after each depth, of which `by_depth` tells the number.

    Raises:
        CalibrationError: no image, or values that are not finite.
    """
    layers = by_depth(model)
    outputs = {name: tensor for group in layers for name, tensor in group.items()}
    expected = _channel_means(model, list(outputs.values()), images)
    corrected = copy_of(quantized)
    nodes = {node.name: node for node in corrected.graph.node}
    values = constants(quantized)
    for group in layers:
        means = _channel_means(_up_to(corrected, group.values()), list(group.values()), images)
        for name, tensor in group.items():
            bias = values[nodes[name].input[2]] - (means[tensor] - expected[tensor])
            nodes[name].input[2] = f"{name}/corrected_bias"
            corrected.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), nodes[name].input[2]))
        progress()
    remove_unused_constants(corrected)
    return corrected


def by_depth(model: onnx.ModelProto) -> List[Dict[str, str]]:
    """Convolutions of the backbone with a bias -> their output; those together that lie behind equally many others."""
    fixed, convolutions = constants(model), {node.name for node in backbone_convolutions(model)}
    depth: Dict[str, int] = {}
    groups: Dict[int, Dict[str, str]] = {}
    for node in model.graph.node:
        behind = max((depth.get(name, 0) for name in node.input), default=0)
        if node.name in convolutions and len(node.input) > 2 and node.input[2] in fixed:
            groups.setdefault(behind, {})[node.name] = node.output[0]
            behind += 1
        depth.update(dict.fromkeys(node.output, behind))
    return [groups[key] for key in sorted(groups)]


def _up_to(model: onnx.ModelProto, outputs: Iterable[str]) -> onnx.ModelProto:
    """A copy of a graph with only the nodes that these tensors need."""
    made_by, waiting = producers(model), list(outputs)
    needed: Set[str] = set()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += node.input
    part = copy_of(model)
    kept = [node for node in part.graph.node if node.name in needed]
    del part.graph.node[:]
    part.graph.node.extend(kept)
    remove_unused_constants(part)
    return part


def _channel_means(model: onnx.ModelProto, names: List[str], images: Iterable[np.ndarray]) -> Dict[str, np.ndarray]:
    """Tensor -> (C,) float64, the mean of each channel over the images."""
    sums: Dict[str, np.ndarray] = {}
    count = 0
    for values in observe(model, names, images):
        count += 1
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.mean(axis=(0, 2, 3), dtype=np.float64)
    return {name: total / count for name, total in sums.items()}
