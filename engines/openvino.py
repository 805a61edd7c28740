"""OpenVINO on a CPU: the fast runtime for a workstation or an industrial PC."""

from typing import Any, Dict, Optional

import numpy as np

from engines.base import Engine, Prediction
from engines.errors import ModelFileError
from engines.metadata import ModelInfo


class OpenVinoEngine(Engine):
    """One compiled model with one synchronous request."""

    runtime = "openvino"
    # OpenVINO computes float layers in bfloat16 where the CPU has AMX unless told not to.
    arithmetic = "f32"

    def __init__(self, path: str, info: ModelInfo, *, batch: int = 1, threads: Optional[int] = None) -> None:
        import openvino

        self.info = info
        self.batch = batch
        settings: Dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.arithmetic}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape({"image": [batch, info.height, info.width, 3]})
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise ModelFileError(f"{path}: OpenVINO cannot load it ({_first_line(error)})") from error

    def run(self, images: np.ndarray) -> Prediction:
        results = self._request.infer({"image": images}, share_inputs=True, share_outputs=False)
        return Prediction(results["score"], results["anomaly_map"])

    def close(self) -> None:
        self._request = None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
