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

    Of a DLA also what would end the build of the graph without Q/DQ, which is what it is given.

    Raises:
        UserError: the file cannot be read.
    """
    from engines.model_file import info_of, load_model
    from export.check import check_model
    from export.implicit import dead_channels, without_qdq

    model = load_model(options.model)
    if not options.target.endswith(DLA):
        return check_model(model, options.target)
    problems = check_model(model, options.target[: -len(DLA)])
    if problems:
        return problems  # of a graph that may not be what it seems
    return dead_channels(without_qdq(model, info_of(model, options.model).residual_scales)[0])


def check_dla(model: Path) -> "List[Layer]":
    """Every layer of a file, in what precision a DLA would run it or what keeps it from there; see `export.dla`.

    Raises:
        UserError: the file cannot be read.
    """
    from engines.model_file import info_of, load_model
    from export.dla import layers_on_dla

    graph = load_model(model)
    info = info_of(graph, model)
    return layers_on_dla(graph, info.residual_scales, info.float_layers)


def _dla_lines(layers: "Sequence[Layer]") -> List[str]:
    """How many layers a DLA would run in each precision, and the others by their reason."""
    reasons: Dict[str, List[str]] = {}
    precisions: Dict[str, List[str]] = {}
    for layer in layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
        else:
            precisions.setdefault(layer.precision, []).append(layer.name)
    on_dla = sum(len(names) for names in precisions.values())
    lines = [f"a DLA would run {on_dla} of {len(layers)} layers:"]
    lines += [f"  {len(names)} in {precision}: {_some(names)}" for precision, names in sorted(precisions.items())]
    lines += ["the GPU runs the others, with --gpu-fallback:"]
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
    if options.target.endswith(DLA) and not problems:
        print("\n".join(_dla_lines(check_dla(options.model))))
    return 1 if problems else 0
