"""`uad predict`: judge images and draw where their defects are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence

from engines.images import MEGAPIXELS, allow
from uad.commands.choices import LARGEST_IMAGE, Runtime
from uad.options import about, above_zero, at_least, parse, positional, settle

if TYPE_CHECKING:
    from uad.evaluation.decisions import Decision


@dataclass
class PredictOptions:
    """Judge images and draw where their defects are."""

    model: Path = field(metadata=positional(".ckpt, .onnx or .plan file"))
    images: List[Path] = field(metadata=positional("image files and folders"))
    out: Path = field(metadata=about("folder to write predictions.csv, predictions.json and overlays to"))
    class_name: Optional[str] = field(
        default=None,
        metadata=about("class of all the images; if not given, a folder of the path that is named like one", "class"),
    )
    runtime: Optional[Runtime] = field(
        default=None, metadata=about("what runs an .onnx file; the fastest that is installed if not given")
    )
    threads: Optional[int] = field(
        default=None, metadata=about("how many CPU threads run the model; as many as the runtime likes if not given")
    )
    max_megapixels: float = field(default=MEGAPIXELS, metadata=LARGEST_IMAGE)

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        settle(self)
        above_zero(max_megapixels=self.max_megapixels)
        at_least(1, threads=self.threads)


def predict(options: PredictOptions) -> "List[Decision]":
    """Judge images; the decisions in the order of the images, which are written to `options.out` too.

    Raises:
        UserError: the model, an image or the output cannot serve.
    """
    from engines.files import make_folder
    from uad.evaluation.decisions import decide, find_images
    from uad.open import open_engine
    from uad.progress import progress

    allow(options.max_megapixels)
    images = find_images(options.images)
    engine = open_engine(options.model, options.runtime, threads=options.threads)
    make_folder(options.out)
    with engine, progress("Judging", len(images)) as step:
        return decide(engine, images, options.out, options.class_name, step)


def main(arguments: Sequence[str]) -> None:
    """Judge, and print how many images have a defect."""
    options = parse(PredictOptions, arguments, "predict")
    decisions = predict(options)
    defects = sum(decision.decision == "defect" for decision in decisions)
    print(f"{len(decisions)} images, {defects} with a defect: see {options.out / 'predictions.csv'}")
