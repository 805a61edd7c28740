"""Model files: an ONNX graph with its description inside, read and written; the description of any model file.

Imports onnx where it is used, so that `engines` starts without it.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional, Tuple, Union

import numpy as np

from engines import plan_file
from engines.errors import ModelFileError
from engines.files import replacing
from engines.metadata import ModelInfo

if TYPE_CHECKING:
    import onnx

DOMAINS = ("", "ai.onnx")
KEY = "uad"  # the key of the ONNX file's metadata_props that holds ModelInfo as JSON


def read_info(path: Union[str, Path]) -> ModelInfo:
    """Read the description of an ONNX file or a TensorRT plan without starting a runtime.

    Raises:
        ModelFileError: the file is missing, damaged, or not a model of this project.
    """
    if Path(path).suffix == plan_file.SUFFIX:
        return plan_file.read_description(path)[0]
    return info_of(load_model(path), path)


def load_model(path: Union[str, Path]) -> "onnx.ModelProto":
    """Load an ONNX file, whose nodes are well formed and in an order in which each follows what it reads.

    Raises:
        ModelFileError: it is missing, damaged or malformed, names other files, or is a TensorRT plan.
    """
    import onnx

    if Path(path).suffix == plan_file.SUFFIX:
        raise ModelFileError(f"{path} is a TensorRT plan: give the .onnx file that it was built from")

    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except Exception as error:  # protobuf's own error classes differ between its versions
        raise ModelFileError(f"{path} is not an ONNX file, or is damaged: export it again") from error
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelFileError(f"{path}: {tensor.name} lies in another file: export it again, into one file")
    foreign = [node for node in model.graph.node if node.domain not in DOMAINS and onnx.defs.has(node.op_type)]
    if foreign:
        named = f"{foreign[0].op_type} of '{foreign[0].domain}' ({foreign[0].name})"
        raise ModelFileError(f"{path}: {named} is not ONNX's own: export it again")
    try:
        onnx.checker.check_model(model)
        for tensor in _tensors(model.graph):
            onnx.numpy_helper.to_array(tensor)  # as many values as its shape says, of a type that there is
    except Exception as error:  # ValidationError, and TypeError or RuntimeError for what is worse
        reason = str(error).strip().splitlines()[0]
        raise ModelFileError(f"{path} is not a valid ONNX graph ({reason}): export it again") from error
    return model


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Every constant, those of subgraphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
            for inside in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inside)


def info_of(model: "onnx.ModelProto", path: Union[str, Path]) -> ModelInfo:
    """The description inside a loaded model; `path` is named in errors.

    Raises:
        ModelFileError: it is not a model of this project, holds values that are not finite, or is not what it says.
    """
    for entry in model.metadata_props:
        if entry.key == KEY:
            info = ModelInfo.from_json(entry.value, path)
            _check_agreement(model, info, path)
            return info
    raise ModelFileError(f"{path} is not a model of uad (no '{KEY}' in its metadata): make one with uad export")


def save_model(model: "onnx.ModelProto", info: ModelInfo, path: Union[str, Path]) -> None:
    """Check the graph, put the description into it, with its outputs, and write it whole or not at all.

    Raises:
        ModelFileError: the graph holds values that are not finite, or is not what the description says.
        OutputError: the file cannot be written.
    """
    import onnx

    info = dataclasses.replace(info, outputs=[value.name for value in model.graph.output])
    _check_agreement(model, info, path)
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=info.to_json())
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _check_agreement(model: "onnx.ModelProto", info: ModelInfo, path: Union[str, Path]) -> None:
    """Hold a graph to its description.

    Raises:
        ModelFileError: they differ, or a constant is not finite: an image would be judged good by default.
    """
    from engines.graph import constants

    values = constants(model)
    for name, value in values.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelFileError(f"{path}: {name} holds values that are not finite: train or export the model again")
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if bool(quantizers) != (info.precision in ("int8", "mixed")):
        has = "has" if quantizers else "has no"
        raise ModelFileError(f"{path} says that it is {info.precision}, but {has} Q/DQ nodes: export it again")
    for node in quantizers:
        if node.input[1] in values and not (values[node.input[1]] > 0).all():
            raise ModelFileError(f"{path}: {node.name} has a scale that is not above 0: export it again")
    outputs = [value.name for value in model.graph.output]
    if outputs != info.outputs:
        raise ModelFileError(
            f"{path} gives {', '.join(outputs)}, by its description {', '.join(info.outputs)}: export it again"
        )
    shapes = {value.name: _sides(value) for value in (*model.graph.input, *model.graph.output)}
    expected = {"image": (*info.size, 3), "anomaly_map": tuple(side // info.map_stride for side in info.size)}
    for name, sides in expected.items():
        shape = shapes.get(name, ())[1:]
        if name in shapes and any(side not in (None, wanted) for side, wanted in zip(shape, sides)):
            raise ModelFileError(f"{path}: {name} is {shape} in the graph, {sides} by its description: export it again")


def _sides(value: "onnx.ValueInfoProto") -> "Tuple[Optional[int], ...]":
    """The shape of an input or output; None for a side that may be of any size."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
