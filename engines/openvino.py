"""OpenVINO on a CPU: the fast runtime for a workstation or an industrial PC."""

import platform
import queue
import warnings
from typing import Any, Dict, Optional

import numpy as np

from engines.base import Engine, Prediction
from engines.cpu import cpu_flags, saturates
from engines.errors import ModelFileError, UadWarning


class OpenVinoEngine(Engine):
    """One compiled model with a synchronous request for each lane."""

    runtime = "openvino"
    # OpenVINO computes float layers in bfloat16 where the CPU has AMX unless told not to.
    arithmetic = "f32"

    def __init__(
        self, path: str, *, batch: Optional[int] = None, threads: Optional[int] = None, lanes: int = 1
    ) -> None:
        import openvino

        info = self.read_info(path)
        self.path, self.info, self.lanes = path, info, lanes
        self.batch = batch = batch or 1
        overflows = info.precision in ("int8", "mixed") and info.weight_bits > 7
        wrong = saturates(platform.machine(), cpu_flags())
        if overflows and wrong is not False:
            why = (
                "this CPU has no VNNI, so OpenVINO's INT8 sums saturate and scores are wrong"
                if wrong
                else "whether this CPU has VNNI is not known; without it OpenVINO's INT8 sums saturate"
            )
            warnings.warn(
                f"{path}: {why}: use --runtime onnxruntime, or export with --weight-bits 7",
                UadWarning,
                stacklevel=2,
            )
        settings: Dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.arithmetic}
        if lanes > 1:
            settings["NUM_STREAMS"] = lanes
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape({"image": [batch, info.height, info.width, 3]})
            compiled = core.compile_model(model, "CPU", settings)
            self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(lanes):
                self._requests.put(compiled.create_infer_request())
        except RuntimeError as error:
            raise ModelFileError(f"{path}: OpenVINO cannot load it ({_first_line(error)})") from error

    def run(self, images: np.ndarray) -> Prediction:
        request = self._requests.get()
        try:
            results = request.infer({"image": images}, share_inputs=True, share_outputs=False)
        finally:
            self._requests.put(request)
        return Prediction(*(results[name] for name in self.info.outputs))

    def close(self) -> None:
        self._requests, self.closed = queue.SimpleQueue(), True


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
