"""What anomalib's STFPM sees after each epoch; `fit_time.py` runs this where anomalib is installed.

python anomalib_fit.py GOOD_IMAGES WEIGHTS.pth IMAGES.npy EPOCHS FIGURES.json
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Stfpm
from lightning.pytorch.callbacks import Callback
from torchvision.transforms.v2 import Resize

START = time.perf_counter()
BACKBONE, LAYERS = "mobilenetv2_100", ["blocks.1", "blocks.2", "blocks.4"]  # at 1/4, 1/8 and 1/16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Looks(Callback):
    """Scores of images after each epoch, and the seconds until then, without those of looking."""

    def __init__(self, images: np.ndarray) -> None:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        self.images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        self.seconds: list[float] = []
        self.scores: list[list[float]] = []
        self.looking = 0.0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        start = time.perf_counter()
        self.seconds.append(start - START - self.looking)
        network = pl_module.model.eval()
        with torch.no_grad():
            maps = torch.cat([network(some).anomaly_map for some in self.images.split(16)])
        network.train()
        self.scores.append(maps.flatten(1).amax(dim=1).tolist())
        self.looking += time.perf_counter() - start


def main() -> None:
    """Train, and look after each epoch."""
    good, weights, images, epochs, figures = sys.argv[1:]
    looks, size = Looks(np.load(images)), Resize((256, 256), antialias=True)
    data = Folder(
        name="good",
        normal_dir=Path(good),
        normal_split_ratio=0.0,
        num_workers=0,
        train_augmentations=size,
        val_augmentations=size,
        test_augmentations=size,
        test_split_mode="none",
        val_split_mode="none",
    )
    create = timm.create_model
    timm.create_model = lambda *given, **named: create(
        *given, **{**named, "pretrained": False}
    )  # nothing is downloaded
    model = Stfpm(backbone=BACKBONE, layers=LAYERS)
    load_teacher(model.model.teacher_model, torch.load(weights, weights_only=True))
    settings = {"max_epochs": int(epochs), "limit_val_batches": 0, "precision": "32-true"}
    engine = Engine(callbacks=[looks], accelerator="cpu", devices=1, logger=False, **settings)
    engine.fit(model, datamodule=data)
    steps = len(data.train_dataloader())
    found = {"seconds": looks.seconds, "scores": looks.scores, "steps": steps, "version": version("anomalib")}
    Path(figures).write_text(json.dumps(found))


def load_teacher(teacher: torch.nn.Module, published: "dict[str, torch.Tensor]") -> None:
    """torchvision's weights into timm's network: both name their layers in the same order."""
    own = teacher.state_dict()
    assert [tuple(v.shape) for v in own.values()] == [tuple(v.shape) for v in list(published.values())[: len(own)]]
    teacher.load_state_dict(dict(zip(own, published.values(), strict=False)))


if __name__ == "__main__":
    main()
