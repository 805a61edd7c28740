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
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Type, TypeVar, cast, get_type_hints

from engines.errors import UserError

T = TypeVar("T")
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "names, as [a,b]",
    "tuple": "two whole numbers, as [224,320]",
    "dict": "its settings one by one, as --NAME.SETTING VALUE",
    "str": "text, in a YAML file in quotes where it looks like a number",
}


def about(text: str, flag: Optional[str] = None) -> Dict[str, Any]:
    """The metadata of a field that is a flag: its line of help, and its name where that is not the field's."""
    return {"help": text, "flag": flag}


def positional(text: str, or_none: bool = False) -> Dict[str, Any]:
    """The metadata of a field that is given without a flag: its line of help, and whether a list may be empty."""
    return {"help": text, "positional": True, "or_none": or_none}


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
        given = parser.parse_args(_plain_arguments(arguments)).as_dict()
    except ArgumentError as error:
        said = _wrong_choice(str(error), kind, arguments) or sentence(str(error))
        raise UserError(f"{said} (see {parser.prog} --help)") from error
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

    `~` in a path is the home folder, which a shell leaves to us in --flag=~/images and in a YAML file.

    Raises:
        UserError: a value is none of the choices of its field.
    """
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        inside = [hint, *getattr(hint, "__args__", ())]  # of Optional[X] and List[X] too
        choices = _choices(inside)
        if choices and value is not None and value not in choices:
            raise UserError(f"{flag_of(name)} {value}: choose one of {', '.join(choices)}")
        if Path in inside and isinstance(value, (str, Path)):
            setattr(options, name, Path(os.path.expanduser(value)))
        elif Path in inside and isinstance(value, list):
            setattr(options, name, [Path(os.path.expanduser(each)) for each in value])


def _choices(hints: Sequence[Any]) -> List[Any]:
    """What the Literal among some types allows."""
    return [each for hint in hints if getattr(hint, "__origin__", None) is Literal for each in hint.__args__]


def _wrong_choice(message: str, kind: Type[Any], arguments: Sequence[str]) -> Optional[str]:
    """The sentence for a value that is none of the choices of its field, which jsonargparse 4.40 stumbles over."""
    key = re.search(r'Parser key "([^".]+)":\s*Cannot take a Union of no types', message)
    if key is None:
        return None
    flag, choices = flag_of(key[1]), ", ".join(_choices([get_type_hints(kind)[key[1]]]))
    given = dict(zip(arguments, arguments[1:])).get(flag)
    return f"{flag}{'' if given is None else f' {given}'}: give one of {choices}"


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


def sentence(message: str) -> str:
    """What jsonargparse says of a value of another type, as a person would say it."""
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Given value|Got value): (.*?)(?:\n|$)", message[max(message.rfind("Given value:"), 0) :])
    if key is None or value is None:
        return " ".join(message.split())
    flag = f"--{key[1]}" if "." in key[1] else flag_of(key[1])
    literals = [each.replace("'", "") for each in re.findall(r"typing\.Literal\[(.*?)\]", message)]
    wanted = [words for kind, words in WORDS.items() if f"Expected a <class '{kind}'>" in message]
    wanted += [f"one of {choices}" for choices in dict.fromkeys(literals)]
    return f"{flag} {value[1].rstrip('.')}: give {' or '.join(wanted) or 'another value'}"


def _plain_arguments(arguments: Sequence[str]) -> List[str]:
    """Arguments in which names are names: YAML would read [01,on] as [1, true]; and no settings file is empty."""
    given: List[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag != "--config" and not (flag.startswith("--") and flag.endswith("classes")):
            given.append(argument)
            continue
        if not equals:
            following = next(rest, None)
            if following is None:
                given.append(argument)
                continue
            value = following
        if flag == "--config":
            given += [flag, value] if _holds_settings(Path(os.path.expanduser(value))) else []
        else:
            given.append(f"{flag}={json.dumps(_names(value))}")
    return given


def _names(text: str) -> List[str]:
    """`nut`, `nut,bolt` and `[nut, bolt]` as names."""
    try:
        names = json.loads(text)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    except ValueError:
        pass
    inside = text.strip()[1:-1] if text.strip().startswith("[") and text.strip().endswith("]") else text
    return [name.strip().strip("'\"") for name in inside.split(",") if name.strip()]


def _holds_settings(path: Path) -> bool:
    """Whether a YAML file has any settings.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} is not YAML: {error}") from error
    if settings is not None and not isinstance(settings, dict):
        raise UserError(f"--config {path} holds no settings: expected lines as `seed: 1`")
    return bool(settings)


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
            several = "*" if field.metadata["or_none"] else "+"
            parser.add_argument(field.name, type=kind_of_one, nargs=several if many else None, **settings)
            continue
        if field.default is not dataclasses.MISSING:
            settings["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            settings["default"] = field.default_factory()
        else:
            settings["required"] = True
        name = field.metadata.get("flag") or field.name.replace("_", "-")
        if hint is bool:
            parser.add_argument(f"--{prefix}{name}", dest=f"{prefix}{field.name}", action="store_true", **settings)
            continue
        parser.add_argument(f"--{prefix}{name}", dest=f"{prefix}{field.name}", type=hint, **settings)


def _made(kind: Type[T], given: Dict[str, Any]) -> T:
    """A dataclass from a nested dictionary."""
    hints = get_type_hints(kind)
    values: List[Any] = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value, hint = given[field.name], hints[field.name]
        values.append(_made(cast(Any, hint), value) if dataclasses.is_dataclass(hint) else value)
    return kind(*values)
