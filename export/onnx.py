"""A trained torch network to a float32 ONNX graph with the project's contract.

`image` uint8 (N, H, W, 3) in; out come as many of `engines.metadata.OUTPUTS` as the network gives.
"""

import warnings
from typing import TYPE_CHECKING, List, Optional, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graph import bypass, in_backbone
from engines.metadata import OUTPUTS
from export.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

OPSET = 17  # the newest that TensorRT 8.5 (JetPack 5) reads
TOLERANCE = 1e-3  # of the greatest score or map pixel of an image: float32 sums in another order reach 2e-5


def export_network(
    network: "nn.Module", size: Tuple[int, int], beside: "Optional[nn.Module]" = None
) -> onnx.ModelProto:
    """Trace a network whose submodules `normalize` and `head` bound its backbone, and hold the graph to it.

    Torch's TorchScript exporter is used because its newer one starts at opset 18. It too folds every BatchNorm into the
    convolution before it, where that was not done before.

    Args:
        network: see `uad.models.base.Model`; it is put in evaluation mode.
        size: (H, W).
        beside: the network that the graph is to agree with; by default the one that is traced.

    Raises:
        ExportError: torch cannot export it, tracing lost something, or the graph computes something else.
    """
    import io

    import torch

    image = torch.zeros((1, *size, 3), dtype=torch.uint8)
    network = network.eval().float().cpu()
    buffer = io.BytesIO()
    try:
        with torch.inference_mode():
            names = ["image", *OUTPUTS[: len(network(image))]]
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            torch.onnx.export(
                network,
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
    for remark in remarks:
        if issubclass(remark.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            place = f"{remark.filename}:{remark.lineno}"
            raise ExportError(f"{place} cannot be traced: {str(remark.message).split('. ')[0]}")
    model = onnx.load_from_string(buffer.getvalue())
    bypass(model, ("Identity",))  # torch writes them where two convolutions have equal biases
    _lift_constants(model)
    _check_places(model, [name for name, _ in network.named_children()])
    _check_agreement(model, network if beside is None else beside.eval(), size)
    return model


def _check_places(model: onnx.ModelProto, children: List[str]) -> None:
    """Every node lies in a child of the network: only so is it known to be of the head, or of the backbone.

    Raises:
        ExportError: it does not, or is a BatchNorm that was not folded.
    """
    for node in model.graph.node:
        child = node.name.strip("/").split("/")[0].split(".")[0] if node.name.count("/") > 1 else ""
        if child not in children:
            raise ExportError(
                f"{node.name} is computed by the network itself: move it into one of {', '.join(children)}"
            )
        if node.op_type == "BatchNormalization" and in_backbone(node):
            raise ExportError(f"{node.name} was not folded into a convolution")


def _check_agreement(model: onnx.ModelProto, network: "nn.Module", size: Tuple[int, int]) -> None:
    """Run a random image and a smooth one through both, as one batch, so that a fixed batch size would be found.

    Raises:
        ExportError: an output differs by more than `TOLERANCE`, or is not finite.
    """
    import onnxruntime
    import torch

    images = images_to_compare(size)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        outputs = session.run(None, {"image": images})
    except Exception as error:  # onnxruntime raises classes of its own for each status code
        raise ExportError(f"ONNX Runtime cannot run the graph ({str(error).splitlines()[0]})") from error
    with torch.inference_mode():
        expected = [output.numpy() for output in network(torch.from_numpy(images))]
    for name, one, other in zip(OUTPUTS, outputs, expected):
        if not np.isfinite(other).all():
            raise ExportError(f"the {name} of a test image is not finite: train the model again")
        if one.shape != other.shape:
            raise ExportError(f"the {name} of the graph has the shape {one.shape}, in torch {other.shape}")
        difference = np.abs(one.astype(np.float64) - other).reshape(len(images), -1).max(axis=1)
        largest = np.abs(other).reshape(len(images), -1).max(axis=1)
        if (difference > TOLERANCE * largest + 1e-6).any():
            raise ExportError(f"the {name} of the graph is not that of torch: it differs by {difference.max():.3g}")


def images_to_compare(size: Tuple[int, int]) -> np.ndarray:
    """(2, H, W, 3) uint8: one of noise, and one that is smooth with an edge, as photographs are."""
    height, width = size
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(2 * np.pi * (x / width + (1 + colour) * y / height / 3)) for colour in range(3)]
    smooth = 128 + 60 * np.stack(waves, axis=2)
    smooth[height // 3 : height // 2, width // 4 : width // 2] += 50
    return np.stack([noise, smooth]).astype(np.uint8)


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
