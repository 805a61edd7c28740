"""The options of a command: a dataclass, from the command line, a YAML file, or Python.

    @dataclass
    class BenchOptions:
        models: List[Path] = field(metadata=positional("what to measure"))
        seconds: float = field(default=3.0, metadata=about("how long to measure each model, seconds"))

Field `calibration_data` is the flag `--calibration-data`; a field that is a dataclass itself, such as `data`, becomes
`--data.root` and so on. A dataclass checks its values in `__post_init__`, by `settle` and by rules of its own, so that
Python is refused what the command line is refused.
"""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Type, TypeVar, cast, get_type_hints

from engines.errors import UserError

T = TypeVar("T")


def about(text: str, flag: Optional[str] = None) -> Dict[str, Any]:
    """The metadata of a field that is a flag: its line of help, and its name where that is not the field's."""
    return {"help": text, "flag": flag}


def positional(text: str) -> Dict[str, Any]:
    """The metadata of a field that is given without a flag: its line of help."""
    return {"help": text, "positional": True}


def parse(kind: Type[T], arguments: Sequence[str], command: str) -> T:
    """The options that a command line gives.

    Args:
        kind: a dataclass.
        arguments: what stands behind the name of the command; --config FILE.yaml among them is read too.
        command: its name. The first line of the docstring of `kind` says in `--help` what the command does.

    Raises:
        UserError: a mistake, in one line.
        SystemExit: --help was asked for.
    """
    from jsonargparse import ArgumentError

    parser = parser_of(kind, command)
    try:
        given = parser.parse_args(list(arguments)).as_dict()
    except ArgumentError as error:
        raise UserError(f"{error} (see {parser.prog} --help)") from error
    del given["config"]
    return _made(kind, given)


def parser_of(kind: Type[Any], command: str) -> Any:
    """A jsonargparse.ArgumentParser with a flag for each field of a dataclass."""
    from jsonargparse import ArgumentParser

    summary = (kind.__doc__ or "").splitlines()[0]
    parser = ArgumentParser(prog=f"uad {command}", description=summary, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    _add_fields(parser, kind, "")
    return parser


def settle(options: Any) -> None:
    """Check what a dataclass says of its fields, for whoever makes one in Python: choices, and paths given as text.

    Raises:
        UserError: a value is none of the choices of its field.
    """
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        inside = [hint, *getattr(hint, "__args__", ())]  # of Optional[X] and List[X] too
        choices = [each for kind in inside if getattr(kind, "__origin__", None) is Literal for each in kind.__args__]
        if choices and value is not None and value not in choices:
            raise UserError(f"{flag_of(name)} {value}: choose one of {', '.join(choices)}")
        if Path in inside and isinstance(value, str):
            setattr(options, name, Path(value))
        elif Path in inside and isinstance(value, list):
            setattr(options, name, [Path(each) for each in value])


def at_least(least: float, **values: Optional[float]) -> None:
    """Check numbers, which may be None, by the names of their fields.

    Raises:
        UserError: one is below `least`.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UserError(f"{flag_of(name)} {value}: give at least {least:g}")


def above_zero(**values: Optional[float]) -> None:
    """Check numbers, which may be None, by the names of their fields.

    Raises:
        UserError: one is not above 0.
    """
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{flag_of(name)} {value}: give a number above 0")


def flag_of(name: str) -> str:
    """The flag of a field: `max_drop` -> `--max-drop`."""
    return f"--{name.replace('_', '-')}"


def _add_fields(parser: Any, kind: Type[Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            _add_fields(parser, cast(Any, hint), f"{prefix}{field.name}.")
            continue
        settings: Dict[str, Any] = {"help": field.metadata["help"]}
        if field.metadata.get("positional"):
            many = getattr(hint, "__origin__", None) is list
            kind_of_one = hint.__args__[0] if many else hint
            parser.add_argument(field.name, type=kind_of_one, nargs="+" if many else None, **settings)
            continue
        if field.default is not dataclasses.MISSING:
            settings["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            settings["default"] = field.default_factory()
        else:
            settings["required"] = True
        name = field.metadata.get("flag") or field.name.replace("_", "-")
        parser.add_argument(f"--{prefix}{name}", dest=f"{prefix}{field.name}", type=hint, **settings)


def _made(kind: Type[T], given: Dict[str, Any]) -> T:
    """A dataclass from a nested dictionary."""
    hints = get_type_hints(kind)
    values: List[Any] = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value, hint = given[field.name], hints[field.name]
        values.append(_made(cast(Any, hint), value) if dataclasses.is_dataclass(hint) else value)
    return kind(*values)
