"""The command line: reads arguments, calls one function of the package, prints what it returned.

Imports nothing heavy at start. Runs on Python 3.8, and without torch but for `fit`, `demo` and checkpoints.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from engines.errors import RuntimeNotInstalled, UserError

PRECISIONS = ("fp32", "fp16", "int8", "auto")
CALIBRATORS = ("entropy", "percentile", "minmax")
RUNTIMES = ("openvino", "onnxruntime")
TARGETS = ("cpu", "tensorrt", "jetson-xavier-nx")
RANDOM_NORMAL = "random-normal"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run `uad` with the given or the process's arguments; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    try:
        if name in ("-h", "--help"):
            print(_overview())
        elif name == "--version":
            from importlib.metadata import version

            print(version("uad"))
        elif name in COMMANDS:
            COMMANDS[name][1](given[1:])
        else:
            raise UserError(f"unknown command '{name}': choose one of {', '.join(COMMANDS)}")
    except UserError as error:
        print(f"uad: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("uad: stopped", file=sys.stderr)
        return 130
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(["usage: uad COMMAND [--help] ...", "", *lines])


def _fit(arguments: List[str]) -> None:
    with _needs_training_extra():
        from uad.train import fit

    fit(arguments)


def _export(arguments: List[str]) -> None:
    parser = _parser("export")
    parser.add_argument("model", type=Path, help="model.ckpt of a run, or an fp32 .onnx file of uad")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="auto is int8 that leaves in fp32 the layers it must"
    )
    parser.add_argument(
        "--calibrator", choices=CALIBRATORS, default=None, help="how int8 chooses ranges; by default percentile"
    )
    parser.add_argument(
        "--percentile",
        type=Optional[_positive(float)],
        default=None,
        help="for the calibrator of that name: percent of the values not clipped, by default 99.99",
    )
    parser.add_argument(
        "--calibration-data",
        type=str,
        default=None,
        help=f"for int8 and auto: folder of good images (classes, or images), or for int8 {RANDOM_NORMAL}",
    )
    parser.add_argument(
        "--calibration-images",
        type=Optional[_positive(int)],
        default=None,
        help="how many of them, spread over the classes; by default 128, or all that there are (for auto: half)",
    )
    parser.add_argument(
        "--calibration-classes", type=Optional[List[str]], default=None, help="which classes of the folder, as [a,b]"
    )
    parser.add_argument(
        "--max-drop",
        type=Optional[_not_negative(float)],
        default=None,
        help="for auto, in points of 0.01, by default 0.2: how far Spearman's correlation of image scores with fp32's "
        "may lie below 1, on good images that calibration did not use, mean over the classes",
    )
    parser.add_argument(
        "--validation-data",
        type=Optional[Path],
        default=None,
        help="for auto: folder with labelled CLASS/test images, on which the mean image AUROC may fall by --max-drop; "
        "layers are chosen on them, so report no accuracy on them",
    )
    parser.add_argument(
        "--explain",
        type=Optional[Path],
        default=None,
        help="for int8 and auto: folder for layers.csv, .md and .png, which name the layers that hurt",
    )
    parser.add_argument(
        "--runtime", choices=RUNTIMES, default=None, help="where auto and --explain judge; by default the fastest"
    )
    parser.add_argument("--seed", type=_not_negative(int), default=0, help="of the draw of calibration images")
    parser.add_argument("--target", choices=TARGETS, default="jetson-xavier-nx", help="whose rules the file must obey")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    options = _parse(parser, arguments)

    from uad.export_command import export

    print(export(options))


def _check(arguments: List[str]) -> None:
    parser = _parser("check")
    parser.add_argument("model", type=Path, help=".onnx file")
    parser.add_argument("--target", choices=TARGETS, default="jetson-xavier-nx")
    options = _parse(parser, arguments)

    from engines.graph import load_model
    from export.check import check_model

    problems = check_model(load_model(options.model), options.target)
    if problems:
        raise UserError(f"{options.model} would be refused by {options.target}: {'; '.join(problems)}")
    print(f"{options.model}: nothing that {options.target} is known to refuse")


def _test(arguments: List[str]) -> None:
    parser = _parser("test")
    parser.add_argument("model", type=Path, help=".ckpt or .onnx file")
    _add_data(parser)
    _add_runtime(parser)
    parser.add_argument("--batch", type=_positive(int), default=1)
    parser.add_argument("--reference", type=Optional[Path], default=None, help="model to compare the scores with")
    parser.add_argument("--scores", type=Optional[Path], default=None, help="CSV file for every score")
    parser.add_argument("--json", type=Optional[Path], default=None, help="file for the figures")
    options = _parse(parser, arguments)

    from uad.data.folder import check_samples, test_samples
    from uad.evaluate import evaluate, write_scores
    from uad.open import open_engine
    from uad.progress import progress
    from uad.tables import accuracy_table

    samples = test_samples(options.data.root, options.data.classes)
    if not samples:
        raise UserError(f"{options.data.root} holds no test images: expected CLASS/test/good and CLASS/test/<defect>")
    with contextlib.ExitStack() as stack:
        size = {"batch": options.batch, "threads": options.threads}
        engine = stack.enter_context(open_engine(options.model, options.runtime, **size))
        reference = None
        if options.reference is not None:
            reference = stack.enter_context(open_engine(options.reference, options.runtime, **size))
        with progress("Checking images", len(samples)) as step:
            check_samples(samples, step)
        with progress("Testing", len(samples)) as step:
            evaluation = evaluate(engine, samples, reference, step)
        report = {"model": str(options.model), "runtime": engine.runtime, "precision": engine.info.precision}
        report.update(evaluation.report)
    if options.scores is not None:
        write_scores(options.scores, evaluation.images)
    _write_json(options.json, report)
    print(accuracy_table(report))


def _bench(arguments: List[str]) -> None:
    parser = _parser("bench")
    parser.add_argument("models", type=Path, nargs="+", help=".ckpt or .onnx files, measured in turns")
    _add_runtime(parser)
    parser.add_argument("--batch", type=_positive(int), default=1)
    parser.add_argument("--seconds", type=_positive(float), default=3.0, help="of measuring for each model, at least")
    parser.add_argument("--json", type=Optional[Path], default=None, help="file for the figures")
    options = _parse(parser, arguments)

    from engines.benchmark import ROUNDS, benchmark
    from uad.open import worker_command
    from uad.progress import progress
    from uad.tables import benchmark_table

    commands = [worker_command(path, options.runtime, options.batch, options.threads) for path in options.models]
    with progress("Measuring in turns", ROUNDS) as step:
        reports = benchmark([str(path) for path in options.models], commands, options.seconds, step)
    _write_json(options.json, reports)
    print(benchmark_table(reports))


def _predict(arguments: List[str]) -> None:
    parser = _parser("predict")
    parser.add_argument("model", type=Path, help=".ckpt or .onnx file")
    parser.add_argument("images", type=Path, nargs="+", help="image files and folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for predictions.csv, .json and overlays")
    parser.add_argument("--class", dest="class_name", type=Optional[str], default=None, help="class of all the images")
    _add_runtime(parser)
    options = _parse(parser, arguments)

    from engines.files import make_folder
    from uad.open import open_engine
    from uad.predict import find_images, predict
    from uad.progress import progress

    images = find_images(options.images, options.out)
    engine = open_engine(options.model, options.runtime, threads=options.threads)
    make_folder(options.out)
    with engine, progress("Judging", len(images)) as step:
        decisions = predict(engine, images, options.out, options.class_name, step)
    defects = sum(decision.decision == "defect" for decision in decisions)
    print(f"{len(decisions)} images, {defects} with a defect: see {options.out / 'predictions.csv'}")


def _demo(arguments: List[str]) -> None:
    parser = _parser("demo")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the images, the run and the results")
    options = _parse(parser, arguments)
    with _needs_training_extra():
        from uad.demo import demo

    print(demo(options.out))


def _doctor(arguments: List[str]) -> None:
    _parse(_parser("doctor"), arguments)

    from uad.doctor import diagnose

    print(diagnose())


COMMANDS: Dict[str, Tuple[str, Callable[[List[str]], None]]] = {
    "fit": ("train one model on good images of all the parts", _fit),
    "export": ("write a trained model as an ONNX file in fp32, fp16, int8 or a mixture", _export),
    "check": ("say what a target would refuse in an ONNX file", _check),
    "test": ("measure how right a model is on test images", _test),
    "bench": ("measure how fast and how big models are, in turns", _bench),
    "predict": ("judge images and draw where their defects are", _predict),
    "demo": ("draw images, then fit, export, test and bench on them", _demo),
    "doctor": ("say what is installed and what works here", _doctor),
}


def _parser(command: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"uad {command}", description=COMMANDS[command][0], exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    return parser


def _parse(parser: Any, arguments: List[str]) -> Any:
    """Parse; a mistake becomes one line."""
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{error} (see {parser.prog} --help)") from error


def _positive(kind: type) -> Any:
    from jsonargparse.typing import PositiveFloat, PositiveInt

    return {int: PositiveInt, float: PositiveFloat}[kind]


def _not_negative(kind: type) -> Any:
    from jsonargparse.typing import NonNegativeFloat, NonNegativeInt

    return {int: NonNegativeInt, float: NonNegativeFloat}[kind]


def _add_data(parser: Any) -> None:
    parser.add_argument("--data.root", type=Path, required=True, help="folder of classes, or of one class")
    parser.add_argument("--data.classes", type=Optional[List[str]], default=None, help="which of them, as [a,b]")


def _add_runtime(parser: Any) -> None:
    parser.add_argument(
        "--runtime", choices=RUNTIMES, default=None, help="of .onnx files; by default the fastest installed"
    )
    parser.add_argument(
        "--threads", type=Optional[_positive(int)], default=None, help="CPU threads; by default the runtime's"
    )


def _write_json(path: Optional[Path], content: Any) -> None:
    from engines.files import replacing

    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _needs_training_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"training is not installed here ({error}): pip install '.[train]' in the folder of uad"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
