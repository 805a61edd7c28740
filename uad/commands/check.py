"""`uad check`: what a target would refuse in an ONNX file, before the target is at hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Sequence

from uad.command_line import parse
from uad.commands.choices import Checked
from uad.options import about, check_fields, positional

if TYPE_CHECKING:
    from export.dla import Layer

DLA = "-dla"  # the end of a target that is a DLA of the target before it


@dataclass
class CheckOptions:
    """Say what a target would refuse in an ONNX file, and of a DLA which layers it would run."""

    model: Path = field(metadata=positional(".onnx file"))
    target: Checked = field(
        default="jetson-xavier-nx", metadata=about("device or runtime whose rules the file must obey")
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)


def check(options: CheckOptions) -> List[str]:
    """What the target would refuse, a line each; see `export.check.check_model`.

    Raises:
        UserError: the file cannot be read.
    """
    from engines.model_file import load_model
    from export.check import check_model

    target = options.target[: -len(DLA)] if options.target.endswith(DLA) else options.target
    return check_model(load_model(options.model), target)


def check_dla(model: Path) -> "List[Layer]":
    """Every layer of a file, and what keeps it from a DLA; see `export.dla`.

    Raises:
        UserError: the file cannot be read.
    """
    from engines.model_file import info_of, load_model
    from export.dla import layers_on_dla

    graph = load_model(model)
    return layers_on_dla(graph, info_of(graph, model).float_layers)


def _dla_lines(layers: "Sequence[Layer]") -> List[str]:
    """How many layers a DLA would run, and the others by their reason."""
    reasons: Dict[str, List[str]] = {}
    for layer in layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
    on_dla = sum(not layer.reason for layer in layers)
    lines = [f"a DLA would run {on_dla} of {len(layers)} layers; the GPU runs the others, with --gpu-fallback:"]
    return lines + [f"  {len(names)}, {reason}: {_some(names)}" for reason, names in reasons.items()]


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:2], *(["..."] if len(names) > 2 else [])])


def main(arguments: Sequence[str]) -> int:
    """Check, and print what was found; returns 1 if the target would refuse something, or 0."""
    options = parse(CheckOptions, arguments, "check")
    problems = check(options)
    if not problems:
        print(f"{options.model}: nothing that {options.target} is known to refuse")
    else:
        print(f"{options.model} would be refused by {options.target}:")
        for problem in problems:
            print(f"  {problem}")
    if options.target.endswith(DLA):
        print("\n".join(_dla_lines(check_dla(options.model))))
    return 1 if problems else 0
