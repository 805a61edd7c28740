"""A process that measures somebody else's ONNX file in OpenVINO, as `engines.benchmark` measures ours.

python foreign.py FILE.onnx THREADS

The file takes one image, float32 (1, 3, 256, 256), in [0, 1]. What brings uint8 pixels there is not counted.
"""

import sys
from typing import Any

import numpy as np

from engines.base import Engine, Prediction
from engines.benchmark import serve
from engines.metadata import ModelInfo

SIDE = 256
INFO = ModelInfo("foreign", "", [], {}, 0.0, 0.0, {}, SIDE, SIDE, "", 1, [], [])


class ForeignEngine(Engine):
    """Runs the file; what it says is not looked at."""

    runtime = "openvino"
    arithmetic = "f32"

    def __init__(self, path: str, threads: int) -> None:
        import openvino

        self.path, self.info, self.batch = path, INFO, 1
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.arithmetic}
        settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([1, 3, SIDE, SIDE])
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)

    def run(self, images: np.ndarray) -> Prediction:
        """One image of noise."""
        self._request.infer([self._image], share_inputs=True, share_outputs=False)
        return Prediction(np.zeros(1, np.float32), np.zeros((1, 1, 1), np.float32))

    def close(self) -> None:
        """Release the model."""
        self._request = None


if __name__ == "__main__":
    _, path, threads = sys.argv
    serve(lambda: ForeignEngine(path, int(threads)), int(threads))
