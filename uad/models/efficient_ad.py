"""EfficientAD: a student of a small patch network, and an autoencoder for what only the whole image tells.

Paper: Batzner et al., WACV 2024, https://arxiv.org/abs/2303.14535

Teacher and student describe patches of 33 by 33 pixels. The student learns by the hard feature loss: the mean of the
thousandth of the squared errors that is greatest. The autoencoder restores the teacher's descriptions through a code of
64 numbers, which knows the parts of an image and not where every scratch is; the second half of the student's outputs
learns what the autoencoder makes of good images. So one map tells where a patch is new, another where the parts of an
image do not belong together.

Differs from the paper:

- The teacher is what `uad distill` made, of whatever images and backbone there are. The paper's saw ImageNet.
- `--model.readout regional` brings both maps to the scale of good images of the class in the region, as in STFPM, and
  is fitted again to the quantized network. `paper` is by quantiles of held-out good images, here of each class, and the
  greatest pixel.
- The decoder doubles its grid until it is that of the map, because an image need not be 256 by 256.
- AdamW and one cycle of the learning rate, and larger batches, instead of 70,000 steps of one image.
"""

import warnings
from pathlib import Path
from typing import Any, List, Literal, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as colour

from engines.errors import UadWarning
from uad.data.batches import Batch
from uad.data.folder import draw, train_samples
from uad.data.reading import load_images
from uad.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from uad.models.base import not_negative
from uad.models.layers import Normalize, Standardize
from uad.models.patch_model import PatchModel
from uad.models.patch_networks import PatchNetwork, network_of, patch_network, patch_teacher, pooled
from uad.models.readout import Pixels, ReadOut, ReadOutName, RegionalReadOut, ScaledReadOut, read_off

HARD = 0.001  # of the squared errors of a batch, which alone count
CODE = 64  # numbers that the autoencoder keeps of an image
COARSE = 4  # cells of a side that the regional read-out averages in the autoencoder's map, which is no sharper
LOW, HIGH, SPAN = 0.9, 0.995, 0.1  # quantiles of the pixels of good images, which become 0 and 0.1 in the mean map
PENALTY_IMAGES = 256  # of its folder, which are kept in memory
JITTER = (0.8, 1.2)  # of brightness, contrast or saturation, of what the autoencoder is shown


def quantiles(pixels: Pixels) -> Tuple[Pixels, Pixels]:
    """Shift and unit of maps (L, pixels) that bring `LOW` to 0 and `HIGH` to `SPAN`, as shares of their mean."""
    low, high = np.quantile(pixels, (LOW, HIGH), axis=1)
    return low, len(pixels) * (high - low) / SPAN


class Student(nn.Module):
    """(N, 3, H, W) normalised image -> (N, C, H/4, W/4) twice: what it says of the teacher, of the autoencoder.

    One network whose last convolution is the paper's, cut in two: nothing has to be sliced.
    """

    def __init__(self, network: str) -> None:
        super().__init__()
        layers = patch_network(network)
        self.trunk, self.of_teacher, self.of_autoencoder = layers[:-1], layers[-1], patch_network(network)[-1]

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """Both halves."""
        features = self.trunk(image)
        return self.of_teacher(features), self.of_autoencoder(features)


class Autoencoder(nn.Module):
    """(N, 3, H, W) normalised image -> (N, channels, H/4, W/4), through `CODE` numbers of the whole image.

    It is made for images of one size: see `take_size`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: List[nn.Module] = []
        for inputs, outputs in zip((3, 32, 32, 64, 64), (32, 32, 64, 64, 64)):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.take_size(256, 256)
        layers = []
        for _ in range(3):
            layers += [nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Dropout(0.2)]
            layers += [nn.Upsample(scale_factor=2.0, mode="bilinear")]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, channels, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """To the code and back."""
        restored: Tensor = self.decoder(self.enlarge(self.bottleneck(self.encoder(image))))
        return restored

    def take_size(self, height: int, width: int) -> None:
        """Be made for images of this size, pixels; what was learned of another size is lost."""
        rows, columns = height // 32, width // 32
        self.bottleneck = nn.Conv2d(64, CODE, (rows, columns))
        self.enlarge = nn.Upsample(scale_factor=(float(rows), float(columns)), mode="nearest")


class EfficientADHead(nn.Module):
    """What the three networks say -> score (N,), anomaly map (N, H/4, W/4), float32, and class index (N,)."""

    readout: ReadOut

    def __init__(self, teacher: PatchNetwork, readout: ReadOutName) -> None:
        super().__init__()
        channels, strides = teacher.channels, (teacher.stride, COARSE * teacher.stride)
        self.standardize = Standardize(channels)
        self.is_regional = readout == "regional"
        if self.is_regional:
            self.readout = RegionalReadOut(strides, channels, (teacher.offset,) * 2)
        else:
            self.readout = ScaledReadOut(2, channels, quantiles)

    def forward(self, teacher: Tensor, student: Tuple[Tensor, Tensor], restored: Tensor) -> Tuple[Tensor, ...]:
        """Read off the distances."""
        return read_off(self.readout, self.distances(teacher, student, restored), pooled(teacher))

    def distances(self, teacher: Tensor, student: Tuple[Tensor, Tensor], restored: Tensor) -> List[Tensor]:
        """(N, 1, h, w) twice: of the student from the teacher, and from the autoencoder."""
        of_teacher, of_autoencoder = student
        local = (self.standardize(teacher) - of_teacher.float()).square().mean(dim=1, keepdim=True)
        whole = (restored.float() - of_autoencoder.float()).square().mean(dim=1, keepdim=True)
        return [local, F.avg_pool2d(whole, COARSE) if self.is_regional else whole]


class ThreeNetworks(nn.Module):
    """The network that is exported: (N, H, W, 3) uint8 RGB -> what the head gives."""

    def __init__(self, network: str, weights: str, readout: ReadOutName) -> None:
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.teacher = patch_teacher(network, weights)
        self.student = Student(network)
        self.autoencoder = Autoencoder(network_of(network).channels)
        self.head = EfficientADHead(network_of(network), readout)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Nothing is computed here."""
        judged: Tuple[Tensor, ...] = self.head(*self.features(image))
        return judged

    def features(self, image: Tensor) -> Tuple[Tensor, Tuple[Tensor, Tensor], Tensor]:
        """What the three networks say."""
        pixels = self.normalize(image)
        return self.teacher(pixels), self.student(pixels), self.autoencoder(pixels)


class EfficientAD(PatchModel):
    """Trains student and autoencoder on good images.

    Args:
        weights: of the teacher: a file that `uad distill` wrote, or none (random).
        network: pdn_s or pdn_m, of teacher and student.
        lr: the greatest learning rate of the cycle.
        weight_decay: of AdamW.
        penalty: a folder of images of anything else, of which the student shall say nothing (the paper takes
            ImageNet's), so that it does not learn to follow the teacher outside of good images. None if not given.
        readout: how the maps become one and a score: regional, or as in the paper, by quantiles.

    Raises:
        UserError: an unknown network, weights that do not fit, or a negative number.
    """

    network: ThreeNetworks
    steps = 2000
    image_multiple = 32

    def __init__(
        self,
        weights: str,
        network: Literal["pdn_s", "pdn_m"] = "pdn_s",
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        penalty: str = "",
        readout: ReadOutName = "regional",
    ) -> None:
        super().__init__()
        not_negative(lr=lr, weight_decay=weight_decay)
        self.config = dict(weights=weights, network=network, lr=lr, weight_decay=weight_decay, penalty=penalty)
        self.config.update(readout=readout)
        self.network = ThreeNetworks(network, weights, readout).to(memory_format=torch.channels_last)
        self.description = {"model": "efficient_ad", "backbone": network, "map_stride": network_of(network).stride}
        self.description.update(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
        self.lr = lr
        self.weight_decay = weight_decay
        self.penalty = penalty
        self.other_images = torch.zeros(0, 1, 1, 3, dtype=torch.uint8)

    def take_size(self, height: int, width: int) -> None:
        """The autoencoder's code looks at all places of an image."""
        self.network.autoencoder.take_size(height, width)

    def loss(self, batch: Batch) -> Tensor:
        """The hard feature loss, the penalty, what the autoencoder restores, and the student of the autoencoder."""
        network = self.network
        (target,) = list(batch.targets) or self.targets(batch.image)
        student, _ = network.student(network.normalize(batch.image))
        error = (target.float() - student.float()).square().flatten()
        losses = [error.topk(max(1, round(HARD * len(error)))).values.mean()]
        if len(self.other_images):
            others = self.other_images[torch.randint(len(self.other_images), (len(batch.image),))]
            student, _ = network.student(network.normalize(others.to(batch.image.device)))
            losses.append(student.float().square().mean())
        shown = _jittered(batch.image) if self.training else batch.image
        pixels = network.normalize(shown)
        restored, (_, student) = network.autoencoder(pixels).float(), network.student(pixels)
        losses += [F.mse_loss(restored, self.targets(shown)[0].float()), F.mse_loss(student.float(), restored)]
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        """Student and autoencoder."""
        parameters = [*self.network.student.parameters(), *self.network.autoencoder.parameters()]
        return self.one_cycle(parameters, self.lr, self.weight_decay)

    def on_fit_start(self) -> None:
        """Read the images of the penalty, of the size that is trained on.

        Raises:
            DataError: the folder holds none, or one that cannot be read.
        """
        if not self.penalty:
            note = "no --model.penalty folder of other images, so the student may follow the teacher on defects, too"
            warnings.warn(note, UadWarning, stacklevel=2)
        else:
            size = self.trainer.datamodule.size  # type: ignore[attr-defined]
            samples = draw(train_samples(Path(self.penalty)), PENALTY_IMAGES, seed=0)
            self.other_images = torch.from_numpy(load_images(samples, size))


def _jittered(image: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> the same, brighter or darker, or of other contrast or saturation."""
    change = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation)[int(torch.randint(3, ()))]
    factor = float(torch.empty(()).uniform_(*JITTER))
    changed: Tensor = change(image.permute(0, 3, 1, 2), factor)
    return changed.permute(0, 2, 3, 1)
