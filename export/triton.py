"""A model repository for NVIDIA Triton Inference Server: DIR/NAME/config.pbtxt and DIR/NAME/1/model.onnx or model.plan.

Sources: triton-inference-server/server, docs/user_guide/model_repository.md and model_configuration.md; the schema is
triton-inference-server/common, protobuf/model_config.proto, to which a test holds the configuration. Not yet run in a
server.
"""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

from engines.errors import UadWarning
from engines.files import make_folder, replacing, write_text
from engines.metadata import ModelInfo
from engines.plan_file import SUFFIX, PlanInfo
from export.errors import ExportError

BACKENDS = {"onnxruntime": "KIND_CPU", "openvino": "KIND_CPU", "tensorrt": "KIND_GPU"}  # and what they run on
CONFIG = "config.pbtxt"
TYPES = {"class_index": "TYPE_INT32"}  # of outputs; the others are TYPE_FP32
MOST_AT_ONCE = 8  # images of one run of an .onnx file, which takes any number
DELAY_US = 2000  # that a request waits for others, to be run with them, microseconds
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # of a model: it becomes a part of URLs


def write_repository(
    model: Path, info: ModelInfo, plan: Optional[PlanInfo], folder: Path, backend: Optional[str] = None
) -> Path:
    """Copy a model file into a repository, with its configuration; returns the folder of the model.

    Args:
        model: an .onnx or .plan file, whose name without its ending becomes that of the model.
        info: its description.
        plan: what is said of a plan; None of an .onnx file.
        folder: the repository, made if needed.
        backend: what runs an .onnx file; a plan is TensorRT's.

    Raises:
        ExportError: the name cannot be that of a model, or the backend does not run such files.
        OutputError: it cannot be written.
    """
    name = model.name[: -len(model.suffix)]
    if not NAME.fullmatch(name):
        raise ExportError(
            f"--triton: {name} cannot be a model's name there: give letters, digits, . _ and - with --out"
        )
    backend = backend or ("tensorrt" if model.suffix == SUFFIX else "onnxruntime")
    if (backend == "tensorrt") != (model.suffix == SUFFIX):
        raise ExportError(f"--triton-backend {backend} does not run {model.suffix} files")
    version = make_folder(folder / name / "1", flag="--triton")
    with replacing(version / f"model{model.suffix}") as temporary:
        shutil.copyfile(str(model), str(temporary))
    write_text(folder / name / CONFIG, configuration(name, info, plan, backend))
    return folder / name


def configuration(name: str, info: ModelInfo, plan: Optional[PlanInfo], backend: str) -> str:
    """The text of config.pbtxt.

    The server adds requests up to batches where the file takes more than one number of images. Classes in the order of
    `class_index`, thresholds, limits and depths travel as parameters, so that a client needs no other file.
    """
    least, most = (1, MOST_AT_ONCE) if plan is None else (plan.batch["min"], plan.batch["max"])
    batches = least < most
    height, width = (side // info.map_stride for side in info.size)
    file = "model.onnx" if plan is None else f"model{SUFFIX}"
    lines = [f"name: {_text(name)}", f"backend: {_text(backend)}", f"default_model_filename: {_text(file)}"]
    lines += [f"max_batch_size: {most if batches else 0}"]
    fixed: List[int] = [] if batches else [most]
    lines += _tensor("input", "image", "TYPE_UINT8", [*fixed, *info.size, 3])
    for output in info.outputs:
        sides = [height, width] if output == "anomaly_map" else []
        lines += _tensor("output", output, TYPES.get(output, "TYPE_FP32"), [*fixed, *sides])
    if batches:
        lines += [f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}"]
    lines += [f"instance_group [ {{ count: 1 kind: {BACKENDS[backend]} }} ]"]
    lines += _parameters(
        {**_thresholds(info), "classes": info.classes, "depths": info.depths, "precision": info.precision}
    )
    return "\n".join(lines) + "\n"


def rewrite_thresholds(model: Path, info: ModelInfo) -> None:
    """Put new thresholds into the config.pbtxt of a model file that lies in a repository; elsewhere do nothing.

    A configuration that was written by hand is left as it is, with a `UadWarning`.

    Raises:
        OutputError: it cannot be written.
    """
    config = model.parent.parent / CONFIG
    if not (model.parent.name.isdigit() and config.is_file()):
        return
    lines = config.read_text(encoding="utf-8").splitlines()
    for line in _parameters(_thresholds(info)):
        key = line[: line.index(" value ")]
        places = [index for index, old in enumerate(lines) if old.startswith(key + " value ")]
        if len(places) != 1:
            warnings.warn(f"{config} keeps its thresholds: it is not as --triton wrote it", UadWarning, stacklevel=2)
            return
        lines[places[0]] = line
    write_text(config, "\n".join(lines) + "\n")


def _thresholds(info: ModelInfo) -> Dict[str, Any]:
    limits = {"limits": info.limits} if info.limits else {}
    return {"thresholds": info.thresholds, "threshold": info.threshold, **limits}


def _parameters(values: Dict[str, Any]) -> List[str]:
    return [
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(json.dumps(value))} }} }}"
        for key, value in values.items()
    ]


def _tensor(kind: str, name: str, dtype: str, dims: List[int]) -> List[str]:
    """An input or output; one number an image has no dimensions, which the schema writes as 1 and a reshape to none."""
    reshape = "" if dims else " reshape { shape: [ ] }"
    shape = ", ".join(map(str, dims or [1]))
    return [f"{kind} [ {{ name: {_text(name)} data_type: {dtype} dims: [ {shape} ]{reshape} }} ]"]


def _text(value: str) -> str:
    """A string of protobuf's text format, whatever it holds."""
    return json.dumps(value)
