"""Bias correction: what rounding shifts in the mean of a channel is taken back by the bias of its convolution.

Nagel et al., 'Data-Free Quantization Through Weight Equalization and Bias Correction', ICCV 2019, section 4.2, in its
empirical form: both networks see the same images. The few weights of a depthwise filter do not round to the same mean,
so every output of its channel is off by the same amount, and every layer behind it sees that.
"""

from typing import Callable, Collection, Dict, Iterable, List, Sequence, Set, Tuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.graph import backbone_convolutions, constants, copy_of, producers, remove_unused_constants
from export.quantize import observe, observe_from

CORRECTION_IMAGES = 32  # spread over the classes


class BiasCorrection:
    """Images, and what a float graph computes on them: quantized graphs are brought back to its channel means."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[np.ndarray]) -> None:
        """Run the float graph once.

        Args:
            model: the float32 graph.
            images: (H, W, 3) uint8 each.

        Raises:
            CalibrationError: no image, or values that are not finite.
        """
        self._images = images
        self._layers = by_depth(model)
        outputs = [tensor for group in self._layers for tensor in group.values()]
        self._expected = _channel_means(observe(model, outputs, images))

    def correct(self, quantized: onnx.ModelProto, progress: Callable[[], object] = lambda: None) -> onnx.ModelProto:
        """Return a copy of a quantized graph in which the mean of every channel is that of the float graph.

        Layers are corrected in the order in which they compute, those of one depth together, each with all before it
        corrected already. Each depth goes on from what the depth before gave, so the graph runs once. A convolution
        without a bias is passed over.

        Args:
            quantized: the float graph of the constructor, with Q/DQ at any of its places.
            progress: called after each depth, of which `by_depth` tells the number.

        Raises:
            CalibrationError: values that are not finite.
        """
        corrected = copy_of(quantized)
        nodes = {node.name: node for node in corrected.graph.node}
        fixed = constants(quantized)
        seen = [{"image": image[None]} for image in self._images]  # of each image, what later depths go on from
        waiting = [tensor for group in self._layers for tensor in group.values()]
        for group in self._layers:
            tensors = list(group.values())
            part = _between(corrected, seen[0], tensors)
            read = {value.name for value in part.graph.input}
            values = list(observe_from(part, tensors, ({name: each[name] for name in read} for each in seen)))
            means = _channel_means(values)
            for name, tensor in group.items():
                shift = (means[tensor] - self._expected[tensor]).astype(np.float32)
                bias = f"{name}/corrected_bias"
                corrected.graph.initializer.append(numpy_helper.from_array(fixed[nodes[name].input[2]] - shift, bias))
                nodes[name].input[2] = bias
                for each, new in zip(seen, values):
                    each[tensor] = new[tensor] - shift[:, None, None]
            waiting = [tensor for tensor in waiting if tensor not in group.values()]
            _, needed = _path(corrected, seen[0], waiting)
            seen = [{name: value for name, value in each.items() if name in needed} for each in seen]
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


def _between(model: onnx.ModelProto, known: Dict[str, np.ndarray], outputs: List[str]) -> onnx.ModelProto:
    """The part of a graph that computes some tensors from known ones; the known tensors it needs are its inputs."""
    nodes, inputs = _path(model, known, outputs)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "between"
    part.graph.node.extend(node for node in model.graph.node if node.name in nodes)
    read = {name for node in part.graph.node for name in node.input}
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    types = {name: TensorProto.UINT8 if known[name].dtype == np.uint8 else TensorProto.FLOAT for name in inputs}
    part.graph.input.extend(helper.make_tensor_value_info(name, types[name], None) for name in sorted(inputs))
    return part


def _path(model: onnx.ModelProto, known: Collection[str], outputs: Iterable[str]) -> Tuple[Set[str], Set[str]]:
    """Names of the nodes that compute tensors from known ones, and of the known tensors that they start from."""
    made_by, waiting = producers(model), list(outputs)
    nodes: Set[str] = set()
    starts: Set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in known:
            starts.add(name)
        elif name in made_by and made_by[name].name not in nodes:
            nodes.add(made_by[name].name)
            waiting += made_by[name].input
    return nodes, starts


def _channel_means(values: Iterable[Dict[str, np.ndarray]]) -> Dict[str, np.ndarray]:
    """Tensor -> (C,) float64, the mean of each channel over the images."""
    sums: Dict[str, np.ndarray] = {}
    count = 0
    for seen in values:
        count += 1
        for name, value in seen.items():
            sums[name] = sums.get(name, 0.0) + value.mean(axis=(0, 2, 3), dtype=np.float64)
    return {name: total / count for name, total in sums.items()}
