"""The training data of one model: good images of all the classes, decoded and resized once, held in memory."""

import functools
import warnings
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from engines.errors import UadWarning
from uad.data.batches import Batch, GoodImages
from uad.data.content import digests_of
from uad.data.defects import with_defects_to_restore
from uad.data.files import count, listing
from uad.data.folder import Sample, draw, find_classes, hold_out, test_samples, train_samples, with_depths
from uad.data.reading import check_samples, depths_of, load_images
from uad.errors import DataError
from uad.progress import progress


def seed_of(*numbers: int) -> int:
    """A seed that some numbers give, such as a seed and the epoch: nearby ones give what is not alike."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Images(Dataset[Batch]):
    """Images in memory, by whole batches: nothing is put together image by image.

    Args:
        image: (N, H, W, 3) uint8.
        label: (N,) int64.
        targets: of each level, or none.
        random: where given, a batch holds its images with drawn defects, too; others each time.
    """

    def __init__(
        self, image: Tensor, label: Tensor, targets: Sequence[Tensor], random: Optional[torch.Generator] = None
    ) -> None:
        self.all = Batch(image, label, targets)
        self.random = random

    def __len__(self) -> int:
        return len(self.all.image)

    def __getitem__(self, indices: List[int]) -> Batch:
        image, label = self.all.image[indices], self.all.label[indices]
        drawn = None
        if self.random is not None:
            seed = int(torch.randint(2**31, (), generator=self.random))
            drawn = torch.from_numpy(with_defects_to_restore(image.numpy(), seed))
        return Batch(image, label, [level[indices] for level in self.all.targets], drawn)


class EpochOrder(Sampler[int]):
    """Indices in an order that the seed and the number of the epoch give, so that a resumed run goes on as it was.

    Args:
        count: of images.
        random: seeded anew as an epoch begins. What is drawn from it after the order belongs to that epoch, too.
        seed_of_epoch: the seed of the epoch that begins.
    """

    def __init__(self, count: int, random: torch.Generator, seed_of_epoch: Callable[[], int]) -> None:
        self.count = count
        self.random = random
        self.seed_of_epoch = seed_of_epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        self.random.manual_seed(self.seed_of_epoch())
        return iter(torch.randperm(self.count, generator=self.random).tolist())


class AnomalyData(LightningDataModule):
    """Good images for training, with a seeded part held out for the loss that picks a checkpoint and for thresholds.

    A batch is a `uad.data.batches.Batch`. Memory: height * width * 3 bytes an image.

    Args:
        root: folder of classes, of one class, or of good images (see `uad.data.folder`).
        classes: which classes, as [a,b]; all that are found if not given.
        image_size: of the model's input, pixels: a number for a square, or [height,width].
        batch_size: images in a training step.
        held_out: part of the good images of each class that is held out.
        seed: of the split.

    Raises:
        DataError: a value that cannot serve.
    """

    def __init__(
        self,
        root: Path,
        classes: Optional[List[str]] = None,
        image_size: Union[int, Tuple[int, int]] = 256,
        batch_size: int = 8,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"--data.batch_size {batch_size}: give at least 1")
        if not 0 < held_out < 1:
            raise DataError(f"--data.held_out {held_out}: give a part of the images, between 0 and 1")
        self.root = root
        self.classes = classes
        self.image_size = image_size
        self.batch_size = batch_size
        self.held_out = held_out
        self.seed = seed
        self.depths: Dict[str, int] = {}  # class -> bits used in its 16-bit files; known after `setup`
        self.training_samples: List[Sample] = []
        self.held_out_samples: List[Sample] = []
        self.targets: Sequence[Tensor] = ()  # of `images`, once they are kept
        self.draws = False  # whether a batch to train on holds its images with drawn defects, too
        self.order_seed = 0  # of the order of the images, and of the drawn defects

    @property
    def size(self) -> Tuple[int, int]:
        """(height, width) of the model's input, pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    def check(self) -> None:
        """Check every file before any training: decode the good images, which are kept, and the test images and masks.

        Raises:
            DataError: names all that cannot be used.
        """
        samples = test_samples(self.root, self.classes)
        problems = []
        try:
            self.setup("fit")
        except DataError as error:
            problems.append(str(error))
        try:
            with progress("Checking test images", len(samples)) as step:
                check_samples(self._as_trained(samples), step)
        except DataError as error:
            problems.append(str(error))
        if problems:
            raise DataError("; ".join(problems))
        self._tell_of_copies(samples)

    def _tell_of_copies(self, tests: Sequence[Sample]) -> None:
        """Warn of photographs that stand on two sides: figures on them flatter."""
        training = {self.digests[sample] for sample in self.training_samples}
        held_out = [sample for sample in self.held_out_samples if self.digests[sample] in training]
        known = set(self.digests.values())
        tested = [sample for sample, digest in zip(tests, digests_of(tests)) if digest in known]
        for what, copies in (("held-out image", held_out), ("test image", tested)):
            if copies:
                paths = listing([sample.path for sample in copies], 3)
                text = f"{count(copies, what)} equal to good images of training, figures on them flatter: {paths}"
                warnings.warn(text, UadWarning, stacklevel=2)

    @functools.cached_property
    def digests(self) -> Dict[Sample, str]:
        """Digest of each good image; see `uad.data.content`."""
        good = self.training_samples + self.held_out_samples
        return dict(zip(good, digests_of(good)))

    def setup(self, stage: str) -> None:
        """Decode the good images.

        Raises:
            DataError: names all that cannot be read.
        """
        if self.held_out_samples:
            return
        samples = train_samples(self.root, self.classes)
        self.depths = depths_of(samples)
        below_16 = {name: depth for name, depth in self.depths.items() if depth < 16}
        if below_16:
            depths = ", ".join(f"{name} has {depth}" for name, depth in below_16.items())
            warnings.warn(
                f"of the 16 bits of a pixel {depths}: their values are stretched to the full range", UadWarning, 2
            )
        good = self._as_trained(samples)
        self.training_samples, self.held_out_samples = hold_out(good, self.held_out, self.seed)
        with progress("Reading good images", len(samples)) as step:
            self.images = torch.from_numpy(load_images(self.training_samples + self.held_out_samples, self.size, step))
        self.training_images, self.held_out_images = self.images.tensor_split([len(self.training_samples)])

    @functools.cached_property
    def class_names(self) -> List[str]:
        """The classes, by name; the folders are looked at once."""
        return list(find_classes(self.root, self.classes))

    def held_out_digests(self, places: Optional[Sequence[int]] = None) -> Dict[str, List[str]]:
        """Class -> digests of its held-out images, as `ModelInfo` holds them; of those at some places, or of all."""
        digests: Dict[str, List[str]] = {name: [] for name in self.class_names}
        for place in range(len(self.held_out_samples)) if places is None else places:
            sample = self.held_out_samples[place]
            digests[sample.class_name].append(self.digests[sample])
        return digests

    def some_for_training(self, most: int, title: str) -> GoodImages:
        """Images that are trained on, at most so many of a class; the same at every call."""
        place = {sample: index for index, sample in enumerate(self.training_samples)}
        chosen = [
            sample
            for name in self.class_names
            for sample in draw([s for s in self.training_samples if s.class_name == name], most, self.seed)
        ]
        images = self.training_images[[place[sample] for sample in chosen]]
        return GoodImages(images, self._labels(chosen), self.class_names, title)

    def held_out_good(self, title: str) -> GoodImages:
        """The held-out good images."""
        return GoodImages(self.held_out_images, self._labels(self.held_out_samples), self.class_names, title)

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Shuffled training images; an incomplete last batch is dropped where there is a complete one."""
        count = len(self.training_samples)
        targets = [level[:count] for level in self.targets]
        random = torch.Generator()
        labels = self._labels(self.training_samples)
        dataset = Images(self.training_images, labels, targets, random if self.draws else None)
        order = EpochOrder(count, random, self._seed_of_epoch)
        whole_batches = BatchSampler(order, self.batch_size, drop_last=count > self.batch_size)
        return DataLoader(dataset, batch_size=None, sampler=whole_batches)

    def _seed_of_epoch(self) -> int:
        return seed_of(self.order_seed, self.trainer.current_epoch if self.trainer else 0)

    def val_dataloader(self) -> "DataLoader[Batch]":
        """The held-out good images."""
        targets = [level[len(self.training_samples) :] for level in self.targets]
        dataset = Images(self.held_out_images, self._labels(self.held_out_samples), targets)
        return DataLoader(
            dataset, batch_size=None, sampler=BatchSampler(SequentialSampler(dataset), self.batch_size, drop_last=False)
        )

    def _as_trained(self, samples: List[Sample]) -> List[Sample]:
        return with_depths(samples, lambda name: self.depths.get(name, 16))

    def _labels(self, samples: List[Sample]) -> Tensor:
        return torch.tensor([self.class_names.index(sample.class_name) for sample in samples], dtype=torch.int64)
