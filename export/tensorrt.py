"""ONNX to a TensorRT plan, on the device that is to run it; TensorRT 8.5 to 11.

Polygraphy, NVIDIA's own, hides what differs between the releases in networks, builder configurations and timing caches.
What is ours: that the normalisation and the distance head compute in float32, and errors that name the node.

- From 9 on the network is strongly typed: every tensor has the type that the ONNX file gives it, and the builder may
  not change one.
- Before, types are hints. The builder may compute any layer in the lowest precision that a flag allows. In float16 the
  head's sums overflow without a NaN, and the scores are worthless. So each of its layers, and each of their outputs, is
  bound to float32, and the builder must obey.

Not yet run on hardware: the tests run this file, and Polygraphy, on a stand-in for TensorRT that knows what each
release has.
"""

import contextlib
import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Optional, Tuple

import onnx

from engines.errors import OutputError, RuntimeNotInstalled
from engines.files import make_folder, replacing
from engines.graph import in_backbone
from engines.metadata import ModelInfo
from engines.plan_file import PlanInfo
from engines.tensorrt import INPUT, Device, device_here, import_tensorrt
from export.errors import ExportError

MOST_ERRORS = 3  # messages of TensorRT in an error of ours
Watch = Callable[[str, int, int], object]


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """How a plan is built."""

    command: str  # that builds it, for messages
    workspace_mb: int  # the most that one layer may take, in units of 2^20 bytes
    batch: int = 1  # images in one run of a static plan
    max_batch: Optional[int] = None  # of a dynamic plan, which takes 1 to so many; None: static
    timing_cache: Optional[Path] = None  # how long kernels took, for the next build; None: `default_timing_cache`

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
    from polygraphy.backend.trt import create_network, engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    typed = _has_types(trt)
    least, best = settings.batches
    cache = settings.timing_cache or default_timing_cache(trt.__version__, device)
    make_folder(cache.parent, flag="--timing-cache")
    monitor = _monitor(trt, watch) if hasattr(trt, "IProgressMonitor") else None
    with _messages() as said:
        try:
            builder, network = create_network(strongly_typed=typed)
            # The parser holds the weights, so it lives until the plan is built; and so does the monitor.
            parser = _parse(trt, network, model if settings.max_batch else _static(model, settings.batch), said)
            held = [] if typed else hold_in_float32(trt, network, model, info.float_layers)
            config = _configuration(trt, builder, network, info, settings, cache, monitor)
            plan = bytes(engine_bytes_from_network((builder, network, parser), config))
        except PolygraphyException as error:
            raise ExportError(_failure(error, said, settings)) from error
    warnings = {text for level, text in said if level == logging.WARNING}
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
    for layer in reversed([network.get_layer(index) for index in range(network.num_layers)]):
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


def _types(trt: Any, *names: str) -> List[Any]:
    """The kinds of layers of these names that this release has."""
    return [getattr(trt.LayerType, name) for name in names if hasattr(trt.LayerType, name)]


def _has_types(trt: Any) -> bool:
    """Whether the release has strongly typed networks."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _static(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy that takes so many images at once and no other number."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return fixed


def _parse(trt: Any, network: Any, model: onnx.ModelProto, said: "List[Tuple[int, str]]") -> Any:
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
    raise ExportError(f"TensorRT {trt.__version__} refuses the graph: {'; '.join(problems) or _errors(said)}")


def _configuration(
    trt: Any,
    builder: Any,
    network: Any,
    info: ModelInfo,
    settings: PlanSettings,
    cache: Path,
    monitor: Any,
) -> Any:
    from polygraphy.backend.trt import Profile, create_config

    def shape(count: int) -> Tuple[int, ...]:
        return (count, *info.size, 3)

    precision: Dict[str, Any] = {}
    if not _has_types(trt):
        quantized = info.precision in ("int8", "mixed")
        precision = dict(int8=quantized, fp16=info.precision == "fp16", precision_constraints="obey")
    least, best = settings.batches
    return create_config(
        builder,
        network,
        profiles=[Profile().add(INPUT, min=shape(least), opt=shape(best), max=shape(best))],
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: settings.workspace_mb << 20},
        profiling_verbosity=trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
        load_timing_cache=str(cache) if cache.is_file() else None,
        progress_monitor=monitor,
        **precision,
    )


def _keep_timings(config: Any, cache: Path) -> None:
    timings = config.get_timing_cache()
    if timings is not None:
        with replacing(cache) as temporary:
            temporary.write_bytes(bytes(timings.serialize()))


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

    said: List[Tuple[int, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.levelno, re.sub(r"\x1b\[[0-9;]*m|^\s*\[.\] ", "", record.getMessage()).strip()))

    handler, logger = Keep(), logging.getLogger("Polygraphy")
    G_LOGGER.once_logged.clear()  # what was said of an earlier plan is said of this one too
    before = G_LOGGER.use_python_logging_system, G_LOGGER.colors, logger.propagate
    G_LOGGER.use_python_logging_system, G_LOGGER.colors, logger.propagate = True, False, False
    level = logger.level
    logger.setLevel(logging.DEBUG)  # whatever the rest of the program wants to hear
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        G_LOGGER.use_python_logging_system, G_LOGGER.colors, logger.propagate = before


def _errors(said: "List[Tuple[int, str]]") -> str:
    """What TensorRT said last before it failed."""
    return "; ".join([text for level, text in said if level == logging.ERROR][-MOST_ERRORS:])


def _failure(error: Exception, said: "List[Tuple[int, str]]", settings: PlanSettings) -> str:
    text = f"TensorRT cannot build the plan: {_errors(said) or error}"
    if re.search(r"out ?of ?memory|insufficient memory|bad_alloc", text, re.IGNORECASE):
        less = max(settings.workspace_mb // 4, 16)
        text += f". Close other programs, and try --workspace-mb {less} or a smaller batch"
    return text
