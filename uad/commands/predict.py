"""`uad predict`: judge photographs, and mark where their defects are."""

import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence

from engines import read_info
from engines.errors import UserError, printable
from uad.command_line import parse
from uad.commands.choices import Overlays, Reading, Running
from uad.data.files import composed
from uad.options import about, check_fields, part, positional

if TYPE_CHECKING:
    from engines import Engine, ModelInfo
    from uad.judging.predictions import Decision

FROM_STDIN = Path("-")
MOST_LANES = 4  # photographs that the model judges at a time


@dataclass
class PredictOptions:
    """Judge photographs, and mark where their defects are."""

    model: Path = field(metadata=positional(".ckpt, .onnx or .plan file"))
    images: List[Path] = field(
        metadata=positional(
            "image files, folders, patterns, and manifests (.csv or .parquet with a column image, and perhaps class); "
            "- reads names from standard input, a line each",
            or_none=True,
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
    ray: Optional[str] = field(
        default=None,
        metadata=about(
            "address of a Ray cluster whose machines judge together, or local; the rows are then Parquet files, see "
            "docs/archive.md"
        ),
    )
    strict: bool = field(default=False, metadata=about("stop at the first photograph that cannot be read"))
    running: Running = field(default_factory=Running, metadata=part())
    reading: Reading = field(default_factory=Reading, metadata=part())

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        if self.class_name is not None:
            self.class_name = composed(self.class_name)
        if bool(self.images) == (self.watch is not None):
            raise UserError("give photographs, or --watch FOLDER: one of them")
        if self.watch is None and self.move_to is not None:
            raise UserError("--move-to is for --watch")
        if self.watch is not None and (self.strict or self.resume):
            raise UserError("--watch always goes on, from where it was: leave out --strict and --resume")
        if self.watch is not None and self.ray is not None:
            raise UserError("--watch is for one machine: leave out --ray")
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
    from uad.judging.decisions import decide
    from uad.judging.inputs import find_photographs
    from uad.judging.predictions import Predictions
    from uad.progress import progress

    if options.watch is not None or options.ray is not None:
        raise UserError("uad.commands.predict has watch for a folder that is watched, and archive for Ray")
    options.reading.begin()
    with _opened(options) as engine:
        _check_class(options.class_name, engine.info)
        photographs = find_photographs(_inputs(options.images), engine.info.classes, options.class_name)
        with Predictions(options.out, options.model, options.resume) as written, progress(
            "Judging", len(photographs)
        ) as step:
            folder = _overlays(options, keep=options.resume)
            decisions = dict(written.before)
            missing = {path: name for path, name in photographs.items() if str(path) not in decisions}
            for _ in range(len(photographs) - len(missing)):
                step()
            for decision in decide(engine, missing, folder, only_defects=options.overlays == "defects"):
                if decision.error and options.strict:
                    raise UserError(decision.error)
                written.append(decision)
                decisions[decision.image] = decision
                step()
    return [decisions[str(path)] for path in photographs]


def archive(options: PredictOptions) -> Dict[str, int]:
    """Judge photographs on the Ray cluster `options.ray`; the rows go to Parquet files, see `uad.judging.parts`.

    Returns:
        How many rows there are of each decision, earlier calls with the same `out` included.

    Raises:
        UserError: the model, a class, the cluster or the output cannot serve, there is no photograph, or with
            `options.strict` one that cannot be read.
    """
    from uad.judging.archive import Work, cluster, judge_archive
    from uad.judging.inputs import find_photographs
    from uad.judging.parts import Parts
    from uad.progress import progress

    assert options.ray is not None
    info = read_info(options.model)
    _check_class(options.class_name, info)
    photographs = find_photographs(_inputs(options.images), info.classes, options.class_name)
    with cluster(options.ray) as ray, Parts(options.out, options.model, options.resume) as parts, progress(
        "Judging", len(photographs)
    ) as step:
        missing = {path: name for path, name in photographs.items() if path not in parts}
        for _ in range(len(photographs) - len(missing)):
            step()

        def judged(table: Any) -> None:
            parts.append(table)
            errors = [error for error in table["error"].to_pylist() if error]
            if errors and options.strict:
                raise UserError(errors[0])
            for _ in range(len(table)):
                step()

        folder = _overlays(options, keep=options.resume)
        work = Work(
            str(options.model.absolute()),
            parts.digest,
            options.running.runtime,
            options.running.threads or 1,
            None if folder is None else str(folder.absolute()),
            options.overlays == "defects",
            options.reading.max_megapixels,
        )
        judge_archive(ray, work, missing, judged)
    return parts.counts()


def watch(
    options: PredictOptions, stop: threading.Event, judged: "Callable[[Decision], object]" = lambda decision: None
) -> Dict[str, int]:
    """Judge photographs of `options.watch` as they arrive; see `uad.judging.watching.watch`.

    Args:
        options: of which `watch` is a folder.
        stop: ends it when it is set.
        judged: called with each decision.

    Returns:
        How many photographs there were of each decision, earlier calls with the same `out` included.

    Raises:
        UserError: the model, a class or the output cannot serve.
    """
    from uad.judging.predictions import Predictions
    from uad.judging.watching import Watch
    from uad.judging.watching import watch as keep_watching

    assert options.watch is not None
    options.reading.begin()
    with _opened(options) as engine:
        _check_class(options.class_name, engine.info)
        with Predictions(options.out, options.model, resume=True, reading=False) as written:
            folder = _overlays(options, keep=True)
            only_defects = options.overlays == "defects"
            what = Watch(options.watch, options.out, folder, only_defects, options.class_name, options.move_to)
            return keep_watching(engine, what, written, stop, judged)


def _opened(options: PredictOptions) -> "Engine":
    """The model, to judge photographs beside each other: two runs of one thread each do more than one run of two."""
    from engines.cpu import cpu_count

    lanes = min(options.running.threads or cpu_count(), MOST_LANES)
    return options.running.load(options.model, lanes=lanes)


def _overlays(options: PredictOptions, keep: bool) -> Optional[Path]:
    """Where overlays go, if any are drawn; see `overlay_folder`."""
    from uad.judging.overlays import overlay_folder

    return None if options.overlays == "none" else overlay_folder(options.out, keep)


def _check_class(name: Optional[str], info: "ModelInfo") -> None:
    known = info.thresholds
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
    from uad.judging.predictions import TABLE

    options = parse(PredictOptions, arguments, "predict")
    if options.watch is not None:
        return _watch(options)
    if options.ray is not None:
        return _archive(options)
    begun = time.perf_counter()
    decisions = predict(options)
    seconds = time.perf_counter() - begun
    unreadable = [decision for decision in decisions if decision.error]
    slowest = max(decisions, key=lambda decision: decision.seconds)
    _print_counts(Counter(decision.decision for decision in decisions), options.out / TABLE)
    unknown = sum(not decision.class_name for decision in decisions)
    if unknown:
        print(f"{unknown} of no known class, by their folders: judged by the threshold of an unknown class")
    print(f"{len(decisions) / seconds:.1f} a second, loading included")
    print(f"the slowest took {slowest.seconds:.2f} s: {printable(slowest.image)}")
    for decision in unreadable[:5]:
        print(f"  {printable(decision.error)}")
    return 1 if unreadable else 0


def _archive(options: PredictOptions) -> int:
    """Judge with Ray, and print a summary."""
    from uad.judging.parts import FOLDER
    from uad.judging.predictions import UNREADABLE

    begun = time.perf_counter()
    counts = archive(options)
    seconds = time.perf_counter() - begun
    _print_counts(counts, options.out / FOLDER)
    print(f"in {seconds:.1f} s, the start of Ray and of the workers included")
    return 1 if counts.get(UNREADABLE) else 0


def _print_counts(counts: Dict[str, int], where: Path) -> None:
    """Print how many photographs there are of each decision, and where they stand."""
    from uad.judging.predictions import DEFECT, UNREADABLE

    unreadable = counts.get(UNREADABLE, 0)
    rest = f", {unreadable} that cannot be read" if unreadable else ""
    print(f"{sum(counts.values())} images, {counts.get(DEFECT, 0)} with a defect{rest}: see {where}")


def _watch(options: PredictOptions) -> int:
    """Watch until Ctrl-C or SIGTERM, and print each defect."""
    from uad.judging.predictions import DEFECT, TABLE

    def judged(decision: "Decision") -> None:
        if decision.decision == DEFECT or decision.error:
            print(f"{decision.decision}: {printable(decision.error or decision.image)}", flush=True)

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
