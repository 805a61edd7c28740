"""A small patch network learns to describe patches as a large classification network does.

Papers:

- EfficientAD, Batzner et al., WACV 2024, https://arxiv.org/abs/2303.14535, section 3.1 and algorithm 3, for pdn_s and
  pdn_m. What is learned are the features that PatchCore (Roth et al., CVPR 2022) takes: two levels of the backbone,
  each averaged over 3 by 3 positions, brought to one grid, and averaged down to the network's channels. The backbone
  sees the image twice as large as the network, so that its level at 1/8 lies on the network's grid at 1/4. One batch in
  ten is shown to both in grey.
- Uninformed Students, Bergmann et al., CVPR 2020, https://arxiv.org/abs/1911.02357, section 3.1, for patch17, patch33
  and patch65. What is learned is the pooled description of a single patch, cut out at a random size and place. A
  convolution that is dropped afterwards decodes the network's description to it. The channels of the description are
  kept from saying the same, by their correlation over a batch. The paper's third loss, metric learning, is left out, as
  in its own experiments.

Differs from the papers: any backbone of `uad.models.backbones` in place of a Wide ResNet-101 or a ResNet-18, whose
levels are moved to where they look; its deepest level in place of the output of the whole network; any images in place
of ImageNet's. Each channel of what is to be learned is standardised over the images.
"""

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uad.data.folder import Sample
from uad.data.reading import load_images
from uad.errors import CheckpointError, TrainingError
from uad.models.backbones import IMAGENET_MEAN, IMAGENET_STD, FeaturePyramid, backbone_of, load_safely
from uad.models.layers import Normalize, Standardize, back_by, fit_standardization
from uad.models.patch_networks import network_of, patch_network
from uad.training.checkpoint import PROGRAM, write_tensors
from uad.training.distillation import Distillation
from uad.training.precision import precision_on

GREY = 0.1  # of the batches
SAVED_EVERY = 100  # steps, after which a killed distillation loses nothing
SCALE_IMAGES = 256  # that the mean and deviation of the channels are fitted to
CUTS = 8  # patches that are cut out of an image
CUT_SIDES = (1 / 16, 1 / 4)  # of the image's side, least and greatest: the paper's images of 4 to 16 patches a side
CUT_SHOWN = 128  # side of the patch that the backbone sees, pixels


class Source(nn.Module):
    """(N, H, W, 3) uint8, larger than the network sees it -> what it is to say, (N, C, h, w) float32, standardised."""

    def __init__(self, what: Distillation) -> None:
        super().__init__()
        backbone = backbone_of(what.backbone)
        self.normalize = Normalize(backbone.mean, backbone.std)
        self.pyramid = FeaturePyramid(what.backbone, what.weights).requires_grad_(False).eval()
        self.of_patches = what.of_patches
        self.moves = [back_by(offset / stride) for offset, stride in zip(backbone.offsets, backbone.strides)]
        self.channels = backbone.channels[-1] if what.of_patches else network_of(what.network).channels
        self.standardize = Standardize(self.channels)

    def forward(self, image: Tensor) -> Tensor:
        """Standardised, once `fit_standardization` was called with what `described` gives."""
        described: Tensor = self.standardize(self.described(image))
        return described

    def described(self, image: Tensor) -> Tensor:
        """The features as the backbone has them."""
        levels = [level.float() for level in self.pyramid(self.normalize(image))]
        if self.of_patches:
            pooled: Tensor = levels[-1].mean(dim=(2, 3), keepdim=True)
            return pooled
        middle, deep = (
            F.avg_pool2d(_moved(level, move.to(level)), 3, 1, 1) for level, move in zip(levels[1:], self.moves[1:])
        )
        joined = torch.cat([middle, F.interpolate(deep, middle.shape[2:], mode="bilinear")], dim=1)
        fewer = F.adaptive_avg_pool1d(joined.permute(0, 2, 3, 1).flatten(0, 2), self.channels)
        return fewer.view(len(image), *middle.shape[2:], self.channels).permute(0, 3, 1, 2)


class Student(nn.Module):
    """The network that learns: an image as the source sees it -> what the source says of it.

    Args:
        what: the settings.
        channels: of what the source says.
    """

    def __init__(self, what: Distillation, channels: int) -> None:
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.network = patch_network(what.network, padded=not what.of_patches).to(memory_format=torch.channels_last)
        made = network_of(what.network)
        self.side = made.patch if what.of_patches else what.size
        self.decode = nn.Conv2d(made.channels, channels, 1) if what.of_patches else None

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """What the source says, and how much the channels of the description repeat each other, a scalar."""
        small = F.interpolate(image.permute(0, 3, 1, 2).float(), (self.side, self.side), mode="area")
        described = self.network(self.normalize(small.permute(0, 2, 3, 1)))
        if self.decode is None:
            return described, described.new_zeros(())
        return self.decode(described), repetition(described.float().flatten(1))


def repetition(descriptions: Tensor) -> Tensor:
    """Mean absolute correlation of two channels of descriptions (N, C) over the batch, between 0 and 1: a scalar."""
    channels = descriptions.shape[1]
    centred = descriptions - descriptions.mean(dim=0)
    unit = centred / centred.norm(dim=0).clamp_min(1e-6)
    correlation: Tensor = (unit.T @ unit).abs()
    return (correlation.sum() - correlation.diagonal().sum()) / (channels * (channels - 1))


def _moved(level: Tensor, move: Tensor) -> Tensor:
    """(N, C, h, w) -> the same, each channel by the kernel `move` (1, 1, k, k)."""
    padding = move.shape[-1] // 2
    return F.conv2d(F.pad(level, (padding,) * 4, mode="replicate").flatten(0, 1)[:, None], move).view(level.shape)


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
    source = Source(what)
    student = Student(what, source.channels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source.to(device), student.to(device)
    precision = precision_on(device, what.precision)
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    optimizer = torch.optim.AdamW(student.parameters(), what.lr, weight_decay=1e-5)
    part, settings = out.with_name(f"{out.name}.part"), {**dataclasses.asdict(what), "images": len(images)}
    start, errors = 0, torch.zeros(0)
    if part.exists():
        before = load_safely(part)
        if before.get("distilled") != settings:
            raise CheckpointError(f"{part} is of other settings or images: remove it, or give those it was begun with")
        student.load_state_dict(before["student"])
        source.standardize.load_state_dict(before["standardize"])
        optimizer.load_state_dict(before["optimizer"])
        start, errors = before["step"], before["errors"]
    else:
        some = (_batch(step, what, images) for step in range(max(1, SCALE_IMAGES // what.batch_size)))
        with torch.no_grad(), bfloat16:
            fit_standardization([source.standardize], ([source.described(image.to(device))] for image in some))

    for step in range(what.steps):
        if step >= start:
            image = _batch(step, what, images).to(device)
            with torch.no_grad(), bfloat16:
                wanted = source(image)
            with bfloat16:
                described, repeated = student(image)
            error = F.mse_loss(described.float(), wanted)
            loss = error + repeated
            if not loss.isfinite():
                raise TrainingError(f"the loss is not a number in step {step}: lower --lr, and remove {part}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors = torch.cat([errors, error.detach().cpu()[None]])[-SAVED_EVERY:]
            if (step + 1) % SAVED_EVERY == 0:
                learned = {"student": student.state_dict(), "standardize": source.standardize.state_dict()}
                going_on = {"step": step + 1, "errors": errors, "optimizer": optimizer.state_dict()}
                write_tensors(part, {"distilled": settings, **learned, **going_on})
        step_done()
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    scale = {name: value.cpu() for name, value in source.standardize.state_dict().items()}
    weights, last = student.network.state_dict(), float(errors.mean())
    facts = {"distilled": settings, "network": what.network, "date": date, "error": last}
    write_tensors(out, {"program": PROGRAM, **facts, "state_dict": weights, "scale": scale})
    part.unlink(missing_ok=True)
    return last


def _batch(step: int, what: Distillation, images: Sequence[Sample]) -> Tensor:
    """The images of a step, each once before any comes again, or patches of them: (N, H, W, 3) uint8.

    Images are twice as large as the network sees them. Of each, `CUTS` patches are cut out, where the network is one of
    patches.
    """
    whole = max(1, len(images) // what.batch_size)
    order = np.random.default_rng((what.seed, step // whole)).permutation(len(images))
    chosen = order[(step % whole) * what.batch_size :][: what.batch_size]
    random = np.random.default_rng((what.seed, step, 1))
    image = torch.from_numpy(load_images([images[index] for index in chosen], (2 * what.size, 2 * what.size)))
    if random.random() < GREY:
        image = image.float().mean(dim=3, keepdim=True).expand(-1, -1, -1, 3).round().to(torch.uint8)
    return _cut(image, random) if what.of_patches else image


def _cut(images: Tensor, random: np.random.Generator) -> Tensor:
    """`CUTS` square patches of each image (N, H, H, 3), of sizes and places by chance, brought to `CUT_SHOWN`."""
    patches = []
    for image in images.permute(0, 3, 1, 2).float():
        for fraction in random.uniform(*CUT_SIDES, CUTS):
            side = max(8, round(fraction * image.shape[1]))
            top, left = random.integers(0, image.shape[1] - side + 1, 2)
            patch = image[None, :, top : top + side, left : left + side]
            patches.append(F.interpolate(patch, (CUT_SHOWN, CUT_SHOWN), mode="bilinear", antialias=True))
    return torch.cat(patches).permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8)
