"""A trained torch network to a float32 ONNX graph with the project's contract.

`image` uint8 (N, H, W, 3) in; `score` float32 (N,) and `anomaly_map` float32 (N, h, w) out.
"""

import warnings
from typing import TYPE_CHECKING, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import bypass, in_backbone
from export.errors import ExportError

if TYPE_CHECKING:
    import torch

OPSET = 17  # the newest that TensorRT 8.5 (JetPack 5) reads


def export_network(network: "torch.nn.Module", size: Tuple[int, int]) -> onnx.ModelProto:
    """Trace a network whose submodules `normalize` and `head` bound its backbone.

    Torch's TorchScript exporter is used because its newer one starts at opset 18. It too folds every BatchNorm into the
    convolution before it, where that was not done before.

    Args:
        network: maps (N, H, W, 3) uint8 to a score (N,) and a map (N, h, w), in evaluation mode.
        size: (H, W).

    Raises:
        ExportError: torch cannot export it.
    """
    import io

    import torch

    image = torch.zeros((1, *size, 3), dtype=torch.uint8)
    names = ["image", "score", "anomaly_map"]
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the TorchScript exporter's farewell, and its remarks on tracing
            torch.onnx.export(
                network.eval().float().cpu(),
                (image,),
                buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a stream
                input_names=names[:1],
                output_names=names[1:],
                dynamic_axes={name: {0: "batch"} for name in names},
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(f"torch cannot export this model: {error}") from error
    model = onnx.load_from_string(buffer.getvalue())
    bypass(model, ("Identity",))  # torch writes them where two convolutions have equal biases
    _lift_constants(model)
    standing = [node.name for node in model.graph.node if node.op_type == "BatchNormalization" and in_backbone(node)]
    if standing:
        raise ExportError(f"{standing[0]} was not folded into a convolution")
    return model


def _lift_constants(model: onnx.ModelProto) -> None:
    """Turn Constant nodes into initializers, so that a constant is found in one place."""
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = np.array(numpy_helper.to_array(node.attribute[0].t))
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
