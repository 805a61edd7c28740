"""What a model is: the contract between the files of `uad.models` and training, quantization and export."""

import abc
from typing import Any, Dict, Iterable, List, Tuple

import torch
from lightning import LightningModule
from torch import Tensor, nn

from engines.errors import UserError
from uad.data.batches import Batch, GoodImages
from uad.errors import TrainingError


class Model(LightningModule, abc.ABC):
    """Learns from good images to tell what is not good.

    Attributes:
        network: (N, H, W, 3) uint8 RGB -> score (N,), anomaly map (N, h, w), float32, both >= 0; higher is more
            anomalous, and the score is a mean of map pixels. Behind them, where it knows classes, the index of the
            class that it sees, (N,) int32. Behind that, where it can tell, how far each image is from that class, (N,)
            float32, 1 for the farthest good image. It is exactly what is exported. Its children `normalize` and `head`
            stay in float32. The parts between them can be traced by torch.fx, are folded and quantized, and know
            nothing of it; a part holds layers, and is none itself. What only training needs, such as an attention
            block, belongs to the model instead.
        config: the arguments of the constructor, plain values.
        description: what `engines.ModelInfo` says of the network: model, backbone, map_stride, mean and std.
        image_multiple: H and W are multiples of it, pixels.
        quantization: how it was quantized while it trained (`uad.training.checkpoint.Quantization`), or None.
        features_in_float: `network.features` as they were before it was quantized, or None where it never was.
        images_of_each_class: how many training images of a class `prepare` and `fit_readout` are given at most.
        steps: how many optimizer steps a training of up to four classes takes whose length nobody gives; 0 for a model
            that takes none. More classes take as many more.
        restores: whether it is trained on images with drawn defects, too, in `Batch.drawn`.
    """

    network: nn.Module
    config: Dict[str, Any]
    description: Dict[str, Any]
    image_multiple: int
    quantization: Any = None
    features_in_float: Any = None
    images_of_each_class = 200
    steps: int
    restores = False

    @classmethod
    def from_config(cls, config: Dict[str, Any]) -> "Model":
        """The model that a checkpoint describes, which opens no file: the checkpoint holds the weights."""
        return cls(**dict(config, weights="none"))

    def take_size(self, height: int, width: int) -> None:
        """Be made for images of this size, pixels, before weights are loaded; most networks are made for any."""

    @abc.abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch of good images, a scalar."""

    def targets(self, image: Tensor) -> List[Tensor]:
        """What is to be learned of images (N, H, W, 3) uint8, which training does not change: (N, C, h, w) a level.

        It is computed once, kept in float16, and comes back in `Batch.targets`. An empty list: nothing can be kept.
        """
        return []

    def early_score(self, image: Tensor) -> Tensor:
        """Of images (N, H, W, 3) uint8, (N,): higher is more anomalous, with a read-out that is not fitted yet."""
        score: Tensor = self.network(image)[0]
        return score

    def frozen(self) -> Dict[str, Tensor]:
        """The state of the parts of the network that training does not change, which compute `targets`."""
        parts = dict(self.network.named_children())
        fixed = {name: part for name, part in parts.items() if not is_trained(part)}
        return {f"{name}.{key}": value for name, part in fixed.items() for key, value in part.state_dict().items()}

    @abc.abstractmethod
    def prepare(self, good: GoodImages) -> None:
        """Before training: fit what must be known of training images to learn. Batches are on the model's device."""

    @property
    def fits_readout_to_held_out(self) -> bool:
        """Whether `fit_readout` looks at the held-out images. Then half of them are kept for the thresholds alone."""
        return False

    @abc.abstractmethod
    def fit_readout(self, training: GoodImages, held_out: GoodImages) -> None:
        """After training: fit what the head must know of good images to judge. Batches are on the model's device.

        Args:
            training: images that were trained on.
            held_out: images that were not.
        """

    def state_to_save(self) -> Dict[str, Tensor]:
        """What model.ckpt holds: the state of the network."""
        return dict(self.network.state_dict())

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One step.

        Raises:
            TrainingError: the loss is not a number.
        """
        loss = self._finite(self.loss(batch))
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.label))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """The loss on held-out good images.

        Raises:
            TrainingError: the loss is not a number.
        """
        self.log("val_loss", self._finite(self.loss(batch)), prog_bar=True, batch_size=len(batch.label))

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        """Let the cycle of the learning rate span all epochs; a resumed run may have more than it began with."""
        for cycle in checkpoint.get("lr_schedulers", []):
            for length in ("total_steps", "_schedule_phases"):
                cycle.pop(length, None)

    def _finite(self, loss: Tensor) -> Tensor:
        if not loss.isfinite():
            kept = f"epoch {self.current_epoch - 1} is kept in last.ckpt" if self.current_epoch else "nothing is kept"
            raise TrainingError(f"the loss is not a number in epoch {self.current_epoch}: lower --model.lr; {kept}")
        return loss

    @property
    def part_done(self) -> float:
        """Part of the training that is behind, from 0 to 1; 1 where no trainer trains."""
        if self._trainer is None:
            return 1.0
        return self.trainer.global_step / max(float(self.trainer.estimated_stepping_batches), 1.0)

    def one_cycle(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Any:
        """AdamW with one cycle of the learning rate over the whole training (Smith and Topin, 2018), for Lightning.

        Args:
            parameters: to train.
            lr: the greatest learning rate.
            weight_decay: of AdamW.

        Raises:
            UserError: there will be no step, or no end of them.
        """
        steps = self.trainer.estimated_stepping_batches
        if not 1 <= steps < float("inf"):
            raise UserError("the settings of --trainer leave no number of steps: give --trainer.max_epochs at least 1")
        optimizer, cycle = cycle_of(parameters, lr, weight_decay, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def cycle_of(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, steps: int) -> Tuple[Any, Any]:
    """AdamW, and one cycle of its learning rate over so many steps; see `Model.one_cycle`."""
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)


def is_trained(part: nn.Module) -> bool:
    """Whether training changes a part of a network."""
    return any(parameter.requires_grad for parameter in part.parameters())


def not_negative(**values: float) -> None:
    """Check settings of a model by their names.

    Raises:
        UserError: one is negative.
    """
    for name, value in values.items():
        if value < 0:
            raise UserError(f"--model.{name} {value}: give a number that is not negative")
