"""`uad predict`: judge photographs, and mark where their defects are."""

import contextlib
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from engines import read_info
from engines.errors import UadWarning, UserError, printable
from engines.files import check_output, make_folder
from engines.metadata import DEFECT, GOOD, UNKNOWN
from uad.command_line import parse
from uad.commands.choices import Overlays, Reading, Running
from uad.data.files import composed
from uad.options import about, above_zero, check_fields, part, positional

if TYPE_CHECKING:
    from engines import Engine, ModelInfo
    from uad.judging.photographs import Photograph
    from uad.judging.predictions import Decision

    Decisions = Iterator[Tuple[Photograph, Decision]]

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
    out: Path = field(metadata=about("folder of the results: ledger, predictions.csv, predictions.jsonl, overlays"))
    class_name: Optional[str] = field(
        default=None,
        metadata=about("class of all the images; if not given, a folder of the path that is named like one", "class"),
    )
    overlays: Overlays = field(default="all", metadata=about("which photographs are drawn"))
    resume: bool = field(default=False, metadata=about("judge what --out does not hold yet, after a stop"))
    overwrite: bool = field(default=False, metadata=about("replace the results in --out"))
    to: Optional[Path] = field(
        default=None, metadata=about("also write all rows to one file, in the end: *.csv, *.jsonl or *.parquet")
    )
    watch: Optional[Path] = field(
        default=None, metadata=about("folder to judge photographs in as they arrive, until it is told to stop (Ctrl-C)")
    )
    move_to: Optional[Path] = field(
        default=None, metadata=about("with --watch: folder that photographs are moved to once they are judged")
    )
    metrics: Optional[Path] = field(
        default=None,
        metadata=about("with --watch: file that counts are written to, for the node exporter of Prometheus"),
    )
    time_limit: float = field(
        default=120.0,
        metadata=about("with --watch: seconds for one photograph; where it takes longer, the process ends with code 3"),
    )
    ray: Optional[str] = field(
        default=None,
        metadata=about("address of a Ray cluster whose machines judge together, or local; see docs/archive.md"),
    )
    strict: bool = field(default=False, metadata=about("stop at the first photograph that cannot be read"))
    accept_truncated: bool = field(
        default=False,
        metadata=about(
            "judge a JPEG that was cut short, too: its row says so, and the rows of pixels that are missing are grey"
        ),
    )
    running: Running = field(default_factory=Running, metadata=part())
    reading: Reading = field(default_factory=Reading, metadata=part())

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        if self.class_name is not None:
            self.class_name = composed(self.class_name)
        if bool(self.images) == (self.watch is not None):
            raise UserError("give photographs, or --watch FOLDER: one of them")
        above_zero(time_limit=self.time_limit)
        if self.watch is None and (self.move_to is not None or self.metrics is not None):
            raise UserError("--move-to and --metrics are for --watch")
        if self.watch is not None and (self.strict or self.resume or self.overwrite or self.to is not None):
            raise UserError(
                "--watch always goes on, from where it was: leave out --strict, --resume, --overwrite, --to"
            )
        if self.resume and self.overwrite:
            raise UserError("--overwrite starts again, --resume goes on: give one of them")
        if self.watch is not None and self.ray is not None:
            raise UserError("--watch is for one machine: leave out --ray")
        if self.watch is not None and not self.watch.is_dir():
            raise UserError(f"--watch {self.watch} is no folder")
        if self.watch is not None and self.move_to is not None and _is_inside(self.move_to, self.watch):
            raise UserError(f"--move-to {self.move_to} lies in the folder that is watched: give another")


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def predict(options: PredictOptions) -> "List[Decision]":
    """Judge photographs; the decisions in their order, which are recorded in `options.out` as they come.

    One that cannot be read is a decision, too, unless `options.strict`.

    Raises:
        UserError: the model, a class or the output cannot serve, there is no photograph, or with `options.strict` one
            that cannot be read.
    """
    decisions: Dict[Path, Decision] = {}
    photographs = judge(options, decisions.__setitem__)
    return [decisions[path] for path in photographs]


def judge(options: PredictOptions, judged: "Callable[[Path, Decision], object]") -> List[Path]:
    """The same for any number of photographs; here, or on the Ray cluster `options.ray`.

    Args:
        options: without `watch`.
        judged: called with each photograph and its decision, in no order.

    Returns:
        The photographs.
    """
    from uad.judging.decisions import decide
    from uad.judging.views import check_form

    if options.watch is not None:
        raise UserError("uad.commands.predict has watch for a folder that is watched")
    check_form(options.to, "--to")
    options.reading.begin()
    if options.ray is not None:
        return _judge_with_ray(options, options.ray, judged)

    def here(photographs: "Iterable[Photograph]", overlays: Optional[Path]) -> "Decisions":
        return decide(engine, photographs, overlays, options.overlays == "defects", options.accept_truncated)

    with _opened(options) as engine:
        return _record(options, engine.info, here, judged)


def _judge_with_ray(options: PredictOptions, address: str, judged: "Callable[[Path, Decision], object]") -> List[Path]:
    from uad.judging.archive import Work, cluster, judge_archive
    from uad.judging.ledger import digest_of_model

    def there(photographs: "Iterable[Photograph]", overlays: Optional[Path]) -> "Decisions":
        work = Work(
            str(options.model.absolute()),
            digest_of_model(options.model),
            options.running.runtime,
            options.running.threads or 1,
            None if overlays is None else str(overlays.absolute()),
            options.overlays == "defects",
            options.reading.max_megapixels,
            options.accept_truncated,
        )
        return judge_archive(ray, work, list(photographs), info)

    info = read_info(options.model)
    with cluster(address) as ray:
        return _record(options, info, there, judged)


def _record(
    options: PredictOptions,
    info: "ModelInfo",
    decide: "Callable[[Iterable[Photograph], Optional[Path]], Decisions]",
    judged: "Callable[[Path, Decision], object]",
) -> List[Path]:
    """Judge what the results do not hold yet, and record it; all photographs that are asked for."""
    from uad.judging.inputs import find_photographs
    from uad.judging.ledger import digest_of_model
    from uad.judging.recording import record
    from uad.judging.results import opened
    from uad.judging.views import write
    from uad.progress import progress

    _check_class(options.class_name, info)
    photographs = find_photographs(_inputs(options.images), info.classes, options.class_name)
    how = {"resume": options.resume, "overwrite": options.overwrite, "is_drawn": options.overlays != "none"}
    with progress("Judging", len(photographs)) as step:

        def told(path: Path, decision: "Decision") -> None:
            judged(path, decision)
            step()

        with opened(options.out, digest_of_model(options.model), photographs, told, **how) as results:

            def decisions(missing: "Iterable[Photograph]") -> "Decisions":
                found = decide(missing, results.overlays)
                return _strictly(found) if options.strict else found

            is_here = options.ray is None
            for _, photograph, decision in record(
                results.ledger, results.views, decisions, results.missing, info, is_here=is_here
            ):
                told(photograph.path, decision)
            if options.to is not None:
                write(results.ledger, options.to)
    return list(photographs)


def _strictly(decisions: "Decisions") -> "Decisions":
    """The same, up to the first photograph that cannot be judged."""
    for photograph, decision in decisions:
        if decision.error:
            raise UserError(decision.error)
        yield photograph, decision


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
    from uad.judging.former import take_over
    from uad.judging.ledger import Ledger, digest_of_model
    from uad.judging.overlays import overlay_folder
    from uad.judging.views import Views
    from uad.judging.watching import Watch
    from uad.judging.watching import watch as keep_watching

    assert options.watch is not None
    if options.move_to is not None:
        make_folder(options.move_to, "--move-to")
    check_output(options.metrics, "--metrics")
    options.reading.begin()
    with _opened(options) as engine:
        _check_class(options.class_name, engine.info)
        with Ledger(options.out, digest_of_model(options.model)) as ledger:
            take_over(ledger)
            if set(ledger.models()) - {ledger.model}:
                text = (
                    f"{options.model} is not what judged before: rows of before stand, new photographs are judged by it"
                )
                warnings.warn(text, UadWarning, stacklevel=2)
            with Views(ledger) as views:
                what = Watch(
                    options.watch,
                    options.out,
                    None if options.overlays == "none" else overlay_folder(options.out, keep=True),
                    options.overlays == "defects",
                    options.class_name,
                    options.move_to,
                    options.accept_truncated,
                    options.metrics,
                    options.time_limit,
                )
                return keep_watching(engine, what, ledger, views, stop, judged)


def _opened(options: PredictOptions) -> "Engine":
    """The model, to judge photographs beside each other: two runs of one thread each do more than one run of two."""
    from engines.cpu import cpu_count

    lanes = min(options.running.threads or cpu_count(), MOST_LANES)
    return options.running.load(options.model, lanes=lanes)


def _check_class(name: Optional[str], info: "ModelInfo") -> None:
    known = info.thresholds
    if name is not None and name not in known:
        raise UserError(f"unknown class '{name}': the model knows {', '.join(known)}")


def _inputs(given: Sequence[Path]) -> List[Path]:
    """The inputs, with those of standard input in the place of -."""
    inputs: List[Path] = []
    if FROM_STDIN in given and sys.stdin is None:
        raise UserError("standard input is closed: names cannot come from it")
    for path in given:
        inputs += [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()] if path == FROM_STDIN else [path]
    if not inputs:
        raise UserError("no images: standard input named none")
    return inputs


@dataclass
class _Summary:
    """What is printed of many decisions; they themselves are not kept."""

    counts: Dict[str, int] = field(default_factory=dict)
    without_class: int = 0  # photographs of which nobody says the class
    of_other_class: int = 0
    slowest: "Optional[Decision]" = None
    errors: List[str] = field(default_factory=list)  # the first few

    def add(self, path: Path, decision: "Decision") -> None:
        """Count a decision."""
        self.counts[decision.decision] = self.counts.get(decision.decision, 0) + 1
        self.without_class += not (decision.class_name or decision.seen_as)
        self.of_other_class += decision.is_of_other_class
        if self.slowest is None or decision.seconds > self.slowest.seconds:
            self.slowest = decision
        if decision.error and len(self.errors) < 5:
            self.errors.append(decision.error)


def main(arguments: Sequence[str]) -> int:
    """Judge, and print a summary; returns 1 if a photograph could not be judged, or 0."""
    from uad.judging.predictions import TABLE, UNREADABLE

    options = parse(PredictOptions, arguments, "predict")
    if options.watch is not None:
        return _watch(options)
    begun, summary = time.perf_counter(), _Summary()
    count = len(judge(options, summary.add))
    seconds = time.perf_counter() - begun
    unreadable = summary.counts.get(UNREADABLE, 0)
    unknown = summary.counts.get(UNKNOWN, 0)
    rest = f", {unknown} of no part that the model knows" if unknown else ""
    rest += f", {unreadable} that cannot be judged" if unreadable else ""
    print(f"{count} images, {summary.counts.get(DEFECT, 0)} with a defect{rest}: see {options.out / TABLE}")
    if summary.of_other_class:
        print(f"{summary.of_other_class} are seen as another class than their folder's: see the column seen_as")
    if summary.without_class:
        print(
            f"{summary.without_class} of no known class, by their folders: judged by the threshold of an unknown class"
        )
    print(f"{count / seconds:.1f} a second, loading included")
    if summary.slowest is not None:
        print(f"the slowest took {summary.slowest.seconds:.2f} s: {printable(summary.slowest.image)}")
    for error in summary.errors:
        print(f"  {printable(error)}")
    return 1 if unreadable else 0


def _watch(options: PredictOptions) -> int:
    """Watch until Ctrl-C or SIGTERM, and print what is not good."""
    from uad.judging.predictions import TABLE

    def judged(decision: "Decision") -> None:
        if decision.decision != GOOD:
            with contextlib.suppress(OSError):  # nobody reads it: the rows are written all the same
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
