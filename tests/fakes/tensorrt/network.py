"""What a network consists of: tensors, layers, and what becomes of them in one piece of memory."""

from __future__ import annotations

from typing import Any

import onnx

from fakes.tensorrt.api import Guarded, need


class IHostMemory(Guarded):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


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
        return self._precision or self._release.DataType["FLOAT"]

    @precision.setter
    def precision(self, value: Any) -> None:
        need(value, self._release.DataType, "precision")
        self._precision = value

    @property
    def precision_is_set(self) -> bool:
        return self._precision is not None

    def set_output_type(self, index: int, dtype: Any) -> None:
        need(index, int, "index")
        need(dtype, self._release.DataType, "dtype")
        self._bound[index] = dtype
        self._outputs[index].dtype = dtype


class INetworkDefinition(Guarded):
    def __init__(self, flags: int) -> None:
        self._flags, self._model = flags, onnx.ModelProto()
        self._layers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def _has(self, flag: str) -> bool:
        flags = self._release.enums["NetworkDefinitionCreationFlag"].__members__
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


CLASSES = (IHostMemory, ITensor, ILayer, INetworkDefinition)
