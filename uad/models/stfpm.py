"""STFPM: student-teacher feature pyramid matching.

Paper: Wang et al., BMVC 2021, https://arxiv.org/abs/2103.04257
"""

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from uad.errors import TrainingError
from uad.models.backbones import FeaturePyramid


class Normalize(nn.Module):
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 by ImageNet's mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255.0 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image.float().permute(0, 3, 1, 2) - self.mean) / self.std


class DistanceHead(nn.Module):
    def forward(self, teacher: list[Tensor], student: list[Tensor]):
        maps = [distance(t.float(), s.float()) for t, s in zip(teacher, student)]
        m = maps[0]
        for k, d in enumerate(maps[1:], 1):
            m = m * F.interpolate(d, scale_factor=2.0**k, mode="bilinear", align_corners=False)
        score = torch.topk(m.flatten(1), 41, dim=1).values.mean(1)
        return score, m.squeeze(1)


def distance(a, b):
    return ((unit(a) - unit(b)) ** 2).sum(1, keepdim=True) / 2


def unit(x):
    return x * torch.rsqrt((x * x).sum(1, keepdim=True) + 1e-12)


class StudentTeacher(nn.Module):
    map_stride = 4

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.teacher = FeaturePyramid(backbone, weights).requires_grad_(False).eval()
        self.student = FeaturePyramid(backbone, "none")
        self.head = DistanceHead()

    def features(self, image):
        x = self.normalize(image)
        with torch.no_grad():
            t = self.teacher(x)
        return t, self.student(x)

    def forward(self, image: Tensor):
        return self.head(*self.features(image))

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()
        return self


class STFPM(LightningModule):
    def __init__(self, backbone: str = "resnet18", weights: str = "imagenet", lr: float = 0.4) -> None:
        super().__init__()
        self.config = {"backbone": backbone, "weights": weights, "lr": lr}
        self.lr = lr
        self.network = StudentTeacher(backbone, weights).to(memory_format=torch.channels_last)

    def loss(self, image):
        t, s = self.network.features(image)
        with torch.autocast(image.device.type, enabled=False):
            return sum(distance(a.float(), b.float()).mean() for a, b in zip(t, s))

    def training_step(self, batch, index):
        loss = self.loss(batch[0])
        if not torch.isfinite(loss):
            raise TrainingError("nan")
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch[0]), prog_bar=True)

    def calibrate(self, training, held_out):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.student.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
