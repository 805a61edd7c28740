"""The one interface that every runtime fills."""

import abc
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type, Union

import numpy as np

from engines.errors import ModelFileError, NotFiniteError, UserError
from engines.metadata import ModelInfo
from engines.model_file import read_info


@dataclass(frozen=True)
class Prediction:
    """What a model says of N images. The arrays belong to the caller; the fields are `engines.metadata.OUTPUTS`."""

    score: np.ndarray  # (N,) float32; higher is more anomalous
    anomaly_map: np.ndarray  # (N, h, w) float32
    class_index: Optional[np.ndarray] = None  # (N,) int32, index in `ModelInfo.classes`; None where it tells no class
    class_distance: Optional[np.ndarray] = None  # (N,) float32, from that class: 1 is the farthest good image

    def class_of(self, index: int, classes: Sequence[str]) -> Tuple[Optional[str], Optional[float]]:
        """The class that one of the images is seen as, and its distance from it; None what is not told.

        Args:
            index: of the image.
            classes: `ModelInfo.classes`.
        """
        seen_as = None if self.class_index is None else classes[int(self.class_index[index])]
        return seen_as, None if self.class_distance is None else float(self.class_distance[index])

    def __getitem__(self, part: slice) -> "Prediction":
        """What it says of some of the images."""
        values: Dict[str, Any] = {name: None if value is None else value[part] for name, value in vars(self).items()}
        return Prediction(**values)


def _together(parts: Sequence[Prediction]) -> Prediction:
    joined: Dict[str, Any] = {}
    for name in vars(parts[0]):
        values = [getattr(part, name) for part in parts]
        joined[name] = None if values[0] is None else np.concatenate(values)
    return Prediction(**joined)


class Engine(abc.ABC):
    """One model on one device, for batches of a fixed size; close() may be called twice.

    Attributes:
        runtime: name in `engines.runtimes()`.
        arithmetic: what the runtime was told to compute in where the graph says float: "f32", "bf16" or "f16".
        path: the model file, for errors.
        info: what the model file says of itself.
        batch: images in one call of `run`.
        lanes: how many threads may call `run` or `infer` at the same time.
        device_mem_mb: GPU memory for activations, work space and buffers, in units of 10^6 bytes; the weights, about as
            large as the file, come on top. None where there is no GPU.
        closed: whether it was closed.
    """

    runtime: str
    arithmetic: str
    path: str = "the model"
    info: ModelInfo
    batch: int
    lanes: int = 1
    device_mem_mb: Optional[float] = None
    closed = False

    @classmethod
    def read_info(cls, path: Union[str, Path]) -> ModelInfo:
        """What a model file says of itself, without running it; see `engines.read_info`."""
        return read_info(path)

    @abc.abstractmethod
    def run(self, images: np.ndarray) -> Prediction:
        """Judge exactly `batch` images, (batch, height, width, 3) uint8 RGB of the model's input size."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the runtime holds."""

    def parts_ms(self) -> Dict[str, float]:
        """How long the parts of the last `run` took by the device's clock, ms; empty where a runtime has no parts."""
        return {}

    def layers(self) -> Optional[List[Any]]:
        """What the runtime made of the graph, as it tells it; None where it does not."""
        return None

    def infer(self, images: np.ndarray, names: Optional[Sequence[str]] = None) -> Prediction:
        """Judge any number of images, in batches of the engine's size; the last batch is filled up with zeros.

        Args:
            images: (N, height, width, 3) uint8, RGB, N >= 1, already of the model's input size.
            names: of the images, for errors.

        Raises:
            UserError: it is closed.
            NotFiniteError: the model gives values that are not finite.
            ModelFileError: it gives a map of another size than it says.
            ValueError: another shape or dtype.
        """
        if self.closed:
            raise UserError(f"{self.path} is closed: load it again")
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
            parts.append(prediction[: self.batch - missing])
        prediction = parts[0] if len(parts) == 1 else _together(parts)
        self._check(prediction, names)
        return prediction

    def _check(self, prediction: Prediction, names: Optional[Sequence[str]]) -> None:
        height, width = (side // self.info.map_stride for side in self.info.size)
        if prediction.anomaly_map.shape[1:] != (height, width):
            shape = prediction.anomaly_map.shape[1:]
            raise ModelFileError(f"{self.path} gives a map of {shape}, by its description {(height, width)}")
        finite = np.isfinite(prediction.score) & np.isfinite(prediction.anomaly_map).all(axis=(1, 2))
        if prediction.class_distance is not None:
            finite &= np.isfinite(prediction.class_distance)
        if not finite.all():
            first = int(np.argmin(finite))
            image = names[first] if names else f"image {first}"
            raise NotFiniteError(f"{self.path} gives {image} a score that is not finite: train or export it again")
        seen = prediction.class_index
        if seen is not None and not (seen.min() >= 0 and seen.max() < len(self.info.classes)):
            raise ModelFileError(
                f"{self.path} sees classes {seen.min()} to {seen.max()}: it has {', '.join(self.info.classes)}"
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
