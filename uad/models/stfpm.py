"""STFPM: student-teacher feature pyramid matching.

Paper: Wang et al., BMVC 2021, https://arxiv.org/abs/2103.04257

Differs from it so that one model can serve many classes in a few epochs:

- The student learns the teacher's features themselves, each channel at mean 0 and standard deviation 1 over the
  training images (as EfficientAD does, Batzner et al., WACV 2024), by mean squared error. The distance that judges an
  image is still the paper's, between features of unit length.
- The paper multiplies the maps of the three levels. Here each is first brought to a common scale: the mean and standard
  deviation that the distance has on good training images of the same class in the same region (cf. the quantiles of
  EfficientAD, and the position-wise statistics of PaDiM, Defard et al., 2021). What exceeds the mean is squared and
  added up. The class is that of the nearest centroid of the teacher's pooled deepest features: nobody names it.
- AdamW and one cycle of the learning rate (Smith and Topin, 2018) instead of SGD for 100 epochs.
"""

import math
from typing import Any, Dict, Iterable, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UserError
from uad.learner import Learner
from uad.models.backbones import BACKBONES, FeaturePyramid

SMOOTHING = 1.0  # standard deviation of the Gaussian on the joined map, in map pixels
TOP_FRACTION = 0.003  # of the joined map's pixels, whose mean is the score


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the squared distance of unit features, eq. 1 of the paper, which is 1 minus their cosine.

    (N, C, h, w) twice -> (N, 1, h, w), computed in float32: squared norms overflow float16.
    """
    t, s = teacher.float(), student.float()
    norms = t.square().sum(dim=1, keepdim=True) * s.square().sum(dim=1, keepdim=True)
    return 1.0 - (t * s).sum(dim=1, keepdim=True) / (norms + 1e-12).sqrt()


class Normalize(nn.Module):
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 by ImageNet's mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255.0 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """See the class. The cast comes before the transpose, as TensorRT 8.5 wants it."""
        return (image.float().permute(0, 3, 1, 2) - self.mean) / self.std


class Standardize(nn.Module):
    """(N, C, h, w) -> the same in float32, each channel at mean 0 and standard deviation 1 over the training images."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return (features.float() - self.mean) / self.std


class DistanceHead(nn.Module):
    """Features of teacher and student at 1/4, 1/8 and 1/16 -> score (N,), anomaly map (N, H/4, W/4), float32.

    Its buffers are fitted to good images, by `fit_standardization` before training and by `fit_distances` after it.
    Before that, features and distances count as they are.

        centroids    (classes, C)       of the teacher's pooled deepest features, in units of `spread`
        spread       (C,)               standard deviation of those pooled features over the training images
        mean         (classes, 3, h, w) of the distance at each level on good images, on a grid of 1/16
        std          (classes, 3, h, w)
        border       (1, 1, H/4, W/4)   what makes up for the zeros that smoothing sees outside the map
    """

    centroids: Tensor
    spread: Tensor
    mean: Tensor
    std: Tensor
    border: Tensor
    blur: Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.standardize = nn.ModuleList(Standardize(count) for count in channels)
        self.register_buffer("centroids", torch.zeros(1, channels[-1]))
        self.register_buffer("spread", torch.ones(channels[-1]))
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))
        self.register_buffer("border", torch.ones(1, 1, 1, 1))
        self.register_buffer("blur", _gaussian(SMOOTHING))

    def forward(self, teacher: List[Tensor], student: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """See the class."""
        pooled = teacher[-1].float().mean(dim=(2, 3)) / self.spread
        nearest = (pooled[:, None] - self.centroids).square().sum(dim=2).argmin(dim=1)
        means = self.mean[nearest].chunk(3, dim=1)
        stds = self.std[nearest].chunk(3, dim=1)
        excess = []
        for level, (t, s) in enumerate(zip(self.targets(teacher), student)):
            scale = 2 ** (len(teacher) - 1 - level)  # from the grid of the statistics to this level
            deviation = (distance(t, s) - _enlarge(means[level], scale)) / _enlarge(stds[level], scale)
            excess.append(_enlarge(deviation, 2**level).clamp_min(0.0).square())
        anomaly_map = (
            F.conv2d(excess[0] + excess[1] + excess[2], self.blur, padding=self.blur.shape[-1] // 2) * self.border
        )
        pixels = anomaly_map.flatten(1)
        count = max(1, round(TOP_FRACTION * int(pixels.shape[1])))
        score = torch.topk(pixels, count, dim=1).values.mean(dim=1)
        return score, anomaly_map.squeeze(1)

    def targets(self, teacher: List[Tensor]) -> List[Tensor]:
        """What the student learns: the teacher's features, standardised."""
        return [standardize(features) for standardize, features in zip(self.standardize, teacher)]

    @torch.no_grad()
    def fit_standardization(self, batches: Iterable[List[Tensor]]) -> None:
        """Fit `standardize` to the teacher's features of good images."""
        count = 0
        sums = [torch.zeros(())] * len(self.standardize)
        squares = list(sums)
        for features in batches:
            count += len(features[0])
            for level, values in enumerate(features):
                sums[level] = sums[level] + values.double().mean(dim=(2, 3), keepdim=True).sum(dim=0, keepdim=True)
                square = values.double().square().mean(dim=(2, 3), keepdim=True)
                squares[level] = squares[level] + square.sum(dim=0, keepdim=True)
        for level, standardize in enumerate(self.standardize):
            assert isinstance(standardize, Standardize)
            mean = sums[level] / count
            std = (squares[level] / count - mean.square()).clamp_min(0.0).sqrt()
            standardize.mean.copy_(mean)
            standardize.std.copy_(std.clamp_min(1e-3))  # a dead channel stays 0

    @torch.no_grad()
    def fit_distances(self, batches: Iterable[Tuple[List[Tensor], List[Tensor], Tensor]], classes: int) -> None:
        """Fit all but `standardize` to good images of every class.

        Args:
            batches: features of the teacher, of the student, and the index of each image's class (N,).
            classes: how many classes there are.
        """
        pooled: List[Tensor] = []
        labels: List[Tensor] = []
        sums = squares = torch.zeros(())
        for teacher, student, label in batches:
            pooled.append(teacher[-1].float().mean(dim=(2, 3)))
            labels.append(label)
            maps = [distance(t, s) for t, s in zip(self.targets(teacher), student)]
            member = F.one_hot(label, classes).float()
            sums = sums + _sum_by_class(member, maps)
            squares = squares + _sum_by_class(member, [level.square() for level in maps])
        features, label = torch.cat(pooled), torch.cat(labels)
        count = F.one_hot(label, classes).sum(dim=0).view(-1, 1, 1, 1)
        mean, square = _smooth(sums / count), _smooth(squares / count)
        ones = torch.ones_like(maps[0][:1])
        self.border = 1.0 / F.conv2d(ones, self.blur, padding=self.blur.shape[-1] // 2)
        # A region where good images never differ is given a hundredth of the level's mean, so that nothing is
        # divided by zero.
        least = 0.01 * mean.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        self.mean = mean
        self.std = torch.maximum((square - mean.square()).clamp_min(0.0).sqrt(), least)
        self.spread = features.std(dim=0, correction=0).clamp_min(1e-3)
        centroids = [features[label == index].mean(dim=0) for index in range(classes)]
        self.centroids = torch.stack(centroids) / self.spread

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the shapes of the buffers, which depend on the classes, from what is loaded."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _sum_by_class(member: Tensor, maps: List[Tensor]) -> Tensor:
    """Maps (N, 1, h, w) of three sizes, averaged on the last one's grid, summed over each class: (classes, 3, h, w)."""
    grid = (maps[-1].shape[-2], maps[-1].shape[-1])
    averaged = torch.cat([F.adaptive_avg_pool2d(level, grid) for level in maps], dim=1)
    return torch.einsum("nc,nlhw->clhw", member, averaged)


def _smooth(statistics: Tensor) -> Tensor:
    """Blur (classes, 3, h, w) by one grid step: a few images a class say little of a single place."""
    kernel = _gaussian(1.0)
    margin = kernel.shape[-1] // 2
    flat = statistics.flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.pad(flat, (margin,) * 4, mode="replicate"), kernel).view_as(statistics)


def _gaussian(sigma: float) -> Tensor:
    """(1, 1, k, k) normalised kernel that reaches three standard deviations."""
    radius = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = torch.outer(line, line)
    return (kernel / kernel.sum()).view(1, 1, 2 * radius + 1, 2 * radius + 1)


def _enlarge(maps: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return maps
    return F.interpolate(maps, scale_factor=float(scale), mode="bilinear", align_corners=False)


class StudentTeacher(nn.Module):
    """The network, exactly what is exported: (N, H, W, 3) uint8 RGB -> score (N,), anomaly map (N, H/4, W/4).

    Both are float32; higher is more anomalous. H and W are multiples of 16.
    """

    map_stride = 4

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.teacher = FeaturePyramid(backbone, weights).requires_grad_(False).eval()
        self.student = FeaturePyramid(backbone, "none")
        self.head = DistanceHead(BACKBONES[backbone].channels)

    def features(self, image: Tensor) -> Tuple[List[Tensor], List[Tensor]]:
        """The pyramids of teacher and student."""
        pixels = self.normalize(image)
        return self.teacher(pixels), self.student(pixels)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """See the class."""
        score, anomaly_map = self.head(*self.features(image))
        return score, anomaly_map

    def train(self, mode: bool = True) -> "StudentTeacher":
        """The teacher stays in evaluation mode: its batch statistics are ImageNet's."""
        super().train(mode)
        self.teacher.eval()
        return self


class STFPM(Learner):
    """Trains the student to match the teacher on good images.

    Args:
        backbone: resnet18, wide_resnet50_2 or mobilenet_v2.
        weights: of the teacher: "imagenet" (downloaded by torchvision), "none", or a torchvision state dict.
        lr: the greatest learning rate of the cycle.
        weight_decay: of AdamW.

    Attributes:
        network: what is exported.
        config: the arguments above.
        description: what `engines.ModelInfo` says of the model itself.
        images_of_each_class: how many good images `prepare` and `calibrate` are to be given.

    Raises:
        UserError: an unknown backbone, weights that do not fit, or a negative number.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str = "imagenet",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise UserError(f"--model.{name} {value}: give a number that is not negative")
        self.config = {"backbone": backbone, "weights": weights, "lr": lr, "weight_decay": weight_decay}
        self.description = {"model": "stfpm", "backbone": backbone, "map_stride": StudentTeacher.map_stride}
        self.images_of_each_class = 200
        self.lr = lr
        self.weight_decay = weight_decay
        self.network = StudentTeacher(backbone, weights).to(memory_format=torch.channels_last)

    def loss(self, image: Tensor) -> Tensor:
        """Sum over the levels of the mean squared error of the student's features: (N, H, W, 3) uint8 -> scalar."""
        teacher, student = self.network.features(image)
        targets = self.network.head.targets(teacher)
        errors = [F.mse_loss(s.float(), target) for s, target in zip(student, targets)]
        return torch.stack(errors).sum()

    def configure_optimizers(self) -> Any:
        """See `Learner.one_cycle`."""
        return self.one_cycle(self.network.student.parameters(), self.lr, self.weight_decay)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Before training: fit what the student is to learn to good images, (N, H, W, 3) uint8."""
        network = self.network
        network.head.fit_standardization(network.teacher(network.normalize(image)) for image in batches)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tuple[Tensor, Tensor]], classes: int) -> None:
        """After training: fit the distance head to good images.

        Args:
            batches: (N, H, W, 3) uint8 images and the index of each one's class (N,).
            classes: how many classes there are.
        """
        self.network.head.fit_distances(((*self.network.features(image), label) for image, label in batches), classes)
