"""A stand-in for the module `tensorrt` of a given release.

It holds whoever calls it to that release: a class, method, property or enum value that the release lacks raises
AttributeError, an argument of another kind TypeError. `tensorrt_api.json` has the names, read off the pybind sources
of NVIDIA/TensorRT at the tags. What the parser makes of a graph follows onnx/onnx-tensorrt, branch 8.5-GA.

A plan is the ONNX graph with a header, and runs in ONNX Runtime. Where a release may compute a layer in float16 and was
not forbidden to, the plan does: it rounds what the layer gives to float16.
"""

from __future__ import annotations

import enum
import importlib.machinery
import json
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fake_cuda import Gpu
from onnx import TensorProto, helper, numpy_helper, shape_inference

from engines.graph import sort_nodes

API: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
RELEASES = ("8.5.2", "8.6.1", "10.3.0", "10.16", "11.1")
MAGIC = b"a plan of TensorRT "
LAYERS = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "MaxPool": "POOLING",
    "AveragePool": "POOLING",
    "Relu": "ACTIVATION",
    "Clip": "ACTIVATION",
    "Sqrt": "UNARY",
    "Concat": "CONCATENATION",
    "Transpose": "SHUFFLE",
    "Resize": "RESIZE",
    "Add": "ELEMENTWISE",
    "Sub": "ELEMENTWISE",
    "Mul": "ELEMENTWISE",
    "Div": "ELEMENTWISE",
    "Max": "ELEMENTWISE",
    "ReduceSum": "REDUCE",
    "ReduceMean": "REDUCE",
    "ReduceMax": "REDUCE",
    "GlobalAveragePool": "REDUCE",
    "TopK": "TOPK",
    "ArgMin": "TOPK",
    "Gather": "GATHER",
    "Identity": "IDENTITY",
    "Cast": "IDENTITY",
    "Flatten": "SHUFFLE",
    "Squeeze": "SHUFFLE",
    "Unsqueeze": "SHUFFLE",
    "Reshape": "SHUFFLE",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Pow": "ELEMENTWISE",
}
TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT64: "INT32",
    TensorProto.INT32: "INT32",
}


def number(release: str) -> tuple[int, ...]:
    """ "10.16" -> (10, 16)."""
    return tuple(int(part) for part in release.split("."))


def fake_modules(release: str, gpu: Gpu) -> dict[str, Any]:
    """What stands in `sys.modules` where TensorRT and pycuda are installed."""
    found = {module.__name__: module for module in (fake_tensorrt(release, gpu), gpu.package, gpu.driver)}
    for name, module in found.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return found


def fake_tensorrt(release: str, gpu: Gpu) -> Any:
    """The module; its attribute `_builds` lists every build, and `_failure` makes builds fail with that message."""
    api = {name: (members if isinstance(members, list) else members.split()) for name, members in API[release].items()}
    major = number(release)[0]
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = {"8.5.2": "8.5.2.2", "8.6.1": "8.6.1.6", "10.3.0": "10.3.0.26"}.get(release, release)
    trt._builds, trt._failure, trt._caches = [], None, []

    class Guarded:
        """An object of which only what the release has can be seen or set."""

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                _guard(type(self), name)
            return object.__getattribute__(self, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_"):
                _guard(type(self), name)
            object.__setattr__(self, name, value)

    def _guard(kind: type, name: str) -> None:
        bases = [base.__name__ for base in kind.__mro__ if base.__name__ in api]
        if kind.__module__ != __name__:  # a subclass of the caller's, with members of its own
            return
        if not any(name in api[base] for base in bases):
            raise AttributeError(f"{kind.__name__} has no '{name}' in TensorRT {release}")

    def need(value: Any, kind: Any, what: str) -> None:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise TypeError(f"{what}: incompatible argument {value!r}")

    def add(kind: Any) -> Any:
        if kind.__name__ in api[""]:
            setattr(trt, kind.__name__, kind)
        return kind

    enums = {}
    for name in api:
        if name in (
            *(
                "BuilderFlag",
                "NetworkDefinitionCreationFlag",
                "MemoryPoolType",
                "DataType",
                "LayerType",
                "TensorIOMode",
            ),
            *("ProfilingVerbosity", "TacticSource", "PreviewFeature", "QuantizationFlag", "DeviceType"),
            *("EngineCapability", "OnnxParserFlag", "Severity", "LayerInformationFormat"),
        ):
            members = {member: index for index, member in enumerate(api[name])}
            enums[name] = Number(name, members)
            if name in api[""]:
                setattr(trt, name, enums[name])
    Severity, DataType, LayerType = enums["Severity"], enums["DataType"], enums["LayerType"]

    @add
    class ILogger:
        def __init__(self) -> None:
            self._is_made = True

    ILogger.Severity = Severity
    for member in Severity:
        setattr(ILogger, member.name, member)

    @add
    class Logger(ILogger):
        pass

    def check_logger(logger: Any) -> None:
        need(logger, ILogger, "logger")
        if not getattr(logger, "_is_made", False):
            raise TypeError("ILogger.__init__ was not called")

    trt.init_libnvinfer_plugins = lambda logger, namespace: True

    @add
    class IProgressMonitor:
        def __init__(self) -> None:
            self._is_made = True

    @add
    class IHostMemory(Guarded):
        def __init__(self, content: bytes) -> None:
            self._content = content

        def __bytes__(self) -> bytes:
            return self._content

        @property
        def nbytes(self) -> int:
            return len(self._content)

    @add
    class ITensor(Guarded):
        def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
            self.name, self.dtype, self.shape = name, dtype, shape
            self._range: tuple[float, float] | None = None

        is_shape_tensor = False

        def set_dynamic_range(self, min: float, max: float) -> bool:  # noqa: A002
            need(min, float, "min")
            need(max, float, "max")
            self._range = (min, max)
            return True

    @add
    class IInt8EntropyCalibrator2:
        def __init__(self) -> None:
            self._is_made = True

    @add
    class ILayer(Guarded):
        def __init__(self, name: str, kind: Any, inputs: list[Any], outputs: list[Any], node: int) -> None:
            self._inputs, self._outputs, self._node = inputs, outputs, node
            self._precision: Any = None
            self._bound: dict[int, Any] = {}
            self.name, self._type = name, kind

        @property
        def type(self) -> Any:
            return self._type

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        @property
        def num_outputs(self) -> int:
            return len(self._outputs)

        def get_input(self, index: int) -> Any:
            need(index, int, "index")
            return self._inputs[index]

        def get_output(self, index: int) -> Any:
            need(index, int, "index")
            return self._outputs[index]

        @property
        def precision(self) -> Any:
            return self._precision or DataType["FLOAT"]

        @precision.setter
        def precision(self, value: Any) -> None:
            need(value, DataType, "precision")
            self._precision = value

        @property
        def precision_is_set(self) -> bool:
            return self._precision is not None

        def set_output_type(self, index: int, dtype: Any) -> None:
            need(index, int, "index")
            need(dtype, DataType, "dtype")
            self._bound[index] = dtype
            self._outputs[index].dtype = dtype

    @add
    class INetworkDefinition(Guarded):
        def __init__(self, flags: int) -> None:
            self._flags, self._model = flags, onnx.ModelProto()
            self._layers: list[Any] = []
            self._inputs: list[Any] = []
            self._outputs: list[Any] = []

        def _has(self, flag: str) -> bool:
            flags = enums["NetworkDefinitionCreationFlag"].__members__
            return flag in flags and bool(self._flags & 1 << int(flags[flag]))

        def get_flag(self, flag: Any) -> bool:
            return self._has(flag.name)

        @property
        def num_layers(self) -> int:
            return len(self._layers)

        def get_layer(self, index: int) -> Any:
            return self._layers[index]

        def __len__(self) -> int:
            return len(self._layers)

        def __getitem__(self, index: int) -> Any:
            return self._layers[index]

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

        @property
        def num_outputs(self) -> int:
            return len(self._outputs)

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

    @add
    class ParserError(Guarded):
        def __init__(self, index: int, text: str) -> None:
            self._index, self._text = index, text

        def node(self) -> int:
            return self._index

        def desc(self) -> str:
            return self._text

        def __str__(self) -> str:
            return f"In node {self._index}: {self._text}"

    @add
    class OnnxParser(Guarded):
        def __init__(self, network: Any, logger: Any) -> None:
            need(network, INetworkDefinition, "network")
            check_logger(logger)
            self._network, self._logger, self._errors = network, logger, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse(self, model: bytes) -> bool:
            need(model, bytes, "model")
            if major < 10 and not self._network._has("EXPLICIT_BATCH"):
                self._errors.append(ParserError(-1, "this parser only supports networks with an explicit batch"))
            else:
                self._read(onnx.load_from_string(model))
            return not self._errors

        def _read(self, model: onnx.ModelProto) -> None:
            network = self._network
            network._model, network._parser = model, weakref.ref(self)
            values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
            shapes = {}
            inferred = shape_inference.infer_shapes(model).graph
            for value in (*inferred.input, *inferred.value_info, *inferred.output):
                kind = value.type.tensor_type
                dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
                shapes[value.name] = (DataType[TYPES[kind.elem_type]], dims)
            tensors = {value.name: ITensor(value.name, *shapes[value.name]) for value in model.graph.input}
            network._inputs = [tensors[value.name] for value in model.graph.input]

            def layer(name: str, kind: str, inputs: list[Any], outputs: list[Any], node: int) -> Any:
                made = ILayer(name, LayerType[kind], inputs, outputs, node)
                network._layers.append(made)
                return made

            def unnamed(kind: str) -> str:
                return f"(Unnamed Layer* {len(network._layers)}) [{kind.title()}]"

            def constant(name: str, index: int) -> Any:
                """A constant is a layer named after its initializer, made when it is first read."""
                if name not in tensors:
                    kind = TYPES[helper.np_dtype_to_tensor_dtype(values[name].dtype)]
                    output = ITensor(f"{name}_output", DataType[kind], values[name].shape)
                    tensors[name] = layer(name, "CONSTANT", [], [output], index).get_output(0)
                return tensors[name]

            for index, node in enumerate(model.graph.node):
                problem = self._problem(node, values, tensors)
                if problem:
                    self._errors.append(ParserError(index, problem))
                    return
                inputs = [tensors[node.input[0]] if node.input[0] in tensors else constant(node.input[0], index)]
                kind = LAYERS[node.op_type]
                if kind in ("ELEMENTWISE", "GATHER", "QUANTIZE", "DEQUANTIZE"):
                    rank = max(len(shapes[n][1] if n in shapes else values[n].shape) for n in node.input)
                    inputs = []
                    for name in node.input[:2]:
                        tensor = tensors[name] if name in tensors else constant(name, index)
                        if kind == "ELEMENTWISE" and len(tensor.shape) < rank:  # broadcastTensor of the parser
                            wide = ITensor(f"{tensor.name}_{index}_wide", tensor.dtype, (1,) * rank)
                            tensor = layer(unnamed("SHUFFLE"), "SHUFFLE", [tensor], [wide], index).get_output(0)
                        inputs.append(tensor)
                if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in tensors:
                    inputs.append(tensors[node.input[1]])
                if node.op_type == "Cast" and hasattr(LayerType, "CAST"):
                    kind = "CAST"
                outputs = [ITensor(name, *shapes[name]) for name in node.output]
                if node.op_type in ("Squeeze", "Unsqueeze", "Flatten"):  # the shape is computed beside
                    sides = ITensor(f"{node.name}_shape", DataType["INT32"], (4,))
                    inputs.append(layer(unnamed("SHAPE"), "SHAPE", inputs[:1], [sides], index).get_output(0))
                if node.op_type == "ArgMin":  # a TopK of which only the indices are used, and a squeeze
                    shape = inputs[0].shape
                    best = [
                        ITensor(f"{node.name}_v", inputs[0].dtype, shape),
                        ITensor(f"{node.name}_i", outputs[0].dtype, shape),
                    ]
                    inputs = [layer(node.name, "TOPK", inputs, best, index).get_output(1)]
                    layer(f"{node.name}_{len(network._layers)}", "SHUFFLE", inputs, outputs, index)
                else:
                    made = layer(node.name, kind, inputs, outputs, index)
                    if node.op_type == "Cast" and major < 10:
                        made._bound[0] = outputs[0].dtype
                tensors.update(zip(node.output, outputs))
            network._outputs = [tensors[value.name] for value in model.graph.output]

        def _problem(self, node: onnx.NodeProto, values: dict[str, Any], tensors: dict[str, Any]) -> str:
            if node.op_type not in LAYERS:
                return f"No importer registered for op: {node.op_type}. Attempting to import as plugin."
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale, zero = (values.get(name) for name in node.input[1:3])
                if scale is None or not (scale > 0).all():
                    return "Scale coefficients must all be positive"
                if zero is None or zero.dtype != np.int8 or zero.any():
                    return "TRT only supports symmetric quantization - zeroPt must be all zeros"
                if major < 10 and node.input[0] in values and values[node.input[0]].dtype == np.int8:
                    return f"{node.input[0]}: invalid weights type of Int8"
            return ""

    @add
    class IOptimizationProfile(Guarded):
        def __init__(self) -> None:
            self._shapes: dict[str, tuple[Any, ...]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
            need(input, str, "input")
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

        def __bool__(self) -> bool:
            return all(a <= b <= c for sides in self._shapes.values() for a, b, c in zip(*sides))

    @add
    class ITimingCache(Guarded):
        def __init__(self, content: bytes) -> None:
            self._content = content

        def combine(self, other: Any, ignore_mismatch: bool) -> bool:
            return True

        def serialize(self) -> Any:
            return IHostMemory(self._content)

    @add
    class IBuilderConfig(Guarded):
        def __init__(self) -> None:
            self._flags = {"TF32"}
            self._pools: dict[str, int] = {}
            self._profiles: list[Any] = []
            self._cache: Any = None
            self._monitor: Any = None
            self._verbosity: Any = None
            self._calibrator: Any = None
            self._devices: dict[str, str] = {}

        def set_flag(self, flag: Any) -> None:
            need(flag, enums["BuilderFlag"], "flag")
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            need(flag, enums["BuilderFlag"], "flag")
            self._flags.discard(flag.name)

        def get_flag(self, flag: Any) -> bool:
            need(flag, enums["BuilderFlag"], "flag")
            return flag.name in self._flags

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            need(pool, enums["MemoryPoolType"], "pool")
            need(pool_size, int, "pool_size")
            self._pools[pool.name] = pool_size

        def get_memory_pool_limit(self, pool: Any) -> int:
            return self._pools.get(pool.name, 0)

        def add_optimization_profile(self, profile: Any) -> int:
            need(profile, IOptimizationProfile, "profile")
            self._profiles.append(profile)
            return len(self._profiles) - 1

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._profiles)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            need(serialized_timing_cache, bytes, "serialized_timing_cache")
            is_ours = serialized_timing_cache in (b"", b"timings")
            return ITimingCache(serialized_timing_cache) if is_ours else None

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            need(cache, ITimingCache, "cache")
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        @property
        def progress_monitor(self) -> Any:
            return self._monitor and self._monitor()

        @progress_monitor.setter
        def progress_monitor(self, monitor: Any) -> None:
            need(monitor, IProgressMonitor, "progress_monitor")
            self._monitor = weakref.ref(monitor)

        @property
        def profiling_verbosity(self) -> Any:
            return self._verbosity

        @profiling_verbosity.setter
        def profiling_verbosity(self, value: Any) -> None:
            need(value, enums["ProfilingVerbosity"], "profiling_verbosity")
            self._verbosity = value

        DLA_core = -1
        engine_capability = None
        default_device_type = enums["DeviceType"]["GPU"]

        def can_run_on_DLA(self, layer: Any) -> bool:
            need(layer, ILayer, "layer")
            kinds = ("CONVOLUTION", "ACTIVATION", "POOLING", "ELEMENTWISE")
            return layer.type.name in kinds and {"FP16", "INT8"} & self._flags != set()

        def set_device_type(self, layer: Any, device_type: Any) -> None:
            need(layer, ILayer, "layer")
            need(device_type, enums["DeviceType"], "device_type")
            self._devices[layer.name] = device_type.name

        def get_tactic_sources(self) -> int:
            return 0

        def get_preview_feature(self, feature: Any) -> bool:
            return False

        def get_quantization_flag(self, flag: Any) -> bool:
            return False

        def set_calibration_profile(self, profile: Any) -> bool:
            need(profile, IOptimizationProfile, "profile")
            return True

        @property
        def int8_calibrator(self) -> Any:
            return self._calibrator and self._calibrator()

        @int8_calibrator.setter
        def int8_calibrator(self, calibrator: Any) -> None:
            need(calibrator, IInt8EntropyCalibrator2, "int8_calibrator")
            assert calibrator._is_made, "IInt8EntropyCalibrator2.__init__ was not called"
            self._calibrator = weakref.ref(calibrator)

    @add
    class Builder(Guarded):
        def __init__(self, logger: Any) -> None:
            check_logger(logger)
            self._logger = logger

        num_DLA_cores = 2

        def create_network(self, flags: int = 0) -> Any:
            need(flags, int, "flags")
            return INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            need(network, INetworkDefinition, "network")
            need(config, IBuilderConfig, "config")
            build = types.SimpleNamespace(
                network=network,
                flags=set(config._flags),
                typed=network._has("STRONGLY_TYPED"),
                profiles=[profile._shapes for profile in config._profiles],
                workspace=config._pools.get("WORKSPACE"),
                cache=config._cache._content if config._cache else None,
                monitor=config._monitor,
                ranges={},
                on_dla=[],
            )
            trt._builds.append(build)
            assert network._parser(), "the parser, which holds the weights, is gone"
            build.monitor = build.monitor and build.monitor()
            assert build.monitor or config._monitor is None, "the progress monitor is gone"
            assert config._calibrator is None or config.int8_calibrator, "the calibrator is gone"
            problem = trt._failure or self._problem(network, build) or self._place(network, config, build)
            if problem:
                self._logger.log(Severity["ERROR"], problem)
                return None
            self._logger.log(Severity["WARNING"], "weights were cast from INT64 to INT32")
            if build.monitor:
                build.monitor.phase_start("Building Engine", None, 2)
                assert build.monitor.step_complete("Building Engine", 0)
                build.monitor.phase_finish("Building Engine")
            if config._cache:
                config._cache._content = b"timings"
            may_round = not build.typed and "FP16" in build.flags
            model = _rounded(network, "OBEY_PRECISION_CONSTRAINTS" in build.flags) if may_round else network._model
            if "INT8" in build.flags and not any(layer.type.name == "QUANTIZE" for layer in network._layers):
                build.ranges = _ranges(network, config.int8_calibrator)
                if not build.ranges:
                    self._logger.log(Severity["ERROR"], "Calibration failure occurred with no scaling factors")
                    return None
                model = _in_int8(network, build.ranges)
            dla = config.DLA_core if build.on_dla else None
            header = {"version": trt.__version__, "device": gpu.name, "profile": build.profiles[0], "dla": dla}
            header["detailed"] = config._verbosity is not None and config._verbosity.name == "DETAILED"
            content = model.SerializeToString()
            header["size"] = len(content)
            return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + content)

        def _place(self, network: Any, config: Any, build: Any) -> str:
            """Which layers a DLA runs; a problem, or nothing."""
            if config.default_device_type.name != "DLA":
                return ""
            build.on_dla = [layer.name for layer in network._layers if config._devices.get(layer.name) != "GPU"]
            if any(layer.type.name in ("QUANTIZE", "DEQUANTIZE") for layer in network._layers):
                return "DLA does not support explicit quantization"
            if "GPU_FALLBACK" not in build.flags and len(build.on_dla) < len(network._layers):
                return "some layers run on the GPU, but GPU fallback is not allowed"
            for layer in network._layers:
                if layer.name in build.on_dla and (layer._precision or not config.can_run_on_DLA(layer)):
                    return f"{layer.name} cannot run on DLA"
            return ""

        def _problem(self, network: Any, build: Any) -> str:
            quantized = any(layer.type.name in ("QUANTIZE", "DEQUANTIZE") for layer in network._layers)
            halves = any(each.data_type == TensorProto.FLOAT16 for each in network._model.graph.initializer)
            hints = {"INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"} & build.flags
            if len({flag for flag in build.flags if flag.endswith("PRECISION_CONSTRAINTS")}) > 1:
                return "kPREFER_PRECISION_CONSTRAINTS cannot be set if kOBEY_PRECISION_CONSTRAINTS is set"
            if build.typed and hints:
                return f"{sorted(hints)} must not be set for a strongly typed network"
            if not build.typed and quantized and "INT8" not in build.flags:
                return "Network has Q/DQ layers but the builder flag INT8 is not set"
            if not build.typed and halves and "FP16" not in build.flags:
                return "Network has half weights but the builder flag FP16 is not set"
            for tensor in network._inputs:
                given = [shapes[tensor.name] for shapes in build.profiles if tensor.name in shapes]
                if -1 in tensor.shape and not given:
                    return "Network has dynamic inputs, but no optimization profile has been defined"
                for sides in (each for shapes in given for each in shapes):
                    if any(side not in (-1, asked) for side, asked in zip(tensor.shape, sides)):
                        return f"the profile's {sides} do not fit {tensor.name}, which is {tensor.shape}"
            for layer in network._layers:
                if layer._precision is not None and not any(t.dtype.name in ("FLOAT", "HALF") for t in layer._outputs):
                    return f"{layer.name}: a precision is set, but it computes integers"
            return ""

    def _rounded(network: Any, obeys: bool) -> onnx.ModelProto:
        """The graph with the output of every layer rounded to float16 that is not bound to float32."""
        model = onnx.ModelProto()
        model.CopyFrom(network._model)
        bound = set()
        for layer in network._layers:
            if obeys and layer._bound and (layer._precision or layer.type.name in ("IDENTITY", "CAST")):
                bound |= {
                    tensor.name for i, tensor in enumerate(layer._outputs) if layer._bound.get(i) == DataType["FLOAT"]
                }
        floats = {t.name for layer in network._layers for t in layer._outputs if t.dtype == DataType["FLOAT"]}
        nodes = []
        for node in model.graph.node:
            again = []
            for i, name in enumerate(node.output):
                if name in floats - bound:
                    node.output[i] = f"{name}_free"
                    half = helper.make_node("Cast", [f"{name}_free"], [f"{name}_half"], to=TensorProto.FLOAT16)
                    again += [half, helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)]
            nodes += [node, *again]
        copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copied)
        return model

    known = {"8.5.2": "TRT-8502-EntropyCalibration2", "8.6.1": "TRT-8601-EntropyCalibration2"}
    cache_header = known.get(release, "")

    def _ranges(network: Any, calibrator: Any) -> dict[str, float]:
        """Tensor -> amax: of a calibrator's cache or images, or as they were set."""
        if calibrator is None:
            tensors = [tensor for layer in network._layers for tensor in layer._outputs]
            return {tensor.name: tensor._range[1] for tensor in tensors if tensor._range}
        cache = calibrator.read_calibration_cache()
        if cache is None:
            cache = _calibrated(network, calibrator)
            calibrator.write_calibration_cache(memoryview(cache))
        header, *lines = cache.decode().splitlines()
        assert header == cache_header, header
        pairs = (line.split(": ") for line in lines)
        return {name: 127 * float(np.frombuffer(bytes.fromhex(scale), ">f4")[0]) for name, scale in pairs}

    def _calibrated(network: Any, calibrator: Any) -> bytes:
        """The cache of a calibrator's images; the greatest magnitude stands for TensorRT's entropy."""
        model = onnx.ModelProto()
        model.CopyFrom(network._model)
        types = {t.name: t.dtype.name for layer in network._layers for t in layer._outputs}
        names = [name for node in model.graph.node for name in node.output if types.get(name) == "FLOAT"]
        del model.graph.output[:]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
        session = onnxruntime.InferenceSession(model.SerializeToString(), None, ["CPUExecutionProvider"])
        shape = (calibrator.get_batch_size(), *network.get_input(0).shape[1:])
        amax = dict.fromkeys(names, 0.0)
        while True:
            addresses = calibrator.get_batch(["image"])
            if addresses is None:
                break
            gpu.require_context()
            image = gpu.memory(addresses[0])[: int(np.prod(shape))].reshape(shape).copy()
            for name, value in zip(names, session.run(names, {"image": image})):
                amax[name] = max(amax[name], float(np.abs(value).max()))
        lines = [f"{name}: {np.array(value / 127, '>f4').tobytes().hex()}" for name, value in amax.items()]
        return "\n".join([cache_header, *lines]).encode()

    def _in_int8(network: Any, ranges: dict[str, float]) -> onnx.ModelProto:
        """The graph where each layer that is not bound to float32 reads and holds what is rounded to INT8.

        What a convolution gives is not rounded before the one layer that it is fused with.
        """
        model = onnx.ModelProto()
        model.CopyFrom(network._model)
        bound = {layer.name for layer in network._layers if layer._precision}
        made_by = {name: node.op_type for node in model.graph.node for name in node.output}
        n_readers = {name: sum(name in node.input for node in model.graph.node) for name in made_by}
        weights = {each.name: each for each in model.graph.initializer}
        for node in list(model.graph.node):
            if node.name in bound or node.op_type not in ("Conv", "ConvTranspose", "Add"):
                continue
            for index, name in enumerate(node.input):
                is_fused = node.op_type == "Add" and made_by.get(name) == "Conv" and n_readers[name] == 1
                if name in ranges and not is_fused:
                    scale = numpy_helper.from_array(np.array(ranges[name] / 127, np.float32), f"{node.name}_{index}_s")
                    zero = numpy_helper.from_array(np.array(0, np.int8), f"{node.name}_{index}_z")
                    model.graph.initializer.extend([scale, zero])
                    parameters, steps = [scale.name, zero.name], f"{node.name}_{index}_q"
                    model.graph.node.append(helper.make_node("QuantizeLinear", [name, *parameters], [steps]))
                    node.input[index] = f"{node.name}_{index}_dq"
                    model.graph.node.append(
                        helper.make_node("DequantizeLinear", [steps, *parameters], [node.input[index]])
                    )
            if node.op_type == "Conv" and f"{node.name}_0_dq" in node.input:
                value = numpy_helper.to_array(weights[node.input[1]])
                step = np.maximum(np.abs(value).max(axis=(1, 2, 3), keepdims=True) / 127, 1e-20)
                rounded = (np.rint(value / step) * step).astype(np.float32)
                weights[node.input[1]].CopyFrom(numpy_helper.from_array(rounded, node.input[1]))
        sort_nodes(model)
        return model

    # Running ----------------------------------------------------------------------------------------------------------

    @add
    class Runtime(Guarded):
        def __init__(self, logger: Any) -> None:
            check_logger(logger)
            self._logger = logger

        DLA_core = -1

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            need(serialized_engine, bytes, "serialized_engine")
            header, _, content = serialized_engine.partition(b"\n")
            if not header.startswith(MAGIC):
                self._logger.log(Severity["ERROR"], "Serialization assertion magicTagRead == kPLAN_MAGIC_TAG failed")
                return None
            described = json.loads(header[len(MAGIC) :])
            if described["version"] != trt.__version__:
                self._logger.log(Severity["ERROR"], "Serialization assertion stdVersionRead == kVERSION failed")
                return None
            if described["size"] != len(content):
                self._logger.log(Severity["ERROR"], "Serialization assertion safeSizeRead failed")
                return None
            if described["dla"] not in (None, self.DLA_core):
                self._logger.log(Severity["ERROR"], f"the plan is of DLA core {described['dla']}, not {self.DLA_core}")
                return None
            return ICudaEngine(described, content)

    @add
    class ICudaEngine(Guarded):
        def __init__(self, described: dict[str, Any], content: bytes) -> None:
            model = onnx.load_from_string(content)
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
            self._profile, self._detailed = described["profile"], described["detailed"]
            self._layers = [node.name for node in model.graph.node]
            self._values = [*model.graph.input, *model.graph.output]
            self._n_inputs = len(model.graph.input)

        @property
        def num_io_tensors(self) -> int:
            return len(self._values)

        def get_tensor_name(self, index: int) -> str:
            need(index, int, "index")
            return str(self._values[index].name)

        def _value(self, name: str) -> Any:
            need(name, str, "name")
            return next(value for value in self._values if value.name == name)

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[TYPES[self._value(name).type.tensor_type.elem_type]]

        def get_tensor_mode(self, name: str) -> Any:
            return enums["TensorIOMode"][
                "INPUT" if self._values.index(self._value(name)) < self._n_inputs else "OUTPUT"
            ]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            dims = self._value(name).type.tensor_type.shape.dim
            return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

        device_memory_size = 3_000_000
        device_memory_size_v2 = 3_000_000

        def create_engine_inspector(self) -> Any:
            return EngineInspector(self)

        def create_execution_context(self) -> Any:
            gpu.require_context()
            return IExecutionContext(self)

    @add
    class EngineInspector(Guarded):
        def __init__(self, engine: Any) -> None:
            self._engine = engine

        def get_engine_information(self, format: Any) -> str:  # noqa: A002
            need(format, enums["LayerInformationFormat"], "format")
            layers = [{"Name": name, "LayerType": "CaskConvolution"} for name in self._engine._layers]
            return json.dumps({"Layers": layers if self._engine._detailed else [each["Name"] for each in layers]})

    @add
    class IExecutionContext(Guarded):
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._addresses: dict[str, int] = {}
            self._shapes = {value.name: engine.get_tensor_shape(value.name) for value in engine._values[:1]}

        def set_input_shape(self, name: str, shape: Any) -> bool:
            need(name, str, "name")
            least, _, most = self._engine._profile[name]
            if not all(a <= b <= c for a, b, c in zip(least, shape, most)):
                return False
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            (image,) = self._shapes.values()
            if name in self._shapes:
                return self._shapes[name]
            if image[0] == -1:
                return self._engine.get_tensor_shape(name)
            given = np.zeros(image, np.uint8)
            (result,) = self._engine._session.run([name], {"image": given})
            return tuple(result.shape)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            need(name, str, "name")
            need(memory, int, "memory")
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            need(stream_handle, int, "stream_handle")
            gpu.require_context()
            names = [value.name for value in self._engine._values]
            if set(self._addresses) != set(names) or -1 in self._shapes["image"]:
                return False  # an address or the shape of the input was not set

            def work() -> None:
                shape = self._shapes["image"]
                image = gpu.memory(self._addresses["image"])[: int(np.prod(shape))].reshape(shape)
                for name, result in zip(names[1:], self._engine._session.run(names[1:], {"image": image})):
                    content = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
                    room = gpu.memory(self._addresses[name])
                    if len(room) < len(content):
                        raise gpu.driver.LogicError("an illegal memory access was encountered")
                    room[: len(content)] = content

            gpu.enqueue(gpu.streams[stream_handle], work)
            return True

    return trt


class Number(enum.Enum):
    """Values that convert to int, but are none, as those of pybind11."""

    def __int__(self) -> int:
        return int(self.value)
