"""What is written and said while a model trains."""

import csv
import math
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from torchmetrics.classification import BinaryAUROC

from engines.files import write_csv
from uad.data.batches import BATCH, GoodImages
from uad.data.defects import with_defects
from uad.data.module import seed_of
from uad.models.base import Model
from uad.training.checkpoint import write_tensors
from uad.training.run import BEST, LAST

LOGGED = ("train_loss", "val_loss", "synthetic_auroc")
OF_CLASS = "synthetic_auroc of "  # and a class
FALL = 0.1  # of the criterion of a class, which is told; it goes by 64ths, see IMAGES_OF_EACH_CLASS
IMAGES_OF_EACH_CLASS = 8  # on which a training is seen to learn; more would cost a tenth of the time of an epoch


class EpochTable(Callback):
    """Writes a row of train.csv after each epoch."""

    def __init__(self, path: Path, classes: List[str], rows: List[List[Any]]) -> None:
        """Go on after the rows that there are.

        Args:
            path: of the table.
            classes: by name: each has a column, its share of `synthetic_auroc`.
            rows: of `rows_until`.
        """
        self.path = path
        self.columns = columns_of(classes)
        self.rows = rows
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows and int(self.rows[-1][0]) == trainer.current_epoch:
            return  # a run of so many steps that goes on ends the epoch of its checkpoint once more
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seconds = round(time.perf_counter() - self.start, 1)
        values = {**figures, **row, "seconds": seconds}
        self.rows.append([values.get(name, math.nan) for name in self.columns])
        write_csv(self.path, self.columns, self.rows)

    def fallen(self, epoch: int) -> Dict[str, Tuple[float, float]]:
        """Class -> its criterion in its best epoch and in a given one, where it fell by more than `FALL`."""
        classes = [name for name in self.columns if name.startswith(OF_CLASS)]
        places = [self.columns.index(name) for name in classes]
        given = next((row for row in self.rows if int(row[0]) == epoch), None)
        if given is None:
            return {}
        fallen = {}
        for name, place in zip(classes, places):
            kept = float(given[place])
            best = max((figure for figure in (float(row[place]) for row in self.rows) if figure >= 0), default=kept)
            if best - kept > FALL:
                fallen[name[len(OF_CLASS) :]] = (best, kept)
        return fallen


def columns_of(classes: Sequence[str]) -> List[str]:
    """The columns of train.csv."""
    return ["epoch", "step", *LOGGED, *(f"{OF_CLASS}{name}" for name in classes), "seconds"]


def rows_until(table: Path, classes: Sequence[str], last: Dict[str, Any]) -> List[List[Any]]:
    """The rows of a table of epochs but those that come after a checkpoint of Lightning's: they are trained again.

    A run of an earlier commit lacks the columns of classes: nan stands there.
    """
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= last["epoch"]]
    return [[row.get(name, "nan") for name in columns_of(classes)] for row in rows]


class SeededSteps(Callback):
    """What a model draws in a step is given by the seed and the step, so that a resumed run goes on as it was."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, batch_idx))


class SyntheticAuroc(Callback):
    """Logs how well held-out good images are told from copies with drawn defects: learning is seen without any label.

    It is the mean over the classes of the image AUROC, before the read-out is fitted: a hint, not what a test gives.
    """

    def __init__(self, good: GoodImages) -> None:
        labels = sorted(set(good.label.tolist()))
        self.names = [good.classes[label] for label in labels]
        self.classes = [good.image[good.label == label][:IMAGES_OF_EACH_CLASS] for label in labels]
        self.defects = [torch.from_numpy(with_defects(images.numpy())) for images in self.classes]

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Model)
        areas = []
        for good, bad in zip(self.classes, self.defects):
            batches = torch.split(torch.cat([good, bad]), BATCH)
            score = torch.cat([pl_module.early_score(images.to(pl_module.device)).cpu() for images in batches])
            # `normalization` would put scores beyond 1 through a sigmoid, batch by batch: they are ranked as they are.
            metric = BinaryAUROC(normalization=None)
            metric.update(score.float(), torch.arange(len(score)) >= len(good))
            areas.append(metric.compute())
        pl_module.log("synthetic_auroc", torch.stack(areas).mean(), prog_bar=True)
        pl_module.log_dict({f"{OF_CLASS}{name}": area for name, area in zip(self.names, areas)})


class TimeToGo(Callback):
    """Says after a few steps how long the training will take."""

    FIRST, LAST = 3, 13  # steps between which it looks at the clock; those before warm up

    def __init__(self) -> None:
        self.start = 0.0
        self.steps = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.FIRST:
            self.start = time.perf_counter()
        if self.steps == self.LAST:
            seconds = (time.perf_counter() - self.start) / (self.LAST - self.FIRST)
            left = (float(trainer.estimated_stepping_batches) - trainer.global_step) * trainer.accumulate_grad_batches
            print(f"the steps will take about {in_words(left * seconds)}")


def in_words(seconds: float) -> str:
    """A time that is not known well: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class StepTimes(Callback):
    """Says at the end where the time of a step goes. The first step, which warms up, does not count."""

    PHASES = ("reading", "forward", "backward", "optimizer")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.PHASES, 0.0)
        self.steps = -1
        self._since: Optional[float] = None  # None while something else than a step goes on

    def _end_of(self, phase: str, module: LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._since is not None and self.steps >= 0:
            self.seconds[phase] += now - self._since
        self._since = now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._end_of("reading", pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._end_of("forward", pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_of("backward", pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._end_of("optimizer", pl_module)
        self.steps += 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = sum(self.seconds.values())
        if self.steps < 1 or not whole:
            print("a step's time is told from two steps on")
            return
        shares = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in self.seconds.items())
        print(f"a step takes {whole / self.steps:.3g} s: {shares} (mean of {self.steps})")


class Checkpoints(Checkpoint):
    """Keeps last.ckpt, of the newest epoch, and best.ckpt, of the one with the least loss on held-out images.

    Lightning's own ModelCheckpoint forgets which epoch was the best when the folder of a run has moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best: Optional[float] = None  # the least val_loss
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = float(trainer.callback_metrics["val_loss"]) if self._validated else math.inf
        self._validated = False
        # The best is written first: last.ckpt knows of no best that is not there.
        if loss < (math.inf if self.best is None else self.best):
            self.best = loss
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> Dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.best = state_dict["best"]


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, whole or absent; its own way may copy from another file system."""

    def save_checkpoint(self, checkpoint: Dict[str, Any], path: Any, storage_options: Optional[Any] = None) -> None:
        write_tensors(path, checkpoint)


class Bar(RichProgressBar):
    """Lightning's progress bar, taken away when training is broken off, as those of `uad.progress` are."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.progress is not None:
            self.progress.live.transient = True
        super().on_exception(trainer, pl_module, exception)
