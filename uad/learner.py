"""What every training here has in common: the steps, what to do when the loss is lost, and the optimizer."""

from typing import Any, Iterable, Tuple

import torch
from lightning import LightningModule
from torch import Tensor

from engines.errors import UserError
from uad.errors import TrainingError


class Learner(LightningModule):
    """A LightningModule that learns by `loss` from batches of good images, (N, H, W, 3) uint8."""

    def loss(self, image: Tensor) -> Tensor:
        """The loss of a batch of images, a scalar."""
        raise NotImplementedError

    def training_step(self, batch: Tuple[Tensor, ...], index: int) -> Tensor:
        """One step on (N, H, W, 3) uint8.

        Raises:
            TrainingError: the loss is not a number.
        """
        loss = self._finite(self.loss(batch[0]))
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Tuple[Tensor, ...], index: int) -> None:
        """The loss on held-out good images.

        Raises:
            TrainingError: the loss is not a number.
        """
        self.log("val_loss", self._finite(self.loss(batch[0])), prog_bar=True)

    def _finite(self, loss: Tensor) -> Tensor:
        if not loss.isfinite():
            kept = f"epoch {self.current_epoch - 1} is kept in last.ckpt" if self.current_epoch else "nothing is kept"
            raise TrainingError(f"the loss is not a number in epoch {self.current_epoch}: lower --model.lr; {kept}")
        return loss

    def one_cycle(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> Any:
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
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=int(steps), pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
