"""tests/on_gpu/run.py: every check runs start to end on a CPU, with the stand-in for TensorRT; what lacks is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="training is not installed")
pytest.importorskip("polygraphy", reason="polygraphy is not installed")

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent


def run(out: Path, *flags: str, fakes: bool = True, **environment: str) -> tuple[int, str, dict[str, Any]]:
    paths = [TESTS / "fakes" / "site", TESTS, TESTS.parent]
    around = {**os.environ, "XDG_CACHE_HOME": str(out.parent / "cache"), "OMP_NUM_THREADS": "1", **environment}
    if fakes:
        around.update(PYTHONPATH=os.pathsep.join(map(str, paths)), FAKE_TENSORRT="8.5.2", FAKE_GPU="Xavier")
    command = [sys.executable, str(HERE / "run.py"), "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=around)
    return done.returncode, done.stdout + done.stderr, json.loads(out.read_text()) if out.exists() else {}


@pytest.mark.slow
@pytest.mark.timeout(600)  # eleven processes, most of which import torch
def test_a_rehearsal_passes_every_check(tmp_path: Path) -> None:
    code, said, result = run(tmp_path / "gpu.json", "--rehearse")
    assert code == 0, said
    checks = result["checks"]
    assert len(checks) == 11 and {each["state"] for each in checks.values()} == {"passed"}, said
    assert result["is_rehearsal"] and {"torch", "tensorrt"} <= result["machine"]["versions"].keys()
    assert result["machine"]["commit"]
    rates = checks["rates_of_a_step"]["figures"]
    assert len(rates) == 4 and all(each["images_per_second"] > 0 for each in rates.values())
    assert checks["a_resumed_run"]["figures"]["epochs_before"] < checks["a_resumed_run"]["figures"]["epochs"]
    for precision in ("fp16", "int8"):
        plans = checks[f"plans_in_{precision}"]["figures"]
        assert len(plans) == 2 and all(each["layers_of_the_head"] > 20 for each in plans.values())
    assert said.rstrip().endswith(f"11 passed, 0 failed, 0 skipped -> {tmp_path / 'gpu.json'}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_gpu_everything_is_skipped_and_says_why(tmp_path: Path) -> None:
    code, said, result = run(tmp_path / "gpu.json", fakes=False, CUDA_VISIBLE_DEVICES="")
    assert code == 0, said
    reasons = {name: each["reason"] for name, each in result["checks"].items()}
    assert {each["state"] for each in result["checks"].values()} == {"skipped"}
    assert reasons["rates_of_a_step"] == "torch sees no GPU"
    assert reasons["plans_in_int8"].startswith("TensorRT does not load")
    assert "11 skipped" in said


@pytest.mark.slow
def test_a_check_that_has_no_time_left_is_skipped(tmp_path: Path) -> None:
    _, _, result = run(tmp_path / "gpu.json", "--seconds", "20", fakes=False, CUDA_VISIBLE_DEVICES="")
    assert "s are left, it takes 50" in result["checks"]["training_to_the_criterion"]["reason"]


def test_the_checks_fit_into_eight_minutes_and_say_what_they_are(tmp_path: Path) -> None:
    code, said, _ = run(tmp_path / "gpu.json", "--list")
    lines = said.splitlines()
    assert code == 0 and len(lines) == 12 and int(lines[-1].split()[0]) <= 480
    assert all(": " in line and line.endswith(".") for line in lines[:-1])
