"""A checkpoint as an engine."""

from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch

from engines.base import Engine, Prediction
from engines.metadata import ModelInfo
from uad.training.checkpoint import load_checkpoint
from uad.training.precision import whole_float32

CPU = torch.device("cpu")


class TorchEngine(Engine):
    """A checkpoint in torch, eager, float32: the reference that the exported files are held to, on the CPU.

    What was trained under fake quantization runs under it here too. Training tests on its own device.
    """

    runtime = "torch"
    arithmetic = "f32"

    def __init__(
        self,
        path: Union[str, Path],
        *,
        batch: Optional[int] = None,
        threads: Optional[int] = None,
        lanes: int = 1,
        device: torch.device = CPU,
    ) -> None:
        """Load a checkpoint; torch has one lane, whatever `lanes` is."""
        checkpoint = load_checkpoint(path)
        self.network, self.info = checkpoint.network, checkpoint.info
        if checkpoint.quantization is not None:
            from uad.training.fake_quant import insert_quantizers  # it takes its time to import

            insert_quantizers(self.network, self.info, checkpoint.quantization)
        self.network.to(device)
        self.path, self.batch, self.device = str(path), batch or 1, device
        if threads:
            torch.set_num_threads(threads)

    @classmethod
    def read_info(cls, path: Union[str, Path]) -> ModelInfo:
        """What a checkpoint says of itself."""
        return load_checkpoint(path).info

    def run(self, images: np.ndarray) -> Prediction:
        with torch.inference_mode(), whole_float32():
            judged = self.network(torch.from_numpy(images).to(self.device))
        return Prediction(*(output.cpu().numpy() for output in judged))

    def close(self) -> None:
        """Nothing is held but memory."""
        self.closed = True
