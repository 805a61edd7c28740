"""The direction of imports, and that engines and export start without torch or a runtime."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the packages may import at the top of a file, beside the standard library.
ALLOWED = {"engines": {"numpy", "onnx", "engines"}, "export": {"numpy", "onnx", "engines", "export"}}

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run(script: str) -> str:
    """Run a script in a fresh process; what it prints."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def modules(package: str) -> list[str]:
    """The modules of a package, by file."""
    names = [f"{package}.{path.stem}" for path in sorted((ROOT / package).glob("*.py"))]
    assert len(names) > 5
    return [name.replace(".__init__", "") for name in names]


def imports(path: Path) -> list[tuple[str, bool]]:
    """The first word of each import, and whether the import runs when the module is imported."""
    tree = ast.parse(path.read_text())
    deferred = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and ast.dump(node.test).count("TYPE_CHECKING")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_typing:
            deferred.update(ast.walk(node))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node not in deferred) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found.append(((node.module or "").partition(".")[0], node not in deferred))
    return found


def test_every_module_imports_where_torch_and_the_runtimes_cannot_be() -> None:
    blocked = ("torch", "torchvision", "lightning", "pytorch_quantization", "onnxruntime", "openvino", "sklearn")
    wanted = modules("engines") + modules("export")
    run(BLOCKER.format(blocked=blocked) + "import importlib\n" + f"for name in {wanted}: importlib.import_module(name)")


def test_engines_imports_without_onnx_and_pillow() -> None:
    run(BLOCKER.format(blocked=("onnx", "PIL", "torch", "onnxruntime", "openvino")) + "import engines, engines.images")


@pytest.mark.parametrize(("package", "forbidden"), [("engines", {"export", "uad"}), ("export", {"uad"})])
def test_imports_go_one_way(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        wrong = forbidden.intersection(name for name, _ in imports(path))
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("package", ALLOWED)
@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is of Python 3.10")
def test_top_level_imports_are_the_standard_library_numpy_and_onnx(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        names = {name for name, is_immediate in imports(path) if is_immediate}
        assert names <= ALLOWED[package] | set(sys.stdlib_module_names), path
