"""The optimizer that every training here uses."""

from typing import Any, Iterable

import torch
from lightning import Trainer

from engines.errors import UserError


def one_cycle(parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, trainer: Trainer) -> Any:
    """AdamW with one cycle of the learning rate over the whole training (Smith and Topin, 2018), as Lightning wants it.

    Args:
        parameters: to train.
        lr: the greatest learning rate.
        weight_decay: of AdamW.
        trainer: says how many steps there will be.

    Raises:
        UserError: none, or without end.
    """
    steps = trainer.estimated_stepping_batches
    if not 1 <= steps < float("inf"):
        raise UserError("the settings of --trainer leave no number of steps: give --trainer.max_epochs at least 1")
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=int(steps), pct_start=0.15)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
