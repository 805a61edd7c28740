"""Quantization-aware training: fake quantization of a trained network, and fine-tuning under it.

The network is folded (`uad.fold`) and equalised (`export.equalize`) first, as for post-training quantization. Its float
ONNX graph says which tensors are quantized, so there is one set of rules, and a range found here bears the name of its
tensor in the exported file.

NVIDIA no longer develops pytorch-quantization (2.1.3): nothing outside this file knows of it.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, List, Literal, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from absl import logging
from torch import Tensor, nn

from engines.errors import UserError
from engines.graph import constants, in_backbone
from export import placement
from export.calibrate import calibrator as calibrator_of
from export.equalize import equalize
from export.onnx import export_network
from export.quantize import collect_histograms, ranged_tensors
from uad.checkpoint import Quantization, load_checkpoint
from uad.errors import CheckpointError
from uad.fold import Add, fold, parts_of
from uad.learner import Learner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it uses torch.jit
    from pytorch_quantization.nn import QuantConv2d, QuantConvTranspose2d, TensorQuantizer
    from pytorch_quantization.tensor_quant import QuantDescriptor

logging.set_verbosity(logging.ERROR)  # it remarks on everything it does

FAINT = 1e-3  # added to anomaly maps before their root is taken, whose slope at 0 has no bound


class QuantAdd(Add):
    """A residual add that quantizes one of its operands, the skip branch."""

    def __init__(self, quantizer: nn.Module, skip: int) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.skip = skip

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """See the class."""
        if self.skip == 0:
            return super().forward(self.quantizer(left), right)
        return super().forward(left, self.quantizer(right))


def insert_quantizers(
    network: nn.Module,
    size: Tuple[int, int],
    quantization: Quantization,
    parts: Optional[Collection[str]] = None,
) -> None:
    """Put fake quantizers into a folded network, in place, where `export.placement` puts Q/DQ.

    Activations take one amax a tensor, which stays as it is; weights one for each output channel, that of the moment.

    Args:
        network: folded, in float.
        size: (H, W) of its input.
        quantization: with a range for every tensor that `export.quantize.ranged_tensors` names.
        parts: which submodules of the network get them; None for all.
    """
    model = export_network(network, size)
    nodes = {node.name: node for node in model.graph.node}
    quantizers: Dict[str, nn.Module] = {}
    for tensor in placement.activations(model):
        amax = quantization.amax[tensor.range_of]
        descriptor = QuantDescriptor(num_bits=quantization.bits, amax=amax)
        quantizer = quantizers.setdefault(tensor.range_of, TensorQuantizer(descriptor))
        for reader in tensor.readers:
            path = _module_path(reader)
            if parts is not None and path.split(".")[0] not in parts:
                continue
            module = network.get_submodule(path)
            if isinstance(module, Add):
                skip = list(nodes[reader].input).index(tensor.name)
                network.set_submodule(path, QuantAdd(quantizer, skip))
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                network.set_submodule(path, _quantized_convolution(module, quantizer, quantization.bits))
            else:
                network.set_submodule(path, nn.Sequential(quantizer, module))


def _module_path(node_name: str) -> str:
    """The module that a node of the backbone comes from: `/student/conv1/Conv` -> `student.conv1`."""
    return ".".join(node_name.strip("/").split("/")[:-1])


def _quantized_convolution(module: nn.Module, quantizer: nn.Module, bits: int) -> nn.Module:
    """The same convolution with the same parameters, quantizing its input and its weights."""
    transposed = isinstance(module, nn.ConvTranspose2d)
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if transposed else []
    arguments = {name: getattr(module, name) for name in names}
    weight = QuantDescriptor(num_bits=bits, axis=1 if transposed else 0)
    kind = QuantConvTranspose2d if transposed else QuantConv2d
    quantized: nn.Module = kind(**arguments, bias=module.bias is not None, quant_desc_weight=weight)
    quantized.weight, quantized.bias = module.weight, module.bias
    quantized._input_quantizer = quantizer
    return quantized


class QuantizationAware(Learner):
    """Fine-tunes a trained model under fake quantization, so that it judges as it did in float.

    The loss is the mean squared difference of the square roots of two anomaly maps on good images: that of the
    quantized network and that of the network it was before. (The root, because a map is a sum of squares.) What the
    model trains, such as a student, learns beside what it does not, such as a teacher, quantized as it will be
    deployed; it makes up for the teacher's rounding as well as for its own. Gradients pass rounding straight through
    and stop at clipped values. Ranges of activations stay those of the calibrator; those of weights follow the weights.
    The distance head and what it knows of good images stay as they are.

    Args:
        ckpt: the model.ckpt of a run, in float.
        lr: the greatest learning rate of the cycle.
        calibrator: entropy, percentile or minmax; chooses the ranges.
        percentile: for percentile: percent of the values not clipped.
        calibration_images: training images from which the ranges come, spread over the classes.
        bits: of the integers. Only 8 runs on a device; other widths are for study.
        quantized_teacher: false: the rest of the model stays in float while training, for comparison.

    Raises:
        UserError: a checkpoint that cannot serve, or a setting out of range.
    """

    def __init__(
        self,
        ckpt: Optional[Path] = None,
        lr: float = 1e-4,
        calibrator: Literal["entropy", "percentile", "minmax"] = "percentile",
        percentile: float = 99.99,
        calibration_images: int = 128,
        bits: int = 8,
        quantized_teacher: bool = True,
    ) -> None:
        super().__init__()
        if ckpt is None:
            raise UserError("quantization-aware training starts from a trained model: give --ckpt RUN/model.ckpt")
        if not 2 <= bits <= 8:
            raise UserError(f"--model.bits {bits}: give 2 to 8")
        if lr < 0:
            raise UserError(f"--model.lr {lr}: give a number that is not negative")
        if calibration_images < 1:
            raise UserError(f"--model.calibration_images {calibration_images}: give at least 1")
        self._rule = calibrator_of(calibrator, percentile=percentile, bits=bits)
        start = load_checkpoint(ckpt)
        if start.quantization is not None:
            raise CheckpointError(f"{ckpt} is quantized already: give the model.ckpt of the float run it came from")
        self.ckpt = ckpt
        self.start = start.info
        self.config = start.config
        self.lr = lr
        self.bits = bits
        self.images_of_each_class = -(-calibration_images // len(start.info.classes))
        self.quantized_teacher = quantized_teacher
        self.reference = fold(start.network).requires_grad_(False)
        self.network = fold(start.network)
        self.trained = [name for name in parts_of(self.network) if _is_trained(getattr(self.network, name))]
        self.quantization = Quantization(bits, {})
        self.description: Dict[str, Any] = {
            "model": start.info.model,
            "backbone": start.info.backbone,
            "map_stride": start.info.map_stride,
            "precision": f"int{bits} simulated",
            "calibration": {
                "calibrator": calibrator,
                "percentile": percentile if calibrator == "percentile" else None,
                "data": "images",
                "images": 0,  # and more, once there are any
            },
        }

    @torch.no_grad()
    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Before training: equalise, calibrate and insert the quantizers.

        Args:
            batches: good images, (N, H, W, 3) uint8; read once.
        """
        images: List[np.ndarray] = [image.numpy() for batch in batches for image in batch]
        self.description["calibration"].update(images=len(images), classes=self.start.classes)
        model = equalize(export_network(self.network, self.start.size), images)
        values = constants(model)
        for node in model.graph.node:
            if node.op_type in placement.CONVOLUTIONS and in_backbone(node):
                module = self.network.get_submodule(_module_path(node.name))
                for parameter, name in zip((module.weight, module.bias), node.input[1:]):
                    assert isinstance(parameter, Tensor)
                    parameter.copy_(torch.from_numpy(values[name].copy()))
        histograms = collect_histograms(model, ranged_tensors(model), images)
        self._quantize({name: self._rule(histogram) for name, histogram in histograms.items()})

    def _quantize(self, amax: Dict[str, float]) -> None:
        self.quantization = Quantization(self.bits, amax)
        parts = None if self.quantized_teacher else self.trained
        insert_quantizers(self.network, self.start.size, self.quantization, parts)
        self.network.to(memory_format=torch.channels_last)
        self.reference.to(memory_format=torch.channels_last)

    def loss(self, image: Tensor) -> Tensor:
        """See the class: (N, H, W, 3) uint8 -> scalar."""
        with torch.no_grad():
            _, expected = self.reference(image)
        _, anomaly_map = self.network(image)
        return F.mse_loss((anomaly_map + FAINT).sqrt(), (expected + FAINT).sqrt())

    def configure_optimizers(self) -> Any:
        """See `Learner.one_cycle`."""
        parameters = [parameter for name in self.trained for parameter in getattr(self.network, name).parameters()]
        return self.one_cycle(parameters, self.lr, 0.0)

    def on_train_end(self) -> None:
        """Note in the description how long it was trained."""
        self.description["calibration"]["trained_steps"] = self.trainer.global_step

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Keep the ranges in Lightning's checkpoint: resuming does not calibrate again."""
        checkpoint["quantization"] = dataclasses.asdict(self.quantization)

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Insert the quantizers before Lightning loads their state."""
        if not self.quantization.amax:
            self._quantize(checkpoint["quantization"]["amax"])

    def float_state(self) -> Dict[str, Tensor]:
        """The state dict of the network without that of its quantizers: what the folded float network loads."""
        modules = self.network.named_modules(remove_duplicate=False)
        inside = tuple(f"{name}." for name, module in modules if isinstance(module, TensorQuantizer))
        return {name: value for name, value in self.network.state_dict().items() if not name.startswith(inside)}


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
