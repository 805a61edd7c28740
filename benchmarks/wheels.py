"""Whether all that `uad` needs on a Jetson Xavier NX can be had as wheels for its Python 3.8 on aarch64.

    python benchmarks/wheels.py --out benchmarks/results/wheels.json

pip resolves the base and Polygraphy under docker/jetson-constraints.txt for that platform, from the index that it is
set up with; nothing is installed. Two things are checked here again: whether each wheel says that it runs on Python
3.8, because an index need not tell pip, and what a wheel needs on Python 3.8 alone, because pip asks the Python that
runs it. pycuda has no wheel: the CUDA toolkit's nvcc compiles it there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import commit
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from engines.files import write_json, write_text
from uad.tables import markdown

PYTHON = "3.8"
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "docker" / "jetson-constraints.txt"


def main() -> None:
    """Resolve, check, and write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    wanted, wheels = [*base(), "polygraphy"], {}
    while missing := [name for name in wanted if canonicalize_name(Requirement(name).name) not in wheels]:
        wheels = resolved(wanted)
        wanted += [need for each in wheels.values() for need in needs_there(each)]
        print(f"resolved {', '.join(missing)}", flush=True)
    result: dict[str, Any] = {"python": PYTHON, "platforms": PLATFORMS, "commit": commit(), "wheels": {}}
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    for name, each in sorted(wheels.items()):
        needs = each["metadata"].get("requires_python") or ""
        if f"{PYTHON}.10" not in SpecifierSet(needs):
            sys.exit(f"{name} {each['metadata']['version']} needs Python {needs}")
        if name not in pinned:
            sys.exit(f"{name} is not in {CONSTRAINTS.name}")
        result["wheels"][name] = {
            "version": each["metadata"]["version"],
            "requires_python": needs,
            "file": each["download_info"]["url"].rsplit("/", 1)[-1],
        }
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


def resolved(wanted: "list[str]") -> "dict[str, Any]":
    """What pip would install there, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report]
        pip += ["--only-binary=:all:", "--python-version", PYTHON, "--target", folder, "--constraint", CONSTRAINTS]
        pip += [word for name in PLATFORMS for word in ("--platform", name)]
        subprocess.run([*map(str, pip), *wanted], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(each["metadata"]["name"]): each for each in found}


def needs_there(wheel: "dict[str, Any]") -> "list[str]":
    """What a wheel needs on that Python and platform, without its extras."""
    there = {
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.10",
        "platform_machine": "aarch64",
        "extra": "",
    }
    needs = [Requirement(line) for line in wheel["metadata"].get("requires_dist", [])]
    return [need.name for need in needs if need.marker is None or need.marker.evaluate(there)]


def base() -> "list[str]":
    """The dependencies that pyproject.toml names for every installation."""
    import tomllib

    return list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])


def page(result: "dict[str, Any]") -> str:
    """Markdown, from what JSON holds."""
    rows = [[name, each["version"], each["requires_python"], each["file"]] for name, each in result["wheels"].items()]
    title = f"## Wheels for Python {result['python']} on aarch64, as pip resolves them"
    return f"{title}\n\n{markdown(['package', 'version', 'for Python', 'wheel'], rows)}\n\nCommit {result['commit']}.\n"


if __name__ == "__main__":
    main()
