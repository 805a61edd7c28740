"""`uad predict`: judge photographs, and mark where their defects are."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

from engines.errors import UserError
from engines.images import MEGAPIXELS, allow
from uad.commands.choices import LARGEST_IMAGE, Overlays, Runtime
from uad.options import about, above_zero, at_least, parse, positional, settle

if TYPE_CHECKING:
    from uad.evaluation.predictions import Decision

FROM_STDIN = Path("-")


@dataclass
class PredictOptions:
    """Judge photographs, and mark where their defects are."""

    model: Path = field(metadata=positional(".ckpt, .onnx or .plan file"))
    images: List[Path] = field(
        metadata=positional("image files, folders and patterns; - reads their names from standard input, a line each")
    )
    out: Path = field(metadata=about("folder to write predictions.csv, predictions.jsonl and overlays to"))
    class_name: Optional[str] = field(
        default=None,
        metadata=about("class of all the images; if not given, a folder of the path that is named like one", "class"),
    )
    overlays: Overlays = field(default="all", metadata=about("which photographs are drawn"))
    resume: bool = field(default=False, metadata=about("judge what --out does not hold yet, after a stop"))
    strict: bool = field(default=False, metadata=about("stop at the first photograph that cannot be read"))
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
    """Judge photographs; the decisions in their order, which are written to `options.out` as they come.

    One that cannot be read is a decision, too, unless `options.strict`.

    Raises:
        UserError: the model, a class or the output cannot serve, there is no photograph, or with `options.strict` one
            that cannot be read.
    """
    from uad.evaluation.decisions import class_of, decide, find_images
    from uad.evaluation.overlays import overlay_folder
    from uad.evaluation.predictions import Predictions
    from uad.open import open_engine
    from uad.progress import progress

    allow(options.max_megapixels)
    sources = find_images(_inputs(options.images))
    with open_engine(options.model, options.runtime, threads=options.threads) as engine:
        known = engine.info.thresholds
        if options.class_name is not None and options.class_name not in known:
            raise UserError(f"unknown class '{options.class_name}': the model knows {', '.join(known)}")
        with Predictions(options.out, options.model, options.resume) as written, progress(
            "Judging", len(sources)
        ) as step:
            folder = None if options.overlays == "none" else overlay_folder(options.out, keep=options.resume)
            decisions = dict(written.before)
            missing: Dict[Path, Optional[str]] = {}
            for path, source in sources.items():
                if str(path) in decisions:
                    step()
                else:
                    missing[path] = options.class_name or class_of(path, source, engine.info.classes)
            for decision in decide(engine, missing, folder, only_defects=options.overlays == "defects"):
                if decision.error and options.strict:
                    raise UserError(decision.error)
                written.append(decision)
                decisions[decision.image] = decision
                step()
    return [decisions[str(path)] for path in sources]


def _inputs(given: Sequence[Path]) -> List[Path]:
    """The inputs, with those of standard input in the place of -."""
    inputs: List[Path] = []
    for path in given:
        inputs += [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()] if path == FROM_STDIN else [path]
    if not inputs:
        raise UserError("no images: standard input named none")
    return inputs


def main(arguments: Sequence[str]) -> int:
    """Judge, and print a summary; returns 1 if a photograph could not be read, or 0."""
    from uad.evaluation.predictions import DEFECT, TABLE

    options = parse(PredictOptions, arguments, "predict")
    begun = time.perf_counter()
    decisions = predict(options)
    seconds = time.perf_counter() - begun
    unreadable = [decision for decision in decisions if decision.error]
    defects = sum(decision.decision == DEFECT for decision in decisions)
    slowest = max(decisions, key=lambda decision: decision.seconds)
    said = f", {len(unreadable)} that cannot be read" if unreadable else ""
    print(f"{len(decisions)} images, {defects} with a defect{said}: see {options.out / TABLE}")
    print(f"{len(decisions) / seconds:.1f} a second, loading included")
    print(f"the slowest took {slowest.seconds:.2f} s: {slowest.image}")
    for decision in unreadable[:5]:
        print(f"  {decision.error}")
    return 1 if unreadable else 0
