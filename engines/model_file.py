"""Model files: an ONNX graph with its description inside, read and written; the description of any model file.

Imports onnx where it is used, so that `engines` starts without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from engines import plan_file
from engines.errors import ModelFileError
from engines.files import replacing
from engines.metadata import ModelInfo

if TYPE_CHECKING:
    import onnx

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
    """Load an ONNX file.

    Raises:
        ModelFileError: it is missing or damaged, or a TensorRT plan.
    """
    import onnx

    if Path(path).suffix == plan_file.SUFFIX:
        raise ModelFileError(f"{path} is a TensorRT plan: give the .onnx file that it was built from")

    try:
        return onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file") from error
    except Exception as error:  # protobuf's own error classes differ between its versions
        raise ModelFileError(f"{path} is not an ONNX file, or is damaged: export it again") from error


def info_of(model: "onnx.ModelProto", path: Union[str, Path]) -> ModelInfo:
    """The description inside a loaded model; `path` is named in errors.

    Raises:
        ModelFileError: it is not a model of this project.
    """
    for entry in model.metadata_props:
        if entry.key == KEY:
            return ModelInfo.from_json(entry.value, path)
    raise ModelFileError(f"{path} is not a model of uad (no '{KEY}' in its metadata): make one with uad export")


def save_model(model: "onnx.ModelProto", info: ModelInfo, path: Union[str, Path]) -> None:
    """Check the graph, put the description into it, and write it whole or not at all."""
    import onnx

    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=info.to_json())
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
