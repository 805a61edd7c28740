"""INT8 without Q/DQ nodes, as TensorRT 8 also takes it, and its DLA only: a float graph, and a range for each tensor.

Sources: TensorRT Developer Guide 8.5, 'Working with INT8' (dynamic ranges, calibration) and 'Working with DLA'. A DLA
takes no Q/DQ; NVIDIA's answer is to turn the nodes into ranges (NVIDIA/TensorRT#2222). A layer runs in INT8 where the
ranges of what it reads and of what it gives are known (NVIDIA/TensorRT#2031), so a tensor inside what TensorRT fuses
takes the range of the fused result, and all that a Concat joins takes one range. TensorRT finds the scales of the
weights itself, as the greatest magnitude of each output channel. So a channel that is all zero ends the build of
releases 8 in `quantizeBiasCommon ... getter(i) != 0` (NVIDIA/TensorRT#4446, #4527, #3020): one of its weights becomes
so small a number that it changes no output that can be measured.

The calibration cache is TensorRT's own text: a line that names the release and the algorithm, then for each tensor its
scale, amax / 127, as the eight hexadecimal digits of a big-endian float32.
"""

import struct
from typing import Dict, List, Mapping, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import (
    backbone_convolutions,
    bypass,
    constants,
    consumers,
    copy_of,
    in_backbone,
    remove_unused_constants,
)
from engines.qdq import for_tensorrt
from export.errors import CalibrationError

STEPS = 127  # of the INT8 grid, from 0 to amax
FUSED = ("Relu", "Clip", "Add")  # with the convolution before them
ALGORITHM = "EntropyCalibration2"  # the only one that a DLA takes
LEAST_SHARE = 2.0**-14  # of a layer's greatest weight, that a channel has at least
LEAST_HALF = 2.0**-24  # the least number above 0 that float16 keeps


def without_qdq(
    model: onnx.ModelProto, residual_scales: Mapping[str, float]
) -> Tuple[onnx.ModelProto, Dict[str, float]]:
    """A copy of an INT8 graph without Q/DQ, and tensor -> amax.

    Args:
        model: with Q/DQ, in any form of `engines.qdq`; its weights become the float32 values of their integers, but
            for `without_dead_channels`.
        residual_scales: of the convolutions that a residual Add reads; see `engines.metadata.ModelInfo`.
    """
    plain = for_tensorrt(model)
    amax = {**{name: STEPS * scale for name, scale in residual_scales.items()}, **activation_ranges(plain)}
    bypass(plain, ("QuantizeLinear", "DequantizeLinear"))
    remove_unused_constants(plain)
    read_by = consumers(plain)
    for node in reversed(plain.graph.node):  # a range goes back from what is fused to what it is fused with
        if node.op_type == "Concat" and in_backbone(node) and node.output[0] in amax:
            joined = [*node.input, *node.output]
            amax.update(dict.fromkeys(joined, max(amax[name] for name in joined if name in amax)))
        readers = read_by.get(node.output[0], [])
        is_inside = len(readers) == 1 and readers[0].op_type in FUSED and in_backbone(readers[0])
        if is_inside and in_backbone(node) and readers[0].output[0] in amax:
            amax.setdefault(node.output[0], amax[readers[0].output[0]])
    return without_dead_channels(plain), amax


def activation_ranges(model: onnx.ModelProto) -> Dict[str, float]:
    """Tensor -> amax, of the tensors that QuantizeLinear reads and that are no weights."""
    values = constants(model)
    return {
        node.input[0]: STEPS * float(values[node.input[1]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }


def without_dead_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every output channel of the backbone's convolutions has a weight.

    The greatest weight of a channel becomes 2^-14 of the greatest of its layer where it is less. TensorRT rounds such a
    channel to steps of its own, so its other weights stay what they are to it.
    """
    alive = copy_of(model)
    values = constants(model)
    tensors = {tensor.name: tensor for tensor in alive.graph.initializer}
    for node in backbone_convolutions(model):
        name = node.input[1]
        if name not in values:
            continue
        by_channel = np.moveaxis(values[name], _axis(node), 0).copy(order="C")
        weights = by_channel.reshape(len(by_channel), -1)
        least = max(LEAST_SHARE * float(np.abs(weights).max()), LEAST_HALF)
        greatest = np.abs(weights).argmax(axis=1)
        for channel in np.flatnonzero(np.abs(weights).max(axis=1) < least):
            sign = -1 if weights[channel, greatest[channel]] < 0 else 1
            weights[channel, greatest[channel]] = sign * least
        woken = np.ascontiguousarray(np.moveaxis(by_channel, 0, _axis(node)))
        tensors[name].CopyFrom(numpy_helper.from_array(woken, name))
    return alive


def dead_channels(model: onnx.ModelProto) -> List[str]:
    """What ends an INT8 build without Q/DQ, one line for each convolution of the backbone with channels all zero."""
    values = constants(model)
    lines = []
    for node in backbone_convolutions(model):
        if node.input[1] in values:
            by_channel = np.moveaxis(values[node.input[1]], _axis(node), 0)
            dead = int((~by_channel.reshape(len(by_channel), -1).any(axis=1)).sum())
            if dead:
                lines.append(f"{node.name}: {dead} channels are all zero, at which INT8 without Q/DQ ends")
    return lines


def _axis(convolution: onnx.NodeProto) -> int:
    """Of the output channels of its weights."""
    return 0 if convolution.op_type == "Conv" else 1


def write_cache(amax: Mapping[str, float], tensorrt: str) -> bytes:
    """A calibration cache of these ranges for a release, such as 8.5.2.2."""
    major, minor, patch = (int(part) for part in tensorrt.split(".")[:3])
    lines = [f"TRT-{1000 * major + 100 * minor + patch}-{ALGORITHM}"]
    lines += [f"{name}: {struct.pack('>f', value / STEPS).hex()}" for name, value in amax.items()]
    return ("\n".join(lines) + "\n").encode()


def read_cache(content: bytes) -> Dict[str, float]:
    """Tensor -> amax, of a calibration cache.

    Raises:
        CalibrationError: it is none.
    """
    try:
        header, *lines = content.decode().splitlines()
        if not header.startswith("TRT-"):
            raise ValueError(f"its first line is {header[:40]!r}")
        pairs = (line.rsplit(": ", 1) for line in lines)
        return {name: STEPS * struct.unpack(">f", bytes.fromhex(scale))[0] for name, scale in pairs}
    except (ValueError, struct.error) as error:
        raise CalibrationError(f"TensorRT gave a calibration cache that cannot be read ({error})") from error
