"""The read-out and the thresholds of the graph that is deployed, fitted again on that graph.

A read-out judges a distance by the deviation that it has on good images. Where good images do not differ, before a
saturated background, that of the float network is next to nothing, and the rounding of INT8 is many times as large:
every good image would look defective. So good images are run through both graphs, and what changes between them
corrects the statistics (`export.readout`).
"""

import dataclasses
from collections import Counter
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx

from engines.metadata import ModelInfo, is_defect
from export.quantize import observe
from export.readout import Seen, read_statistics, refit, see, widen, with_statistics
from uad.data.folder import Sample
from uad.data.reading import each_image
from uad.evaluation.thresholds import limits_at, paired_threshold
from uad.exporting.images import READOUT_IMAGES, CalibrationImages, first_of_each_class
from uad.progress import progress, with_steps

FEWEST_IMAGES = 8  # of a class, for its statistics to be corrected: fewer say little of a deviation
Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the read-out and the thresholds of a deployed graph rest on."""

    has_statistics: bool  # whether there was a read-out to be fitted
    is_known: bool  # whether the class of any image is known
    images: Dict[str, int]  # class -> on how many of its images the read-out was fitted again
    thresholds: List[str]  # the classes with thresholds that were chosen again
    held_out: Dict[str, int]  # class -> on how many held-out images
    recorded: int  # number of images that training held out
    above: Dict[str, float]  # class that keeps its threshold -> part of its good images that lie above it


class Refit:
    """What the float graph makes of some good images, by which the read-outs of deployed graphs are corrected.

    Attributes:
        counts: class -> on how many of its images the correction rests. Where no class is known, as in random-normal
            images, or there are too few of each, it is empty: statistics then stay, and deviations are widened by the
            noise that is seen.
        statistics: of the float graph's read-out; None where it has none, and nothing is to be fitted again.
        before: the float graph.
    """

    def __init__(self, model: onnx.ModelProto, images: CalibrationImages, most: int = READOUT_IMAGES) -> None:
        """Choose the images.

        Args:
            model: the float32 graph.
            images: which.
            most: of each class.
        """
        samples = first_of_each_class(images.readout, most)
        counts = Counter(sample.class_name for sample in samples)
        self.counts = {name: count for name, count in sorted(counts.items()) if count >= FEWEST_IMAGES}
        self._samples = [sample for sample in samples if sample.class_name in self.counts]
        self._images = images
        self.before = model
        self.statistics = read_statistics(model)
        self._before: Optional[Seen] = None

    @property
    def passes(self) -> int:
        """How many images the next `readout` runs through graphs: the first time, through the float graph too."""
        if self.statistics is None:
            return 0
        return (len(self._samples) or self._images.count) * (2 if self._before is None else 1)

    def readout(self, model: onnx.ModelProto, step: Step = lambda: None) -> onnx.ModelProto:
        """A deployed graph, that of the float graph in another precision, with the read-out that it needs.

        Args:
            model: the graph; it is not changed.
            step: called after each image.

        Raises:
            CalibrationError: values that are not finite.
        """
        if self.statistics is None:
            return model
        if self._before is None:
            self._before = self._see(self.before, step)
        correct = refit if self.counts else widen
        return with_statistics(model, correct(self.statistics, self._before, self._see(model, step)))

    def _see(self, model: onnx.ModelProto, step: Step) -> Seen:
        if not self.counts:
            return see(model, with_steps(self._images, step), [0] * self._images.count)
        classes, size = self._images.info.classes, self._images.info.size
        return see(
            model,
            with_steps(each_image(self._samples, size), step),
            [classes.index(sample.class_name) for sample in self._samples],
        )


def fit_again(
    model: onnx.ModelProto, info: ModelInfo, refit: Refit, images: CalibrationImages
) -> Tuple[onnx.ModelProto, ModelInfo, Fit]:
    """A graph of another precision with the read-out and the thresholds that it needs, its description, and the fit."""
    with progress("Fitting the read-out again", refit.passes) as step:
        model = refit.readout(model, step)
    with progress("Choosing thresholds", 2 * len(images.held_out)) as step:
        info, chosen = choose_thresholds(model, info, refit.before, images.held_out, step)
    info = dataclasses.replace(info, refitted={"images": refit.counts, "thresholds": chosen})
    unchanged = [sample for sample in images.readout if sample.class_name not in chosen]
    with progress("Trying thresholds", len(unchanged)) as step:
        above = share_above(model, info, unchanged, step)
    held_out = Counter(sample.class_name for sample in images.held_out)
    recorded = sum(map(len, info.held_out.values()))
    fit = Fit(refit.statistics is not None, bool(images.readout), refit.counts, chosen, dict(held_out), recorded, above)
    return model, info, fit


def share_above(
    model: onnx.ModelProto, info: ModelInfo, good: Sequence[Sample], step: Step = lambda: None
) -> Dict[str, float]:
    """Class -> part of these good images that a deployed graph would call defective."""
    scores = _judged(model, info, good, ["score"], step)["score"].tolist() if good else []
    called: Dict[str, List[bool]] = {}
    for sample, score in zip(good, scores):
        called.setdefault(sample.class_name, []).append(is_defect(score, info.threshold_of(sample.class_name)))
    return {name: sum(each) / len(each) for name, each in called.items()}


def choose_thresholds(
    model: onnx.ModelProto,
    info: ModelInfo,
    before: onnx.ModelProto,
    held_out: Sequence[Sample],
    step: Step = lambda: None,
) -> Tuple[ModelInfo, List[str]]:
    """Thresholds by which a deployed graph decides on the held-out images as the float graph did, and limits.

    A class without such images keeps its threshold and its limit. The threshold of an unknown class is chosen again
    where every class has some. See `paired_threshold`.

    Args:
        model: the deployed graph.
        info: its description, with the thresholds of the float graph.
        before: the float graph.
        held_out: good images that were not trained on.
        step: called after each image, twice for each.

    Returns:
        The description with the new thresholds and limits, and the classes that have them.
    """
    if not held_out:
        return info, []
    names = np.array([sample.class_name for sample in held_out])
    chosen = [name for name in info.classes if name in names]
    judged = _judged(model, info, held_out, info.outputs, step)
    scores, expected = judged["score"], _judged(before, info, held_out, ["score"], step)["score"]
    thresholds, threshold = dict(info.thresholds), info.threshold
    for name in chosen:
        members = names == name
        thresholds[name] = paired_threshold(scores[members], expected[members], info.thresholds[name])
    if chosen == info.classes:
        threshold = paired_threshold(scores, expected, info.threshold)
    limits = dict(info.limits)
    if limits:
        right = np.array(info.classes)[judged["class_index"]] == names
        limits.update(limits_at(judged["class_distance"][right], names[right], chosen))
    return dataclasses.replace(info, thresholds=thresholds, threshold=threshold, limits=limits), chosen


def _judged(
    model: onnx.ModelProto, info: ModelInfo, samples: Sequence[Sample], outputs: List[str], step: Step
) -> Dict[str, np.ndarray]:
    """Outputs of a graph for some images, (N, ...) each."""
    seen = list(observe(model, outputs, with_steps(each_image(samples, info.size), step)))
    return {name: np.concatenate([values[name] for values in seen]) for name in outputs}
