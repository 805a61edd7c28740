"""Uninformed Students: an ensemble that disagrees with its teacher, and with itself, about what it never saw.

Paper: Bergmann et al., CVPR 2020, https://arxiv.org/abs/1911.02357

The teacher describes patches, as `uad distill --network patch33` made it. Each student learns what the teacher says of
good images. An image is judged by how far the mean of the students is from the teacher (regression error), and by how
far the students are from each other (predictive variance).

Differs from the paper:

- One patch size a model: 17, 33 or 65 (`--model.network`). The paper adds up the maps of all three.
- The mean over the channels in place of their sum, in the loss and in both maps: nothing but the unit changes.
- `--model.readout regional` brings both maps to the scale of good images of the class in the region, as in STFPM, and
  is fitted again to the quantized network. `paper` is the sum of both maps, standardised on held-out good images, here
  of each class, and the greatest pixel.
- The students learn by AdamW and one cycle of the learning rate, all at once and from the same batches. They differ by
  the weights that they begin with.
"""

from typing import Any, List, Literal, Tuple

import torch
from torch import Tensor, nn

from uad.data.batches import Batch
from uad.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from uad.models.base import not_negative
from uad.models.layers import Normalize, Standardize
from uad.models.patch_model import PatchModel
from uad.models.patch_networks import PatchNetwork, network_of, patch_network, patch_teacher, pooled
from uad.models.readout import Pixels, ReadOut, ReadOutName, RegionalReadOut, ScaledReadOut, read_off

STUDENTS = 3


def standardization(pixels: Pixels) -> Tuple[Pixels, Pixels]:
    """Shift and unit of maps (L, pixels) that bring each to mean 0 and standard deviation 1."""
    return pixels.mean(axis=1), pixels.std(axis=1)


class EnsembleHead(nn.Module):
    """What the teacher and the students say -> score (N,), anomaly map (N, h, w), float32, and class index (N,)."""

    readout: ReadOut

    def __init__(self, teacher: PatchNetwork, readout: ReadOutName) -> None:
        super().__init__()
        self.standardize = Standardize(teacher.channels)
        self.is_regional = readout == "regional"
        if self.is_regional:
            self.readout = RegionalReadOut((teacher.stride,) * 2, teacher.channels, (teacher.offset,) * 2)
        else:
            self.readout = ScaledReadOut(2, teacher.channels, standardization)

    def forward(self, teacher: Tensor, students: List[Tensor]) -> Tuple[Tensor, ...]:
        """Read off the distances."""
        return read_off(self.readout, self.distances(teacher, students), pooled(teacher))

    def distances(self, teacher: Tensor, students: List[Tensor]) -> List[Tensor]:
        """(N, 1, h, w) twice: of the mean of the students from the teacher, and of the students from their mean."""
        mean = torch.stack([student.float() for student in students]).mean(dim=0)
        error = (mean - self.standardize(teacher)).square().mean(dim=1, keepdim=True)
        apart = [(student.float() - mean).square().mean(dim=1, keepdim=True) for student in students]
        return [error, torch.stack(apart).mean(dim=0)]


class TeacherAndStudents(nn.Module):
    """The network that is exported: (N, H, W, 3) uint8 RGB -> what the head gives."""

    def __init__(self, network: str, weights: str, readout: ReadOutName) -> None:
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.teacher = patch_teacher(network, weights)
        self.students = nn.ModuleList(patch_network(network) for _ in range(STUDENTS))
        self.head = EnsembleHead(network_of(network), readout)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Nothing is computed here."""
        judged: Tuple[Tensor, ...] = self.head(*self.features(image))
        return judged

    def features(self, image: Tensor) -> Tuple[Tensor, List[Tensor]]:
        """What the teacher says, and each student."""
        pixels = self.normalize(image)
        return self.teacher(pixels), [student(pixels) for student in self.students]


class UninformedStudents(PatchModel):
    """Trains the students on good images.

    Args:
        weights: of the teacher: a file that `uad distill` wrote, or none (random).
        network: patch17, patch33 or patch65, of the teacher and of the students.
        lr: the greatest learning rate of the cycle.
        weight_decay: of AdamW.
        readout: how the maps become one and a score: regional, or paper.

    Raises:
        UserError: an unknown network, weights that do not fit, or a negative number.
    """

    network: TeacherAndStudents
    steps = 2000
    image_multiple = 32

    def __init__(
        self,
        weights: str,
        network: Literal["patch17", "patch33", "patch65"] = "patch33",
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        readout: ReadOutName = "regional",
    ) -> None:
        super().__init__()
        not_negative(lr=lr, weight_decay=weight_decay)
        self.config = dict(weights=weights, network=network, lr=lr, weight_decay=weight_decay, readout=readout)
        self.network = TeacherAndStudents(network, weights, readout).to(memory_format=torch.channels_last)
        stride = network_of(network).stride
        self.description = {"model": "uninformed_students", "backbone": network, "map_stride": stride}
        self.description.update(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
        self.lr = lr
        self.weight_decay = weight_decay

    def loss(self, batch: Batch) -> Tensor:
        """How far each student is from the teacher, added up."""
        (target,) = list(batch.targets) or self.targets(batch.image)
        pixels = self.network.normalize(batch.image)
        errors = [(student(pixels).float() - target.float()).square().mean() for student in self.network.students]
        return torch.stack(errors).sum()

    def configure_optimizers(self) -> Any:
        """The students."""
        return self.one_cycle(self.network.students.parameters(), self.lr, self.weight_decay)
