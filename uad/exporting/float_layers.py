"""Which layers to leave in float so that an INT8 model still judges as the float one does: `--precision auto`.

A choice of layers holds an agreement `least` where

- Spearman's correlation of the image scores with the FP32 model's, of the class where it is lowest, is at least that,
  over good images that calibration did not use. The same images with a defect drawn on each are judged too, and the
  lower of the two correlations counts: what good images show may end where a defect begins; and
- if labelled images are given, the image AUROC, mean over the classes, falls by at most 1 - least.

Labels count only where the user gives them: who chooses layers by test labels must not report accuracy on that test.
Likewise the correlation reached is measured on the images on which the layers were chosen; expect less on others.
Layers left in float are FP32 in the graph, not FP16.
"""

import dataclasses
from collections import Counter
from typing import Callable, Collection, Dict, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np
import onnx

from engines.metadata import ModelInfo
from export.errors import CalibrationError
from export.sensitivity import infer_model
from uad.data.defects import with_defects
from uad.data.folder import Sample
from uad.data.reading import load_images
from uad.evaluation.metrics import image_auroc, spearman

FEWEST_IMAGES = 8  # of a class: with fewer, two neighbours that change places cost more than 2 points of correlation
MOST_IMAGES = 64  # of a class
MOST_TRIALS_BACK = 16  # of giving layers back to INT8
ROUNDING = 1e-9  # of a correlation that should be 1


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How alike a quantized model and the FP32 model judge."""

    spearman: float  # rank correlation of image scores, lower of good and drawn, lowest of the classes
    auroc_drop: Optional[float] = None  # FP32's mean image AUROC minus this model's; None without labelled images

    def holds(self, least: float) -> bool:
        """Whether the correlation is at least `least`, and the AUROC falls by at most 1 - `least`."""
        enough = least - ROUNDING
        return self.spearman >= enough and 1.0 - (self.auroc_drop or 0.0) >= enough


@dataclasses.dataclass(frozen=True)
class FloatLayers:
    """The layers to leave in float, and what that brings."""

    names: List[str]
    of: int  # number of layers
    agreement: Agreement
    int8: Agreement  # agreement with every layer in INT8
    good: int  # images that were compared
    labelled: int


class Comparison:
    """The FP32 model's scores on some images, beside which quantized models are put.

    Every image is kept in memory, 0.2 MB each at 256x256, good ones twice.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        info: ModelInfo,
        good: Sequence[Sample],
        labelled: Sequence[Sample] = (),
        runtime: Optional[str] = None,
    ) -> None:
        """Score the images by the FP32 model.

        Args:
            model: the float32 graph.
            info: its description.
            good: good images that calibration did not use; see `good_for_agreement`.
            labelled: images with labels, or none; see `check_labelled`.
            runtime: a name in `engines.RUNTIMES`; None takes the fastest installed.

        Raises:
            CalibrationError: the model gives all good images of a class one score.
        """
        self.good, self.labelled, self._runtime = good, labelled, runtime
        images = load_images([*good, *labelled], info.size)
        self._images = np.concatenate([images[: len(good)], with_defects(images[: len(good)]), images[len(good) :]])
        self._reference = infer_model(model, info, self._images, runtime).score
        flat = sorted(name for name, figure in self._spearman(self._reference).items() if figure is None)
        if flat:
            raise CalibrationError(f"the fp32 model gives every good image of {', '.join(flat)} the same score")

    def agreement(self, model: onnx.ModelProto, info: ModelInfo) -> Agreement:
        """How alike a quantized model judges; with the biases and the read-out of the file that is written."""
        scores = infer_model(model, info, self._images, self._runtime).score
        # Scores of a class that have all become equal tell nothing apart: that is no agreement.
        correlation = min(figure or 0.0 for figure in self._spearman(scores).values())
        if not self.labelled:
            return Agreement(correlation)
        return Agreement(correlation, self._auroc(self._reference) - self._auroc(scores))

    def _spearman(self, scores: np.ndarray) -> Dict[str, Optional[float]]:
        correlations: Dict[str, Optional[float]] = {}
        for name, positions in _by_class(self.good).items():
            drawn = [position + len(self.good) for position in positions]
            both = [spearman(self._reference[each], scores[each]) for each in (positions, drawn)]
            correlations[name] = min(both) if None not in both else None  # type: ignore[type-var]
        return correlations

    def _auroc(self, scores: np.ndarray) -> float:
        figures = []
        for positions in _by_class(self.labelled).values():
            area = image_auroc(
                scores[2 * len(self.good) :][positions], [self.labelled[index].is_defect for index in positions]
            )
            assert area is not None  # check_labelled
            figures.append(area)
        return float(np.mean(figures))


def choose_float_layers(
    as_written: Callable[[Collection[str]], Tuple[onnx.ModelProto, ModelInfo]],
    order: Sequence[str],
    comparison: Comparison,
    least: float,
    progress: Callable[[], object] = lambda: None,
) -> FloatLayers:
    """The fewest layers that `fewest_float_layers` finds to hold an agreement.

    Args:
        as_written: names of layers to leave in float -> the graph that would be written, and its description.
        order: every quantizable layer, the one that hurts most first.
        comparison: with the same model.
        least: the agreement to be held; see `Agreement.holds`.
        progress: called after each model that is tried.
    """
    tried: Dict[FrozenSet[str], Agreement] = {}

    def agreement_of(float_layers: Sequence[str]) -> Agreement:
        key = frozenset(float_layers)
        if key == frozenset(order):  # nothing is quantized: that is the FP32 model
            tried[key] = Agreement(1.0, 0.0 if comparison.labelled else None)
        elif key not in tried:
            tried[key] = comparison.agreement(*as_written(key))
            progress()
        return tried[key]

    layers = fewest_float_layers(order, lambda names: agreement_of(names).holds(least))
    counts = len(comparison.good), len(comparison.labelled)
    return FloatLayers(layers, len(order), agreement_of(layers), agreement_of(()), *counts)


def fewest_float_layers(
    order: Sequence[str], accepts: Callable[[Sequence[str]], bool], most_trials_back: int = MOST_TRIALS_BACK
) -> List[str]:
    """Few layers that `accepts`: the shortest prefix of `order` by bisection, less what can be given back.

    The prefix is the shortest if a longer one never does worse. Then ever smaller pieces of it, from its end, are given
    back to INT8 wherever the rest is still accepted, within a bounded number of trials.

    Args:
        order: every layer, the one that hurts most first. That all of them together are accepted is taken for granted.
        accepts: whether the model is right with these layers in float, the others in INT8.
        most_trials_back: of giving back.

    Returns:
        The layers in the order given; none where plain INT8 is accepted.
    """
    if accepts(()):
        return []
    rejected, accepted = 0, len(order)
    while accepted - rejected > 1:
        middle = (rejected + accepted) // 2
        if accepts(order[:middle]):
            accepted = middle
        else:
            rejected = middle
    return _give_back(list(order[:accepted]), accepts, most_trials_back)


def _give_back(layers: List[str], accepts: Callable[[Sequence[str]], bool], most_trials: int) -> List[str]:
    size = len(layers) // 2
    trials = 0
    while size and trials < most_trials:
        end = len(layers)
        while end > 0 and trials < most_trials:
            rest = layers[: max(end - size, 0)] + layers[end:]
            trials += 1
            if rest and accepts(rest):
                layers = rest
            end -= size
        size //= 2
    return layers


def most_trials(layers: int) -> int:
    """The models that `fewest_float_layers` tries at most: plain INT8, the bisection, and the giving back."""
    return 1 + int(np.ceil(np.log2(max(layers, 1)))) + MOST_TRIALS_BACK


def good_for_agreement(spare: Sequence[Sample]) -> List[Sample]:
    """Of good images that calibration did not use, in an order drawn at random, the first `MOST_IMAGES` of each class.

    Raises:
        CalibrationError: too few of a class.
    """
    chosen: List[Sample] = []
    for name in sorted({sample.class_name for sample in spare}):
        chosen += [sample for sample in spare if sample.class_name == name][:MOST_IMAGES]
    counts = Counter(sample.class_name for sample in chosen)
    missing = {name: count for name, count in counts.items() if count < FEWEST_IMAGES}
    if missing:
        there = ", ".join(f"{count} of {name}" for name, count in missing.items())
        raise CalibrationError(
            f"--precision auto compares scores on at least {FEWEST_IMAGES} good images of each class that calibration "
            f"did not use, here {there}: add images, or lower --calibration-images"
        )
    return chosen


def check_labelled(samples: Sequence[Sample], root: object) -> List[Sample]:
    """The labelled images of the classes that have both good images and defects.

    Raises:
        CalibrationError: there are none.
    """
    kinds = {(sample.class_name, sample.is_defect) for sample in samples}
    both = {name for name, is_defect in kinds if is_defect and (name, False) in kinds}
    if not both:
        raise CalibrationError(
            f"--validation-data {root} holds no class with good images and defects: "
            "expected CLASS/test/good and CLASS/test/<defect>"
        )
    return [sample for sample in samples if sample.class_name in both]


def _by_class(samples: Sequence[Sample]) -> Dict[str, List[int]]:
    """Class -> the positions of its samples."""
    positions: Dict[str, List[int]] = {}
    for index, sample in enumerate(samples):
        positions.setdefault(sample.class_name, []).append(index)
    return positions
