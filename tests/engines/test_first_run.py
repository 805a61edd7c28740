"""Two threads that judge at once in a fresh process end: OpenVINO's first call of its kind can wait for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from graphs import save_tiny

pytest.importorskip("openvino")

STARTS = 40  # before the first run was made while loading, 3 of 30 hung
JUDGE = """
import sys, threading
import numpy as np
import engines

engine = engines.load(sys.argv[1], "openvino", lanes=2)
images = np.zeros((1, *engine.info.size, 3), np.uint8)
together = threading.Barrier(2)

def judge():
    together.wait()
    engine.infer(images)

threads = [threading.Thread(target=judge) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
def test_two_threads_that_judge_at_once_end(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.onnx")
    for _ in range(STARTS):  # a hung process is deaf to SIGTERM; the time limit kills it
        subprocess.run([sys.executable, "-c", JUDGE, str(model)], check=True, timeout=30)
