"""`uad fit`: train one model on good images of all the parts, or go on from one under fake quantization."""

import contextlib
import copy
import dataclasses
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from engines.errors import RuntimeNotInstalled, UserError
from engines.files import make_folder, only_writer
from uad.command_line import parse, parser_of
from uad.commands.choices import Reading
from uad.data.files import composed
from uad.options import about, check_fields, part

CHANGES = ("add_class", "add_images", "remove_class")  # of the classes of a trained model
OF_CHANGES = (*CHANGES, "ckpt", "out", "data", "reading", "overwrite")  # what goes with them


@dataclass
class FitOptions:
    """Train one model on good images of all the parts.

    `model`, `data` and `trainer` are what a YAML file holds under these names: see `uad.training.settings`.
    """

    out: Optional[Path] = field(default=None, metadata=about("folder of the run, made if needed"))
    data: Dict[str, Any] = field(
        default_factory=dict, metadata=about("settings of the data, as --data.root IMAGES; listed below")
    )
    model: Dict[str, Any] = field(
        default_factory=dict,
        metadata=about("--model NAME, and settings of that model, as --model.backbone resnet18; listed below"),
    )
    trainer: Dict[str, Any] = field(
        default_factory=dict,
        metadata=about("settings of Lightning's Trainer, as --trainer.max_epochs 6; uad fit --trainer.help lists them"),
    )
    ckpt: Optional[Path] = field(
        default=None, metadata=about("model.ckpt of a run, to be fine-tuned under fake quantization")
    )
    add_class: Optional[str] = field(
        default=None,
        metadata=about("class to add to --ckpt, a model with a bank, without training: a folder of --data.root"),
    )
    add_images: Optional[str] = field(
        default=None, metadata=about("class of --ckpt to which good images of --data.root are added")
    )
    remove_class: Optional[str] = field(default=None, metadata=about("class to remove from --ckpt"))
    resume: Optional[Path] = field(
        default=None,
        metadata=about(
            "folder of a run that was stopped, to go on with, by its own settings; "
            "--trainer.max_epochs may be raised, --data.root may name where its images are now"
        ),
    )
    overwrite: bool = field(default=False, metadata=about("replace the run in --out at the end"))
    keep_cache: bool = field(default=False, metadata=about("leave RUN/targets, for --resume"))
    profile: bool = field(default=False, metadata=about("say where a step's time goes"))
    false_positive_rate: float = field(
        default=0.05, metadata=about("part of the held-out good images that may score above their threshold")
    )
    reading: Reading = field(default_factory=Reading, metadata=part())
    seed: int = field(default=0, metadata=about("of weights and order of images"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        if self.overwrite and self.resume is not None:
            raise UserError("--overwrite starts again, --resume goes on: give one of them")
        changed = [name for name in CHANGES if getattr(self, name) is not None]
        if changed:
            _check_change(self, changed)
        if not 0 <= self.false_positive_rate < 1:
            rate = f"--false-positive-rate {self.false_positive_rate}"
            raise UserError(f"{rate}: give a part of the good images, at least 0 and less than 1")


def fit(options: FitOptions) -> Path:
    """Train a model; returns the path of model.ckpt.

    Raises:
        UserError: training is not installed, bad settings, bad data, or a loss that is not a number.
    """
    require_training()
    from uad.training.fit import quieten, train
    from uad.training.run import MODEL, deliver, place_for
    from uad.training.settings import set_up

    quieten()
    if options.resume is not None:
        if not options.resume.is_dir():
            raise UserError(f"{options.resume} is no folder: --resume needs the folder of a run")
        with _alone_in(options.resume):
            return _go_on(options, options.resume)
    if options.out is None:
        raise UserError("--out is missing: give the folder of the run")
    options.reading.begin()
    with _alone_in(options.out):
        folder = place_for(options.out, options.overwrite)
        if any(getattr(options, name) is not None for name in CHANGES):
            deliver(folder, options.out, _changed(options, folder))
            return options.out / MODEL
        setup = set_up(options.model, options.data, options.trainer, options.ckpt, options.seed, folder)
        _watch(setup, options)
        if options.ckpt is not None:
            _check_start(setup, options.ckpt, options.out)
        record = train(setup, folder, options.false_positive_rate, _settings(options, setup))
        deliver(folder, options.out, record, options.keep_cache)
    return options.out / MODEL


def _changed(options: FitOptions, folder: Path) -> Any:
    """Change the classes of a trained model; the record of the run."""
    from uad.training.classes import add_class, add_images, remove_class

    assert options.ckpt is not None
    if options.remove_class is not None:
        return remove_class(options.ckpt, composed(options.remove_class), folder)
    if options.add_images is not None:
        return add_images(options.ckpt, composed(options.add_images), options.data, folder)
    assert options.add_class is not None
    return add_class(options.ckpt, composed(options.add_class), options.data, folder)


def _check_change(options: FitOptions, changed: Sequence[str]) -> None:
    """Refuse what does not go with a change of the classes."""
    flags = [f"--{name.replace('_', '-')}" for name in changed]
    if len(flags) > 1:
        raise UserError(f"{' and '.join(flags)}: give one of them at a time")
    if options.ckpt is None:
        raise UserError(f"{flags[0]} needs --ckpt, the model.ckpt of a run")
    if options.out is not None:
        _check_elsewhere(options.ckpt, options.out)
    unchanged = FitOptions()
    names = [each.name for each in dataclasses.fields(FitOptions) if each.name not in OF_CHANGES]
    others = [name for name in names if getattr(options, name) != getattr(unchanged, name)]
    others += ["data"] if options.remove_class is not None and options.data else []
    if others:
        raise UserError(f"{flags[0]} trains nothing: leave out {', '.join(others)}")
    if options.remove_class is None and "root" not in options.data:
        raise UserError(f"{flags[0]} needs --data.root, the folder with its good images")


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the only right to write to the folder of a run; a new one that stays empty goes."""
    is_new = not out.exists()
    try:
        with only_writer(make_folder(out)):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                out.rmdir()


def _go_on(options: FitOptions, run: Path) -> Path:
    """Train on what was stopped."""
    from uad.training.fit import go_on
    from uad.training.run import LAST, MAY_CHANGE, MODEL, Record, deliver, place_of
    from uad.training.settings import set_up

    fresh = FitOptions(
        resume=run, data=options.data, trainer=options.trainer, keep_cache=options.keep_cache, profile=options.profile
    )
    changed = [
        each.name for each in dataclasses.fields(FitOptions) if getattr(options, each.name) != getattr(fresh, each.name)
    ]
    given = {f"{group}.{key}" for group in ("data", "trainer") for key in getattr(options, group)}
    changed += sorted(given - set(MAY_CHANGE))
    if changed:
        raise UserError(f"{run} goes on with its own settings: leave out {', '.join(changed)}, or start a new run")
    folder = place_of(run)
    record = Record.read(folder)
    if "trainer" not in record.settings:
        raise UserError(f"{run} was not trained, its classes were changed: there is nothing to go on with")
    epochs = record.settings["trainer"]["max_epochs"]
    asked = options.trainer.get("max_epochs", epochs)
    if asked != epochs and not (isinstance(asked, int) and isinstance(epochs, int) and asked > epochs):
        raise UserError(f"--trainer.max_epochs {asked}: {run} is of {epochs} epochs, give more or leave it out")
    if record.finished and asked == epochs:
        if folder == run:
            more = f" (max_epochs {epochs}): a greater --trainer.max_epochs goes on" if epochs is not None else ""
            print(f"{run} is finished{more}")
        else:
            deliver(folder, run, record)
        return run / MODEL
    if not (folder / LAST).is_file():
        raise UserError(f"{folder} has no {LAST}: no epoch was finished, start again with --overwrite or elsewhere")
    settings = copy.deepcopy(record.settings)
    settings["trainer"]["max_epochs"] = asked
    settings["data"].update(options.data)
    reading = Reading(settings.pop("max_megapixels"))
    was = FitOptions(run, reading=reading, **settings)
    was.reading.begin()
    setup = set_up(was.model, was.data, was.trainer, was.ckpt, was.seed, folder)
    _watch(setup, options)
    if was.ckpt is not None:
        _check_start(setup, was.ckpt, run)
    record = go_on(setup, folder, was.false_positive_rate, _settings(was, setup), record)
    deliver(folder, run, record, options.keep_cache)
    return run / MODEL


def _watch(setup: Any, options: FitOptions) -> None:
    if options.profile:
        from uad.training.callbacks import StepTimes

        setup.trainer.callbacks.append(StepTimes())


def _settings(options: FitOptions, setup: Any) -> Dict[str, Any]:
    """Every setting, as plain values; paths are absolute, so that they lead to the same from anywhere."""
    settings: Dict[str, Any] = copy.deepcopy(setup.resolved)
    settings["data"]["root"] = os.path.abspath(settings["data"]["root"])
    weights = settings["model"].get("weights")
    if weights is not None and Path(weights).is_file():
        settings["model"]["weights"] = os.path.abspath(weights)
    settings["ckpt"] = None if options.ckpt is None else os.path.abspath(options.ckpt)
    settings["max_megapixels"] = options.reading.max_megapixels
    for name in ("false_positive_rate", "seed"):
        settings[name] = getattr(options, name)
    plain: Dict[str, Any] = _plain(settings)
    return plain


def require_training() -> None:
    """Ask for what training needs.

    Raises:
        RuntimeNotInstalled: a package is missing.
    """
    try:
        import lightning  # noqa: F401
        import torchvision  # noqa: F401

        if importlib.util.find_spec("pytorch_quantization") is None:  # which takes its time to import
            raise ImportError("no pytorch-quantization")
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"training is not installed here ({error}): pip install '.[train]' in the folder of uad"
        ) from error


def main(arguments: Sequence[str]) -> None:
    """Train, and print where the model is."""
    given = as_settings(arguments)
    if "--trainer.help" in given:
        require_training()
        from uad.training.settings import trainer_help

        print(trainer_help())
    elif {"-h", "--help"}.intersection(given):
        print(_help([argument for argument in given if argument not in ("-h", "--help")]))
    else:
        print(f"{fit(parse(FitOptions, given, 'fit'))} is ready")


def as_settings(arguments: Sequence[str]) -> List[str]:
    """Arguments in which `--model NAME`, which is short for it, is `--model.name NAME`."""
    return [
        f"--model.name{argument[len('--model') :]}" if argument.partition("=")[0] == "--model" else argument
        for argument in arguments
    ]


def _help(arguments: List[str]) -> str:
    """The options of fit, then those of the model that is asked for."""
    require_training()
    from uad.training.settings import help_text

    options = parse(FitOptions, arguments, "fit")
    page: str = parser_of(FitOptions, "fit").format_help()
    return f"{page}\n{help_text(options.model.get('name'), options.ckpt)}"


def _check_start(setup: Any, ckpt: Path, out: Path) -> None:
    """Check that the checkpoint to start from fits the data and the output.

    Raises:
        UserError: it is of other classes or another image size, or would be overwritten.
    """
    data, info = setup.data, setup.model.start
    if data.class_names != info.classes:
        raise UserError(
            f"{ckpt} was trained on {', '.join(info.classes)}, {data.root} holds {', '.join(data.class_names)}: "
            "give the data it was trained on"
        )
    if data.size != info.size:
        size = info.height if info.height == info.width else f"[{info.height},{info.width}]"
        raise UserError(f"{ckpt} takes images of {size} pixels: give --data.image_size {size}")
    _check_elsewhere(ckpt, out)


def _check_elsewhere(ckpt: Path, out: Path) -> None:
    """Refuse to write the run over the checkpoint that it starts from."""
    if ckpt.resolve() == (out / "model.ckpt").resolve():
        raise UserError(f"--out {out} is the run of {ckpt}: give another folder")


def _plain(value: Any) -> Any:
    """Paths as text, tuples as lists, so that YAML and Python read the same."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
