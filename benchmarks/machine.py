"""What a result must say of where it was measured."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from engines.cpu import cpu_fields, cpu_flags

PACKAGES = ("torch", "torchvision", "lightning", "onnx", "onnxruntime", "openvino", "numpy")


def machine() -> "dict[str, object]":
    """Processor, cores, versions and commit."""
    flags = cpu_flags()
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    processor = cpu_fields().get("model name", platform.machine())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": f"{processor}, {os.cpu_count()} cores, {' '.join(features)}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "commit": commit,
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
    }


def footer(where: "dict[str, object]", flags: str = "") -> str:
    """The last line of a page of results."""
    command = f"{where['command']} {flags}".strip()
    return f"{where['processor']}; {where['versions']}; commit {where['commit']}; `{command}`\n"
