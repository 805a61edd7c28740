"""A kill or a loss of power at every step leaves nothing judged twice and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from graphs import save_tiny

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("mode", "loss"), [("watch", "nothing"), ("watch", "zeros"), ("predict", "cut")])
def test_nothing_is_lost_and_nothing_is_judged_twice(mode: str, loss: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "a.onnx")
    command = [sys.executable, str(ROOT / "tests" / "crashing.py"), str(model), str(tmp_path / "work"), mode, "2", loss]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ended"] > 20 and found["judged"] == 2 * found["ended"], done.stderr
    assert found["lost"] == found["twice"] == 0
