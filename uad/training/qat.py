"""Quantization-aware training: fine-tuning under fake quantization."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Literal, Sequence

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UserError
from engines.graph import backbone_convolutions, constants
from engines.metadata import SIMULATED
from export.bias import CORRECTION_IMAGES, BiasCorrection, by_depth
from export.calibrate import calibrator as calibrator_of
from export.equalize import equalize
from export.onnx import export_network
from export.pixels import PIXELS, RANGE, grid_of, on_pixels
from export.placement import place
from export.quantize import collect_histograms, insert_qdq, ranges
from uad.data.batches import Batch, GoodImages
from uad.errors import CheckpointError
from uad.models import model_class
from uad.models.base import Model, is_trained, not_negative
from uad.progress import progress, with_steps
from uad.training.checkpoint import Quantization, load_checkpoint
from uad.training.fake_quant import float_state, insert_quantizers, module_path
from uad.training.fold import fold, parts_of

LEAST_VARIANCE = 1e-12  # of what a part says of a batch; one that says nothing has none


class QuantizationAware(Model):
    """Fine-tunes a trained model under fake quantization, so that it judges as it did in float.

    Every part of the backbone is trained beside its float self, on good images. A part that was frozen, such as a
    teacher, learns to say what it said in float. A part that was trained, such as a student, learns that distances are
    what they were; it makes up for the rounding of both. No gradient of the distances reaches the teacher: one that may
    follow its student leaves its own features. Each error is a mean square beside the variance of what is wanted, so
    that no part has a weight to be chosen.

    Gradients pass rounding straight through and stop at clipped values. Ranges of activations stay those of the
    calibrator; those of weights follow the weights. The head stays as it is while it trains; in the end, what it knows
    of good images is fitted again to the quantized network.

    Args:
        ckpt: the model.ckpt of a run, in float.
        lr: the greatest learning rate of the cycle.
        calibrator: what chooses the ranges: entropy, percentile or minmax.
        percentile: for percentile: percent of the values not clipped.
        calibration_images: how many training images the ranges come from, spread over the classes.
        bits: of the integers. Only 8 runs on a device; other widths are for study.
        quantized_teacher: false leaves in float, while training, what was frozen, for comparison.

    Raises:
        UserError: a checkpoint that cannot serve, or a setting out of range.
    """

    steps = 100

    def __init__(
        self,
        ckpt: Path,
        lr: float = 1e-4,
        calibrator: Literal["entropy", "percentile", "minmax"] = "percentile",
        percentile: float = 99.99,
        calibration_images: int = 128,
        bits: int = 8,
        quantized_teacher: bool = True,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise UserError(f"--model.bits {bits}: give 2 to 8")
        not_negative(lr=lr)
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
        self.image_multiple = 1  # the size is that of `start`
        self.calibration_images_of_each_class = -(-calibration_images // len(start.info.classes))
        self.quantized_teacher = quantized_teacher
        self.reference = fold(start.network).requires_grad_(False)
        self.network = fold(start.network)
        self.trained = [name for name in parts_of(self.network) if is_trained(getattr(self.network, name))]
        if not self.trained:
            raise UserError(f"{ckpt} holds nothing that is trained: uad export --precision int8 quantizes it")
        self.frozen_before = [name for name in parts_of(self.network) if name not in self.trained]
        if quantized_teacher:
            for name in self.frozen_before:
                getattr(self.network, name).requires_grad_(True)
        self.quantization = Quantization(bits, {})
        self.description = {
            name: getattr(start.info, name) for name in ("model", "backbone", "map_stride", "mean", "std")
        }
        self.description["precision"] = f"int{bits}{SIMULATED}"
        self.description["calibration"] = {
            "calibrator": calibrator,
            "percentile": percentile if calibrator == "percentile" else None,
            "data": "images",
            "images": 0,  # and more, once there are any
        }

    @torch.no_grad()
    def prepare(self, good: GoodImages) -> None:
        """Equalise, calibrate, correct the biases and insert the quantizers: on the CPU, where graphs are exported."""
        self.cpu()
        positions = [(good.label == index).nonzero()[:, 0] for index in range(len(good.classes))]
        chosen = torch.cat([members[: self.calibration_images_of_each_class] for members in positions])
        images, labels = list(good.image[chosen].numpy()), good.label[chosen].tolist()
        self.description["calibration"].update(images=len(images), classes=self.start.classes)
        with progress("Equalising", len(images)) as step:
            model = equalize(export_network(self.network, self.start.size), with_steps(images, step))
        self._take(model, (1, 2))
        model = on_pixels(model, self.start)
        placement = place(model)
        ranged = placement.ranged()
        with progress("Calibrating", len(images)) as step:
            by_class = [
                collect_histograms(
                    model, ranged, with_steps([image for image, label in zip(images, labels) if label == index], step)
                )
                for index in range(len(good.classes))
            ]
        amax = ranges(by_class, ranged, self._rule)
        if PIXELS in amax:
            amax[PIXELS] = RANGE
        if self.bits == 8:
            some = images[:: -(-len(images) // CORRECTION_IMAGES)]  # they lie class by class
            with progress("Correcting biases", len(by_depth(model))) as step:
                quantized = insert_qdq(model, amax, placement)[0]
                self._take(BiasCorrection(model, some).correct(quantized, step), (2,))
        self._quantize(amax)

    def _take(self, model: onnx.ModelProto, inputs: Sequence[int]) -> None:
        """Copy weights (1) or biases (2) of the convolutions of a graph into the network."""
        values = constants(model)
        std, offset = (torch.from_numpy(each).float() for each in grid_of(self.start))
        for node in backbone_convolutions(model):
            module = self.network.get_submodule(module_path(node.name))
            for index in [index for index in inputs if index < len(node.input)]:
                weight, parameter = module.weight, module.weight if index == 1 else module.bias
                assert isinstance(weight, Tensor) and isinstance(parameter, Tensor)
                value = torch.from_numpy(values[node.input[index]].copy())
                if node.input[0].startswith(PIXELS):  # its bias makes up for the grid of the pixels
                    assert index == 2
                    value += (weight / std * offset).sum(dim=(1, 2, 3))
                parameter.copy_(value)

    def _quantize(self, amax: Dict[str, float]) -> None:
        self.quantization = Quantization(self.bits, amax)
        parts = None if self.quantized_teacher else self.trained
        insert_quantizers(self.network, self.start, self.quantization, parts)
        self.network.to(memory_format=torch.channels_last)
        self.reference.to(memory_format=torch.channels_last)

    def loss(self, batch: Batch) -> Tensor:
        """How far each part is from what it said in float; see the class."""
        with torch.no_grad():
            wanted = _heard(self.reference, self.frozen_before, batch.image)
        heard = _heard(self.network, self.frozen_before, batch.image)
        errors = [F.mse_loss(one, other) / _variance(other) for one, other in zip(heard, wanted)]
        return torch.stack(errors).sum()

    @property
    def fits_readout_to_held_out(self) -> bool:
        """As the model that was trained in float."""
        return self._as_in_float().fits_readout_to_held_out

    def fit_readout(self, training: GoodImages, held_out: GoodImages) -> None:
        """As the model that was trained in float would, but to the quantized network."""
        self._as_in_float().fit_readout(training, held_out)

    def _as_in_float(self) -> Model:
        """The model that was trained in float, with the quantized network."""
        model = model_class(self.start.model).from_config(self.config)
        model.take_size(*self.start.size)
        model.network, model.features_in_float = self.network, self.reference.features
        return model

    def configure_optimizers(self) -> Any:
        """One cycle over every part."""
        parts = [getattr(self.network, name) for name in parts_of(self.network)]
        parameters = [each for part in parts for each in part.parameters() if each.requires_grad]
        return self.one_cycle(parameters, self.lr, 0.0)

    def on_train_end(self) -> None:
        """Note in the description how long it was trained."""
        self.description["calibration"]["trained_steps"] = self.trainer.global_step

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Keep the ranges in Lightning's checkpoint: resuming does not calibrate again."""
        checkpoint["quantization"] = dataclasses.asdict(self.quantization)

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Insert the quantizers before Lightning loads their state."""
        super().on_load_checkpoint(checkpoint)
        if not self.quantization.amax:
            self._quantize(checkpoint["quantization"]["amax"])

    def state_to_save(self) -> Dict[str, Tensor]:
        """That of the folded float network: the ranges stand beside it in the checkpoint."""
        return float_state(self.network)


def _heard(network: nn.Module, frozen: Sequence[str], image: Tensor) -> List[Tensor]:
    """What frozen parts say of images, then the distances, whose gradient ends at these parts."""
    heard: List[Tensor] = []

    def cut(part: nn.Module, inputs: Any, said: Any) -> Any:
        heard.extend([said] if isinstance(said, Tensor) else said)
        return said.detach() if isinstance(said, Tensor) else [level.detach() for level in said]

    hooks = [getattr(network, name).register_forward_hook(cut) for name in frozen]
    distances: List[Tensor] = network.head.distances(*network.features(image))  # type: ignore[operator,union-attr]
    for hook in hooks:
        hook.remove()
    return [*heard, *distances]


def _variance(wanted: Tensor) -> Tensor:
    return wanted.var().clamp_min(LEAST_VARIANCE)
