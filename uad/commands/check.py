"""`uad check`: what a target would refuse in an ONNX file, before the target is at hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Sequence

from uad.commands.choices import Target
from uad.options import about, parse, positional, settle


@dataclass
class CheckOptions:
    """Say what a target would refuse in an ONNX file."""

    model: Path = field(metadata=positional(".onnx file"))
    target: Target = field(
        default="jetson-xavier-nx", metadata=about("device or runtime whose rules the file must obey")
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        settle(self)


def check(options: CheckOptions) -> List[str]:
    """What the target would refuse, a line each; see `export.check.check_model`.

    Raises:
        UserError: the file cannot be read.
    """
    from engines.model_file import load_model
    from export.check import check_model

    return check_model(load_model(options.model), options.target)


def main(arguments: Sequence[str]) -> int:
    """Check, and print what was found; returns 1 if the target would refuse something, or 0."""
    options = parse(CheckOptions, arguments, "check")
    problems = check(options)
    if not problems:
        print(f"{options.model}: nothing that {options.target} is known to refuse")
        return 0
    print(f"{options.model} would be refused by {options.target}:")
    for problem in problems:
        print(f"  {problem}")
    return 1
