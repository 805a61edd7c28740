"""The settings of a training, as the command line, a YAML file or Python gives them, to the objects they describe.

    model     the arguments of a model's class, and "name", a key of `uad.models.models()`
    data      those of `uad.data.module.AnomalyData`
    trainer   those of `lightning.Trainer`

jsonargparse reads names, types and help off the signatures and docstrings of these classes.
"""

import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import Any, Dict, Optional, Type

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler

from engines.errors import UserError
from uad.data.module import AnomalyData
from uad.models import model_class
from uad.models.base import Model
from uad.training.callbacks import Bar, WholeFiles
from uad.training.precision import precision_on

DEFAULT_MODEL = "stfpm"
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "names, as [a,b]",
    "tuple": "two whole numbers, as [224,320]",
    "str": "text, in a YAML file in quotes where it looks like a number",
}
TRAINER_DEFAULTS = {
    "devices": 1,
    "logger": False,
    "deterministic": True,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_checkpointing": False,  # `fit` adds its own, which needs the output folder
}
PRECISIONS = ("32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What trains, made of settings."""

    model: Model
    data: AnomalyData
    trainer: Trainer
    resolved: Dict[str, Any]  # the settings with every default, plain values
    seed: int


def set_up(
    model: Dict[str, Any], data: Dict[str, Any], trainer: Dict[str, Any], ckpt: Optional[Path], seed: int, folder: Path
) -> Setup:
    """Check the settings and make what they describe.

    Args:
        model: settings of the model, or of `QuantizationAware` where `ckpt` is given.
        data: of the data; "root" is needed.
        trainer: of Lightning's trainer.
        ckpt: the model.ckpt to go on from under fake quantization, or None.
        seed: of weights, of the order of images and of what is drawn.
        folder: of the run, where all that Lightning writes goes.

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
    _check_trainer({**TRAINER_DEFAULTS, **trainer}, may_stand_still=ckpt is not None)
    try:
        checked = _parser(kind, True).parse_object({"model": settings, "data": data, "trainer": trainer}).as_dict()
    except ArgumentError as error:
        raise UserError(f"{_sentence(str(error))} (see uad fit --help)") from error
    checked["data"]["root"] = Path(os.path.expanduser(checked["data"]["root"]))
    if checked["model"].get("weights") is not None:
        checked["model"]["weights"] = os.path.expanduser(checked["model"]["weights"])
    # As given: 1 is one batch and 1.0 all of them, and a check against Union[int, float] may turn one into the other.
    checked["trainer"].update(trainer)
    seed_everything(seed, verbose=False)
    # Where algorithms must be deterministic, torch fills memory that it has just taken: a sixth of a step's time, for
    # the sake of code that reads what it never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    start = {} if ckpt is None else {"ckpt": ckpt}
    try:
        made = Setup(
            kind(**start, **checked["model"]),
            AnomalyData(**checked["data"]),
            _trainer(checked["trainer"], folder),
            checked,
            seed,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"the settings of --trainer cannot serve: {error}") from error
    if ckpt is None:
        checked["model"]["name"] = name or DEFAULT_MODEL
    return made


def set_up_data(settings: Dict[str, Any]) -> AnomalyData:
    """The data that settings describe, without a model.

    Raises:
        UserError: a setting is unknown, of another type, or cannot be.
    """
    _check_names("data", settings, AnomalyData)
    parser = ArgumentParser(prog="uad fit", exit_on_error=False, add_help=False)
    parser.add_class_arguments(AnomalyData, "data")
    try:
        checked = parser.parse_object({"data": settings}).as_dict()["data"]
    except ArgumentError as error:
        raise UserError(f"{_sentence(str(error))} (see uad fit --help)") from error
    return AnomalyData(**{**checked, "root": Path(os.path.expanduser(checked["root"]))})


def _check_names(group: str, settings: Dict[str, Any], kind: Type[Any], more: str = "") -> None:
    """Name an unknown setting as it is given.

    Raises:
        UserError: it is no argument of the class.
    """
    known = [name for name in inspect.signature(kind).parameters if name != "ckpt"]
    for name in settings:
        if name not in known:
            raise UserError(f"--{group}.{name} is no setting of {kind.__name__}: it has {', '.join(known)}{more}")


def _check_trainer(trainer: Dict[str, Any], may_stand_still: bool) -> None:
    """Refuse what would end without a model, write beside the folder of the run, or import what is not ours.

    Args:
        trainer: settings.
        may_stand_still: whether no epoch at all is meant, as where the quantizers are all that is wanted.

    Raises:
        UserError: such a setting.
    """
    setting = trainer.get
    epochs, every = setting("max_epochs"), setting("check_val_every_n_epoch")
    too_rare = isinstance(every, int) and isinstance(epochs, int) and 0 < epochs < every
    in_float32 = "read-out and thresholds are fitted in float32: give 32-true, bf16-mixed or 16-mixed"
    a_trial = "a trial leaves no model: give --trainer.max_epochs 1 --trainer.limit_train_batches 1"
    refused = [
        ("precision", setting("precision") is not None and str(setting("precision")) not in PRECISIONS, in_float32),
        ("max_epochs", epochs == 0 and not may_stand_still, "give at least 1"),
        ("limit_train_batches", setting("limit_train_batches") == 0, "nothing would be trained"),
        ("limit_val_batches", setting("limit_val_batches") == 0, "the best epoch is chosen on held-out images"),
        ("check_val_every_n_epoch", too_rare, f"no epoch of {epochs} would be validated"),
        ("fast_dev_run", setting("fast_dev_run"), a_trial),
        ("enable_checkpointing", setting("enable_checkpointing"), "uad fit keeps last.ckpt and best.ckpt itself"),
        ("barebones", setting("barebones"), "nothing of a run would be kept"),
        ("strategy", setting("strategy") not in (None, "auto", "single_device"), "training takes one device"),
        (
            "logger",
            setting("logger") not in (True, False),
            "give true, and Lightning's own writes into the run, or false",
        ),
        ("profiler", setting("profiler") not in (None, *PROFILERS), f"give one of {', '.join(PROFILERS)}"),
        ("accelerator", not str(setting("accelerator")).isidentifier(), "give its name, as cpu or gpu"),
        ("callbacks", setting("callbacks"), "a run imports no classes"),
        ("plugins", setting("plugins"), "a run imports no classes"),
    ]
    for name, is_wrong, reason in refused:
        if is_wrong:
            raise UserError(f"--trainer.{name} {trainer[name]}: {reason}")


def _trainer(settings: Dict[str, Any], folder: Path) -> Trainer:
    """Lightning's trainer, which writes into the folder of the run, in a precision that its device computes.

    Raises:
        UserError: it takes more than one device.
    """
    changed = dict(settings, plugins=[WholeFiles()])
    changed["callbacks"] = [] if settings["enable_progress_bar"] is False else [Bar()]
    if settings["max_epochs"] is None:  # then max_steps, max_time or the model's own number of steps ends it
        changed["max_epochs"] = -1
    changed["default_root_dir"] = settings["default_root_dir"] or str(folder)
    if settings["profiler"] is not None:
        changed["profiler"] = PROFILERS[settings["profiler"]](dirpath=folder, filename="profile")
    trainer = Trainer(**changed)
    if trainer.world_size > 1:
        raise UserError(f"--trainer.devices {settings['devices']}: training takes one device")
    wanted = str(settings["precision"])
    precision = precision_on(trainer.strategy.root_device, wanted)
    return trainer if precision == wanted else Trainer(**{**changed, "precision": precision})


def help_text(name: Optional[str], ckpt: Optional[Path]) -> str:
    """The settings of a model and of its data, for `uad fit --help`."""
    return _groups(_parser(_class_of(name, ckpt), False))


def trainer_help() -> str:
    """The settings of Lightning's trainer, for `uad fit --trainer.help`."""
    parser = ArgumentParser(prog="uad fit", add_help=False)
    _add_trainer(parser)
    return _groups(parser)


def _sentence(message: str) -> str:
    """What jsonargparse says of a value of another type, as a person would say it."""
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Given value|Got value): (.*?)(?:\n|$)", message[max(message.rfind("Given value:"), 0) :])
    if key is None or value is None:
        return " ".join(message.split())
    literals = [each.replace("'", "") for each in re.findall(r"typing\.Literal\[(.*?)\]", message)]
    wanted = [words for kind, words in WANTED.items() if f"Expected a <class '{kind}'>" in message]
    wanted += [f"one of {choices}" for choices in dict.fromkeys(literals)]
    return f"--{key[1]} {value[1].rstrip('.')}: give {' or '.join(wanted) or 'another value'}"


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
