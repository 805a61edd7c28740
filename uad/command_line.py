"""A command line and YAML files to a dataclass of options; see `uad.options`.

A flag beats --config FILE.yaml, and the file beats the default.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NoReturn, Sequence, Tuple, Type, TypeVar, cast, get_type_hints

from engines.errors import UserError
from uad.options import Option, options_of

T = TypeVar("T")
Settings = Dict[str, Any]  # name of an option -> value
WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text, in a YAML file in quotes where it looks like a number",
}
ONE_BY_ONE = "give its settings one by one, as --{name}.SETTING VALUE"


def parse(kind: Type[T], arguments: Sequence[str], command: str) -> T:
    """The options that a command line gives.

    Args:
        kind: a dataclass.
        arguments: what stands behind the name of the command.
        command: its name.

    Raises:
        UserError: an unknown flag, a value of another type, or one that the dataclass refuses.
        SystemExit: --help was asked for.
    """
    options = {option.name: option for option in options_of(kind)}
    plain, free = _split(arguments, [name for name, option in options.items() if option.is_free])
    given = vars(parser_of(kind, command).parse_args(plain))
    settings: Settings = {}
    for path in given.pop("config", []):
        _put_over(settings, _from_file(Path(os.path.expanduser(path)), options))
    try:
        _put_over(settings, {name: _from_text(options[name], text) for name, text in given.items()})
    except UserError as error:
        raise UserError(f"{error} (see uad {command} --help)") from error
    _put_over(settings, free)
    for name, option in options.items():
        if option.field.metadata.get("or_none"):
            settings.setdefault(name, [])
        has_default = (option.field.default, option.field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in settings and not has_default:
            raise UserError(f"--{name} is missing: {option.field.metadata['help']} (see uad {command} --help)")
    return _made(kind, {options[name].place: value for name, value in settings.items()})


def parser_of(kind: Type[Any], command: str) -> argparse.ArgumentParser:
    """A parser of the flags of a dataclass, which leaves values as they are given."""
    summary = (kind.__doc__ or "").splitlines()[0]
    parser = _Parser(prog=f"uad {command}", description=summary, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", action="append", metavar="FILE", help="YAML file with any of these settings")
    for option in options_of(kind):
        text, default = option.field.metadata["help"].replace("%", "%%"), option.field.default
        if option.is_positional:
            several = "*" if option.field.metadata["or_none"] else "+"
            parser.add_argument(option.name, nargs=several if option.is_list else None, help=text)
        elif option.hint is bool:
            parser.add_argument(f"--{option.name}", dest=option.name, action="store_true", help=text)
        else:
            if default not in (None, dataclasses.MISSING):
                text += f" (default: {default})"
            wanted = f"{{{','.join(option.choices)}}}" if option.choices else ".NAME VALUE" if option.is_free else None
            metavar = wanted or re.split(r"[.-]", option.name)[-1].upper()
            parser.add_argument(f"--{option.name}", dest=option.name, metavar=metavar, help=text)
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises UserError in place of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace('argument ', '')} (see {self.prog} --help)")


def _made(kind: Type[T], values: Dict[Tuple[str, ...], Any]) -> T:
    """A dataclass of values by their places."""
    hints, made = get_type_hints(kind), {}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        inside = {place[1:]: value for place, value in values.items() if place[0] == each.name}
        if dataclasses.is_dataclass(hints[each.name]):
            made[each.name] = _made(cast(Any, hints[each.name]), inside)
        elif inside:
            made[each.name] = inside[()]
    return kind(**made)


def _put_over(settings: Settings, more: Settings) -> None:
    """Put values over values, those of a dictionary one by one."""
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(settings.get(name), dict)
        settings[name] = {**settings[name], **value} if both else value


# From the command line ------------------------------------------------------------------------------------------------


def _split(arguments: Sequence[str], free: Sequence[str]) -> Tuple[List[str], Settings]:
    """Arguments without those of dictionaries, such as --data.root IMAGES, and these: {"data": {"root": "IMAGES"}}."""
    plain: List[str] = []
    settings: Dict[str, Settings] = {}
    following = iter(arguments)
    for argument in following:
        flag, equals, text = argument.partition("=")
        group, dot, key = flag[2:].partition(".")
        if not (flag.startswith("--") and dot and group in free):
            plain.append(argument)
            continue
        for value in [text] if equals else itertools.islice(following, 1):
            settings.setdefault(group, {})[key] = names_of(value) if key.endswith("classes") else _plain(value)
            break
        else:
            raise UserError(f"{flag} is given no value")
    return plain, settings


def _plain(text: str) -> Any:
    """What YAML makes of a value; text that is no YAML is text."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _from_text(option: Option, text: Any) -> Any:
    """The value of a flag, or of a positional."""
    if isinstance(text, list):
        return [_value(option, one) for one in text]
    if option.is_free:
        raise UserError(f"--{option.name} {text}: {ONE_BY_ONE.format(name=option.name)}")
    return names_of(text) if option.is_list else _value(option, text)


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


# From a file ----------------------------------------------------------------------------------------------------------


def _from_file(path: Path, options: Dict[str, Option]) -> Settings:
    """The settings in a YAML file.

    Raises:
        UserError: it cannot be read, holds something else, or a setting that there is not.
    """
    settings: Settings = {}
    for name, value in _flat(_content(path), options):
        option = options.get(name)
        if option is None or option.is_positional:
            raise UserError(f"--config {path}: {name.replace('-', '_')} is no setting of this command")
        if option.is_free and not isinstance(value, dict):
            raise UserError(f"--config {path}: --{name} {value}: {ONE_BY_ONE.format(name=name)}")
        if option.is_list and value is not None:
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise UserError(f"--{name} {value}: give {WANTED[str]}")
        elif not option.is_free:
            value = _value(option, value)
        settings[name] = value
    return settings


def _flat(content: Dict[str, Any], options: Dict[str, Option], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Settings by the names of options: {data: {root: x}} is data.root."""
    for key, value in content.items():
        name = prefix + str(key).replace("_", "-")
        is_group = isinstance(value, dict) and any(each.startswith(f"{name}.") for each in options)
        if is_group:
            yield from _flat(value, options, f"{name}.")
        else:
            yield name, value


def _content(path: Path) -> Dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} is not YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"--config {path} holds no settings: expected lines as `seed: 1`")
    return content or {}


def _value(option: Option, value: Any) -> Any:
    """A value of the type of its option, from the text of a flag or from YAML.

    Raises:
        UserError: it is of another type.
    """
    kinds = option.kinds
    if option.choices and value is not None:
        if value not in option.choices:
            raise UserError(f"--{option.name} {value}: give one of {', '.join(option.choices)}")
        return value
    if value is None and type(None) in kinds:
        return None
    if Path in kinds and isinstance(value, str):
        return Path(value)
    wanted = next((kind for kind in WANTED if kind in kinds), str)
    if wanted in (int, float) and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return wanted(value)  # to YAML 1e-3 is text, too
        except ValueError:
            pass
    elif isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)) and Path not in kinds:
        return value
    if wanted is float and isinstance(value, float):
        return value
    raise UserError(f"--{option.name} {value}: give {WANTED[wanted]}")
