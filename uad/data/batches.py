"""Batches of good images, as every model gets them."""

import dataclasses
import itertools
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
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

    def first_of_each_class(self, most: int) -> "GoodImages":
        """At most so many of each class."""
        places = [torch.nonzero(self.label == index).flatten()[:most] for index in range(len(self.classes))]
        return self.at(torch.cat(places).tolist())

    def with_drawn(self, draw: Callable[[np.ndarray], np.ndarray]) -> "GoodImages":
        """What a function of `uad.data.defects` draws on them; they are good no more."""
        return dataclasses.replace(self, image=torch.from_numpy(draw(self.image.numpy())), title="Trying drawn defects")

    def halves(self) -> Tuple[List[int], List[int]]:
        """The places of two halves of each class, the second as large or larger. Of one image both have it."""
        first: List[int] = []
        second: List[int] = []
        for each in range(len(self.classes)):
            places = torch.nonzero(self.label == each).flatten().tolist()
            first += places[1::2] or places
            second += places[::2]
        return first, second

    def by_class(self, look: Callable[[Tensor], Sequence[Tensor]]) -> Iterator[List[Tensor]]:
        """What `look` makes of the images of each class in turn, (N, ...) each; one class in memory.

        Args:
            look: images (n, H, W, 3) to what is seen of them, (n, ...) each.
        """
        counts = torch.bincount(self.label, minlength=len(self.classes)).tolist()
        seen = (look(batch.image) for batch in self.at(torch.argsort(self.label, stable=True).tolist()))
        images = (image for batch in seen for image in zip(*(torch.split(each, 1) for each in batch)))
        for count in counts:
            yield [torch.cat(each) for each in zip(*itertools.islice(images, count))]

    def __iter__(self) -> Iterator[Batch]:
        """Batches of at most `BATCH` images."""
        with progress(self.title, len(self.image)) as step:
            for image, label in zip(torch.split(self.image, BATCH), torch.split(self.label, BATCH)):
                yield Batch(image.to(self.device), label.to(self.device))
                for _ in label:
                    step()
