"""The one interface that every runtime fills."""

import abc
from dataclasses import dataclass
from types import TracebackType
from typing import Dict, Optional, Type

import numpy as np

from engines.metadata import ModelInfo


@dataclass(frozen=True)
class Prediction:
    """What a model says of N images; higher is more anomalous. The arrays belong to the caller."""

    score: np.ndarray  # (N,) float32
    anomaly_map: np.ndarray  # (N, h, w) float32


class Engine(abc.ABC):
    """One model on one device, for batches of a fixed size; close() may be called twice.

    Attributes:
        runtime: name in `engines.RUNTIMES`.
        arithmetic: what the runtime was told to compute in where the graph says float: "f32", "bf16" or "f16".
        info: what the model file says of itself.
        batch: images in one call of `run`.
        device_mem_mb: GPU memory for activations, work space and buffers, in units of 10^6 bytes; the weights, about as
            large as the file, come on top. None where there is no GPU.
    """

    runtime: str
    arithmetic: str
    info: ModelInfo
    batch: int
    device_mem_mb: Optional[float] = None

    @abc.abstractmethod
    def run(self, images: np.ndarray) -> Prediction:
        """Judge exactly `batch` images, (batch, height, width, 3) uint8 RGB of the model's input size."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the runtime holds."""

    def parts_ms(self) -> Dict[str, float]:
        """How long the parts of the last `run` took by the device's clock, ms; empty where a runtime has no parts."""
        return {}

    def infer(self, images: np.ndarray) -> Prediction:
        """Judge any number of images, in batches of the engine's size; the last batch is filled up with zeros.

        Args:
            images: (N, height, width, 3) uint8, RGB, N >= 1, already of the model's input size.

        Raises:
            ValueError: another shape or dtype.
        """
        expected = (self.info.height, self.info.width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            raise ValueError(f"images must be uint8 (N >= 1, {expected}), got {images.dtype} {images.shape}")
        parts = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            missing = self.batch - len(part)
            if missing:
                part = np.concatenate([part, np.zeros((missing, *expected), np.uint8)])
            prediction = self.run(np.ascontiguousarray(part))
            kept = self.batch - missing
            parts.append(Prediction(prediction.score[:kept], prediction.anomaly_map[:kept]))
        if len(parts) == 1:
            return parts[0]
        return Prediction(
            np.concatenate([part.score for part in parts]), np.concatenate([part.anomaly_map for part in parts])
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()
