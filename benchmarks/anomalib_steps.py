"""The seconds that a step of anomalib's STFPM takes; `fit_speed.py` runs this where anomalib is installed.

python anomalib_steps.py IMAGES/CLASS PRECISION BATCH STEPS FIGURES.json
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Stfpm
from lightning.pytorch.callbacks import Callback
from torchvision.transforms.v2 import Resize


class Steps(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Called by Lightning."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train for one step more than are measured."""
    images, precision, batch, count, figures = sys.argv[1:]
    root, steps, size = Path(images), Steps(), Resize((256, 256), antialias=True)
    data = Folder(
        name=root.name,
        normal_dir=root / "train" / "good",
        normal_test_dir=root / "test" / "good",
        train_batch_size=int(batch),
        num_workers=0,
        train_augmentations=size,
        val_augmentations=size,
        test_augmentations=size,
    )
    trainer = {"max_epochs": 1, "limit_train_batches": int(count) + 1, "limit_val_batches": 0, "precision": precision}
    create = timm.create_model
    timm.create_model = lambda *given, **named: create(
        *given, **{**named, "pretrained": False}
    )  # nothing is downloaded
    engine = Engine(callbacks=[steps], accelerator="cpu", devices=1, logger=False, **trainer)
    engine.fit(Stfpm(backbone="resnet18"), datamodule=data)
    assert len(steps.ends) == int(count) + 1, "fewer images than steps"
    seconds = (steps.ends[-1] - steps.ends[0]) / int(count)
    Path(figures).write_text(json.dumps({"seconds": seconds, "version": version("anomalib")}))


if __name__ == "__main__":
    main()
