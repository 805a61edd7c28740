"""`uad distill`: make the small teacher of EfficientAD or Uninformed Students from a large network and any images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

from engines.errors import UserError
from engines.files import check_output
from uad.command_line import parse
from uad.commands.fit import require_training
from uad.options import about, check_fields, part
from uad.training.distillation import Distillation


@dataclass
class DistillOptions:
    """Teach a small network to describe patches as a large one does."""

    images: Path = field(metadata=about("folder of images of anything, in subfolders too; the more kinds, the better"))
    out: Path = field(metadata=about("file for the teacher, which --model.weights takes"))
    settings: Distillation = field(default_factory=Distillation, metadata=part())

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        check_output(self.out, "--out")
        if self.out.exists():
            raise UserError(f"--out {self.out} is there already: give another file, or remove it")


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
    from uad.training.distill import distill as train

    if not options.images.is_dir():
        raise DataError(f"{options.images} is no folder of images")
    samples = [Sample(path, "", "good") for path in images_below(options.images)]
    if not samples:
        raise DataError(f"no image in {options.images}")
    settings = options.settings
    seed_everything(settings.seed, verbose=False)
    with progress(f"Distilling {settings.network} from {settings.backbone}", settings.steps) as step:
        return train(settings, samples, options.out, step)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(DistillOptions, arguments, "distill")
    error = distill(options)
    share, source = 100 * max(0.0, 1 - error), options.settings.backbone
    print(f"{options.out} is ready: it says {share:.0f}% of what {source} does (variance of its features)")
