"""OpenVINO on a CPU: the fast runtime for a workstation or an industrial PC."""

import platform
import warnings
from typing import Any, Dict, Optional

import numpy as np

from engines.base import Engine, Prediction
from engines.cpu import cpu_flags, saturates
from engines.errors import Doubt, ModelFileError
from engines.metadata import ModelInfo


class OpenVinoEngine(Engine):
    """One compiled model with one synchronous request."""

    runtime = "openvino"
    # OpenVINO computes float layers in bfloat16 where the CPU has AMX unless told not to.
    arithmetic = "f32"

    def __init__(
        self, path: str, info: ModelInfo, *, batch: Optional[int] = None, threads: Optional[int] = None
    ) -> None:
        import openvino

        self.path, self.info = path, info
        self.batch = batch = batch or 1
        overflows = info.precision in ("int8", "mixed") and info.weight_bits > 7
        if overflows and saturates(platform.machine(), cpu_flags()):
            warnings.warn(
                f"{path}: this CPU has no VNNI, so OpenVINO's INT8 sums saturate and scores are wrong: "
                "use --runtime onnxruntime, or export with --weight-bits 7",
                Doubt,
                stacklevel=2,
            )
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
        self._request, self.closed = None, True


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
