"""Which good images calibrate INT8, to which the read-out is fitted again, and which are spared to judge it."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Counter as CounterOf
from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

from engines.metadata import ModelInfo
from export.errors import CalibrationError
from export.quantize import random_normal_images
from uad.data.content import digests_of
from uad.data.folder import Sample, draw, find_classes, train_samples, with_depths
from uad.data.reading import each_image, load_images

CALIBRATION_IMAGES = 128  # by default, or all that there are
READOUT_IMAGES = 64  # of a class: they correct statistics, for which fewer do than to start anew
RANDOM_NORMAL = "random-normal"
JUDGED_IMAGES = 32  # on which layers are judged one by one


@dataclasses.dataclass(frozen=True)
class CalibrationImages:
    """Images to calibrate on, decoded one at a time, and good images beside them."""

    info: ModelInfo
    source: str  # "images" or "random-normal"
    count: int
    samples: List[Sample]  # none for random-normal
    spare: List[Sample]  # others of the folder, not used to calibrate, in an order drawn at random
    seed: int
    readout: List[Sample]  # images of known classes to fit the read-out to: none was held out
    held_out: List[Sample]  # images that training held out, to choose thresholds on

    def __iter__(self) -> Iterator[np.ndarray]:
        """(height, width, 3) uint8 each."""
        if self.source == "images":
            return each_image(self.samples, self.info.size)
        return iter(random_normal_images(self.info, self.count, self.seed))

    def by_class(self) -> List[Iterator[np.ndarray]]:
        """The same images, those of each class on their own; random-normal images are of one class."""
        if self.source != "images":
            return [iter(self)]
        names = sorted({sample.class_name for sample in self.samples})
        return [
            each_image([sample for sample in self.samples if sample.class_name == name], self.info.size)
            for name in names
        ]

    def to_judge_layers(self) -> Tuple[np.ndarray, List[str], str]:
        """`JUDGED_IMAGES` images (N, height, width, 3) uint8, their classes, and what they are in words.

        They are spared ones if there are any, otherwise those that calibrated.
        """
        samples = draw(self.spare or self.samples, JUDGED_IMAGES, self.seed)
        if not samples:
            images = np.stack(list(random_normal_images(self.info, min(self.count, JUDGED_IMAGES), self.seed)))
            return images, ["random-normal"] * len(images), f"{len(images)} random-normal images"
        which = "good images that calibration did not use" if self.spare else "of the calibration images: none is left"
        return load_images(samples, self.info.size), [s.class_name for s in samples], f"{len(samples)} {which}"


def calibration_images(
    info: ModelInfo,
    source: str,
    count: Optional[int] = None,
    classes: Optional[Sequence[str]] = None,
    seed: int = 0,
    spare_half: bool = False,
) -> CalibrationImages:
    """Draw images to calibrate on, from the model's classes where those are there.

    Args:
        info: the description of the model.
        source: a folder of good images (see `uad.data.folder`), or "random-normal".
        count: how many, spread over the classes; None takes `CALIBRATION_IMAGES`, or all that there are.
        classes: which classes of the folder; None for all.
        seed: of the draw.
        spare_half: at least half of each class is spared, to compare scores on.

    Raises:
        CalibrationError: too few images, or settings that do not go together.
        DataError: the folder holds no good images, or not the classes that are named.
    """
    if source == RANDOM_NORMAL:
        if classes:
            raise CalibrationError("--calibration-classes is for a folder of good images, not random-normal")
        if spare_half:
            raise CalibrationError("--precision auto compares scores of good images: give --calibration-data a folder")
        return CalibrationImages(info, RANDOM_NORMAL, count or CALIBRATION_IMAGES, [], [], seed, [], [])
    if classes:
        find_classes(Path(source), classes)  # names those that are not there
    available = with_depths(train_samples(Path(source)), info.depth_of)
    known = [sample for sample in available if sample.class_name in info.classes]
    held_out = _held_out(info, known)
    shuffled = draw(known or available, len(available), seed)
    kept = set(held_out)
    usable = [sample for sample in shuffled if sample not in kept]
    free = _first_half_of_each_class(usable) if spare_half else usable
    if classes:
        free = [sample for sample in free if sample.class_name in classes]
        held_out = [sample for sample in held_out if sample.class_name in classes]
    count = count or min(len(free), CALIBRATION_IMAGES)
    if len(free) < count or not free:
        rest = len(shuffled) - len(free)
        but = f", {rest} of which are kept to judge," if rest else ","
        raise CalibrationError(
            f"{source} holds {len(shuffled)} good images{but} {count} were asked: lower --calibration-images"
        )
    readout = first_of_each_class(free, READOUT_IMAGES) if known else []
    used = {*free[:count], *(readout if spare_half else [])}
    spare = [sample for sample in shuffled if sample not in used]
    return CalibrationImages(info, "images", count, free[:count], spare, seed, readout, held_out)


def _held_out(info: ModelInfo, samples: Sequence[Sample]) -> List[Sample]:
    """The images that training held out, by their content: the folder may have grown, moved, or be another."""
    recorded = [sample for sample in samples if info.held_out.get(sample.class_name)]
    digests = zip(recorded, digests_of(recorded))
    return [sample for sample, digest in digests if digest in info.held_out[sample.class_name]]


def first_of_each_class(shuffled: Sequence[Sample], most: int) -> List[Sample]:
    """At most so many of each class, in the order given."""
    names = sorted({sample.class_name for sample in shuffled})
    return [sample for name in names for sample in [s for s in shuffled if s.class_name == name][:most]]


def _first_half_of_each_class(shuffled: Sequence[Sample]) -> List[Sample]:
    sizes = Counter(sample.class_name for sample in shuffled)
    seen: CounterOf[str] = Counter()
    halves = []
    for sample in shuffled:
        if seen[sample.class_name] < sizes[sample.class_name] // 2:
            halves.append(sample)
        seen[sample.class_name] += 1
    return halves
