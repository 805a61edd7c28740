"""What a result must say of where it was measured."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from engines.cpu import cpu_fields, cpu_flags

PACKAGES = ("torch", "torchvision", "lightning", "onnx", "onnxruntime", "openvino", "numpy")


def machine() -> "dict[str, object]":
    """Processor, cores, versions and commit."""
    flags = cpu_flags()
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    processor = cpu_fields().get("model name", platform.machine())
    return {
        "processor": f"{processor}, {os.cpu_count()} cores, {' '.join(features)}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "commit": commit(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_shown, sys.argv[1:])]),
    }


def commit() -> str:
    """Of the code that measures, with `-dirty` where it was changed since."""
    described = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(described, capture_output=True, text=True).stdout.strip()


def _shown(argument: str) -> str:
    """An argument without the folders of this machine."""
    return f".../{Path(argument).name}" if Path(argument).is_absolute() else argument


def footer(where: "dict[str, object]", commits: "Iterable[str]" = ()) -> str:
    """The last line of a page of results.

    Args:
        where: of `machine`.
        commits: at which figures were measured that were kept, where that was not the commit of `where`.
    """
    measured = ", ".join(sorted(set(commits))) or where["commit"]
    return f"{where['processor']}; {where['versions']}; commit {measured}; `{where['command']}`\n"
