"""The options of a command: a dataclass, from the command line, a YAML file, or Python.

    @dataclass
    class BenchOptions:
        models: List[Path] = field(metadata=positional("what to measure"))
        seconds: float = field(default=3.0, metadata=about("how long to measure each model, seconds"))
        running: Running = field(default_factory=Running, metadata=part())

Field `calibration_data` is the flag `--calibration-data`, and `calibration_data` in a file. A field that is a dataclass
itself is a group: `data` becomes `--data.root` and so on, and a `part` leaves its flags as they are. A dataclass checks
its values in `__post_init__`, by `check_fields` and by rules of its own: Python is refused what the command line is.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Literal,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    cast,
)
from typing import get_type_hints as hints_of

from engines.errors import UserError

T = TypeVar("T")
Choices = Callable[[], Sequence[str]]
WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text, in a YAML file in quotes where it looks like a number",
}
WANTED_FREE = "its settings one by one, as --{name}.SETTING VALUE"


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
class _Option:
    """One field, wherever it lies."""

    place: Tuple[str, ...]  # names of fields, from the outermost dataclass on
    name: str  # of the flag without dashes, such as data.root or max-drop
    hint: Any
    field: Any

    @property
    def is_positional(self) -> bool:
        return bool(self.field.metadata.get("positional"))

    @property
    def is_free(self) -> bool:
        """Whether it is a dictionary, whose settings are given one by one."""
        return getattr(self.hint, "__origin__", None) is dict


def parse(kind: Type[T], arguments: Sequence[str], command: str) -> T:
    """The options that a command line gives; a flag beats --config FILE.yaml, and the file beats the default.

    Args:
        kind: a dataclass.
        arguments: what stands behind the name of the command.
        command: its name.

    Raises:
        UserError: an unknown flag, a value of another type, or one that the dataclass refuses.
        SystemExit: --help was asked for.
    """
    options = list(_options(kind))
    plain, settings = _without_settings(list(arguments), [each.name for each in options if each.is_free])
    given = vars(parser_of(kind, command).parse_args(plain))
    values: Dict[str, Any] = {}
    for path in given.pop("config", []):
        _update(values, _from_file(Path(os.path.expanduser(path)), options))
    try:
        _update(values, {name: _from_text(name, text, options) for name, text in given.items()})
    except UserError as error:
        raise UserError(f"{error} (see uad {command} --help)") from error
    _update(values, settings)
    for option in options:
        if option.field.metadata.get("or_none"):
            values.setdefault(option.name, [])
        if option.name not in values and _has_no_default(option.field):
            raise UserError(f"--{option.name} is missing: {option.field.metadata['help']} (see uad {command} --help)")
    return _made(kind, values, "")


def parser_of(kind: Type[Any], command: str) -> argparse.ArgumentParser:
    """A parser of the flags of a dataclass, which leaves values as they are given."""
    summary = (kind.__doc__ or "").splitlines()[0]
    parser = _Parser(prog=f"uad {command}", description=summary, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", action="append", metavar="FILE", help="YAML file with any of these settings")
    for option in _options(kind):
        text = option.field.metadata["help"].replace("%", "%%")
        if option.is_positional:
            several = "*" if option.field.metadata["or_none"] else "+"
            parser.add_argument(option.name, nargs=several if _is_list(option.hint) else None, help=text)
        elif option.hint is bool:
            parser.add_argument(f"--{option.name}", dest=option.name, action="store_true", help=text)
        elif option.is_free:
            parser.add_argument(f"--{option.name}", dest=option.name, metavar=".NAME VALUE", help=text)
        else:
            named = (
                "{" + ",".join(_choices(option.hint, option.field)) + "}"
                if _choices(option.hint, option.field)
                else None
            )
            default = option.field.default
            if default not in (None, dataclasses.MISSING):
                text += f" (default: {default})"
            metavar = named or option.name.rpartition(".")[2].replace("-", "_").upper()
            parser.add_argument(f"--{option.name}", dest=option.name, metavar=metavar, help=text)
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises UserError in place of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace('argument ', '')} (see {self.prog} --help)")


def check_fields(options: Any) -> None:
    """Check what a dataclass says of its fields, for whoever makes one in Python: choices, and paths given as text.

    `~` in a path is the home folder, which a shell leaves to us in --flag=~/images and in a YAML file.

    Raises:
        UserError: a value is none of the choices of its field.
    """
    hints = hints_of(type(options))
    for each in dataclasses.fields(options):
        value, hint = getattr(options, each.name), hints[each.name]
        choices = _choices(hint, each)
        if choices and value is not None and value not in choices:
            raise UserError(
                f"{flag_of(each.metadata.get('flag') or each.name)} {value}: choose one of {', '.join(choices)}"
            )
        if Path not in _kinds(hint):
            continue
        if isinstance(value, (str, Path)):
            setattr(options, each.name, Path(os.path.expanduser(value)))
        elif isinstance(value, list):
            setattr(options, each.name, [Path(os.path.expanduser(one)) for one in value])


def given_fields(options: Any) -> Dict[str, Any]:
    """The flags of a dataclass of options, and of its parts, whose values are not the defaults."""
    found: Dict[str, Any] = {}
    for option in _options(type(options)):
        value = options
        for name in option.place:
            value = getattr(value, name)
        default = option.field.default
        if option.field.default_factory is not dataclasses.MISSING:
            default = option.field.default_factory()
        if value != default:
            found[f"--{option.name}"] = value
    return found


def refuse_given(options: Any, why: str, but: Sequence[str] = ()) -> None:
    """Refuse a part of the options that does not apply.

    Args:
        options: the part.
        why: what stands behind the first flag that is given.
        but: fields that do apply.

    Raises:
        UserError: something of it is given.
    """
    applies = {f"--{each.name}" for each in _options(type(options)) if each.place[0] in but}
    for flag in given_fields(options):
        if flag not in applies:
            raise UserError(f"{flag} {why}")


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


def names_of(text: str) -> List[str]:
    """`nut`, `nut,bolt` and `[nut, bolt]` as names: YAML would read [01,on] as [1, true]."""
    try:
        names = json.loads(text)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    except ValueError:
        pass
    inside = text.strip()[1:-1] if text.strip().startswith("[") and text.strip().endswith("]") else text
    return [name.strip().strip("'\"") for name in inside.split(",") if name.strip()]


# Fields ---------------------------------------------------------------------------------------------------------------


def _options(kind: Any, place: Tuple[str, ...] = (), prefix: str = "") -> Iterator[_Option]:
    """Every field of a dataclass that is an option, those of its groups and parts too."""
    hints = hints_of(kind)
    for each in dataclasses.fields(kind):
        hint, inside = hints[each.name], (*place, each.name)
        if dataclasses.is_dataclass(hint):
            yield from _options(hint, inside, prefix if each.metadata.get("part") else f"{prefix}{each.name}.")
        else:
            own = each.name if each.metadata.get("positional") else each.name.replace("_", "-")
            yield _Option(inside, prefix + (each.metadata.get("flag") or own), hint, each)


def _kinds(hint: Any) -> List[Any]:
    """A type, and those inside Optional[X] and List[X]."""
    return [hint, *getattr(hint, "__args__", ())]


def _is_list(hint: Any) -> bool:
    return any(getattr(kind, "__origin__", None) is list for kind in _kinds(hint))


def _choices(hint: Any, each: Any) -> List[Any]:
    """The values that a field takes, by its Literal or by its metadata; empty where any will do."""
    if each.metadata.get("choices"):
        return list(each.metadata["choices"]())
    return [one for kind in _kinds(hint) if getattr(kind, "__origin__", None) is Literal for one in kind.__args__]


def _has_no_default(each: Any) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _made(kind: Type[T], values: Dict[str, Any], prefix: str) -> T:
    """A dataclass of values by the names of flags."""
    hints, made = hints_of(kind), {}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint = hints[each.name]
        if dataclasses.is_dataclass(hint):
            inner = prefix if each.metadata.get("part") else f"{prefix}{each.name}."
            made[each.name] = _made(cast(Any, hint), values, inner)
        else:
            own = each.name if each.metadata.get("positional") else each.name.replace("_", "-")
            name = prefix + (each.metadata.get("flag") or own)
            if name in values:
                made[each.name] = values[name]
    return kind(**made)


# Values ---------------------------------------------------------------------------------------------------------------


def _update(values: Dict[str, Any], more: Dict[str, Any]) -> None:
    """Put values over values, those of a dictionary one by one."""
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if both else value


def _from_text(name: str, text: Any, options: Sequence[_Option]) -> Any:
    """The value of a flag from the command line."""
    option = next(each for each in options if each.name == name)
    if text is True:  # a switch
        return text
    if isinstance(text, list):
        return [_value(option, one) for one in text]
    if option.is_free:
        raise UserError(f"--{name} {text}: give {WANTED_FREE.format(name=name)}")
    return names_of(text) if _is_list(option.hint) else _value(option, text)


def _value(option: _Option, value: Any) -> Any:
    """A value of the type of its field, from the text of a flag or from YAML.

    Raises:
        UserError: it is of another type.
    """
    kinds = _kinds(option.hint)
    choices = _choices(option.hint, option.field)
    if choices:
        if value not in choices:
            raise UserError(f"--{option.name} {value}: give one of {', '.join(choices)}")
        return value
    if value is None and type(None) in kinds:
        return None
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if isinstance(value, str) and (int in kinds or float in kinds):  # to YAML 1e-3 is text, too
        try:
            return int(value) if int in kinds else float(value)
        except ValueError:
            pass
    for kind, wanted in WANTED.items():
        if kind in kinds:
            if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
                return value
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                return float(value)
            raise UserError(f"--{option.name} {value}: give {wanted}")
    raise UserError(f"--{option.name} {value}: give {WANTED[str] if Path in kinds else 'another value'}")


def _from_file(path: Path, options: Sequence[_Option]) -> Dict[str, Any]:
    """Flag -> value of the settings in a YAML file.

    Raises:
        UserError: it cannot be read, holds something else, or a setting that there is not.
    """
    known = {each.name: each for each in options if not each.is_positional}
    found: Dict[str, Any] = {}
    for name, value in _flat(_settings_in(path), set(known)):
        option = known.get(name)
        if option is None:
            raise UserError(f"--config {path}: {name.replace('-', '_')} is no setting of this command")
        if option.is_free:
            if not isinstance(value, dict):
                raise UserError(f"--config {path}: --{name} {value}: give {WANTED_FREE.format(name=name)}")
            found[name] = value
        elif _is_list(option.hint) and value is not None:
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise UserError(f"--{name} {value}: give {WANTED[str]}")
            found[name] = value
        else:
            found[name] = _value(option, value)
    return found


def _flat(settings: Dict[str, Any], known: "set[str]", prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Settings by the names of flags: {data: {root: x}} is data.root."""
    for key, value in settings.items():
        name = prefix + str(key).replace("_", "-")
        is_group = isinstance(value, dict) and name not in known
        if is_group and any(each.startswith(f"{name}.") for each in known):
            yield from _flat(value, known, f"{name}.")
        else:
            yield name, value


def _settings_in(path: Path) -> Dict[str, Any]:
    """The settings in a YAML file; none in an empty one.

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
    return settings or {}


def _without_settings(arguments: List[str], free: Sequence[str]) -> Tuple[List[str], Dict[str, Dict[str, Any]]]:
    """Arguments less those of dictionaries, --data.root IMAGES, and what these say: {"data": {"root": "IMAGES"}}."""
    rest: List[str] = []
    settings: Dict[str, Dict[str, Any]] = {}
    following = iter(arguments)
    for argument in following:
        flag, equals, text = argument.partition("=")
        group, dot, key = flag[2:].partition(".")
        if not (flag.startswith("--") and dot and group in free):
            rest.append(argument)
            continue
        if not equals:
            value = next(following, None)
            if value is None:
                raise UserError(f"{flag} is given no value")
            text = value
        settings.setdefault(group, {})[key] = names_of(text) if key.endswith("classes") else _scalar(text)
    return rest, settings


def _scalar(text: str) -> Any:
    """What YAML makes of a value; text that is no YAML is text."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
