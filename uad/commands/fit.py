"""`uad fit`: train one model on good images of all the parts, or go on from one under fake quantization."""

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from engines.errors import RuntimeNotInstalled, UserError
from uad.options import about, parse, parser_of, settle


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
    resume: Optional[Path] = field(
        default=None, metadata=about("folder of a run that was stopped, to go on with, by its own settings")
    )
    false_positive_rate: float = field(
        default=0.05, metadata=about("part of the held-out good images that may score above their threshold")
    )
    seed: int = field(default=0, metadata=about("of weights and of the order of images"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        settle(self)
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
    from uad.training.settings import set_up

    quieten()
    resumed = options.resume is not None
    if options.resume is not None:
        options = _options_of_run(options)
    if options.out is None:
        raise UserError("--out is missing: give the folder of the run")
    setup = set_up(options.model, options.data, options.trainer, options.ckpt, options.seed)
    if options.ckpt is not None:
        _check_start(setup, options.ckpt, options.out)
    settings = {**setup.resolved, "ckpt": options.ckpt, "seed": options.seed}
    settings["false_positive_rate"] = options.false_positive_rate
    return train(setup, options.out, options.false_positive_rate, _plain(settings), resumed)


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
    given = [_model_name(argument) for argument in arguments]
    if "--trainer.help" in given:
        require_training()
        from uad.training.settings import trainer_help

        print(trainer_help())
    elif {"-h", "--help"}.intersection(given):
        print(_help([argument for argument in given if argument not in ("-h", "--help")]))
    else:
        print(f"{fit(parse(FitOptions, given, 'fit'))} is ready")


def _model_name(argument: str) -> str:
    """`--model NAME` is short for `--model.name NAME`."""
    flag, equals, value = argument.partition("=")
    return f"--model.name{equals}{value}" if flag == "--model" else argument


def _help(arguments: List[str]) -> str:
    """The options of fit, then those of the model that is asked for."""
    require_training()
    from uad.training.settings import help_text

    options = parse(FitOptions, arguments, "fit")
    own: str = parser_of(FitOptions, "fit").format_help()
    return f"{own}\n{help_text(options.model.get('name'), options.ckpt)}"


def _options_of_run(options: FitOptions) -> FitOptions:
    """The options that a stopped run was given."""
    import yaml

    run = options.resume
    assert run is not None
    for name in ("config.yaml", "last.ckpt"):
        if not (run / name).is_file():
            raise UserError(f"{run} has no {name}: --resume needs the folder of a run that finished an epoch")
    fresh = FitOptions(resume=run)
    changed = [
        each.name for each in dataclasses.fields(FitOptions) if getattr(options, each.name) != getattr(fresh, each.name)
    ]
    if changed:
        raise UserError(f"{run} goes on with its own settings: leave out {', '.join(changed)}, or start a new run")
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        ckpt = settings.pop("ckpt")
        return FitOptions(out=run, ckpt=Path(ckpt) if ckpt else None, **settings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{run / 'config.yaml'} is not the settings of a run ({error}): start a new run") from error


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
    if ckpt.resolve() == (out / "model.ckpt").resolve():
        raise UserError(f"--out {out} is the run of {ckpt}: give another folder")


def _plain(value: Any) -> Any:
    """Paths as text, tuples as lists, so that YAML and Python read the same."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
