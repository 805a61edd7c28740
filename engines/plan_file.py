"""TensorRT plans, read and written: `engine.plan`, and `engine.plan.json` which says what it is.

A plan is opaque, and runs only on the TensorRT release and the kind of GPU that built it. So what is known of it lies
beside it: the description of the model, what built it and how, and the hash of the plan that is meant.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from engines.errors import ModelFileError, UserError
from engines.files import replacing
from engines.metadata import ModelInfo, check_types

SUFFIX = ".plan"


@dataclasses.dataclass(frozen=True)
class PlanInfo:
    """What built a plan, and how."""

    tensorrt: str  # TensorRT version
    cuda: str  # CUDA version that pycuda was compiled with
    device: str  # name of the GPU
    compute_capability: str  # compute capability of the GPU, such as "7.2"
    flags: List[str]  # flags of the builder and the network, such as INT8 or STRONGLY_TYPED
    float32_layers: int  # layers of the normalisation and the head that are held in float32
    batch: Dict[str, int]  # min, opt and max of the optimisation profile; min = max is a static batch
    workspace_mb: int  # memory that the builder might take for one layer, in units of 2^20 bytes
    warnings: List[str]  # warnings of TensorRT, each once
    command: str  # command that builds it again, from a file of that name
    ranges: int = 0  # tensors with a range, for INT8 without Q/DQ
    dla_core: Optional[int] = None  # DLA that runs what it can; None: the GPU runs all
    dla_layers: int = 0  # layers that the DLA runs
    sha256: str = ""  # SHA-256 of the plan


def description_path(path: Union[str, Path]) -> Path:
    """engine.plan -> engine.plan.json."""
    return Path(f"{path}.json")


def read_description(path: Union[str, Path]) -> Tuple[ModelInfo, PlanInfo]:
    """Read what is said of a plan; the plan itself must exist, but is not read.

    Raises:
        ModelFileError: the plan or its description is missing, damaged, or not of this project.
    """
    beside = description_path(path)
    if not Path(path).is_file():
        raise ModelFileError(f"{path}: no such file")
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        model, plan = json.dumps(content["model"]), PlanInfo(**content["plan"])
        check_types(plan)
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path}: {beside.name}, which says what the plan is, is not beside it: copy it there, or build the plan "
            f"again with uad export MODEL.onnx --out {Path(path).name}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{beside} cannot be read ({error}): build the plan again with uad export") from error
    return ModelInfo.from_json(model, beside), plan


def keep_descriptions(models: Sequence[Path], outputs: Sequence[Optional[Path]]) -> None:
    """Refuse to write figures over what says what a plan is, and without which the plan is worthless.

    Raises:
        UserError: an output is the description of one of the models.
    """
    described = {description_path(model).resolve() for model in models if model.suffix == SUFFIX}
    for output in outputs:
        if output is not None and output.resolve() in described:
            raise UserError(f"{output} says what the plan is, and must stay: give another file for the figures")


def read_plan(path: Union[str, Path]) -> Tuple[bytes, ModelInfo, PlanInfo]:
    """Read a plan and what is said of it.

    Raises:
        ModelFileError: as `read_description`, or the plan is not the one that is described.
    """
    info, plan = read_description(path)
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != plan.sha256:
        raise ModelFileError(
            f"{path} is not the plan that {description_path(path).name} describes, or is damaged: copy both again, or "
            f"build it again with {plan.command}"
        )
    return content, info, plan


def save_plan(content: bytes, info: ModelInfo, plan: PlanInfo, path: Union[str, Path]) -> None:
    """Write a plan and its description, each whole or not at all; a pair of two builds would not be loaded.

    Raises:
        OutputError: they cannot be written.
    """
    described = dataclasses.replace(plan, sha256=hashlib.sha256(content).hexdigest())
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        save_description(info, described, path)


def save_description(info: ModelInfo, plan: PlanInfo, path: Union[str, Path]) -> None:
    """Write what is said of a plan, beside it.

    Raises:
        OutputError: it cannot be written.
    """
    description: Dict[str, Any] = {"model": dataclasses.asdict(info), "plan": dataclasses.asdict(plan)}
    with replacing(description_path(path)) as beside:
        beside.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
