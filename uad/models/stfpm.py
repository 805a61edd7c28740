"""STFPM: student-teacher feature pyramid matching.

Paper: Wang et al., BMVC 2021, https://arxiv.org/abs/2103.04257

Differs from it so that one model can serve many classes in a few epochs:

- The student learns the teacher's features themselves, each channel at mean 0 and standard deviation 1 over the
  training images (as EfficientAD does, Batzner et al., WACV 2024), by mean squared error. The distance that judges an
  image is still the paper's, between features of unit length.
- While it trains, the student is shown images with drawn defects, and learns the teacher's features of the images as
  they are (as DeSTSeg does, Zhang et al., CVPR 2023). A student that trains long on good images alone copies defects.
- The paper multiplies the maps of the three levels, and takes the greatest pixel (`--model.readout paper`). Here each
  map is first brought to the scale that it has on good images: see `uad.models.readout.RegionalReadOut`. The class is
  told from the teacher's pooled deepest features: nobody names it. Levels are moved so that they meet in one place.
- AdamW and one cycle of the learning rate (Smith and Topin, 2018) instead of SGD for 100 epochs.
"""

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor

from uad.data.batches import Batch
from uad.models.backbones import FeaturePyramid, backbone_of
from uad.models.head import PyramidNetwork, Pyramids, head_of, teacher_of
from uad.models.layers import Normalize
from uad.models.pyramid_model import PyramidModel
from uad.models.readout import ReadOutName


class StudentTeacher(PyramidNetwork):
    """Teacher and student both see the image."""

    def __init__(self, backbone: str, weights: str, readout: ReadOutName = "regional", bank: int = 0) -> None:
        super().__init__()
        source = backbone_of(backbone)
        self.normalize = Normalize(source.mean, source.std)
        self.teacher = teacher_of(backbone, weights, bank)
        self.student = FeaturePyramid(backbone, "none")
        self.head = head_of(source, readout, bank)

    def features(self, image: Tensor) -> Pyramids:
        """The pyramids of teacher and student."""
        pixels = self.normalize(image)
        return self.teacher(pixels), self.student(pixels)


class STFPM(PyramidModel):
    """Trains the student to match the teacher on good images.

    Args:
        backbone: of teacher and student: resnet18, wide_resnet50_2, mobilenet_v2, efficientnet_lite0, _lite1, _lite2.
        weights: of the teacher: imagenet, none (random), or a file of published weights.
        lr: the greatest learning rate of the cycle.
        weight_decay: of AdamW.
        readout: how the distances become a map and a score: regional, or as in the paper, their product.
        bank: how many good patches of each class are kept beside the student (`uad.models.bank`); 0 for none.

    Raises:
        UserError: an unknown backbone, weights that do not fit, or a negative number.
    """

    network: StudentTeacher
    restores = True

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        weights: str = "imagenet",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        readout: ReadOutName = "regional",
        bank: int = 0,
    ) -> None:
        config = dict(backbone=backbone, weights=weights, lr=lr, weight_decay=weight_decay, readout=readout, bank=bank)
        super().__init__("stfpm", StudentTeacher(backbone, weights, readout, bank), config)

    def loss(self, batch: Batch) -> Tensor:
        """How far the student's features are from the teacher's; the student may be shown drawn defects."""
        targets = list(batch.targets) or self.targets(batch.image)
        given = batch.image if batch.drawn is None else batch.drawn
        return self.distillation(targets, self.network.student(self.network.normalize(given)))

    def distillation(self, targets: List[Tensor], student: List[Tensor]) -> Tensor:
        """Sum over the levels of the mean squared error."""
        return torch.stack([F.mse_loss(s.float(), target.float()) for s, target in zip(student, targets)]).sum()
