"""The house: no import circle, torch behind its wall, and every package in the wheel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engines", "export", "uad")
TORCH = ("torch", "torchvision", "lightning", "pytorch_lightning", "torchmetrics", "pytorch_quantization")
# Behind the wall. Only what stands here may import torch when it is imported.
FREE = ("uad.training.distillation",)  # inside it, for the command
NEEDS_TORCH = ("uad.models.", "uad.training.", "uad.data.module", "uad.data.batches", "uad.data.cache")


def modules() -> dict[str, Path]:
    """Name -> file, of every module of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    assert len(found) > 50
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules of ours that a file imports anywhere, deferred imports and those for types included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
    return names & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or an empty list."""
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in finished:
            return []
        for following in sorted(graph[name]):
            found = walk(following, [*path, name])
            if found:
                return found
        finished.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def test_no_circle_of_imports() -> None:
    files = modules()
    graph = {name: imported(path, set(files)) - {name} for name, path in files.items()}
    assert graph["uad.commands.demo"] >= {"uad.commands.fit", "uad.commands.bench"}  # the walk sees imports
    assert circle(graph) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]


def test_models_know_nothing_of_training() -> None:
    files = modules()
    for name, path in files.items():
        if name.startswith("uad.models"):
            assert not [other for other in imported(path, set(files)) if other.startswith("uad.training")], name


# The rooms, from the ground up: what stands in one imports what stands in it or below, never above.
FLOORS = (
    ("engines",),
    ("export",),
    ("uad", "uad.errors", "uad.progress", "uad.options", "uad.command_line"),
    ("uad.data",),
    ("uad.models", "uad.evaluation"),
    ("uad.training", "uad.judging", "uad.tables"),
    ("uad.exporting", "uad.report"),
    ("uad.commands",),
    ("uad.cli",),
)


def floor_of(name: str) -> int:
    """The floor of the innermost room that a module lies in."""
    rooms = {room: floor for floor, names in enumerate(FLOORS) for room in names}
    return next(rooms[room] for room in sorted(rooms, reverse=True) if f"{name}.".startswith(f"{room}."))


def test_no_import_runs_up() -> None:
    files = modules()
    up = [
        f"{name} -> {other}"
        for name, path in files.items()
        for other in imported(path, set(files))
        if floor_of(other) > floor_of(name)
    ]
    assert up == []
    assert floor_of("uad.exporting.refit") > floor_of("uad.evaluation.metrics") > floor_of("engines")
    assert {name for name in files if name.count(".") == 1 and name.startswith("uad.")} <= {
        room for names in FLOORS for room in names
    }


def test_a_room_beside_another_does_not_reach_into_it() -> None:
    files = modules()
    for room, other in (
        ("uad.judging", "uad.exporting"),
        ("uad.models", "uad.evaluation"),
        ("uad.judging", "uad.training"),
    ):
        for one, two in ((room, other), (other, room)):
            reached = [
                n
                for n, p in files.items()
                if n.startswith(f"{one}.") and any(i.startswith(f"{two}.") for i in imported(p, set(files)))
            ]
            assert reached == [], (one, two)


def test_torch_stays_behind_its_wall() -> None:
    free = [name for name in modules() if not name.startswith(NEEDS_TORCH) or name in FREE]
    assert "uad.commands.fit" in free and "uad.models" in free and "uad.exporting.images" in free
    script = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TORCH!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
for name in {free!r}:
    importlib.import_module(name)
"""
    run([sys.executable, "-c", script], dict(os.environ, PYTHONPATH=str(ROOT)))


@pytest.mark.slow
def test_a_wheel_works_outside_the_repository(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    source.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md"):  # not in place: a build leaves files behind
        (source / name).symlink_to(ROOT / name)
    run([*build, "--wheel-dir", str(tmp_path), str(source)])
    (wheel,) = tmp_path.glob("uad-*.whl")
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    )
    for name, path in modules().items():
        assert (tmp_path / "site" / path.relative_to(ROOT)).is_file(), f"{name} is not in the wheel"
    outside = dict(os.environ, PYTHONPATH=str(tmp_path / "site"))
    for arguments, said in ((["--help"], "usage: uad"), (["doctor"], "runtimes:")):
        script = "import sys, uad.cli; print(uad.cli.__file__); sys.exit(uad.cli.main(sys.argv[1:]))"
        output = run([sys.executable, "-c", script, *arguments], outside, tmp_path)
        assert output.startswith(str(tmp_path / "site")) and said in output


def run(command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Run a command; what it prints."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
