"""What a result must say of where it was measured."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "lightning", "onnx", "onnxruntime", "openvino", "numpy")


def machine() -> "dict[str, object]":
    """Processor, cores, versions and commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    flags = known.get("flags", "").split()
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    cores = sum(line.startswith("processor") for line in lines)
    processor = known.get("model name", platform.machine())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": f"{processor}, {cores} cores, {' '.join(features)}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "commit": commit,
        "command": f"python benchmarks/{Path(sys.argv[0]).name}",
    }


def footer(where: "dict[str, object]", flags: str = "") -> str:
    """The last line of a page of results."""
    command = f"{where['command']} {flags}".strip()
    return f"{where['processor']}; {where['versions']}; commit {where['commit']}; `{command}`\n"
