"""INT8 without Q/DQ nodes, as TensorRT 8 also takes it, and its DLA only: a float graph, and a range for each tensor.

Sources: TensorRT Developer Guide 8.5, 'Working with INT8' (dynamic ranges, calibration) and 'Working with DLA'. A DLA
takes no Q/DQ; NVIDIA's answer is to turn the nodes into ranges (NVIDIA/TensorRT#2222). A layer runs in INT8 where the
ranges of what it reads and of what it gives are known (NVIDIA/TensorRT#2031), so a tensor inside what TensorRT fuses
takes the range of the fused result. TensorRT finds the scales of the weights itself, as the greatest magnitude of each
output channel, which is what the Q/DQ file has too.

The calibration cache is TensorRT's own text: a line that names the release and the algorithm, then for each tensor its
scale, amax / 127, as the eight hexadecimal digits of a big-endian float32.
"""

import struct
from typing import Dict, Mapping, Tuple

import onnx

from engines.graph import bypass, constants, consumers, in_backbone, remove_unused_constants
from engines.qdq import for_tensorrt
from export.errors import CalibrationError

STEPS = 127  # of the INT8 grid, from 0 to amax
FUSED = ("Relu", "Clip", "Add")  # with the convolution before them
ALGORITHM = "EntropyCalibration2"  # the only one that a DLA takes


def without_qdq(
    model: onnx.ModelProto, residual_scales: Mapping[str, float]
) -> Tuple[onnx.ModelProto, Dict[str, float]]:
    """A copy of an INT8 graph without Q/DQ, and tensor -> amax.

    Args:
        model: with Q/DQ, in any form of `engines.qdq`; its weights become the float32 values of their integers.
        residual_scales: of the convolutions that a residual Add reads; see `engines.metadata.ModelInfo`.
    """
    plain = for_tensorrt(model)
    values = constants(plain)
    amax = {name: STEPS * scale for name, scale in residual_scales.items()}
    for node in plain.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in values:
            amax[node.input[0]] = STEPS * float(values[node.input[1]])
    bypass(plain, ("QuantizeLinear", "DequantizeLinear"))
    remove_unused_constants(plain)
    read_by = consumers(plain)
    for node in reversed(plain.graph.node):  # a range goes back from what is fused to what it is fused with
        readers = read_by.get(node.output[0], [])
        is_inside = len(readers) == 1 and readers[0].op_type in FUSED and in_backbone(readers[0])
        if is_inside and in_backbone(node) and readers[0].output[0] in amax:
            amax.setdefault(node.output[0], amax[readers[0].output[0]])
    return plain, amax


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
