"""The trained model on disk: `model.ckpt` holds tensors and plain values only.

    {"program": "uad", "format": 1, "model": "stfpm", "config": {...}, "state_dict": {...}, "info": {...}}

`config` are the arguments of the model's constructor, `info` what `engines.ModelInfo` will say in the exported file.
Needs torch; the command line imports it only for a path that ends in .ckpt.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np
import torch

from engines.base import Engine, Prediction
from engines.files import replacing
from engines.metadata import ModelInfo
from uad.errors import CheckpointError
from uad.models import MODELS
from uad.models.backbones import load_safely

PROGRAM = "uad"
FORMAT = 1


def save_checkpoint(path: Path, network: torch.nn.Module, config: Dict[str, Any], info: ModelInfo) -> None:
    """Write a trained network whole or not at all.

    Args:
        path: of the file.
        network: what `MODELS[info.model](**config).network` is.
        config: constructor arguments of the LightningModule; plain values.
        info: everything but precision and calibration, which come with the export.
    """
    content = {
        "program": PROGRAM,
        "format": FORMAT,
        "model": info.model,
        "config": config,
        "state_dict": network.state_dict(),
        "info": json.loads(info.to_json()),
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Union[str, Path]) -> Tuple[torch.nn.Module, ModelInfo]:
    """Read a trained network, in evaluation mode on the CPU, and its description.

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or is of another program.
    """
    content = load_safely(Path(path))
    if content.get("program") != PROGRAM or content.get("model") not in MODELS:
        raise CheckpointError(f"{path} is not a model of uad: give the model.ckpt that uad fit writes")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {content.get('format')}, this program reads {FORMAT}: update uad")
    try:
        config = dict(content["config"], weights="none")  # the state dict holds the weights
        network: torch.nn.Module = MODELS[content["model"]](**config).network
        network.load_state_dict(content["state_dict"])
        info = ModelInfo.from_json(json.dumps(content["info"]), path)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this version of uad ({error}): train it again") from error
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return network.eval(), dataclasses.replace(info, checkpoint_sha256=digest)


class TorchEngine(Engine):
    """A checkpoint in torch, eager, float32, on the CPU: the reference that the exported files are held to."""

    runtime = "torch"
    arithmetic = "f32"

    def __init__(self, path: Union[str, Path], *, batch: int = 1, threads: Optional[int] = None) -> None:
        self._network, self.info = load_checkpoint(path)
        self.batch = batch
        if threads:
            torch.set_num_threads(threads)

    def run(self, images: np.ndarray) -> Prediction:
        """See `Engine.run`."""
        with torch.inference_mode():
            score, anomaly_map = self._network(torch.from_numpy(images))
        return Prediction(score.numpy(), anomaly_map.numpy())

    def close(self) -> None:
        """See `Engine.close`; nothing is held but memory."""
