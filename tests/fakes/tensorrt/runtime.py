"""The runtime: a plan, which is the ONNX graph with a header, run in ONNX Runtime."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

from fakes.tensorrt.api import MAGIC, Guarded, check_logger, need, report_error
from fakes.tensorrt.parser import TYPES


class Runtime(Guarded):
    def __init__(self, logger: Any) -> None:
        check_logger(logger)
        self._logger = logger

    DLA_core = -1

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        need(serialized_engine, bytes, "serialized_engine")
        header, _, content = serialized_engine.partition(b"\n")
        if not header.startswith(MAGIC):
            self._logger.log(
                self._release.Severity["ERROR"], "Serialization assertion magicTagRead == kPLAN_MAGIC_TAG failed"
            )
            return None
        described = json.loads(header[len(MAGIC) :])
        if described["version"] != self._release.module.__version__:
            self._logger.log(
                self._release.Severity["ERROR"], "Serialization assertion stdVersionRead == kVERSION failed"
            )
            return None
        if described["size"] != len(content):
            report_error(self, "Serialization assertion safeSizeRead failed")
            return None
        if described["dla"] not in (None, self.DLA_core):
            self._logger.log(
                self._release.Severity["ERROR"], f"the plan is of DLA core {described['dla']}, not {self.DLA_core}"
            )
            return None
        return self._release.kinds["ICudaEngine"](described, content)


class ICudaEngine(Guarded):
    def __init__(self, described: dict[str, Any], content: bytes) -> None:
        model = onnx.load_from_string(content)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        self._profile, self._detailed = described["profile"], described["detailed"]
        self._layers = {node.name: list(node.output) for node in model.graph.node}
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
        return self._release.DataType[TYPES[self._value(name).type.tensor_type.elem_type]]

    def get_tensor_mode(self, name: str) -> Any:
        return self._release.enums["TensorIOMode"][
            "INPUT" if self._values.index(self._value(name)) < self._n_inputs else "OUTPUT"
        ]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self._value(name).type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    device_memory_size = 3_000_000
    device_memory_size_v2 = 3_000_000

    def create_engine_inspector(self) -> Any:
        return self._release.kinds["EngineInspector"](self)

    def create_execution_context(self) -> Any:
        self._release.gpu.require_context()
        return self._release.kinds["IExecutionContext"](self)


class EngineInspector(Guarded):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        need(format, self._release.enums["LayerInformationFormat"], "format")
        kind = {"Format/Datatype": "Row major linear FP32"}
        layers = [
            {"Name": name, "LayerType": "CaskConvolution", "Outputs": [{"Name": output, **kind} for output in outputs]}
            for name, outputs in self._engine._layers.items()
        ]
        return json.dumps({"Layers": layers if self._engine._detailed else [each["Name"] for each in layers]})


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
        self._release.gpu.require_context()
        names = [value.name for value in self._engine._values]
        if set(self._addresses) != set(names) or -1 in self._shapes["image"]:
            return False  # an address or the shape of the input was not set

        def work() -> None:
            shape = self._shapes["image"]
            image = self._release.gpu.memory(self._addresses["image"])[: int(np.prod(shape))].reshape(shape)
            for name, result in zip(names[1:], self._engine._session.run(names[1:], {"image": image})):
                content = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
                room = self._release.gpu.memory(self._addresses[name])
                if len(room) < len(content):
                    raise self._release.gpu.driver.LogicError("an illegal memory access was encountered")
                room[: len(content)] = content

        self._release.gpu.enqueue(self._release.gpu.streams[stream_handle], work)
        return True


CLASSES = (Runtime, ICudaEngine, EngineInspector, IExecutionContext)
