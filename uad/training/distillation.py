"""What `uad distill` is asked for; no torch here, so that the command can say it."""

from dataclasses import dataclass, field
from typing import Literal

from engines.errors import UserError
from uad.options import about, above_zero, at_least, check_fields


@dataclass
class Distillation:
    """What is distilled, and how: plain values, which the file of the teacher keeps."""

    backbone: str = field(default="efficientnet_lite0", metadata=about("the large network"))
    weights: str = field(default="imagenet", metadata=about("of it: imagenet, or a file of published weights"))
    network: Literal["pdn_s", "pdn_m", "patch17", "patch33", "patch65"] = field(
        default="pdn_s", metadata=about("the small one: pdn_s or pdn_m for EfficientAD, else for Uninformed Students")
    )
    size: int = field(
        default=256, metadata=about("side of the images that the small network sees, pixels", "image-size")
    )
    steps: int = field(default=10000, metadata=about("how many; the paper takes 60,000 of 16 images of ImageNet"))
    batch_size: int = field(default=8, metadata=about("images in a step"))
    lr: float = field(default=1e-4, metadata=about("learning rate of AdamW"))
    precision: Literal["bf16-mixed", "32-true"] = field(default="bf16-mixed", metadata=about("of the arithmetic"))
    seed: int = field(default=0, metadata=about("of the weights to begin with and of the order of the images"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        at_least(1, steps=self.steps, batch_size=self.batch_size)
        above_zero(lr=self.lr)
        if self.size < 64 or self.size % 32:
            raise UserError(f"--image-size {self.size}: give a multiple of 32, at least 64")

    @property
    def of_patches(self) -> bool:
        """Whether single patches are described, as in Uninformed Students."""
        return self.network.startswith("patch")
