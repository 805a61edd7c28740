"""ONNX to a TensorRT plan, on the device that is to run it; TensorRT 8.5 to 11.

Polygraphy, NVIDIA's own, hides what differs between the releases in networks, builder configurations and timing caches.
What is ours: that the normalisation and the distance head compute in float32, and errors that name the node.

- From 9 on the network is strongly typed: every tensor has the type that the ONNX file gives it, and the builder may
  not change one.
- Before, types are hints. The builder may compute any layer in the lowest precision that a flag allows. In float16 the
  head's sums overflow without a NaN, and the scores are worthless. So each of its layers, and each of their outputs, is
  bound to float32, and the builder must obey. Beside INT8, float16 is allowed: what the backbone computes between its
  INT8 layers would else run in float32.
- Releases 8 also take INT8 without Q/DQ nodes (`export.implicit`), and only so a layer runs in INT8 on a DLA.

Not yet run on hardware: the tests run this file, and Polygraphy, on a stand-in for TensorRT that knows what each
release has.
"""

import contextlib
import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import onnx

from engines.errors import OutputError, RuntimeNotInstalled
from engines.files import make_folder, replacing
from engines.graph import copy_of, in_backbone
from engines.metadata import ModelInfo
from engines.plan_file import PlanInfo
from engines.tensorrt import INPUT, Device, current_context, device_here, import_cuda, import_tensorrt
from export.equalize import MARGIN
from export.errors import ExportError
from export.float16 import LARGEST
from export.implicit import activation_ranges, read_cache, without_dead_channels, without_qdq, write_cache

MOST_NAMES = 3  # messages of TensorRT, or layers, in an error of ours
Watch = Callable[[str, int, int], object]


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """How a plan is built."""

    command: str  # command that builds it, for messages
    workspace_mb: int  # the most that one layer may take, in units of 2^20 bytes
    batch: int = 1  # images in one run of a static plan
    max_batch: Optional[int] = None  # most images of a dynamic plan; None: static
    timing_cache: Optional[Path] = None  # how long kernels took, for the next build; None: `default_timing_cache`
    implicit: bool = False  # INT8 by a range of each tensor, in place of Q/DQ
    int8_only: bool = False  # releases 8: what is not INT8 computes in float32, not in float16
    calibration_cache: Optional[Path] = None  # the file to put these ranges into, from which TensorRT reads them
    dla_core: Optional[int] = None  # DLA that runs what it can; None: the GPU runs all
    gpu_fallback: bool = False  # whether the GPU may run what the DLA cannot

    @property
    def batches(self) -> Tuple[int, int]:
        """The least number of images in one run, and the most, for which the plan is tuned."""
        return (self.batch, self.batch) if self.max_batch is None else (1, self.max_batch)


def require() -> Tuple[Any, Device]:
    """Ask for what `build_plan` needs, before the long work; returns the module `tensorrt` and the GPU.

    Raises:
        RuntimeNotInstalled: TensorRT, pycuda or Polygraphy does not load.
        UserError: there is no GPU.
    """
    trt, device = import_tensorrt(), device_here()
    try:
        import polygraphy.backend.trt  # noqa: F401
    except ImportError as error:
        raise RuntimeNotInstalled(f"Polygraphy does not load ({error}): pip install polygraphy") from error
    return trt, device


def build_plan(
    model: onnx.ModelProto, info: ModelInfo, settings: PlanSettings, watch: Watch = lambda phase, done, steps: None
) -> Tuple[bytes, PlanInfo]:
    """Build a plan for the GPU of this machine.

    Args:
        model: a graph in the form for TensorRT; see `engines.qdq.for_tensorrt`.
        info: its description.
        settings: how.
        watch: called with the name of a phase of the build, and how many of its steps are done, where TensorRT tells.

    Returns:
        The plan, and what built it.

    Raises:
        ExportError: TensorRT refuses the graph, or cannot build it.
        RuntimeNotInstalled: see `require`.
        UserError: there is no GPU.
    """
    trt, device = require()
    if settings.implicit and _has_types(trt):
        raise ExportError(
            f"--implicit is for TensorRT 8, this is {trt.__version__}: implicit INT8 is deprecated in 10 and gone in "
            "11. Leave it out, and the Q/DQ of the file decides"
        )
    ranges: Dict[str, float] = {}
    if settings.implicit:
        model, ranges = without_qdq(model, info.residual_scales)
    calibrator = None
    if settings.calibration_cache is not None:
        content = write_cache(ranges, trt.__version__)
        with replacing(settings.calibration_cache) as temporary:
            temporary.write_bytes(content)
        calibrator = _calibrator(trt, content)
    return _build(trt, device, model, info, settings, watch, ranges, calibrator)


def calibrate(
    model: onnx.ModelProto,
    info: ModelInfo,
    images: Iterable[np.ndarray],
    settings: PlanSettings,
    watch: Watch = lambda phase, done, steps: None,
) -> Dict[str, float]:
    """Tensor -> amax, by TensorRT's own entropy calibrator (IInt8EntropyCalibrator2). TensorRT builds a plan for it.

    Args:
        model: a float32 graph.
        info: its description.
        images: (H, W, 3) uint8.
        settings: how the plan is built, which is thrown away.
        watch: see `build_plan`.

    Raises:
        ExportError: TensorRT is not of releases 8, or cannot build the plan.
        RuntimeNotInstalled: see `require`.
        UserError: there is no GPU.
    """
    trt, device = require()
    if _has_types(trt):
        raise ExportError(
            f"TensorRT's calibrators are for TensorRT 8, this is {trt.__version__}: they are deprecated in 10 and gone "
            "in 11. Give another --calibrator"
        )
    as_int8 = dataclasses.replace(info, precision="int8")
    once = dataclasses.replace(settings, batch=1, max_batch=None, dla_core=None, int8_only=True)
    calibrator = _calibrator(trt, None, images)
    with current_context():
        try:
            _build(trt, device, without_dead_channels(model), as_int8, once, watch, {}, calibrator)
        finally:
            calibrator.free()
    return read_cache(calibrator.cache)


def _build(
    trt: Any,
    device: Device,
    model: onnx.ModelProto,
    info: ModelInfo,
    settings: PlanSettings,
    watch: Watch,
    ranges: Dict[str, float],
    calibrator: Any,
) -> Tuple[bytes, PlanInfo]:
    """See `build_plan`; `ranges` are of a graph without Q/DQ, and the calibrator, if any, is what tells them."""
    from polygraphy.backend.trt import create_network, engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    typed = _has_types(trt)
    least, best = settings.batches
    cache = settings.timing_cache or default_timing_cache(trt.__version__, device)
    make_folder(cache.parent, flag="--timing-cache")
    monitor = _monitor(trt, watch) if hasattr(trt, "IProgressMonitor") else None
    half, remark = (False, "") if typed else _half(model, info, settings, ranges)
    with _messages() as messages:
        try:
            builder, network = create_network(strongly_typed=typed)
            # The parser holds the weights, so it lives until the plan is built; and so do monitor and calibrator.
            parser = _parse(trt, network, model if settings.max_batch else _static(model, settings.batch), messages)
            held = [] if typed else hold_in_float32(trt, network, model, info.float_layers)
            if calibrator is None:
                set_ranges(network, ranges)
            config = _configuration(trt, builder, network, info, settings, half, cache, monitor, calibrator)
            on_dla = 0
            if settings.dla_core is not None:
                on_dla = put_on_dla(trt, builder, network, config, held, settings.dla_core, settings.gpu_fallback)
            plan = bytes(engine_bytes_from_network((builder, network, parser), config))
        except PolygraphyException as error:
            raise ExportError(_failure(error, messages, settings)) from error
    warnings = {text for level, text in messages if level == logging.WARNING}
    if remark:
        warnings.add(remark)
    try:
        _keep_timings(config, cache)
    except OutputError as error:
        warnings.add(str(error))  # the plan is worth more
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    return plan, PlanInfo(
        tensorrt=trt.__version__,
        cuda=device.cuda,
        device=device.name,
        compute_capability=device.compute_capability,
        flags=flags + (["STRONGLY_TYPED"] if typed else []),
        float32_layers=len(held),
        batch={"min": least, "opt": best, "max": best},
        workspace_mb=settings.workspace_mb,
        warnings=sorted(warnings),
        command=settings.command,
        ranges=len(ranges),
        dla_core=settings.dla_core,
        dla_layers=on_dla,
    )


def default_timing_cache(version: str, device: Device) -> Path:
    """Where the timings of this TensorRT on this kind of GPU are kept for the next build."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "uad" / re.sub(r"[^\w.-]+", "-", f"timing-{version}-{device.kind}".strip(") ") + ".cache")


def hold_in_float32(trt: Any, network: Any, model: onnx.ModelProto, also: Collection[str] = ()) -> List[str]:
    """Bind the layers of the normalisation and the head, and their outputs, to float32; returns their names.

    So are those of the backbone that the file keeps in float, whose names are given: float16 cannot hold their values.
    The parser names a layer after its node, with a number behind it where a node becomes several. A constant has the
    name of its initializer, and what the parser adds to bring shapes together has no name of ours: those belong to
    the head if it reads them. Q and DQ stay free, to be fused. A cast is bound by its output alone.
    """
    backbone = {node.name for node in model.graph.node if in_backbone(node) and node.name not in also}
    ours = {node.name for node in model.graph.node} - backbone
    quantizers = _types(trt, "QUANTIZE", "DEQUANTIZE")
    casts = _types(trt, "IDENTITY", "CAST")
    read = {network.get_output(index).name for index in range(network.num_outputs)}  # by a layer that is held
    held: List[str] = []
    for layer in reversed(_layers(network)):
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        names = {layer.name, re.sub(r"_\d+$", "", layer.name)}
        is_ours = bool(names & ours) or (not names & backbone and any(tensor.name in read for tensor in outputs))
        if not is_ours or layer.type in quantizers:
            continue
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        read.update(tensor.name for tensor in inputs if tensor is not None)
        floats = [index for index, tensor in enumerate(outputs) if tensor.dtype == trt.DataType.FLOAT]
        if floats:
            if layer.type not in casts:
                layer.precision = trt.DataType.FLOAT
            for index in floats:
                layer.set_output_type(index, trt.DataType.FLOAT)
            held.append(layer.name)
    return held[::-1]


def set_ranges(network: Any, ranges: Dict[str, float]) -> None:
    """Give tensors their ranges, (-amax, amax).

    Raises:
        ExportError: the network lacks a tensor, so that a layer would silently run in float.
    """
    outputs = [layer.get_output(index) for layer in _layers(network) for index in range(layer.num_outputs)]
    tensors = {tensor.name: tensor for tensor in outputs}
    missing = [name for name in ranges if name not in tensors]
    if missing:
        raise ExportError(f"TensorRT's network has no tensor {missing[0]}, so its range cannot be set")
    for name, amax in ranges.items():
        tensors[name].set_dynamic_range(-amax, amax)


def put_on_dla(
    trt: Any, builder: Any, network: Any, config: Any, held: Collection[str], core: int, gpu_fallback: bool
) -> int:
    """Have a DLA run what it can, and the GPU the rest, if that is allowed; returns how many layers the DLA runs.

    What is held in float32 cannot run on a DLA, which has float16 and INT8.

    Raises:
        ExportError: there is no such DLA, it can run nothing, or not all and the GPU may not help.
    """
    if core >= builder.num_DLA_cores:
        raise ExportError(f"--device dla:{core}: this machine has {builder.num_DLA_cores} DLA cores")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    layers = _layers(network)
    on_gpu = [layer for layer in layers if layer.name in held or not config.can_run_on_DLA(layer)]
    if len(on_gpu) == len(layers):
        raise ExportError(f"--device dla:{core}: no layer can run on a DLA: uad check --target jetson-xavier-nx-dla")
    if on_gpu and not gpu_fallback:
        names = ", ".join(layer.name for layer in on_gpu[:MOST_NAMES])
        raise ExportError(f"--device dla:{core}: {len(on_gpu)} layers cannot run there ({names}): add --gpu-fallback")
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    for layer in on_gpu:
        config.set_device_type(layer, trt.DeviceType.GPU)
    return len(layers) - len(on_gpu)


def _layers(network: Any) -> List[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _types(trt: Any, *names: str) -> List[Any]:
    """The kinds of layers of these names that this release has."""
    return [getattr(trt.LayerType, name) for name in names if hasattr(trt.LayerType, name)]


def _has_types(trt: Any) -> bool:
    """Whether the release has strongly typed networks."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _static(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy that takes so many images at once and no other number."""
    fixed = copy_of(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return fixed


def _parse(trt: Any, network: Any, model: onnx.ModelProto, messages: "List[Tuple[int, str]]") -> Any:
    """Read a graph into a network; returns the parser.

    Raises:
        ExportError: the parser refuses it, with the node's name.
    """
    from polygraphy.backend.trt import get_trt_logger

    parser = trt.OnnxParser(network, get_trt_logger())
    if parser.parse(model.SerializeToString()):
        return parser
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        number = error.node()
        node = model.graph.node[number] if 0 <= number < len(model.graph.node) else None
        problems.append(f"{node.name} ({node.op_type}): {error.desc()}" if node else error.desc())
    raise ExportError(f"TensorRT {trt.__version__} refuses the graph: {'; '.join(problems) or _errors(messages)}")


def _configuration(
    trt: Any,
    builder: Any,
    network: Any,
    info: ModelInfo,
    settings: PlanSettings,
    half: bool,
    cache: Path,
    monitor: Any,
    calibrator: Any,
) -> Any:
    from polygraphy.backend.trt import Profile, create_config

    def shape(count: int) -> Tuple[int, ...]:
        return (count, *info.size, 3)

    precision: Dict[str, Any] = {}
    if not _has_types(trt):
        quantized = info.precision in ("int8", "mixed")
        precision = dict(int8=quantized, fp16=half, precision_constraints="obey", calibrator=calibrator)
    least, best = settings.batches
    return create_config(
        builder,
        network,
        profiles=[Profile().add(INPUT, min=shape(least), opt=shape(best), max=shape(best))],
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: settings.workspace_mb << 20},
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # which precision each layer got; no slower
        load_timing_cache=str(cache) if cache.is_file() else None,
        progress_monitor=monitor,
        **precision,
    )


def _half(
    model: onnx.ModelProto, info: ModelInfo, settings: PlanSettings, ranges: Dict[str, float]
) -> Tuple[bool, str]:
    """Whether releases 8 may compute in float16 what is free to be, and what is to be said of it."""
    if info.precision == "fp16" or settings.dla_core is not None:  # on a DLA, what lacks a range runs in float16
        return True, ""
    if info.precision not in ("int8", "mixed") or settings.int8_only:
        return False, ""
    ends = ranges or activation_ranges(model)
    widest = max(ends, key=ends.__getitem__, default="")
    if ends and ends[widest] > LARGEST / MARGIN:
        return False, f"what is not INT8 runs in float32: {widest} reaches {ends[widest]:.3g}, too much for float16"
    return True, ""


def _keep_timings(config: Any, cache: Path) -> None:
    timings = config.get_timing_cache()
    if timings is not None:
        with replacing(cache) as temporary:
            temporary.write_bytes(bytes(timings.serialize()))


def _calibrator(trt: Any, cache: Optional[bytes], images: Iterable[np.ndarray] = ()) -> Any:
    """What TensorRT 8 asks for ranges: a cache that it takes as it is, or images of which it makes one."""

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.cache = cache
            self.images = iter(images)
            self.memory: Any = None

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: List[str]) -> Optional[List[int]]:
            image = next(self.images, None)
            if image is None:
                return None
            cuda = import_cuda()
            self.memory = self.memory or cuda.mem_alloc(image.nbytes)
            cuda.memcpy_htod(self.memory, np.ascontiguousarray(image))
            return [int(self.memory)]

        def read_calibration_cache(self) -> Optional[bytes]:
            return self.cache

        def write_calibration_cache(self, content: Any) -> None:
            self.cache = bytes(content)

        def free(self) -> None:
            if self.memory is not None:
                self.memory.free()

    return Calibrator()


def _monitor(trt: Any, watch: Watch) -> Any:
    """What TensorRT 10 and later report their progress to."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: Dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            watch(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            watch(phase_name, step + 1, self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name)
            watch(phase_name, steps, steps)

    return Monitor()


@contextlib.contextmanager
def _messages() -> "Iterator[List[Tuple[int, str]]]":
    """Collect what TensorRT and Polygraphy say, as (level of `logging`, text), in place of printing it."""
    from polygraphy.logger import G_LOGGER

    messages: List[Tuple[int, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.levelno, re.sub(r"\x1b\[[0-9;]*m|^\s*\[.\] ", "", record.getMessage()).strip()))

    handler, logger = Keep(), logging.getLogger("Polygraphy")
    G_LOGGER.once_logged.clear()  # what was said of an earlier plan is said of this one too
    before = G_LOGGER.use_python_logging_system, G_LOGGER.colors, logger.propagate
    G_LOGGER.use_python_logging_system, G_LOGGER.colors, logger.propagate = True, False, False
    level = logger.level
    logger.setLevel(logging.DEBUG)  # whatever the rest of the program wants to hear
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        G_LOGGER.use_python_logging_system, G_LOGGER.colors, logger.propagate = before


def _errors(messages: "List[Tuple[int, str]]") -> str:
    """What TensorRT said last before it failed."""
    return "; ".join([text for level, text in messages if level == logging.ERROR][-MOST_NAMES:])


def _failure(error: Exception, messages: "List[Tuple[int, str]]", settings: PlanSettings) -> str:
    text = f"TensorRT cannot build the plan: {_errors(messages) or error}"
    if re.search(r"out ?of ?memory|insufficient memory|bad_alloc", text, re.IGNORECASE):
        less = max(settings.workspace_mb // 4, 16)
        text += f". Close other programs, and try --workspace-mb {less} or a smaller batch"
    return text
