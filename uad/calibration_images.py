"""Which good images calibrate INT8, and which are spared to judge it."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, List, Sequence, Tuple
from typing import Counter as CounterOf

import numpy as np

from engines.metadata import ModelInfo
from export.errors import CalibrationError
from export.quantize import random_normal_images
from uad.data.folder import Sample, draw, find_classes, load_images, train_samples

CALIBRATION_IMAGES = 128  # by default, or all that there are
JUDGED_IMAGES = 32  # on which layers are judged one by one


@dataclasses.dataclass(frozen=True)
class CalibrationImages:
    """Images to calibrate on, decoded one at a time, and good images beside them."""

    info: ModelInfo
    source: str  # "images" or "random-normal"
    count: int
    samples: List[Sample]  # none for random-normal
    spare: List[Sample]  # of the same folder, not used to calibrate, in an order drawn at random
    seed: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """(height, width, 3) uint8 each."""
        if self.source == "images":
            return (load_images([sample], self.info.size)[0] for sample in self.samples)
        return iter(random_normal_images(self.info, self.count, self.seed))

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


def calibration_images(info: ModelInfo, options: Any) -> CalibrationImages:
    """Draw them as `uad export` was asked, from the model's classes where those are there.

    For --precision auto at least half of each class is spared.

    Raises:
        CalibrationError: no source is given, or too few images.
        DataError: the folder holds no good images, or not the classes that are named.
    """
    source = options.calibration_data
    is_auto = options.precision == "auto"
    if source is None:
        folder = "a folder of good images" + ("" if is_auto else ", or random-normal")
        raise CalibrationError(f"{options.precision} needs --calibration-data: {folder}")
    if source == "random-normal":
        if options.calibration_classes:
            raise CalibrationError("--calibration-classes is for a folder of good images, not random-normal")
        if is_auto:
            raise CalibrationError("--precision auto compares scores of good images: give --calibration-data a folder")
        count = options.calibration_images or CALIBRATION_IMAGES
        return CalibrationImages(info, "random-normal", count, [], [], options.seed)
    available = train_samples(Path(source))
    known = [sample for sample in available if sample.class_name in info.classes] or available
    shuffled = draw(known, len(known), options.seed)
    free = _first_half_of_each_class(shuffled) if is_auto else shuffled
    if options.calibration_classes:
        find_classes(Path(source), options.calibration_classes)  # names those that are not there
        free = [sample for sample in free if sample.class_name in options.calibration_classes]
    count = options.calibration_images or min(len(free), CALIBRATION_IMAGES)
    if len(free) < count or not free:
        half = f" of which {len(free)} may calibrate," if is_auto else ""
        raise CalibrationError(
            f"{source} holds {len(known)} good images,{half} {count} were asked: lower --calibration-images"
        )
    used = set(free[:count])
    spare = [sample for sample in shuffled if sample not in used]
    return CalibrationImages(info, "images", count, free[:count], spare, options.seed)


def _first_half_of_each_class(shuffled: Sequence[Sample]) -> List[Sample]:
    sizes = Counter(sample.class_name for sample in shuffled)
    seen: CounterOf[str] = Counter()
    halves = []
    for sample in shuffled:
        if seen[sample.class_name] < sizes[sample.class_name] // 2:
            halves.append(sample)
        seen[sample.class_name] += 1
    return halves
