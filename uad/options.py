"""The options of a command: a dataclass, which `uad.command_line` fills and Python makes.

    @dataclass
    class BenchOptions:
        models: List[Path] = field(metadata=positional("what to measure"))
        seconds: float = field(default=3.0, metadata=about("how long to measure each model, seconds"))
        running: Running = field(default_factory=Running, metadata=part())

Field `calibration_data` is the flag `--calibration-data`, and `calibration_data` in a file. A field that is a dataclass
itself is a group: `data` becomes `--data.root` and so on, and a `part` leaves its flags as they are. A dataclass checks
its values in `__post_init__`, by `check_fields` and by rules of its own: Python is refused what the command line is.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Sequence, Tuple, get_type_hints

from engines.errors import UserError

Choices = Callable[[], Sequence[str]]


def about(text: str, flag: Optional[str] = None, choices: Optional[Choices] = None) -> Dict[str, Any]:
    """The metadata of a field that is a flag.

    Args:
        text: its line of help.
        flag: its name where that is not the field's.
        choices: gives the values that it takes, where a `Literal` cannot name them.
    """
    return {"help": text, "flag": flag, "choices": choices}


def positional(text: str, or_none: bool = False) -> Dict[str, Any]:
    """The metadata of a field that is given without a flag: its line of help, and whether a list may be empty."""
    return {"help": text, "positional": True, "or_none": or_none}


def part() -> Dict[str, Any]:
    """The metadata of a field that is a dataclass, whose flags bear their own names and no prefix."""
    return {"part": True}


@dataclasses.dataclass(frozen=True)
class Option:
    """A field that is an option, wherever it lies."""

    place: Tuple[str, ...]  # names of fields, from the outermost dataclass on
    name: str  # flag without its dashes, such as data.root or calibration-data
    hint: Any  # its type
    field: Any  # the field itself, of dataclasses

    @property
    def kinds(self) -> List[Any]:
        """Its type, and those inside Optional[X] and List[X]."""
        return [self.hint, *getattr(self.hint, "__args__", ())]

    @property
    def is_positional(self) -> bool:
        """Whether it is given without a flag."""
        return bool(self.field.metadata.get("positional"))

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return any(getattr(kind, "__origin__", None) is list for kind in self.kinds)

    @property
    def is_free(self) -> bool:
        """Whether it is a dictionary, whose settings are given one by one."""
        return getattr(self.hint, "__origin__", None) is dict

    @property
    def choices(self) -> List[str]:
        """The values that it takes, by its metadata or its Literal; empty where any will do."""
        if self.field.metadata.get("choices"):
            return list(self.field.metadata["choices"]())
        return [one for kind in self.kinds if getattr(kind, "__origin__", None) is Literal for one in kind.__args__]


def options_of(kind: Any, place: Tuple[str, ...] = (), prefix: str = "") -> Iterator[Option]:
    """Every option of a dataclass, those of its groups and parts too."""
    hints = get_type_hints(kind)
    for each in dataclasses.fields(kind):
        hint, inside = hints[each.name], (*place, each.name)
        if dataclasses.is_dataclass(hint):
            yield from options_of(hint, inside, prefix if each.metadata.get("part") else f"{prefix}{each.name}.")
        else:
            name = each.name if each.metadata.get("positional") else each.name.replace("_", "-")
            yield Option(inside, prefix + (each.metadata.get("flag") or name), hint, each)


def check_fields(options: Any) -> None:
    """Check what a dataclass says of its own fields: choices, what is missing, and paths that are given as text.

    `~` in a path is the home folder, which a shell leaves to us in --flag=~/images and in a YAML file.

    Raises:
        UserError: a value is none of the choices of its field, or None where there must be one.
    """
    for option in options_of(type(options)):
        if len(option.place) > 1:  # of a dataclass inside, which checks its own
            continue
        name, value = option.place[0], getattr(options, option.place[0])
        if value is None and type(None) not in option.kinds:
            raise UserError(f"--{option.name} is missing")
        if option.choices and value is not None and value not in option.choices:
            raise UserError(f"--{option.name} {value}: choose one of {', '.join(option.choices)}")
        if Path in option.kinds and isinstance(value, (str, Path)):
            path = Path(os.path.expanduser(value))
            setattr(options, name, [path] if option.is_list else path)
        elif Path in option.kinds and isinstance(value, list):
            setattr(options, name, [Path(os.path.expanduser(one)) for one in value])


def given_fields(options: Any) -> Dict[str, Any]:
    """The flags of a dataclass of options, and of its parts, with values that are not the defaults."""
    given: Dict[str, Any] = {}
    for option in options_of(type(options)):
        value, default = options, option.field.default
        for name in option.place:
            value = getattr(value, name)
        if option.field.default_factory is not dataclasses.MISSING:
            default = option.field.default_factory()
        if value != default:
            given[f"--{option.name}"] = value
    return given


def refuse_given(options: Any, why: str, but: Sequence[str] = ()) -> None:
    """Refuse a part of the options that does not apply.

    Args:
        options: the part.
        why: what stands behind the first flag that is given.
        but: fields that do apply.

    Raises:
        UserError: something of it is given.
    """
    applies = {f"--{option.name}" for option in options_of(type(options)) if option.place[0] in but}
    for flag in given_fields(options):
        if flag not in applies:
            raise UserError(f"{flag} {why}")


def at_least(least: float, **values: Optional[float]) -> None:
    """Check numbers, which may be None, by the names of their flags.

    Raises:
        UserError: one is below `least`.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{flag_of(name)} {value}: give at least {least:g}")


def above_zero(**values: Optional[float]) -> None:
    """Check numbers, which may be None, by the names of their flags.

    Raises:
        UserError: one is not above 0.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{flag_of(name)} {value}: give a number above 0")


def flag_of(name: str) -> str:
    """The flag of a field: `batch_size` -> `--batch-size`."""
    return f"--{name.replace('_', '-')}"
