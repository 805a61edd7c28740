"""A small patch network learns to describe patches as a large classification network does.

Paper: EfficientAD, Batzner et al., WACV 2024, https://arxiv.org/abs/2303.14535, section 3.1 and algorithm 3

What is learned are the features that PatchCore (Roth et al., CVPR 2022) takes: two levels of the backbone, each
averaged over 3 by 3 positions, brought to one grid, and averaged down to 384 channels. The backbone sees the image
twice as large as the network, so that its level at 1/8 lies on the network's grid at 1/4. Each channel is standardised
over the images. One batch in ten is shown to both in grey.

Differs from the paper: any backbone of `uad.models.backbones` in place of a Wide ResNet-101, any images in place of
ImageNet's.
"""

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uad.data.folder import Sample, load_images
from uad.errors import CheckpointError, TrainingError
from uad.models.backbones import IMAGENET_MEAN, IMAGENET_STD, FeaturePyramid, backbone_of, load_safely
from uad.models.layers import Normalize, Standardize, fit_standardization
from uad.models.pdn import CHANNELS, patch_network
from uad.training.checkpoint import PROGRAM, write_tensors

GREY = 0.1  # of the batches
SAVED_EVERY = 100  # steps, after which a killed distillation loses nothing
SCALE_IMAGES = 256  # that the mean and deviation of the channels are fitted to


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What is distilled, and how: plain values, which the file of the teacher keeps."""

    network: str  # in `uad.models.pdn.NETWORKS`
    backbone: str
    weights: str
    size: int  # side of the images that the network sees, pixels
    steps: int
    batch_size: int
    lr: float
    seed: int


class Source(torch.nn.Module):
    """(N, H, W, 3) uint8, of twice the network's size -> what it is to say, (N, CHANNELS, H/8, W/8) float32."""

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        source = backbone_of(backbone)
        self.normalize = Normalize(source.mean, source.std)
        self.pyramid = FeaturePyramid(backbone, weights).requires_grad_(False).eval()
        self.standardize = Standardize(CHANNELS)

    def forward(self, image: Tensor) -> Tensor:
        """Standardised, once `fit_standardization` was called with it."""
        described: Tensor = self.standardize(self.described(image))
        return described

    def described(self, image: Tensor) -> Tensor:
        """The features as the backbone has them."""
        _, middle, deep = (F.avg_pool2d(level.float(), 3, 1, 1) for level in self.pyramid(self.normalize(image)))
        joined = torch.cat([middle, F.interpolate(deep, middle.shape[2:], mode="bilinear")], dim=1)
        fewer = F.adaptive_avg_pool1d(joined.permute(0, 2, 3, 1).flatten(0, 2), CHANNELS)
        return fewer.view(len(image), *middle.shape[2:], CHANNELS).permute(0, 3, 1, 2)


def distill(what: Distillation, images: Sequence[Sample], out: Path, step_done: Callable[[], None]) -> float:
    """Train the network, and write it to a file that `--model.weights` of a model takes.

    A distillation that was stopped goes on from the file beside `out` that ends in .part, where the settings and the
    number of images are the same.

    Args:
        what: the settings.
        images: to learn from.
        out: the file.
        step_done: called after each step, those of before included.

    Returns:
        The mean squared error of the last steps, in units of the variance of a channel.

    Raises:
        UserError: weights that cannot be had, an image that cannot be read, a .part of other settings, or a loss that
            is not a number.
    """
    source = Source(what.backbone, what.weights)
    student = patch_network(what.network).to(memory_format=torch.channels_last)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in (source, student, normalize):
        module.to(device)
    optimizer = torch.optim.AdamW(student.parameters(), what.lr, weight_decay=1e-5)
    part, described = out.with_name(f"{out.name}.part"), {**dataclasses.asdict(what), "images": len(images)}
    start, losses = 0, torch.zeros(0)
    if part.exists():
        before = load_safely(part)
        if before.get("distilled") != described:
            raise CheckpointError(f"{part} is of other settings or images: remove it, or give those it was begun with")
        student.load_state_dict(before["state_dict"])
        source.standardize.load_state_dict(before["standardize"])
        optimizer.load_state_dict(before["optimizer"])
        start, losses = before["step"], before["losses"]
    else:
        some = (_batch(step, what, images) for step in range(max(1, SCALE_IMAGES // what.batch_size)))
        with torch.no_grad():
            fit_standardization([source.standardize], ([source.described(image.to(device))] for image in some))

    def state() -> Dict[str, Any]:
        return {"distilled": described, "state_dict": student.state_dict(), "network": what.network}

    for step in range(what.steps):
        if step >= start:
            image = _batch(step, what, images).to(device)
            small = F.avg_pool2d(image.permute(0, 3, 1, 2).float(), 2).permute(0, 2, 3, 1)
            with torch.no_grad():
                wanted = source(image)
            loss = F.mse_loss(student(normalize(small)), wanted)
            if not loss.isfinite():
                raise TrainingError(f"the loss is not a number in step {step}: lower --lr, and remove {part}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses = torch.cat([losses, loss.detach().cpu()[None]])[-SAVED_EVERY:]
            if (step + 1) % SAVED_EVERY == 0:
                going_on = {"step": step + 1, "losses": losses, "optimizer": optimizer.state_dict()}
                write_tensors(part, {**state(), **going_on, "standardize": source.standardize.state_dict()})
        step_done()
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    scale = {name: value.cpu() for name, value in source.standardize.state_dict().items()}
    write_tensors(out, {"program": PROGRAM, **state(), "scale": scale, "date": date, "error": float(losses.mean())})
    part.unlink(missing_ok=True)
    return float(losses.mean())


def _batch(step: int, what: Distillation, images: Sequence[Sample]) -> Tensor:
    """The images of a step, (N, H, W, 3) uint8, of twice the network's size: each once before any comes again."""
    whole = max(1, len(images) // what.batch_size)
    order = np.random.default_rng((what.seed, step // whole)).permutation(len(images))
    chosen = order[(step % whole) * what.batch_size :][: what.batch_size]
    image = torch.from_numpy(load_images([images[index] for index in chosen], (2 * what.size, 2 * what.size)))
    if np.random.default_rng((what.seed, step, 1)).random() < GREY:
        image = image.float().mean(dim=3, keepdim=True).expand(-1, -1, -1, 3).round().to(torch.uint8)
    return image
