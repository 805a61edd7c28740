"""`uad distill`: make the small teacher of EfficientAD or Uninformed Students from a large network and any images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Sequence

from engines.errors import UserError
from engines.files import check_output
from uad.command_line import parse
from uad.commands.fit import require_training
from uad.options import about, above_zero, at_least, check_fields


@dataclass
class DistillOptions:
    """Teach a small network to describe patches as a large one does."""

    images: Path = field(metadata=about("folder of images of anything, in subfolders too; the more kinds, the better"))
    out: Path = field(metadata=about("file for the teacher, which --model.weights takes"))
    backbone: str = field(default="efficientnet_lite0", metadata=about("the large network"))
    weights: str = field(default="imagenet", metadata=about("of it: imagenet, or a file of published weights"))
    network: Literal["pdn_s", "pdn_m", "patch17", "patch33", "patch65"] = field(
        default="pdn_s", metadata=about("the small one: pdn_s or pdn_m for EfficientAD, else for Uninformed Students")
    )
    image_size: int = field(default=256, metadata=about("side of the images that the small network sees, pixels"))
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
        if self.image_size < 64 or self.image_size % 32:
            raise UserError(f"--image-size {self.image_size}: give a multiple of 32, at least 64")
        check_output(self.out, "--out")


def distill(options: DistillOptions) -> float:
    """Train the small network and write it; returns the mean squared error of the last steps, in variances.

    Raises:
        UserError: training is not installed, or the images, the weights or the output cannot serve.
    """
    require_training()
    from lightning import seed_everything

    from uad.data.files import images_below
    from uad.data.folder import Sample
    from uad.errors import DataError
    from uad.progress import progress
    from uad.training.distill import Distillation
    from uad.training.distill import distill as train

    if not options.images.is_dir():
        raise DataError(f"{options.images} is no folder of images")
    samples = [Sample(path, "", "good") for path in images_below(options.images)]
    if not samples:
        raise DataError(f"no image in {options.images}")
    seed_everything(options.seed, verbose=False)
    what = Distillation(
        network=options.network,
        backbone=options.backbone,
        weights=options.weights,
        size=options.image_size,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        precision=options.precision,
    )
    with progress(f"Distilling {options.network} from {options.backbone}", options.steps) as step:
        return train(what, samples, options.out, step)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(DistillOptions, arguments, "distill")
    error = distill(options)
    share = 100 * max(0.0, 1 - error)
    print(f"{options.out} is ready: it says {share:.0f}% of what {options.backbone} does (variance of its features)")
