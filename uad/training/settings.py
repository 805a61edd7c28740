"""The settings of a training, as the command line, a YAML file or Python gives them, to the objects they describe.

    model     the arguments of a model's class, and "name", a key of `uad.models.MODELS`
    data      those of `uad.data.module.AnomalyData`
    trainer   those of `lightning.Trainer`

jsonargparse reads names, types and help off the signatures and docstrings of these classes.
"""

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Dict, Optional, Type

from jsonargparse import ArgumentError, ArgumentParser
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException

from engines.errors import UserError
from uad.data.module import AnomalyData
from uad.models import model_class
from uad.models.base import Model

DEFAULT_MODEL = "stfpm"
TRAINER_DEFAULTS = {
    "max_epochs": 6,
    "logger": False,
    "deterministic": True,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_checkpointing": False,  # `fit` adds its own, which needs the output folder
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What trains, made of settings."""

    model: Model
    data: AnomalyData
    trainer: Trainer
    resolved: Dict[str, Any]  # the settings with every default, plain values


def set_up(
    model: Dict[str, Any], data: Dict[str, Any], trainer: Dict[str, Any], ckpt: Optional[Path], seed: int
) -> Setup:
    """Check the settings and make what they describe.

    Args:
        model: settings of the model, or of `QuantizationAware` where `ckpt` is given.
        data: of the data; "root" is needed.
        trainer: of Lightning's trainer.
        ckpt: the model.ckpt to go on from under fake quantization, or None.
        seed: of weights and of the order of images.

    Raises:
        UserError: a setting is unknown, of another type, or cannot be.
    """
    settings = dict(model)
    name = settings.pop("name", None)
    if name is not None and not isinstance(name, str):
        raise UserError(f"--model {name}: give the name of a model, and its settings as --model.lr 1e-3")
    if ckpt is not None and name is not None:
        raise UserError(f"--model {name}: leave it out, {ckpt} says which model it is")
    kind = _class_of(name, ckpt)
    _check_names("model", settings, kind, "; for quantization-aware training give --ckpt" if ckpt is None else "")
    _check_names("data", data, AnomalyData)
    _check_names("trainer", trainer, Trainer)
    try:
        checked = _parser(kind, True).parse_object({"model": settings, "data": data, "trainer": trainer}).as_dict()
    except ArgumentError as error:
        raise UserError(f"{' '.join(str(error).split())} (see uad fit --help)") from error
    # As given: 1 is one batch and 1.0 all of them, and a check against Union[int, float] may turn one into the other.
    checked["trainer"].update(trainer)
    seed_everything(seed, verbose=False)
    start = {} if ckpt is None else {"ckpt": ckpt}
    try:
        made = Setup(
            kind(**start, **checked["model"]), AnomalyData(**checked["data"]), Trainer(**checked["trainer"]), checked
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"the settings of --trainer cannot serve: {error}") from error
    if ckpt is None:
        checked["model"]["name"] = name or DEFAULT_MODEL
    return made


def _check_names(group: str, settings: Dict[str, Any], kind: Type[Any], more: str = "") -> None:
    """Name an unknown setting as it is given.

    Raises:
        UserError: it is no argument of the class.
    """
    known = [name for name in inspect.signature(kind).parameters if name != "ckpt"]
    for name in settings:
        if name not in known:
            raise UserError(f"--{group}.{name} is no setting of {kind.__name__}: it has {', '.join(known)}{more}")


def help_text(name: Optional[str], ckpt: Optional[Path]) -> str:
    """The settings of a model and of its data, for `uad fit --help`."""
    return _groups(_parser(_class_of(name, ckpt), False))


def trainer_help() -> str:
    """The settings of Lightning's trainer, for `uad fit --trainer.help`."""
    parser = ArgumentParser(prog="uad fit", add_help=False)
    _add_trainer(parser)
    return _groups(parser)


def _class_of(name: Optional[str], ckpt: Optional[Path]) -> Type[Model]:
    if ckpt is None:
        return model_class(name or DEFAULT_MODEL)
    from uad.training.qat import QuantizationAware  # pytorch-quantization takes its time

    return QuantizationAware


def _parser(kind: Type[Model], with_trainer: bool) -> Any:
    parser = ArgumentParser(prog="uad fit", exit_on_error=False, add_help=False)
    parser.add_class_arguments(kind, "model", skip={"ckpt"})
    parser.add_class_arguments(AnomalyData, "data")
    if with_trainer:
        _add_trainer(parser)
    return parser


def _add_trainer(parser: Any) -> None:
    parser.add_class_arguments(Trainer, "trainer")
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})


def _groups(parser: Any) -> str:
    """The help of a parser without its usage, of which the groups are what a user reads."""
    text: str = parser.format_help()
    lines = text[text.index("\n\n") :].strip("\n").splitlines()
    return "\n".join(line for line in lines if not line.endswith("Path to a configuration file."))
