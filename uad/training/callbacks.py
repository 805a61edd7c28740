"""What is written while a model trains."""

import csv
import math
import time
from pathlib import Path
from typing import Any, Dict, Optional

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from engines.files import replacing


class EpochTable(Callback):
    """Writes a row of train.csv after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: Dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "train_loss": float(trainer.callback_metrics.get("train_loss", math.nan)),
            "val_loss": float(trainer.callback_metrics.get("val_loss", math.nan)),
            "seconds": round(time.perf_counter() - self.start, 1),
        }
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def keep_rows(table: Path, last: Dict[str, Any]) -> None:
    """Drop the rows of epochs that come after a checkpoint of Lightning's; they will be trained again."""
    with open(table, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    with replacing(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= last["epoch"])])


def one_checkpoint(out: Path, name: str, monitor: Optional[str]) -> ModelCheckpoint:
    """Keeps one checkpoint: of the epoch with the least `monitor`, or of the newest where that is None."""
    return ModelCheckpoint(
        out, filename=name, monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False
    )
