"""ONNX's reference implementation as a runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from engines import Engine, Prediction, Runtime

RUNTIME = Runtime("uad_foreign.runtime:ReferenceEngine", ".onnx", ("onnx",))


class ReferenceEngine(Engine):
    runtime = "reference"
    arithmetic = "f32"

    def __init__(self, path: str, *, batch: int | None = None, threads: int | None = None, lanes: int = 1) -> None:
        from onnx.reference import ReferenceEvaluator

        self.path, self.info, self.batch = path, self.read_info(path), batch or 1
        self._evaluator: Any = ReferenceEvaluator(path)

    def run(self, images: np.ndarray) -> Prediction:
        return Prediction(*self._evaluator.run(["score", "anomaly_map"], {"image": images}))

    def close(self) -> None:
        self.closed = True
