"""Batches of good images, as every model gets them."""

import dataclasses
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from uad.progress import progress

BATCH = 16  # images that are looked at together outside of training


class Batch(NamedTuple):
    """Some images and their classes."""

    image: Tensor  # (N, H, W, 3) uint8, RGB
    label: Tensor  # (N,) int64, index of each image's class
    targets: Sequence[Tensor] = ()  # `Model.targets` of the images, float16, where they are kept
    drawn: Optional[Tensor] = None  # the images with a drawn defect on each, where a model trains on them


@dataclasses.dataclass(frozen=True)
class GoodImages:
    """Good images of every class, for what a model must know of them. Each pass over it shows its progress."""

    image: Tensor  # (N, H, W, 3) uint8, RGB
    label: Tensor  # (N,) int64
    classes: List[str]  # their names, by index
    title: str = "Reading good images again"  # title of the progress bar
    device: torch.device = torch.device("cpu")  # device of the batches; `image` and `label` stay where they are

    def on(self, device: torch.device) -> "GoodImages":
        """The same, whose batches come to another device."""
        return dataclasses.replace(self, device=device)

    def at(self, places: Sequence[int]) -> "GoodImages":
        """Those at some places."""
        return dataclasses.replace(self, image=self.image[list(places)], label=self.label[list(places)])

    def halves(self) -> Tuple[List[int], List[int]]:
        """The places of two halves of each class, the second as large or larger. Of one image both have it."""
        first: List[int] = []
        second: List[int] = []
        for each in range(len(self.classes)):
            places = torch.nonzero(self.label == each).flatten().tolist()
            first += places[1::2] or places
            second += places[::2]
        return first, second

    def __iter__(self) -> Iterator[Batch]:
        """Batches of at most `BATCH` images."""
        with progress(self.title, len(self.image)) as step:
            for image, label in zip(torch.split(self.image, BATCH), torch.split(self.label, BATCH)):
                yield Batch(image.to(self.device), label.to(self.device))
                for _ in label:
                    step()
