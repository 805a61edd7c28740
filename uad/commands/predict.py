"""`uad predict`: judge photographs, and mark where their defects are."""

import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence

from engines.errors import UserError
from engines.images import MEGAPIXELS, allow
from uad.commands.choices import LARGEST_IMAGE, Overlays, Runtime
from uad.options import about, above_zero, at_least, parse, positional, settle

if TYPE_CHECKING:
    from engines import Engine
    from uad.evaluation.predictions import Decision

FROM_STDIN = Path("-")


@dataclass
class PredictOptions:
    """Judge photographs, and mark where their defects are."""

    model: Path = field(metadata=positional(".ckpt, .onnx or .plan file"))
    images: List[Path] = field(
        metadata=positional(
            "image files, folders and patterns; - reads their names from standard input, a line each", or_none=True
        )
    )
    out: Path = field(metadata=about("folder to write predictions.csv, predictions.jsonl and overlays to"))
    class_name: Optional[str] = field(
        default=None,
        metadata=about("class of all the images; if not given, a folder of the path that is named like one", "class"),
    )
    overlays: Overlays = field(default="all", metadata=about("which photographs are drawn"))
    resume: bool = field(default=False, metadata=about("judge what --out does not hold yet, after a stop"))
    watch: Optional[Path] = field(
        default=None, metadata=about("folder to judge photographs in as they arrive, until it is told to stop (Ctrl-C)")
    )
    move_to: Optional[Path] = field(
        default=None, metadata=about("with --watch: folder that photographs are moved to once they are judged")
    )
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
        if bool(self.images) == (self.watch is not None):
            raise UserError("give photographs, or --watch FOLDER: one of them")
        if self.watch is None and self.move_to is not None:
            raise UserError("--move-to is for --watch")
        if self.watch is not None and (self.strict or self.resume):
            raise UserError("--watch always goes on, from where it was: leave out --strict and --resume")
        if self.watch is not None and not self.watch.is_dir():
            raise UserError(f"--watch {self.watch} is no folder")
        if self.watch is not None and self.move_to is not None and _is_inside(self.move_to, self.watch):
            raise UserError(f"--move-to {self.move_to} lies in the folder that is watched: give another")


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


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

    if options.watch is not None:
        raise UserError("a folder is watched by uad.commands.predict.watch")
    allow(options.max_megapixels)
    sources = find_images(_inputs(options.images))
    with open_engine(options.model, options.runtime, threads=options.threads) as engine:
        _check_class(options.class_name, engine)
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


def watch(
    options: PredictOptions, stop: threading.Event, judged: "Callable[[Decision], object]" = lambda decision: None
) -> Dict[str, int]:
    """Judge photographs of `options.watch` as they arrive; see `uad.evaluation.watching.watch`.

    Args:
        options: of which `watch` is a folder.
        stop: ends it when it is set.
        judged: called with each decision.

    Returns:
        How many photographs there were of each decision, earlier calls with the same `out` included.

    Raises:
        UserError: the model, a class or the output cannot serve.
    """
    from uad.evaluation.overlays import overlay_folder
    from uad.evaluation.predictions import Predictions
    from uad.evaluation.watching import Watch
    from uad.evaluation.watching import watch as keep_watching
    from uad.open import open_engine

    assert options.watch is not None
    allow(options.max_megapixels)
    with open_engine(options.model, options.runtime, threads=options.threads) as engine:
        _check_class(options.class_name, engine)
        with Predictions(options.out, options.model, resume=True, reading=False) as written:
            folder = None if options.overlays == "none" else overlay_folder(options.out, keep=True)
            only_defects = options.overlays == "defects"
            what = Watch(options.watch, options.out, folder, only_defects, options.class_name, options.move_to)
            return keep_watching(engine, what, written, stop, judged)


def _check_class(name: Optional[str], engine: "Engine") -> None:
    known = engine.info.thresholds
    if name is not None and name not in known:
        raise UserError(f"unknown class '{name}': the model knows {', '.join(known)}")


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
    if options.watch is not None:
        return _watch(options)
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


def _watch(options: PredictOptions) -> int:
    """Watch until Ctrl-C or SIGTERM, and print each defect."""
    from uad.evaluation.predictions import DEFECT, TABLE

    def judged(decision: "Decision") -> None:
        if decision.decision == DEFECT or decision.error:
            print(f"{decision.decision}: {decision.error or decision.image}", flush=True)

    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    print(f"watching {options.watch}: see {options.out / TABLE}; Ctrl-C ends it", flush=True)
    try:
        counts = watch(options, stop, judged)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(", ".join(f"{count} {decision}" for decision, count in sorted(counts.items())) or "nothing arrived")
    return 0
