"""`uad test`: how right a model is on test images, and how far it agrees with another."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from engines import Engine
from engines.files import check_output, write_json
from uad.command_line import parse
from uad.commands.choices import DataOptions, Reading, Running
from uad.options import about, at_least, check_fields, part, positional

if TYPE_CHECKING:
    from uad.evaluation.evaluate import ScoredImage


@dataclass
class TestOptions:
    """Measure how right a model is on test images."""

    __test__ = False  # for pytest

    model: Path = field(metadata=positional(".ckpt, .onnx or .plan file"))
    data: DataOptions
    running: Running = field(default_factory=Running, metadata=part())
    batch: Optional[int] = field(
        default=None,
        metadata=about("how many images a model is given at once; 1, or what a plan was built for, if not given"),
    )
    reading: Reading = field(default_factory=Reading, metadata=part())
    reference: Optional[Path] = field(default=None, metadata=about("another model, to compare the scores with"))
    scores: Optional[Path] = field(default=None, metadata=about("CSV file to write every score to"))
    json: Optional[Path] = field(default=None, metadata=about("JSON file to write the figures to"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        at_least(1, batch=self.batch)


def test(options: TestOptions) -> Dict[str, Any]:
    """Test a model; the report has the keys that README names, and is written where the options say.

    Raises:
        UserError: a model, an image or an output cannot serve.
    """
    report, images = _measure(options)
    _write(options, report, images)
    return report


def _measure(options: TestOptions) -> "Tuple[Dict[str, Any], List[ScoredImage]]":
    from engines.plan_file import keep_descriptions
    from uad.data.folder import labelled_samples
    from uad.evaluation.evaluate import evaluate
    from uad.progress import progress

    keep_descriptions([options.model], [options.json, options.scores])
    check_output(options.json, "--json")
    check_output(options.scores, "--scores")
    options.reading.begin()
    samples = labelled_samples(options.data.root, options.data.classes)
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> Engine:
            return stack.enter_context(options.running.load(path, options.batch))

        engine = opened(options.model)
        reference = None if options.reference is None else opened(options.reference)
        with progress("Testing", len(samples)) as step:
            evaluation = evaluate(engine, samples, reference, step)
        report = {"model": str(options.model), "runtime": engine.runtime, "precision": engine.info.precision}
        report.update(evaluation.report)
    return report, evaluation.images


def _write(options: TestOptions, report: Dict[str, Any], images: "Sequence[ScoredImage]") -> None:
    from uad.evaluation.evaluate import write_scores

    if options.scores is not None:
        write_scores(options.scores, images)
    if options.json is not None:
        write_json(options.json, report)


test.__test__ = False  # type: ignore[attr-defined]  # for pytest


def main(arguments: Sequence[str]) -> None:
    """Test, and print a table, before what could go wrong with the files."""
    from uad.tables import accuracy_table, class_lines

    options = parse(TestOptions, arguments, "test")
    report, images = _measure(options)
    print("\n".join([accuracy_table(report), *class_lines(report)]), flush=True)
    _write(options, report, images)
