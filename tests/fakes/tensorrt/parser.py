"""The parser: what the layers of an ONNX graph are. After onnx/onnx-tensorrt, branch 8.5-GA."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fakes.tensorrt.api import Guarded, check_logger, need
from fakes.tensorrt.network import INetworkDefinition

LAYERS = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "MaxPool": "POOLING",
    "AveragePool": "POOLING",
    "Relu": "ACTIVATION",
    "Clip": "ACTIVATION",
    "Sqrt": "UNARY",
    "Log": "UNARY",
    "Concat": "CONCATENATION",
    "Pad": "SLICE",
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
    "ReduceMin": "REDUCE",
    "MatMul": "MATRIX_MULTIPLY",
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


class ParserError(Guarded):
    def __init__(self, index: int, text: str) -> None:
        self._index, self._text = index, text

    def node(self) -> int:
        return self._index

    def desc(self) -> str:
        return self._text

    def __str__(self) -> str:
        return f"In node {self._index}: {self._text}"


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
        if self._release.major < 10 and not self._network._has("EXPLICIT_BATCH"):
            self._errors.append(
                self._release.kinds["ParserError"](-1, "this parser only supports networks with an explicit batch")
            )
        else:
            self._read(onnx.load_from_string(model))
        return not self._errors

    def _read(self, model: onnx.ModelProto) -> None:
        network, tensor_class = self._network, self._release.kinds["ITensor"]
        network._model, network._parser = model, weakref.ref(self)
        values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        shapes = {}
        inferred = shape_inference.infer_shapes(model).graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            kind = value.type.tensor_type
            dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
            shapes[value.name] = (self._release.DataType[TYPES[kind.elem_type]], dims)
        tensors = {value.name: tensor_class(value.name, *shapes[value.name]) for value in model.graph.input}
        network._inputs = [tensors[value.name] for value in model.graph.input]

        def layer(name: str, kind: str, inputs: list[Any], outputs: list[Any], node: int) -> Any:
            made = self._release.kinds["ILayer"](name, self._release.LayerType[kind], inputs, outputs, node)
            network._layers.append(made)
            return made

        def unnamed(kind: str) -> str:
            return f"(Unnamed Layer* {len(network._layers)}) [{kind.title()}]"

        def constant(name: str, index: int) -> Any:
            """A constant is a layer named after its initializer, made when it is first read."""
            if name not in tensors:
                kind = TYPES[helper.np_dtype_to_tensor_dtype(values[name].dtype)]
                output = tensor_class(f"{name}_output", self._release.DataType[kind], values[name].shape)
                tensors[name] = layer(name, "CONSTANT", [], [output], index).get_output(0)
            return tensors[name]

        for index, node in enumerate(model.graph.node):
            problem = self._problem(node, values, tensors)
            if problem:
                self._errors.append(self._release.kinds["ParserError"](index, problem))
                return
            inputs = [tensors[node.input[0]] if node.input[0] in tensors else constant(node.input[0], index)]
            kind = LAYERS[node.op_type]
            if kind in ("ELEMENTWISE", "GATHER", "MATRIX_MULTIPLY", "QUANTIZE", "DEQUANTIZE"):
                rank = max(len(shapes[n][1] if n in shapes else values[n].shape) for n in node.input)
                inputs = []
                for name in node.input[:2]:
                    tensor = tensors[name] if name in tensors else constant(name, index)
                    if kind == "ELEMENTWISE" and len(tensor.shape) < rank:  # broadcastTensor of the parser
                        wide = tensor_class(f"{tensor.name}_{index}_wide", tensor.dtype, (1,) * rank)
                        tensor = layer(unnamed("SHUFFLE"), "SHUFFLE", [tensor], [wide], index).get_output(0)
                    inputs.append(tensor)
            if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in tensors:
                inputs.append(tensors[node.input[1]])
            if node.op_type == "Cast" and hasattr(self._release.LayerType, "CAST"):
                kind = "CAST"
            outputs = [tensor_class(name, *shapes[name]) for name in node.output]
            if node.op_type in ("Squeeze", "Unsqueeze", "Flatten"):  # the shape is computed beside
                sides = tensor_class(f"{node.name}_shape", self._release.DataType["INT32"], (4,))
                inputs.append(layer(unnamed("SHAPE"), "SHAPE", inputs[:1], [sides], index).get_output(0))
            if node.op_type == "ArgMin":  # a TopK of which only the indices are used, and a squeeze
                shape = inputs[0].shape
                best = [
                    tensor_class(f"{node.name}_v", inputs[0].dtype, shape),
                    tensor_class(f"{node.name}_i", outputs[0].dtype, shape),
                ]
                inputs = [layer(node.name, "TOPK", inputs, best, index).get_output(1)]
                layer(f"{node.name}_{len(network._layers)}", "SHUFFLE", inputs, outputs, index)
            else:
                made = layer(node.name, kind, inputs, outputs, index)
                if node.op_type == "Cast" and self._release.major < 10:
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
            if self._release.major < 10 and node.input[0] in values and values[node.input[0]].dtype == np.int8:
                return f"{node.input[0]}: invalid weights type of Int8"
        return ""


CLASSES = (ParserError, OnnxParser)
