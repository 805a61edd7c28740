"""What only a machine with an NVIDIA GPU can show, in at most eight minutes, as JSON.

    python tests/on_gpu/run.py --out gpu.json         (make gpu)
    python tests/on_gpu/run.py --list                 the checks, and how long each is expected to take
    python tests/on_gpu/run.py --rehearse --out a.json   the same code on any machine, with tiny sizes

Each check runs in a process of its own, so that one which fails, hangs or breaks CUDA costs no other. They come in an
order in which each finds what it needs, and the dearest come last. A check that has no time left, or whose library or
GPU is missing, is skipped with its reason. The file is written after each. Images are drawn by the project itself.

A rehearsal measures nothing: it is there so that no typing error waits for a machine that is seldom at hand.
"""

import argparse
import dataclasses
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the checkout: no other uad

SECONDS = 480
PACKAGES = ("torch", "lightning", "onnx", "onnxruntime", "tensorrt", "pycuda", "polygraphy", "numpy")


class Skipped(Exception):
    """A check cannot run here; the text says why."""


class Failed(Exception):
    """What a check found is wrong; the text says what."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A function of a module beside this one."""

    name: str
    module: str
    seconds: int  # it is expected to take, on a GPU of 2022 or later


CHECKS = (
    Check("training_to_the_criterion", "training", 50),
    Check("distillation", "training", 25),
    Check("a_second_model", "training", 25),
    Check("quantization_aware_training", "training", 30),
    Check("a_resumed_run", "training", 40),
    Check("rates_of_a_step", "training", 80),
    Check("plans_in_fp16", "plans", 60),
    Check("bench_of_the_plans", "plans", 15),
    Check("photographs", "plans", 15),
    Check("a_thousand_runs", "plans", 20),
    Check("plans_in_int8", "plans", 90),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where checks work, and how large what they do is."""

    work: Path
    is_rehearsal: bool

    @property
    def images(self) -> Path:
        """Drawn images, in the layout of MVTec AD."""
        return self.work / "images"

    @property
    def size(self) -> int:
        """Side of an image, pixels."""
        return 64 if self.is_rehearsal else 256

    def either(self, real: int, rehearsed: int) -> int:
        """How many, on a GPU and in a rehearsal."""
        return rehearsed if self.is_rehearsal else real

    def needed(self, name: str) -> Path:
        """A file that an earlier check made.

        Raises:
            Skipped: it did not.
        """
        path = self.work / name
        if not path.exists():
            raise Skipped(f"there is no {name}: the check that makes it did not pass")
        return path


def main(arguments: Sequence[str]) -> int:
    """Run the checks; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no check is begun")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", help=argparse.SUPPRESS)  # in the process of that check
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{check.seconds:4} s  {check.name}: {_says(check)}" for check in CHECKS))
        print(f"{sum(check.seconds for check in CHECKS):4} s  in all")
        return 0
    if options.check:
        _run_here(options.check, Place(options.work, options.rehearse))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return _run_all(Place(Path(folder), options.rehearse), options)


def _run_all(place: Place, options: argparse.Namespace) -> int:
    from uad.data.synthetic import draw_dataset

    start = time.monotonic()
    count = place.either(60, 8)
    draw_dataset(place.images, size=place.size, n_train=count, n_test_good=count // 4, n_test_defect=count // 4)
    found: Dict[str, Any] = {}
    result = {"machine": machine(), "is_rehearsal": options.rehearse, "checks": found}
    for check in CHECKS:
        left = options.seconds - (time.monotonic() - start)
        expected = 0 if options.rehearse else check.seconds
        if left < expected:
            found[check.name] = {"state": "skipped", "reason": f"{left:.0f} s are left, it takes {expected}"}
        else:
            found[check.name] = _run_apart(check, place, left)
        found[check.name]["expected_seconds"] = check.seconds
        _write(options.out, result)
        print(_line(check.name, found[check.name]), flush=True)
    states = [each["state"] for each in found.values()]
    print(", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped")), f"-> {options.out}")
    return int("failed" in states)


def _run_apart(check: Check, place: Place, left: float) -> Dict[str, Any]:
    """Run a check in a process of its own."""
    answer = place.work / f"{check.name}.json"
    command = [sys.executable, __file__, "--check", check.name, "--work", str(place.work)]
    start = time.monotonic()
    with open(place.work / f"{check.name}.log", "w+") as log:
        try:
            done = subprocess.run(
                command + ["--rehearse"] * place.is_rehearsal, stdout=log, stderr=log, timeout=left, cwd=place.work
            )
            ended = f"its process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = "no time was left"
        log.seek(0)
        tail = log.read()[-2000:]
    found: Dict[str, Any] = {"state": "failed", "reason": ended}
    if answer.exists():
        found = json.loads(answer.read_text())
    if found["state"] == "failed":
        found["log"] = tail + found.get("log", "")
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def _run_here(name: str, place: Place) -> None:
    """Run a check in this process, and write what it found."""
    check = next(each for each in CHECKS if each.name == name)
    found: Dict[str, Any]
    try:
        found = {"state": "passed", "figures": getattr(_module(check), name)(place)}
    except Skipped as reason:
        found = {"state": "skipped", "reason": str(reason)}
    except Failed as reason:
        found = {"state": "failed", "reason": str(reason)}
    except Exception as error:  # whatever it is, the next check is to run
        found = {"state": "failed", "reason": f"{type(error).__name__}: {error}", "log": traceback.format_exc()}
    _write(place.work / f"{name}.json", found)


def _module(check: Check) -> Any:
    import importlib

    sys.modules.setdefault("run", sys.modules["__main__"])  # its Skipped is ours
    return importlib.import_module(check.module)


def _says(check: Check) -> str:
    """The first line of what a check's function says of itself, without importing torch."""
    lines = (HERE / f"{check.module}.py").read_text(encoding="utf-8").splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(f"def {check.name}("))
    return lines[place + 1].strip().strip('"')


def _line(name: str, found: Dict[str, Any]) -> str:
    said = found.get("reason") or json.dumps(found["figures"])
    return f"{found['state']:8}{found.get('seconds', 0):6.1f} s  {name}: {said}"


def _write(path: Path, content: Any) -> None:
    from engines.files import write_json

    write_json(path, content)


def run_uad(*arguments: Any) -> None:
    """Run a command of `uad` in this process.

    Raises:
        Failed: it did not end with 0.
    """
    from uad import cli

    words = [str(word) for word in arguments]
    code = cli.main(words)
    if code:
        raise Failed(f"uad {' '.join(words)} ended with {code}")


def machine() -> Dict[str, Any]:
    """GPU, driver, versions and commit."""
    return {"gpus": _gpus(), "python": platform.python_version(), "versions": dict(_versions()), "commit": _commit()}


def _gpus() -> List[str]:
    """A line for each GPU: its name, driver and memory."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.splitlines()


def _versions() -> "List[Tuple[str, str]]":
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def _commit() -> str:
    described = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(described, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
