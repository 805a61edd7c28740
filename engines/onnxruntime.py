"""ONNX Runtime on a CPU: runs everywhere, the Jetson's Python 3.8 included."""

import platform
from typing import Optional

import numpy as np

from engines.base import Engine, Prediction
from engines.cpu import cpu_count
from engines.errors import ModelFileError
from engines.metadata import ModelInfo


class OnnxRuntimeEngine(Engine):
    """One session for all lanes. An INT8 graph is rewritten for x86 as it is loaded: see `engines.unsigned`."""

    runtime = "onnxruntime"
    arithmetic = "f32"

    def __init__(
        self, path: str, *, batch: Optional[int] = None, threads: Optional[int] = None, lanes: int = 1
    ) -> None:
        import onnxruntime

        info = self.read_info(path)
        self.path, self.info, self.lanes = path, info, lanes
        self.batch = batch = batch or 1
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = max(1, (threads or cpu_count()) // lanes) if lanes > 1 else threads or 0
        options.add_free_dimension_override_by_name("batch", batch)
        # Without VNNI, x86 adds pairs of uint8 times int8 in 16 bits, which saturate; this takes exact kernels there.
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(_model_for_here(path, info), options, ["CPUExecutionProvider"])
        except ModelFileError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own for each status code
            raise ModelFileError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from error
        names = [value.name for value in (*self._session.get_inputs(), *self._session.get_outputs())]
        if names != ["image", *info.outputs]:
            raise ModelFileError(f"{path}: its inputs and outputs are {', '.join(names)}: export it again")

    def run(self, images: np.ndarray) -> Prediction:
        return Prediction(*self._session.run(self.info.outputs, {"image": images}))

    def close(self) -> None:
        self._session, self.closed = None, True


def _model_for_here(path: str, info: ModelInfo) -> bytes:
    from engines.model_file import load_model

    model = load_model(path)
    if info.precision in ("int8", "mixed"):
        from engines.qdq import for_cpu
        from engines.unsigned import to_unsigned

        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        model = to_unsigned(model, info.residual_scales) if is_x86 else for_cpu(model)
    serialized: bytes = model.SerializeToString()
    return serialized
