"""TensorRT on an NVIDIA GPU, by pycuda: a plan, on the machine that built it.

Tensors are bound by name, which TensorRT has since 8.5 and still has. Not yet run on hardware: the tests run this file
on stand-ins for TensorRT and pycuda that know what each release has.
"""

import contextlib
import json
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import numpy as np

from engines.base import Engine, Prediction
from engines.errors import ModelFileError, RuntimeNotInstalled, UserError
from engines.plan_file import PlanInfo, read_plan

INPUT = "image"
TENSORS = {
    INPUT: np.uint8,
    "score": np.float32,
    "anomaly_map": np.float32,
    "class_index": np.int32,
    "class_distance": np.float32,
}
OLDEST = (8, 5)
PARTS = ("copy_in", "compute", "copy_out")


class Device(NamedTuple):
    """The GPU that runs what is built here."""

    name: str
    compute_capability: str
    cuda: str  # version that pycuda was compiled with

    @property
    def kind(self) -> str:
        """Name and compute capability: a plan runs on no other kind."""
        return f"{self.name} ({self.compute_capability})"


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        RuntimeNotInstalled: it does not load, or is older than 8.5.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise RuntimeNotInstalled(f"TensorRT does not load ({error}): uad doctor says what to install") from error
    if tuple(int(part) for part in tensorrt.__version__.split(".")[:2]) < OLDEST:
        raise RuntimeNotInstalled(f"TensorRT {tensorrt.__version__} is too old: 8.5 or newer is needed (JetPack 5.1)")
    return tensorrt


def import_cuda() -> Any:
    """The module `pycuda.driver`, initialised.

    Raises:
        RuntimeNotInstalled: it does not load.
        UserError: there is no GPU.
    """
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise RuntimeNotInstalled(f"pycuda does not load ({error}): uad doctor says what to install") from error
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise UserError(f"no NVIDIA GPU can be used here ({error})") from error
    if not count:
        raise UserError("no NVIDIA GPU can be used here (CUDA finds none)")
    return cuda


def device_here() -> Device:
    """The first GPU.

    Raises:
        RuntimeNotInstalled: pycuda does not load.
        UserError: there is none.
    """
    cuda = import_cuda()
    device = cuda.Device(0)
    capability = ".".join(str(part) for part in device.compute_capability())
    return Device(device.name(), capability, ".".join(str(part) for part in cuda.get_version()[:2]))


@contextlib.contextmanager
def current_context() -> Iterator[None]:
    """The primary CUDA context of the first GPU, which TensorRT uses, too, is current for the time of a block.

    Raises:
        RuntimeNotInstalled: pycuda does not load.
        UserError: there is no GPU.
    """
    cuda = import_cuda()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        cuda.Context.pop()


class TensorRtEngine(Engine):
    """One execution context on one stream, with page-locked buffers that are allocated once.

    It uses the primary CUDA context of the first GPU, as TensorRT itself does, and makes it current for the time of a
    call only: other contexts of the process do not matter, nor in which order things are closed.
    """

    runtime = "tensorrt"
    arithmetic = "f32"

    def __init__(
        self, path: str, *, batch: Optional[int] = None, threads: Optional[int] = None, lanes: int = 1
    ) -> None:
        """Load a plan; `threads` and `lanes` do not matter to a GPU, which has one lane.

        Raises:
            ModelFileError: the plan is damaged, of another TensorRT or GPU, or does not take so many images at once.
            RuntimeNotInstalled: TensorRT or pycuda does not load.
            UserError: there is no GPU, or it is out of memory.
        """
        tensorrt = import_tensorrt()
        self._cuda = cuda = import_cuda()
        plan, self.info, built = read_plan(path)
        self.path, self.batch = path, batch or built.batch["min"]
        _check_origin(path, built, tensorrt.__version__, device_here())
        _check_batch(path, built, self.batch)
        self._logger = _logger(tensorrt)
        self._json = tensorrt.LayerInformationFormat.JSON
        self._context = cuda.Device(0).retain_primary_context()
        self._buffers: Dict[str, Any] = {}
        try:
            with self._current():
                self._open(tensorrt, path, plan, built)
        except cuda.MemoryError as error:
            self.close()
            raise UserError(f"{path}: the GPU is out of memory ({error}): close what else uses it") from error
        except Exception:
            self.close()
            raise

    def _open(self, tensorrt: Any, path: str, plan: bytes, built: PlanInfo) -> None:
        self._runtime = tensorrt.Runtime(self._logger)
        if built.dla_core is not None:
            self._runtime.DLA_core = built.dla_core
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reason = self._logger.last
            raise ModelFileError(f"{path}: TensorRT cannot load it ({reason}): build it again with {built.command}")
        self._execution = self._engine.create_execution_context()
        if self._execution is None:
            raise UserError(f"{path}: the GPU has no room to run it ({self._logger.last}): close what else uses it")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        types = {name: self._engine.get_tensor_dtype(name) for name in names}
        kinds = {
            np.uint8: tensorrt.DataType.UINT8,
            np.float32: tensorrt.DataType.FLOAT,
            np.int32: tensorrt.DataType.INT32,
        }
        tensors = {name: TENSORS[name] for name in (INPUT, *self.info.outputs)}
        if types != {name: kinds[dtype] for name, dtype in tensors.items()}:
            raise ModelFileError(f"{path} is not a plan of uad: its inputs and outputs are {', '.join(names)}")
        if -1 in tuple(self._engine.get_tensor_shape(INPUT)):
            shape = (self.batch, *self.info.size, 3)
            if not self._execution.set_input_shape(INPUT, shape):
                raise ModelFileError(f"{path} does not take images {shape}: build it again with {built.command}")
        self._stream = self._cuda.Stream()
        self._marks = [self._cuda.Event() for _ in range(len(PARTS) + 1)]
        self._host: Dict[str, np.ndarray] = {}
        for name, dtype in tensors.items():
            self._host[name] = self._cuda.pagelocked_empty(tuple(self._execution.get_tensor_shape(name)), dtype)
            self._buffers[name] = self._cuda.mem_alloc(self._host[name].nbytes)
            self._execution.set_tensor_address(name, int(self._buffers[name]))
        size_of = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        buffers = sum(array.nbytes for array in self._host.values())
        self.device_mem_mb = (getattr(self._engine, size_of) + buffers) / 1e6

    def run(self, images: np.ndarray) -> Prediction:
        try:
            with self._current():
                self._run(images)
        except self._cuda.Error as error:
            raise UserError(f"the GPU failed while it ran the plan ({error})") from error
        return Prediction(*(self._host[name].copy() for name in self.info.outputs))

    def _run(self, images: np.ndarray) -> None:
        np.copyto(self._host[INPUT], images)
        self._mark(0)
        self._cuda.memcpy_htod_async(self._buffers[INPUT], self._host[INPUT], self._stream)
        self._mark(1)
        if not self._execution.execute_async_v3(self._stream.handle):
            raise UserError(f"TensorRT cannot run the plan ({self._logger.last})")
        self._mark(2)
        for name in self.info.outputs:
            self._cuda.memcpy_dtoh_async(self._host[name], self._buffers[name], self._stream)
        self._mark(3)
        self._stream.synchronize()

    def parts_ms(self) -> Dict[str, float]:
        with self._current():
            return {part: self._marks[i].time_till(self._marks[i + 1]) for i, part in enumerate(PARTS)}

    def layers(self) -> List[Any]:
        """Each layer of the plan with its precision and kernel, as TensorRT's inspector tells it."""
        with self._current():
            inspector = self._engine.create_engine_inspector()
            information = json.loads(inspector.get_engine_information(self._json))
        return list(information["Layers"])

    def close(self) -> None:
        self.closed = True
        if self._context is None:
            return
        with contextlib.suppress(self._cuda.LogicError), self._current():  # without its context nothing is left to free
            self._execution = self._engine = self._runtime = None
            for buffer in self._buffers.values():
                buffer.free()
            self._host, self._marks, self._stream = {}, [], None
        self._buffers = {}
        self._context = None

    def _mark(self, index: int) -> None:
        self._marks[index].record(self._stream)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()


def _check_origin(path: str, built: PlanInfo, version: str, here: Device) -> None:
    """Raise ModelFileError where a plan was built by another release or for another kind of GPU."""
    built_on = Device(built.device, built.compute_capability, built.cuda).kind
    if (built.tensorrt, built_on) != (version, here.kind):
        raise ModelFileError(
            f"{path} was built by TensorRT {built.tensorrt} on {built_on}, here is TensorRT {version} on {here.kind}: "
            f"build it here with {built.command}"
        )


def _check_batch(path: str, built: PlanInfo, batch: int) -> None:
    least, most = built.batch["min"], built.batch["max"]
    if not least <= batch <= most:
        takes = f"{least} to {most}" if least < most else str(most)
        raise ModelFileError(
            f"{path} takes {takes} images at once, not {batch}: give --batch {min(max(batch, least), most)}, or build "
            "it again with --max-batch"
        )


def _logger(tensorrt: Any) -> Any:
    """A logger that keeps the last error, for a message of ours, and prints nothing."""

    class Logger(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: List[str] = []

        @property
        def last(self) -> str:
            return self.errors[-1] if self.errors else "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.Logger.ERROR, tensorrt.Logger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Logger()
