"""What a report is made of: every model judged on the same images, timed, and its worst mistakes drawn."""

import base64
import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from engines import Engine
from engines.images import read_image, resize
from engines.metadata import ModelInfo
from uad.data.folder import Sample, with_depths
from uad.evaluation.evaluate import Evaluation, ScoredImage, evaluate_beside
from uad.judging.overlays import overlay

WORST = 4  # misses that are shown, and as many false alarms
SIDE = 320  # of a photograph in the page, pixels at most


@dataclasses.dataclass
class Mistake:
    """A defect that was called good, or a good part that was called defective."""

    image: ScoredImage
    picture: str  # data: URL of the photograph beside its overlay


@dataclasses.dataclass
class Judged:
    """One model, and what it made of the images."""

    name: str
    info: ModelInfo
    runtime: str
    file_mb: float
    evaluation: Evaluation
    misses: List[Mistake]  # the surest first
    false_alarms: List[Mistake]
    timing: Optional[Dict[str, Any]] = None  # report of `engines.benchmark.benchmark`


def judge(
    paths: Sequence[Path], samples: Sequence[Sample], load: Callable[[Path], Engine], step: Callable[[], object]
) -> List[Judged]:
    """Judge the images by each model; beside the first, where there are several.

    Raises:
        UserError: a model cannot be loaded, takes images of another size than the first, or an image not be read.
    """
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(load(path)) for path in paths]
        evaluations = evaluate_beside(engines, with_depths(samples, engines[0].info.depth_of), step)
        return [_judged(*each) for each in zip(paths, engines, evaluations)]


def _judged(path: Path, engine: Engine, evaluation: Evaluation) -> Judged:
    missed = [each for each in evaluation.images if each.sample.is_defect and not each.is_called]
    alarms = [each for each in evaluation.images if not each.sample.is_defect and each.is_called]
    return Judged(
        name=_name(path),
        info=engine.info,
        runtime=engine.runtime,
        file_mb=path.stat().st_size / 1e6,
        evaluation=evaluation,
        misses=_drawn(engine, sorted(missed, key=_margin)[:WORST]),
        false_alarms=_drawn(engine, sorted(alarms, key=_margin, reverse=True)[:WORST]),
    )


def _name(path: Path) -> str:
    """A run by its folder, a file by its name."""
    return path.parent.name if path.name == "model.ckpt" else path.name


def _margin(image: ScoredImage) -> float:
    return image.score / max(image.threshold, 1e-12)


def _drawn(engine: Engine, images: Sequence[ScoredImage]) -> List[Mistake]:
    mistakes = []
    for image in images:
        photograph = read_image(image.sample.path, depth=image.sample.depth)
        prediction = engine.infer(resize(photograph, engine.info.size)[None], [str(image.sample.path)])
        scale = min(1.0, SIDE / max(photograph.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in photograph.shape[:2])
        marked = overlay(resize(photograph, (height, width)), prediction.anomaly_map[0], image.threshold)
        mistakes.append(Mistake(image, _data_url(marked)))
    return mistakes


def _data_url(picture: np.ndarray) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "jpeg", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
