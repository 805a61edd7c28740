"""`uad report`: one page on a run and its files, for whoever has to decide about them."""

import importlib.util
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from engines.cpu import cpu_fields
from engines.errors import RuntimeNotInstalled, UserError
from engines.files import check_output, write_text
from uad.command_line import parse
from uad.commands.choices import Reading, Running
from uad.options import about, above_zero, check_fields, part, positional

CHECKPOINT, CONFIG = "model.ckpt", "config.yaml"  # of a run


@dataclass
class ReportOptions:
    """Write one self-contained page: accuracy, thresholds to move, curves, the worst mistakes, speed and size."""

    models: List[Path] = field(
        metadata=positional("folders of uad fit, and .onnx or .plan files; the others are compared with the first")
    )
    out: Path = field(metadata=about("HTML file to write"))
    root: Optional[Path] = field(
        default=None, metadata=about("folder with CLASS/test images; if not given that of the first run", "data.root")
    )
    classes: Optional[List[str]] = field(
        default=None, metadata=about("which classes of it, as [a,b]; all if not given", "data.classes")
    )
    seconds: float = field(default=3.0, metadata=about("how long to time each model at least, seconds"))
    running: Running = field(default_factory=Running, metadata=part())
    reading: Reading = field(default_factory=Reading, metadata=part())

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        above_zero(seconds=self.seconds)


def report(options: ReportOptions) -> Path:
    """Judge the test images by each model, time the models, and write the page.

    Raises:
        RuntimeNotInstalled: jinja2 or matplotlib is not installed.
        UserError: a model, an image or the output cannot serve.
    """
    missing = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise RuntimeNotInstalled(
            f"uad report needs {' and '.join(missing)}: pip install '.[report]' in the folder of uad"
        )
    from engines.benchmark import ROUNDS, benchmark
    from uad.data.folder import labelled_samples
    from uad.progress import progress
    from uad.report.collect import judge
    from uad.report.page import render

    check_output(options.out, "--out")
    options.reading.begin()
    root, classes = options.root, options.classes
    if root is None:
        root, of_run = _images_of(options.models[0])
        classes = classes or of_run
    paths = [path / CHECKPOINT if path.is_dir() else path for path in options.models]
    samples = labelled_samples(root, classes)
    with progress("Judging", len(samples)) as step:
        models = judge(paths, samples, options.running.load, step)
    with progress("Measuring in turns", ROUNDS) as step:
        commands = [options.running.worker_command(path) for path in paths]
        timings = benchmark([str(path) for path in paths], commands, options.seconds, step)
        for model, timing in zip(models, timings):
            model.timing = {**timing, "model": model.name}
    write_text(options.out, render(models, _facts(models[0].info.versions)))
    return options.out


def _images_of(run: Path) -> Tuple[Path, Optional[List[str]]]:
    """The folder of images that a run was trained on, and which classes of it; None: all."""
    import yaml

    config = run / CONFIG
    if not config.is_file():
        raise UserError("--data.root is missing: give the folder with the test images")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    root = Path(settings["data"]["root"])
    if not root.is_dir():
        raise UserError(f"{root}, on which {run} was trained, is not here: give --data.root")
    return root, settings["data"]["classes"]


def _facts(versions: Dict[str, str]) -> Dict[str, str]:
    """Machine and versions."""
    processor = cpu_fields().get("model name", platform.machine())
    facts = {"machine": f"{processor}, {platform.system()}", "Python": platform.python_version()}
    return {**facts, **{f"{name}, of the file": number for name, number in versions.items()}}


def main(arguments: Sequence[str]) -> None:
    """Write the page, and say where it is."""
    options = parse(ReportOptions, arguments, "report")
    print(f"{report(options)}: open it in a browser; it needs no network")
