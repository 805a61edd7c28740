"""`uad bench`: how fast and how big models are."""

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from engines.files import check_output, write_json
from uad.command_line import parse
from uad.commands.choices import Running
from uad.options import about, above_zero, at_least, check_fields, part, positional


@dataclass
class BenchOptions:
    """Measure how fast and how big models are, in turns or together."""

    models: List[Path] = field(metadata=positional(".ckpt, .onnx or .plan files, measured in turns: A B A B"))
    running: Running = field(default_factory=Running, metadata=part())
    batch: Optional[int] = field(
        default=None,
        metadata=about("how many images a model is given at once; 1, or what a plan was built for, if not given"),
    )
    together: bool = field(
        default=False,
        metadata=about("measure the models at the same time, as GPU and DLAs of one module, not in turns"),
    )
    images: Optional[Path] = field(
        default=None, metadata=about("folder of photographs: measure the way from file to decision, too")
    )
    seconds: float = field(default=3.0, metadata=about("how long to measure each model at least, seconds"))
    json: Optional[Path] = field(default=None, metadata=about("JSON file to write the figures to"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        at_least(1, batch=self.batch)
        above_zero(seconds=self.seconds)


def bench(options: BenchOptions) -> List[Dict[str, Any]]:
    """Measure models; a report for each, in the order given, see `engines.benchmark.benchmark`.

    Raises:
        UserError: a model cannot be loaded, or the output cannot be written.
    """
    reports = _measure(options)
    if options.json is not None:
        write_json(options.json, reports)
    return reports


def _measure(options: BenchOptions) -> List[Dict[str, Any]]:
    from engines import jetson
    from engines.benchmark import ROUNDS, benchmark
    from engines.plan_file import keep_descriptions
    from uad.progress import progress

    keep_descriptions(options.models, [options.json])
    check_output(options.json, "--json")
    photographs = [str(path) for path in _photographs(options.images)]
    commands = [options.running.worker_command(path, options.batch) for path in options.models]
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(jetson.Watch()) if jetson.is_jetson() else None
        step = stack.enter_context(progress("Measuring together" if options.together else "Measuring in turns", ROUNDS))
        reports = benchmark(
            [str(path) for path in options.models],
            commands,
            options.seconds,
            step,
            together=options.together,
            photographs=photographs,
        )
    seen = watch.report(options.seconds) if watch else None
    return [{**report, "jetson": seen} for report in reports]


def _photographs(folder: Optional[Path]) -> List[Path]:
    from uad.data.files import images_below
    from uad.errors import DataError

    if folder is None:
        return []
    if not folder.is_dir():
        raise DataError(f"--images {folder} is no folder of images")
    photographs = images_below(folder)
    if not photographs:
        raise DataError(f"no image in {folder}")
    return photographs


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a table, before what could go wrong with the file."""
    from uad.tables import benchmark_table, jetson_lines

    options = parse(BenchOptions, arguments, "bench")
    reports = _measure(options)
    print(benchmark_table(reports))
    if reports[0]["jetson"]:
        print("\n" + jetson_lines(reports[0]["jetson"]))
    sys.stdout.flush()
    if options.json is not None:
        write_json(options.json, reports)
