"""`uad test`: how right a model is on test images, and how far it agrees with another."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from engines import Engine
from engines.errors import UserError
from engines.files import check_output, write_json
from engines.images import MEGAPIXELS, allow
from uad.commands.choices import LARGEST_IMAGE, DataOptions, Runtime
from uad.options import about, above_zero, at_least, parse, positional, settle

if TYPE_CHECKING:
    from uad.evaluation.evaluate import ScoredImage


@dataclass
class TestOptions:
    """Measure how right a model is on test images."""

    __test__ = False  # for pytest

    model: Path = field(metadata=positional(".ckpt, .onnx or .plan file"))
    data: DataOptions
    runtime: Optional[Runtime] = field(
        default=None, metadata=about("what runs .onnx files; the fastest that is installed if not given")
    )
    threads: Optional[int] = field(
        default=None, metadata=about("how many CPU threads run the model; as many as the runtime likes if not given")
    )
    batch: Optional[int] = field(
        default=None,
        metadata=about("how many images a model is given at once; 1, or what a plan was built for, if not given"),
    )
    max_megapixels: float = field(default=MEGAPIXELS, metadata=LARGEST_IMAGE)
    reference: Optional[Path] = field(default=None, metadata=about("another model, to compare the scores with"))
    scores: Optional[Path] = field(default=None, metadata=about("CSV file to write every score to"))
    json: Optional[Path] = field(default=None, metadata=about("JSON file to write the figures to"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        settle(self)
        above_zero(max_megapixels=self.max_megapixels)
        at_least(1, batch=self.batch, threads=self.threads)


def test(options: TestOptions) -> Dict[str, Any]:
    """Test a model; the report has the keys that README names, and is written where the options say.

    Raises:
        UserError: a model, an image or an output cannot serve.
    """
    report, images = _measure(options)
    _write(options, report, images)
    return report


def _measure(options: TestOptions) -> "Tuple[Dict[str, Any], List[ScoredImage]]":
    from uad.data.folder import check_samples, test_samples, with_depths
    from uad.evaluation.evaluate import evaluate
    from uad.open import keep_descriptions, open_engine
    from uad.progress import progress

    keep_descriptions([options.model], [options.json, options.scores])
    check_output(options.json, "--json")
    check_output(options.scores, "--scores")
    allow(options.max_megapixels)
    root = options.data.root
    samples = test_samples(root, options.data.classes)
    if not samples:
        raise UserError(f"{root} holds no test images: expected CLASS/test/good and CLASS/test/<defect>")
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> Engine:
            engine = open_engine(path, options.runtime, batch=options.batch, threads=options.threads)
            return stack.enter_context(engine)

        engine = opened(options.model)
        reference = None if options.reference is None else opened(options.reference)
        with progress("Checking images", len(samples)) as step:
            check_samples(with_depths(samples, engine.info.depth_of), step)
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
    from uad.tables import accuracy_table

    options = parse(TestOptions, arguments, "test")
    report, images = _measure(options)
    print(accuracy_table(report), flush=True)
    _write(options, report, images)
