"""The trained model on disk: `model.ckpt` holds tensors and plain values only.

    {"program": "uad", "format": 4, "model": "stfpm", "config": {...}, "state_dict": {...}, "info": {...}}

`config` are the arguments of the model's constructor, `info` what `engines.ModelInfo` will say in the exported file.
After quantization-aware training the state dict is that of the folded network (see `uad.training.fold`). Beside it
stands

    "quantization": {"bits": 8, "amax": {tensor name in the exported file: range}}

Format 4 keeps the read-out's statistics level by level, and by how much each level is moved.
"""

import dataclasses
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any, Dict, Optional, Union

import torch

from engines.files import replacing
from engines.metadata import ModelInfo
from uad.errors import CheckpointError
from uad.models import model_class, models
from uad.models.backbones import load_safely
from uad.training.fold import fold

PROGRAM = "uad"
FORMAT = 4


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a network was quantized while it trained."""

    bits: int  # width of the integers
    amax: Dict[str, float]  # tensor name in the exported graph -> range

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 8):
            raise ValueError(f"{self.bits} bits")
        for name, value in self.amax.items():
            if not (isinstance(name, str) and isinstance(value, float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"the range of {name} is {value}")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained network, in float, in evaluation mode on the CPU, and what is known of it."""

    network: torch.nn.Module  # folded, if it was quantized
    info: ModelInfo
    config: Dict[str, Any]  # arguments of the LightningModule's constructor
    quantization: Optional[Quantization] = None


def save_checkpoint(
    path: Path,
    state_dict: Dict[str, torch.Tensor],
    config: Dict[str, Any],
    info: ModelInfo,
    quantization: Optional[Quantization] = None,
) -> None:
    """Write a trained network whole or not at all.

    Args:
        path: of the file.
        state_dict: of the model's network; with `quantization`, of the same folded.
        config: constructor arguments of the LightningModule; plain values.
        info: everything but precision and calibration, which come with the export.
        quantization: where the network was trained under fake quantization.
    """
    content = {
        "program": PROGRAM,
        "format": FORMAT,
        "model": info.model,
        "config": config,
        "state_dict": state_dict,
        "info": json.loads(info.to_json()),
    }
    if quantization is not None:
        content["quantization"] = dataclasses.asdict(quantization)
    write_tensors(path, content)


def write_tensors(path: Union[str, Path], content: Dict[str, Any]) -> None:
    """Write what `torch.load(weights_only=True)` reads, whole or not at all.

    Raises:
        OutputError: the file cannot be written; torch itself would say so in other words.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Union[str, Path]) -> Checkpoint:
    """Read a trained network.

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or is of another program.
    """
    content = load_safely(Path(path))
    name = content.get("model")
    if content.get("program") != PROGRAM or not isinstance(name, str) or name not in models():
        raise CheckpointError(f"{path} is not a model of uad: give the model.ckpt that uad fit writes")
    if content.get("format") != FORMAT:
        version = content.get("format")
        mend = "update uad" if isinstance(version, int) and version > FORMAT else "train it again"
        raise CheckpointError(f"{path} has format {version}, this program reads {FORMAT}: {mend}")
    try:
        quantization = Quantization(**content["quantization"]) if "quantization" in content else None
        info = ModelInfo.from_json(json.dumps(content["info"]), path)
        model = model_class(name).from_config(content["config"])
        model.take_size(*info.size)
        network: torch.nn.Module = model.network
        if quantization is not None:
            network = fold(network)
        network.load_state_dict(content["state_dict"])
        bad = [name for name, value in content["state_dict"].items() if not value.isfinite().all()]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this version of uad ({error}): train it again") from error
    if bad:
        raise CheckpointError(f"{path}: {bad[0]} holds values that are not finite: train the model again")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    info = dataclasses.replace(info, checkpoint_sha256=digest)
    return Checkpoint(network.eval(), info, content["config"], quantization)
