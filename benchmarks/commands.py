"""The command line, as the benchmarks use it."""

import json
import sys
from pathlib import Path
from typing import Any

from machine import commit

from engines.files import write_json
from uad import cli
from uad.models.patch_networks import NETWORKS


def command(arguments: "list[str]") -> None:
    """Run `uad` with these arguments; a failure ends the benchmark."""
    if cli.main(arguments):
        sys.exit(f"uad {' '.join(arguments)} failed")


def with_network(name: str, weights: "Path | str") -> "list[str]":
    """The flags of `uad fit` for a backbone or a patch network."""
    return ["--model.network" if name in NETWORKS else "--model.backbone", name, "--model.weights", str(weights)]


def exported(checkpoint: Path, root: Path, folder: Path) -> "tuple[Path, Path]":
    """The FP32 and the INT8 file of a checkpoint, calibrated on a root; what is in the folder is not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    for path, flags in ((fp32, ["fp32"]), (int8, ["int8", "--calibration-data", str(root)])):
        if not path.exists():
            command(["export", str(checkpoint), "--precision", *flags, "--target", "cpu", "--out", str(path)])
    return fp32, int8


def tested(model: Path, report: Path, reference: Path, data: str, runtime: "str | None" = None) -> "dict[str, Any]":
    """The figures of `uad test` beside a reference, which are kept in `report` and not made again."""
    if not report.exists():
        flags = ["--reference", str(reference), "--batch", "8", "--json", str(report)]
        flags += ["--runtime", runtime] if runtime else []
        command(["test", str(model), "--data.root", data, *flags])
        write_json(report, {**json.loads(report.read_text()), "commit": commit()})
    content = json.loads(report.read_text())
    del content["model"]
    return dict(content)
