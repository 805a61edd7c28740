"""How right a model is: accuracy on test images, and agreement with a reference model."""

import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from engines import Engine, Prediction
from engines.errors import UserError
from engines.metadata import is_defect
from uad.data.folder import Sample, load_images, mask_of, with_depths
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
    merged: int = 0  # how many regions of its mask merged as it shrank to the model's size

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
    curves: Dict[str, PixelCurve]  # of each class that has masks


def evaluate(
    engine: Engine,
    samples: Sequence[Sample],
    reference: Optional[Engine] = None,
    progress: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Judge every sample and compute image AUROC, pixel AUROC, AUPRO (to 30% false positives) and best F1.

    Pixel figures are at the model's input size: maps are enlarged bilinearly, and a pixel of a mask is defective if any
    of its source pixels is; how many regions merge by that is counted. An image with a defect but no mask counts for
    image figures only; good images of a class with masks count as all good.

    Agreement over all classes is that of all images, but Spearman's correlation the mean over the classes; beside it
    stands the class of which it is lowest.

    Memory: one batch of images and 24 MB for each class with masks (see `PixelCurve`), whatever the number of images.

    Raises:
        UserError: the reference takes images of another size.
    """
    if reference is not None and (reference.info.size, reference.info.map_stride) != (
        engine.info.size,
        engine.info.map_stride,
    ):
        raise UserError(f"the reference takes images of {reference.info.size}, the model of {engine.info.size}")
    images: List[ScoredImage] = []
    samples = with_depths(samples, engine.info.depth_of)
    classes: Dict[str, Any] = {}
    curves: Dict[str, PixelCurve] = {}
    for name in sorted({sample.class_name for sample in samples}):
        members = [sample for sample in samples if sample.class_name == name]
        curve = PixelCurve() if any(sample.masks for sample in members) else None
        scored: List[ScoredImage] = []
        for start in range(0, len(members), engine.batch):
            part = members[start : start + engine.batch]
            scored += _judge(part, engine, reference, curve)
            for _ in part:
                progress()
        classes[name] = _figures(scored, curve)
        if curve is not None:
            curves[name] = curve
        images += scored
    report: Dict[str, Any] = {key: _mean([figures[key] for figures in classes.values()]) for key in FIGURES}
    report["classes"] = classes
    if reference is not None:
        report["agreement"] = _agreement(images)
        # Over all images, a score's offset between classes would pass for agreement.
        correlations = {name: figures["agreement"]["spearman"] for name, figures in classes.items()}
        report["agreement"]["spearman"] = _mean(list(correlations.values()))
        known = {name: value for name, value in correlations.items() if value is not None}
        report["agreement"]["lowest"] = min(known, key=known.__getitem__) if known else None
    return Evaluation(report, images, curves)


def _judge(
    samples: Sequence[Sample], engine: Engine, reference: Optional[Engine], curve: Optional[PixelCurve]
) -> List[ScoredImage]:
    pixels = load_images(samples, engine.info.size)
    names = [str(sample.path) for sample in samples]
    prediction = engine.infer(pixels, names)
    other: Optional[Prediction] = reference.infer(pixels, names) if reference is not None else None
    scored = []
    for index, sample in enumerate(samples):
        image = ScoredImage(sample, float(prediction.score[index]), engine.info.threshold_of(sample.class_name))
        if reference is not None and other is not None:
            image.reference_score = float(other.score[index])
            image.reference_threshold = reference.info.threshold_of(sample.class_name)
            difference = np.abs(prediction.anomaly_map[index] - other.anomaly_map[index])
            image.max_abs_map_diff = float(difference.max())
        scored.append(image)
        if curve is not None and (sample.masks or not sample.is_defect):
            size = engine.info.size
            mask, image.merged = mask_of(sample, size) if sample.masks else (np.zeros(size, bool), 0)
            curve.update(enlarge(prediction.anomaly_map[index], size), mask)
    return scored


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
    }
    if scored[0].reference_score is not None:
        figures["agreement"] = _agreement(scored)
    return figures


def _agreement(scored: Sequence[ScoredImage]) -> Dict[str, Any]:
    scores = np.array([image.score for image in scored])
    reference = np.array([image.reference_score for image in scored], np.float64)
    return {
        "spearman": spearman(scores, reference),
        "max_relative_score_diff": float(np.max(np.abs(scores - reference) / np.maximum(np.abs(reference), 1e-12))),
        "max_abs_map_diff": max(image.max_abs_map_diff for image in scored),
        "flipped": float(np.mean([image.flipped for image in scored])),
        "flipped_before": float(np.mean([image.flipped_before for image in scored])),
    }


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def write_scores(path: Path, images: Sequence[ScoredImage]) -> None:
    """Write every score as CSV: image, class, kind, score, threshold, decision, and the reference's score if any."""
    from engines.files import write_csv

    rows = []
    for image in images:
        sample = image.sample
        decision = "defect" if image.is_called else "good"
        reference = "" if image.reference_score is None else image.reference_score
        rows.append([sample.path, sample.class_name, sample.kind, image.score, image.threshold, decision, reference])
    write_csv(path, ["image", "class", "kind", "score", "threshold", "decision", "reference_score"], rows)
