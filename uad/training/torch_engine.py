"""A checkpoint as an engine."""

from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch

from engines.base import Engine, Prediction
from uad.training.checkpoint import load_checkpoint


class TorchEngine(Engine):
    """A checkpoint in torch, eager, float32, on the CPU: the reference that the exported files are held to.

    What was trained under fake quantization runs under it here too.
    """

    runtime = "torch"
    arithmetic = "f32"

    def __init__(self, path: Union[str, Path], *, batch: Optional[int] = None, threads: Optional[int] = None) -> None:
        checkpoint = load_checkpoint(path)
        self.network, self.info = checkpoint.network, checkpoint.info
        if checkpoint.quantization is not None:
            from uad.training.fake_quant import insert_quantizers  # it takes its time to import

            insert_quantizers(self.network, self.info.size, checkpoint.quantization)
        self.path, self.batch = str(path), batch or 1
        if threads:
            torch.set_num_threads(threads)

    def run(self, images: np.ndarray) -> Prediction:
        with torch.inference_mode():
            score, anomaly_map = self.network(torch.from_numpy(images))
        return Prediction(score.numpy(), anomaly_map.numpy())

    def close(self) -> None:
        """Nothing is held but memory."""
        self.closed = True
