"""How right a model is: accuracy on test images, and agreement with a reference model."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence, Tuple

import numpy as np

from engines import Engine, Prediction
from engines.errors import UadWarning, UserError
from engines.metadata import DEFECT, GOOD, UNKNOWN, is_defect
from uad.data.folder import Sample, with_depths
from uad.data.reading import LabelledImage, read_labelled
from uad.evaluation.metrics import PixelCurve, best_f1, image_auroc, spearman

FIGURES = ("image_auroc", "pixel_auroc", "aupro", "image_f1")


@dataclasses.dataclass
class ScoredImage:
    """One test image as a model, and perhaps a reference, sees it."""

    sample: Sample
    score: float
    threshold: float
    reference_score: Optional[float] = None
    reference_threshold: float = 0.0
    max_abs_map_diff: float = 0.0
    merged: int = 0  # number of regions of its mask that merged as it shrank to the model's size
    seen_as: Optional[str] = None  # class that the model sees; None where it does not tell
    class_distance: Optional[float] = None
    is_unknown: bool = False  # whether it is beyond the limit of that class

    @property
    def is_called(self) -> bool:
        """Whether it is called defective."""
        return is_defect(self.score, self.threshold)

    @property
    def flipped(self) -> bool:
        """Whether the reference, at its own threshold, decides otherwise."""
        if self.reference_score is None:
            return False
        return self.is_called != is_defect(self.reference_score, self.reference_threshold)

    @property
    def flipped_before(self) -> bool:
        """The same, had the model kept the reference's threshold."""
        if self.reference_score is None:
            return False
        before = self.reference_threshold
        return is_defect(self.score, before) != is_defect(self.reference_score, before)


@dataclasses.dataclass
class Evaluation:
    """What `evaluate` found: a report with the keys of `uad test --json`, every score, and the curves of the masks."""

    report: Dict[str, Any]
    images: List[ScoredImage]
    curves: Dict[str, PixelCurve]  # pixel curves of the classes with masks


def evaluate(
    engine: Engine,
    samples: Sequence[Sample],
    reference: Optional[Engine] = None,
    progress: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Judge every sample by a model, and beside a reference if there is one; see `evaluate_beside`.

    Raises:
        UserError: as `evaluate_beside`.
    """
    engines = [engine] if reference is None else [reference, engine]
    return evaluate_beside(engines, with_depths(samples, engine.info.depth_of), progress)[-1]


def evaluate_beside(
    engines: Sequence[Engine], samples: Sequence[Sample], progress: Callable[[], object] = lambda: None
) -> List[Evaluation]:
    """Judge every sample by each model: image AUROC, pixel AUROC, AUPRO (to 30% false positives) and best F1.

    Pixel figures are at the models' input size: maps are enlarged bilinearly, and a pixel of a mask is defective if any
    of its source pixels is; how many regions merge by that is counted. An image with a defect but no mask counts for
    image figures only; good images of a class with masks count as all good.

    A class that a model does not know is judged by the threshold of the class that it is seen as, or of an unknown one.
    It stands in no mean, but apart, and a `UadWarning` tells.

    Of every model but the first the agreement with the first is told. Agreement over all classes is that of all images,
    but Spearman's correlation the mean over the classes; beside it stands the class of which it is lowest.

    Every image is decoded once. Memory: one batch of images, and for each model 24 MB for each class with masks (see
    `PixelCurve`), whatever the number of images.

    Args:
        engines: the models.
        samples: the images; see `with_depths`.
        progress: called after each image.

    Raises:
        DataError: names every file that cannot be read.
        UserError: the models take images of different sizes or depths. Of other classes or another normalisation a
            `UadWarning` tells.
    """
    first, size = engines[0], engines[0].info.size
    for engine in engines[1:]:
        _check_beside(first, engine)
    for engine in engines:
        unknown = sorted({sample.class_name for sample in samples} - set(engine.info.classes))
        if unknown:
            message = f"{engine.path} does not know {', '.join(unknown)}: judged as what it is seen as, and in no mean"
            warnings.warn(message, UadWarning, stacklevel=2)
    ordered = sorted(samples, key=lambda sample: sample.class_name)
    masked = sorted({sample.class_name for sample in samples if sample.masks})
    curves = [{name: PixelCurve() for name in masked} for _ in engines]
    scored: List[List[ScoredImage]] = [[] for _ in engines]
    for group in read_labelled(ordered, size, max(engine.batch for engine in engines)):
        pixels, names = np.stack([image.pixels for image in group]), [str(image.sample.path) for image in group]
        predictions = [engine.infer(pixels, names) for engine in engines]
        for engine, prediction, images, of_classes in zip(engines, predictions, scored, curves):
            for index, image in enumerate(group):
                judged = _judged(image, index, engine, prediction)
                if engine is not first:
                    _put_beside(judged, index, prediction, first, predictions[0])
                images.append(judged)
                _count_pixels(of_classes.get(image.sample.class_name), image, prediction.anomaly_map[index])
        for _ in group:
            progress()
    return [
        Evaluation(_report(images, of_classes, engine.info.classes), images, of_classes)
        for engine, images, of_classes in zip(engines, scored, curves)
    ]


def _check_beside(first: Engine, engine: Engine) -> None:
    """Refuse two models that cannot see the same pixels; warn of two that are not one network."""
    one, other = first.info, engine.info
    if (other.size, other.map_stride) != (one.size, one.map_stride):
        raise UserError(f"{first.path} takes images of {one.size}, {engine.path} of {other.size}")
    if other.depths != one.depths:
        depths = [info.depths or 16 for info in (one, other)]
        raise UserError(f"{first.path} reads 16-bit files of {depths[0]} bits, {engine.path} of {depths[1]}")
    differing = []
    if set(one.classes) != set(other.classes):
        differing.append("classes")
    if not np.allclose([*one.mean, *one.std], [*other.mean, *other.std]):
        differing.append("normalisation")
    if differing:
        other_than = " and ".join(differing)
        message = f"{engine.path} is no other precision of {first.path}: it has other {other_than}"
        warnings.warn(message, UadWarning, stacklevel=2)


def _judged(image: LabelledImage, index: int, engine: Engine, prediction: Prediction) -> ScoredImage:
    seen_as, class_distance = prediction.class_of(index, engine.info.classes)
    return ScoredImage(
        sample=image.sample,
        score=float(prediction.score[index]),
        threshold=engine.info.threshold_of(image.sample.class_name, seen_as),
        merged=image.merged,
        seen_as=seen_as,
        class_distance=class_distance,
        is_unknown=engine.info.is_unknown(seen_as, class_distance),
    )


def _put_beside(
    judged: ScoredImage, index: int, prediction: Prediction, reference: Engine, expected: Prediction
) -> None:
    """Note what the reference makes of an image."""
    judged.reference_score = float(expected.score[index])
    seen_as, _ = expected.class_of(index, reference.info.classes)
    judged.reference_threshold = reference.info.threshold_of(judged.sample.class_name, seen_as)
    judged.max_abs_map_diff = float(np.abs(prediction.anomaly_map[index] - expected.anomaly_map[index]).max())


def _count_pixels(curve: Optional[PixelCurve], image: LabelledImage, anomaly_map: np.ndarray) -> None:
    """Add an image to the curve of its class; the mask of a good image without one is empty."""
    if curve is not None and (image.mask is not None or not image.sample.is_defect):
        size = (image.pixels.shape[0], image.pixels.shape[1])
        curve.update(enlarge(anomaly_map, size), np.zeros(size, bool) if image.mask is None else image.mask)


def _report(images: Sequence[ScoredImage], curves: Dict[str, PixelCurve], known: Collection[str]) -> Dict[str, Any]:
    """The figures of each class, those that the model does not know apart, and of all that it knows."""
    names = sorted({image.sample.class_name for image in images})
    of_each = {
        name: _figures([image for image in images if image.sample.class_name == name], curves.get(name))
        for name in names
    }
    classes = {name: figures for name, figures in of_each.items() if name in known}
    report: Dict[str, Any] = {key: _mean([figures[key] for figures in classes.values()]) for key in FIGURES}
    report["classes"] = classes
    report["unknown_classes"] = {name: figures for name, figures in of_each.items() if name not in known}
    if classes and images[0].reference_score is not None:
        report["agreement"] = _agreement([image for image in images if image.sample.class_name in known])
        # Over all images, a score's offset between classes would pass for agreement.
        correlations = {name: figures["agreement"]["spearman"] for name, figures in classes.items()}
        report["agreement"]["spearman"] = _mean(list(correlations.values()))
        defined = {name: value for name, value in correlations.items() if value is not None}
        report["agreement"]["lowest"] = min(defined, key=defined.__getitem__) if defined else None
    return report


def enlarge(anomaly_map: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Enlarge an anomaly map (h, w) float32 bilinearly to `size` (height, width)."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(anomaly_map, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _figures(scored: Sequence[ScoredImage], curve: Optional[PixelCurve]) -> Dict[str, Any]:
    scores = np.array([image.score for image in scored])
    defects = np.array([image.sample.is_defect for image in scored])
    figures: Dict[str, Any] = {
        "image_auroc": image_auroc(scores, defects),
        "pixel_auroc": curve.auroc() if curve else None,
        "aupro": curve.aupro() if curve else None,
        "image_f1": best_f1(scores, defects),
        "n_good": int((~defects).sum()),
        "n_bad": int(defects.sum()),
        "n_masks": sum(bool(image.sample.masks) for image in scored),
        "n_merged_regions": sum(image.merged for image in scored),
        **_classes(scored),
    }
    if scored[0].reference_score is not None:
        figures["agreement"] = _agreement(scored)
    return figures


def _classes(scored: Sequence[ScoredImage]) -> Dict[str, Optional[int]]:
    """How many images are seen as another class, and how many good and defective ones as none; None: not told."""
    tells_class, tells_distance = scored[0].seen_as is not None, scored[0].class_distance is not None
    unknown = [image.sample.is_defect for image in scored if image.is_unknown]
    of_other = sum(image.seen_as != image.sample.class_name for image in scored if not image.is_unknown)
    return {
        "n_of_other_class": of_other if tells_class else None,
        "n_good_unknown": unknown.count(False) if tells_distance else None,
        "n_bad_unknown": unknown.count(True) if tells_distance else None,
    }


def _agreement(scored: Sequence[ScoredImage]) -> Dict[str, Any]:
    scores = np.array([image.score for image in scored])
    reference = np.array([image.reference_score for image in scored], np.float64)
    return {
        "spearman": spearman(scores, reference),
        "max_abs_map_diff": max(image.max_abs_map_diff for image in scored),
        "flipped": float(np.mean([image.flipped for image in scored])),
        "flipped_before": float(np.mean([image.flipped_before for image in scored])),
    }


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def write_scores(path: Path, images: Sequence[ScoredImage]) -> None:
    """Write every score as CSV, beside that of the reference, with the decision and the class that the model sees."""
    from engines.files import write_csv

    rows = []
    for image in images:
        sample = image.sample
        decision = UNKNOWN if image.is_unknown else DEFECT if image.is_called else GOOD
        told = [image.reference_score, image.seen_as, image.class_distance]
        row = [sample.path, sample.class_name, sample.kind, image.score, image.threshold, decision]
        rows.append([*row, *("" if value is None else value for value in told)])
    header = [
        "image",
        "class",
        "kind",
        "score",
        "threshold",
        "decision",
        "reference_score",
        "seen_as",
        "class_distance",
    ]
    write_csv(path, header, rows)
