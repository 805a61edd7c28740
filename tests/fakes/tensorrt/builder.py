"""The builder: what a configuration may ask for, and the plan that comes of it."""

from __future__ import annotations

import json
import types
import weakref
from typing import Any

from onnx import TensorProto, numpy_helper

from fakes.tensorrt.api import MAGIC, Guarded, check_logger, need, report_error
from fakes.tensorrt.float16 import in_int8, ranges_of, rounded
from fakes.tensorrt.network import ILayer, INetworkDefinition


class IOptimizationProfile(Guarded):
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        need(input, str, "input")
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    def __bool__(self) -> bool:
        return all(a <= b <= c for sides in self._shapes.values() for a, b, c in zip(*sides))


class ITimingCache(Guarded):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def combine(self, other: Any, ignore_mismatch: bool) -> bool:
        return True

    def serialize(self) -> Any:
        return self._release.kinds["IHostMemory"](self._content)


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
        need(flag, self._release.enums["BuilderFlag"], "flag")
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        need(flag, self._release.enums["BuilderFlag"], "flag")
        self._flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        need(flag, self._release.enums["BuilderFlag"], "flag")
        return flag.name in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        need(pool, self._release.enums["MemoryPoolType"], "pool")
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
        return self._release.kinds["ITimingCache"](serialized_timing_cache) if is_ours else None

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
        need(monitor, self._release.module.IProgressMonitor, "progress_monitor")
        self._monitor = weakref.ref(monitor)

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: Any) -> None:
        need(value, self._release.enums["ProfilingVerbosity"], "profiling_verbosity")
        self._verbosity = value

    DLA_core = -1
    engine_capability = None
    default_device_type: Any = None  # the GPU

    def can_run_on_DLA(self, layer: Any) -> bool:
        need(layer, ILayer, "layer")
        kinds = ("CONVOLUTION", "ACTIVATION", "POOLING", "ELEMENTWISE")
        return layer.type.name in kinds and {"FP16", "INT8"} & self._flags != set()

    def set_device_type(self, layer: Any, device_type: Any) -> None:
        need(layer, ILayer, "layer")
        need(device_type, self._release.enums["DeviceType"], "device_type")
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
        need(calibrator, self._release.module.IInt8EntropyCalibrator2, "int8_calibrator")
        assert calibrator._is_made, "IInt8EntropyCalibrator2.__init__ was not called"
        self._calibrator = weakref.ref(calibrator)


class Builder(Guarded):
    def __init__(self, logger: Any) -> None:
        check_logger(logger)
        self._logger = logger

    num_DLA_cores = 2

    def create_network(self, flags: int = 0) -> Any:
        need(flags, int, "flags")
        return self._release.kinds["INetworkDefinition"](flags)

    def create_builder_config(self) -> Any:
        return self._release.kinds["IBuilderConfig"]()

    def create_optimization_profile(self) -> Any:
        return self._release.kinds["IOptimizationProfile"]()

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
        self._release.module._builds.append(build)
        assert network._parser(), "the parser, which holds the weights, is gone"
        build.monitor = build.monitor and build.monitor()
        assert build.monitor or config._monitor is None, "the progress monitor is gone"
        assert config._calibrator is None or config.int8_calibrator, "the calibrator is gone"
        problem = self._release.module._failure or self._problem(network, build) or self._place(network, config, build)
        if problem:
            report_error(self, problem)
            return None
        self._logger.log(self._release.Severity["WARNING"], "weights were cast from INT64 to INT32")
        if build.monitor:
            build.monitor.phase_start("Building Engine", None, 2)
            assert build.monitor.step_complete("Building Engine", 0)
            build.monitor.phase_finish("Building Engine")
        if config._cache:
            config._cache._content = b"timings"
        may_round = not build.typed and "FP16" in build.flags
        model = rounded(network, "OBEY_PRECISION_CONSTRAINTS" in build.flags) if may_round else network._model
        if "INT8" in build.flags and not any(layer.type.name == "QUANTIZE" for layer in network._layers):
            build.ranges = ranges_of(network, config.int8_calibrator)
            if not build.ranges:
                self._logger.log(
                    self._release.Severity["ERROR"], "Calibration failure occurred with no scaling factors"
                )
                return None
            model = in_int8(network, build.ranges)
        dla = config.DLA_core if build.on_dla else None
        header = {
            "version": self._release.module.__version__,
            "device": self._release.gpu.name,
            "profile": build.profiles[0],
            "dla": dla,
        }
        header["detailed"] = config._verbosity is not None and config._verbosity.name == "DETAILED"
        content = model.SerializeToString()
        header["size"] = len(content)
        return self._release.kinds["IHostMemory"](MAGIC + json.dumps(header).encode() + b"\n" + content)

    def _place(self, network: Any, config: Any, build: Any) -> str:
        """Which layers a DLA runs; a problem, or nothing."""
        if config.default_device_type is None or config.default_device_type.name != "DLA":
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
        if not build.typed and not quantized and "INT8" in build.flags:
            for layer, weight in _weights(network):
                if layer._precision is None and not weight.reshape(len(weight), -1).any(axis=1).all():
                    return f"{layer.name}: quantizeBiasCommon: Assertion getter(i) != 0 failed"
        return ""


def _weights(network: Any) -> list[tuple[Any, Any]]:
    """The layers of convolutions, and their weights with the output channels first."""
    values = {each.name: numpy_helper.to_array(each) for each in network._model.graph.initializer}
    nodes = {node.name: node for node in network._model.graph.node}
    found = []
    for layer in network._layers:
        node = nodes.get(layer.name)
        if node is not None and node.op_type in ("Conv", "ConvTranspose") and node.input[1] in values:
            weight = values[node.input[1]]
            found.append((layer, weight if node.op_type == "Conv" else weight.swapaxes(0, 1)))
    return found


CLASSES = (IOptimizationProfile, ITimingCache, IBuilderConfig, Builder)
