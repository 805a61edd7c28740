"""What a plan computes in other numbers than the graph: float16 where that is not forbidden, and INT8 without Q/DQ."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from engines.graph import sort_nodes

CACHE_HEADERS = {"8.5.2": "TRT-8502-EntropyCalibration2", "8.6.1": "TRT-8601-EntropyCalibration2"}


def rounded(network: Any, obeys: bool) -> onnx.ModelProto:
    """The graph with the output of every layer rounded to float16 that is not bound to float32.

    Q and DQ are not rounded: they become part of the layers that they stand before and behind. Nor is what a
    convolution gives before the Q that it ends in, through an activation or a sum: that is one INT8 kernel.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network._model)
    float32, bound = network._release.DataType["FLOAT"], set()
    for layer in network._layers:
        if obeys and layer._bound and (layer._precision or layer.type.name in ("IDENTITY", "CAST")):
            bound |= {tensor.name for i, tensor in enumerate(layer._outputs) if layer._bound.get(i) == float32}
    free = [layer for layer in network._layers if layer.type.name not in ("QUANTIZE", "DEQUANTIZE")]
    inside = _inside_int8(network)
    floats = {t.name for layer in free for t in layer._outputs if t.dtype == float32 and t.name not in inside}
    nodes = []
    for node in model.graph.node:
        again = []
        for i, name in enumerate(node.output):
            if name in floats - bound:
                node.output[i] = f"{name}_free"
                half = helper.make_node("Cast", [f"{name}_free"], [f"{name}_half"], to=TensorProto.FLOAT16)
                again += [half, helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)]
        nodes += [node, *again]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
    return model


def _inside_int8(network: Any) -> set[str]:
    """Tensors that one layer reads: Q, or one that is fused with it."""
    readers: dict[str, list[Any]] = {}
    for layer in network._layers:
        for tensor in layer._inputs:
            readers.setdefault(tensor.name, []).append(layer)
    inside: set[str] = set()
    for layer in reversed(network._layers):
        for tensor in layer._outputs:
            kinds = [(reader.type.name, reader) for reader in readers.get(tensor.name, [])]
            if len(kinds) == 1:
                kind, reader = kinds[0]
                ends = kind in ("ACTIVATION", "ELEMENTWISE") and {t.name for t in reader._outputs} <= inside
                if kind == "QUANTIZE" or ends:
                    inside.add(tensor.name)
    return inside


def ranges_of(network: Any, calibrator: Any) -> dict[str, float]:
    """Tensor -> amax: of a calibrator's cache or images, or as they were set."""
    if calibrator is None:
        tensors = [tensor for layer in network._layers for tensor in layer._outputs]
        return {tensor.name: tensor._range[1] for tensor in tensors if tensor._range}
    cache = calibrator.read_calibration_cache()
    if cache is None:
        cache = _calibrated(network, calibrator)
        calibrator.write_calibration_cache(memoryview(cache))
    header, *lines = cache.decode().splitlines()
    assert header == CACHE_HEADERS[network._release.version], header
    pairs = (line.split(": ") for line in lines)
    return {name: 127 * float(np.frombuffer(bytes.fromhex(scale), ">f4")[0]) for name, scale in pairs}


def _calibrated(network: Any, calibrator: Any) -> bytes:
    """The cache of a calibrator's images; the greatest magnitude stands for TensorRT's entropy."""
    model = onnx.ModelProto()
    model.CopyFrom(network._model)
    types = {t.name: t.dtype.name for layer in network._layers for t in layer._outputs}
    names = [name for node in model.graph.node for name in node.output if types.get(name) == "FLOAT"]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), None, ["CPUExecutionProvider"])
    shape = (calibrator.get_batch_size(), *network.get_input(0).shape[1:])
    amax = dict.fromkeys(names, 0.0)
    while True:
        addresses = calibrator.get_batch(["image"])
        if addresses is None:
            break
        network._release.gpu.require_context()
        image = network._release.gpu.memory(addresses[0])[: int(np.prod(shape))].reshape(shape).copy()
        for name, value in zip(names, session.run(names, {"image": image})):
            amax[name] = max(amax[name], float(np.abs(value).max()))
    lines = [f"{name}: {np.array(value / 127, '>f4').tobytes().hex()}" for name, value in amax.items()]
    return "\n".join([CACHE_HEADERS[network._release.version], *lines]).encode()


def in_int8(network: Any, ranges: dict[str, float]) -> onnx.ModelProto:
    """The graph where each layer that is not bound to float32 reads and holds what is rounded to INT8.

    What a convolution gives is not rounded before the one layer that it is fused with.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network._model)
    bound = {layer.name for layer in network._layers if layer._precision}
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    n_readers = {name: sum(name in node.input for node in model.graph.node) for name in made_by}
    weights = {each.name: each for each in model.graph.initializer}
    for node in list(model.graph.node):
        if node.name in bound or node.op_type not in ("Conv", "ConvTranspose", "Add"):
            continue
        for index, name in enumerate(node.input):
            is_fused = node.op_type == "Add" and made_by.get(name) == "Conv" and n_readers[name] == 1
            if name in ranges and not is_fused:
                scale = numpy_helper.from_array(np.array(ranges[name] / 127, np.float32), f"{node.name}_{index}_s")
                zero = numpy_helper.from_array(np.array(0, np.int8), f"{node.name}_{index}_z")
                model.graph.initializer.extend([scale, zero])
                parameters, steps = [scale.name, zero.name], f"{node.name}_{index}_q"
                model.graph.node.append(helper.make_node("QuantizeLinear", [name, *parameters], [steps]))
                node.input[index] = f"{node.name}_{index}_dq"
                model.graph.node.append(helper.make_node("DequantizeLinear", [steps, *parameters], [node.input[index]]))
        if node.op_type == "Conv" and f"{node.name}_0_dq" in node.input:
            value = numpy_helper.to_array(weights[node.input[1]])
            step = np.maximum(np.abs(value).max(axis=(1, 2, 3), keepdims=True) / 127, 1e-20)
            rounded = (np.rint(value / step) * step).astype(np.float32)
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(rounded, node.input[1]))
    sort_nodes(model)
    return model
