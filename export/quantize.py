"""Post-training quantization: a float32 ONNX file to the same graph with Q/DQ nodes, without torch.

Calibration runs the float graph in ONNX Runtime, one image at a time, and keeps a histogram for each tensor.
"""

import dataclasses
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import (
    backbone_convolutions,
    constants,
    copy_of,
    remove_unused_constants,
    rename_input,
    sort_nodes,
)
from engines.metadata import ModelInfo
from engines.qdq import along, axis_of
from export.calibrate import Histogram, scale_from_amax
from export.errors import CalibrationError
from export.placement import Placement, QuantizedWeight


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """What was quantized and what was not."""

    tensors: int  # activations with a Q/DQ pair
    weights: int
    float_nodes: List[str]  # convolutions left in float
    dead: List[str]  # weights with channels that are all zero, and tensors that never left zero


def with_ranges(
    model: onnx.ModelProto, info: ModelInfo, amax: Dict[str, float], placement: Placement
) -> Tuple[onnx.ModelProto, ModelInfo, QuantizationReport]:
    """Put Q/DQ pairs where they belong.

    Args:
        model: a float32 graph; it is not changed.
        info: its description.
        amax: tensor name -> range, of all that `placement.ranged` names.
        placement: of this graph; see `export.placement.place`.

    Returns:
        The quantized graph, its description, and what was done.
    """
    quantized, report = insert_qdq(model, amax, placement)
    scales = {name: float(scale_from_amax(np.array(amax[name]))) for name in placement.residuals}
    return quantized, dataclasses.replace(info, precision="int8", residual_scales=scales), report


def collect_histograms(model: onnx.ModelProto, names: List[str], images: Iterable[np.ndarray]) -> Dict[str, Histogram]:
    """Run the float graph over the images and count the values of the named tensors.

    Raises:
        CalibrationError: no image, or values that are not finite.
    """
    histograms = {name: Histogram() for name in names}
    for values in observe(model, names, images):
        for name, value in values.items():
            histograms[name].update(value)
    return histograms


def ranges(
    histograms: Sequence[Dict[str, Histogram]], names: Sequence[str], rule: Callable[[Histogram], float]
) -> Dict[str, float]:
    """Tensor -> amax: the widest that any class asks for, so that none is clipped for the sake of another.

    Args:
        histograms: of each class, tensor -> histogram.
        names: of the tensors.
        rule: a calibrator; see `export.calibrate`.
    """
    return {name: max(rule(of_class[name]) for of_class in histograms) for name in names}


def observe(model: onnx.ModelProto, names: List[str], images: Iterable[np.ndarray]) -> Iterator[Dict[str, np.ndarray]]:
    """Run a graph in ONNX Runtime, an image (H, W, 3) uint8 at a time; yield the values of the named tensors.

    A graph with Q/DQ runs as it stands, node by node. Fused into integer kernels it would be no faster here, and on x86
    without VNNI its sums would saturate.

    Raises:
        CalibrationError: no image, or values that are not finite.
    """
    return observe_from(model, names, ({"image": image[None]} for image in images))


def observe_from(
    model: onnx.ModelProto, names: List[str], inputs: Iterable[Dict[str, np.ndarray]]
) -> Iterator[Dict[str, np.ndarray]]:
    """`observe` of a graph with any inputs: input name -> value, for each image."""
    import onnxruntime

    observed = copy_of(model)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(observed.SerializeToString(), options, ["CPUExecutionProvider"])
    count = 0
    for given in inputs:
        values = dict(zip(names, session.run(names, given)))
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise CalibrationError(f"{name} is not finite on a calibration image: train the model again")
        yield values
        count += 1
    if not count:
        raise CalibrationError("there are no calibration images")


def insert_qdq(
    model: onnx.ModelProto, amax: Dict[str, float], placement: Placement
) -> Tuple[onnx.ModelProto, QuantizationReport]:
    """Write the Q/DQ pairs of a placement into a copy of its float32 graph; see `with_ranges`."""
    quantized = copy_of(model)
    del quantized.graph.value_info[:]
    graph = quantized.graph
    nodes = {node.name: node for node in graph.node}
    dead = []
    input_scales: Dict[str, np.ndarray] = {}  # of the nodes that read what is quantized
    for tensor in placement.activations:
        if amax[tensor.range_of] == 0:
            dead.append(tensor.name)
        scale = scale_from_amax(np.array(amax[tensor.range_of]))
        output = _add_qdq(graph, tensor.name, scale)
        for reader in tensor.readers:
            rename_input(nodes[reader], tensor.name, output)
            input_scales[reader] = scale
    values = constants(model)
    for weight in placement.weights:
        readers = [nodes[layer] for layer in placement.layers if nodes[layer].input[1] == weight.name]
        channels = _amax_of_channels(values[weight.name], weight.axis)
        scale = scale_from_amax(channels)
        for node in readers:
            if len(node.input) > 2:
                scale = np.maximum(scale, _least_scale(values[node.input[2]], input_scales[node.name], weight.axis))
        _add_weight_dq(graph, weight, values[weight.name], scale, readers)
        if not channels.all():
            dead.append(weight.name)
    sort_nodes(quantized)
    remove_unused_constants(quantized)
    done = {weight.node for weight in placement.weights}
    left = [node.name for node in backbone_convolutions(model) if node.name not in done]
    return quantized, QuantizationReport(len(placement.activations), len(placement.weights), left, dead)


def with_seven_bits(model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a quantized graph whose weights lie in [-63, 63], on a grid twice as coarse.

    x86 without VNNI adds two products of uint8 and int8 in 16 bits, which end at 32767: 2 * 255 * 127 is too much, and
    2 * 255 * 63 is not. NNCF calls it the overflow fix.

    Args:
        model: the float32 graph that was quantized.
        quantized: the same with Q/DQ, in the small form of `engines.qdq`.
    """
    coarse = copy_of(quantized)
    values, floats = constants(quantized), constants(model)
    tensors = {tensor.name: tensor for tensor in coarse.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            name, scale_name = node.input[:2]
            scale = values[scale_name] * np.float32(127 / 63)
            integers = _integers(floats[name[: -len("_int8")]], scale, axis_of(node), limit=63)
            tensors[name].CopyFrom(numpy_helper.from_array(integers, name))
            tensors[scale_name].CopyFrom(numpy_helper.from_array(scale, scale_name))
    return coarse


def _integers(values: np.ndarray, scale: np.ndarray, axis: int, limit: int) -> np.ndarray:
    """A weight on the INT8 grid of each of its channels."""
    steps = np.rint(values / along(axis, scale, values.ndim))
    integers: np.ndarray = np.clip(steps, -limit, limit).astype(np.int8)
    return integers


def _add_qdq(graph: onnx.GraphProto, name: str, scale: np.ndarray) -> str:
    """Add QuantizeLinear and DequantizeLinear after a tensor; returns the name of their output."""
    scale_name, zero_name, integer, output = (f"{name}{end}" for end in ("_scale", "_zero_point", "_int8", "_dq"))
    graph.initializer.append(numpy_helper.from_array(scale, scale_name))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero_name))
    parameters = [scale_name, zero_name]
    graph.node.append(onnx.helper.make_node("QuantizeLinear", [name, *parameters], [integer], name=f"{name}/Q"))
    graph.node.append(onnx.helper.make_node("DequantizeLinear", [integer, *parameters], [output], name=f"{name}/DQ"))
    return output


def _amax_of_channels(weight: np.ndarray, axis: Optional[int]) -> np.ndarray:
    """The greatest magnitude of each channel along an axis, (channels,), or of all, ()."""
    amax: np.ndarray = np.abs(weight).max(axis=tuple(each for each in range(weight.ndim) if each != axis))
    return amax


def _least_scale(bias: np.ndarray, input_scale: np.ndarray, axis: Optional[int]) -> np.ndarray:
    """The least scale of a weight at which its bias is an int32, as TensorRT adds it: bias / (input scale x scale).

    A bias of 1 beside an input scale of 0.05 needs 1.9e-8. EfficientNet-Lite0 has channels with 5.9e-12, which are dead
    but for a rest. 2^30 in place of 2^31 leaves room for the correction of biases.
    """
    magnitudes = np.abs(bias).astype(np.float64)
    least = (magnitudes if axis is not None else magnitudes.max()) / (float(input_scale) * 2.0**30)
    return np.asarray(least, np.float32)


def _add_weight_dq(
    graph: onnx.GraphProto,
    weight: QuantizedWeight,
    values: np.ndarray,
    scale: np.ndarray,
    readers: List[onnx.NodeProto],
) -> None:
    """Store a weight as INT8 with a DequantizeLinear before its readers."""
    name = weight.name
    integers = _integers(values, scale, weight.axis or 0, limit=127)
    graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero_point"))
    inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero_point"]
    graph.node.append(
        onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}/DQ", axis=weight.axis)
    )
    for node in readers:
        rename_input(node, name, f"{name}_dq")


def random_normal_images(info: ModelInfo, count: int, seed: int) -> Iterable[np.ndarray]:
    """Images whose normalised pixels are standard normal, as in Jena et al., 2024 (arXiv 2407.02968), section on PTQ.

    The graph takes uint8, so the values are mapped through the backbone's mean and std, rounded, and clipped to
    [0, 255].
    """
    random = np.random.default_rng(seed)
    mean, std = 255.0 * np.array(info.mean, np.float32), 255.0 * np.array(info.std, np.float32)
    for _ in range(count):
        pixels = random.standard_normal((info.height, info.width, 3), np.float32) * std + mean
        yield np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
