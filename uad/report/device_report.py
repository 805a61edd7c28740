"""What a device says of itself and of a model on it, in one file to send to whoever made the model.

It names no person, folder, host or class: versions, the plan's layers, ten drawn images judged by the model and by a
reference, and timings with the power mode that they were taken in.
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from engines import Engine, jetson, load
from engines.benchmark import benchmark, worker_command
from engines.plan_file import SUFFIX, read_description
from uad.data.synthetic import DEMO, GOOD, PRODUCTS, draw_image
from uad.evaluation.metrics import spearman

IMAGES = 10  # that are drawn, every second one with a defect
# Of `ModelInfo`: what does not name the user's parts or folders.
TOLD = ("model", "backbone", "height", "width", "map_stride", "precision", "float_layers", "weight_bits", "versions")


def drawn_images(size: Sequence[int]) -> np.ndarray:
    """The same `IMAGES` everywhere: (10, height, width, 3) uint8, of the demo's products."""
    from engines.images import resize

    images = []
    for index in range(IMAGES):
        name = DEMO[index // 2 % len(DEMO)]
        kind = list(PRODUCTS[name].defects)[0] if index % 2 else GOOD
        image, _ = draw_image(name, kind, size=max(32, *size), key=(2026, index // 2))
        images.append(resize(image, (size[0], size[1])))
    return np.stack(images)


def device_report(
    model: Path, reference: Optional[Path], seconds: float, progress: Callable[[], object] = lambda: None
) -> Dict[str, Any]:
    """What the model is, how it agrees with the reference, and how fast it is here.

    Args:
        model: an .onnx or .plan file.
        reference: the fp32 file, if it is at hand.
        seconds: how long to measure.
        progress: called after each of the benchmark's rounds.

    Raises:
        UserError: a file cannot be loaded, or not run here.
    """
    with load(model) as engine:
        content: Dict[str, Any] = {"file": _description_of(model, engine), "layers": engine.layers()}
        images = drawn_images(engine.info.size)
        scores = engine.infer(images)
    content["scores"] = [float(score) for score in scores.score]
    content["agreement"] = None
    if reference is not None:
        with load(reference) as engine:
            expected = engine.infer(images)
        content["agreement"] = {
            "reference": _description_of(reference, engine),
            "scores": [float(score) for score in expected.score],
            "spearman": spearman(scores.score, expected.score),
            "max_abs_map_diff": float(np.abs(scores.anomaly_map - expected.anomaly_map).max()),
        }
    paths = [str(path) for path in (model, reference) if path is not None]
    commands = [worker_command(path, None, None, None) for path in paths]
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(jetson.Watch()) if jetson.is_jetson() else None
        timings = benchmark(paths, commands, seconds, progress)
    content["jetson"] = watch.report(seconds) if watch else None
    content["timings"] = [{**report, "model": Path(report["model"]).suffix} for report in timings]
    return content


def _description_of(path: Path, engine: Engine) -> Dict[str, Any]:
    info = dataclasses.asdict(engine.info)
    description = {"runtime": engine.runtime, **{name: info[name] for name in TOLD}}
    calibration = info["calibration"] or {}
    description["calibration"] = {name: calibration[name] for name in ("calibrator", "images") if name in calibration}
    if path.suffix == SUFFIX:
        plan = dataclasses.asdict(read_description(path)[1])
        del plan["command"]
        plan["warnings"] = without_paths(plan["warnings"])
        description["plan"] = plan
    return description


def without_paths(lines: Sequence[str]) -> List[str]:
    """Text in which every path that begins at a folder of this machine is `...`; /teacher/Conv is a layer, and none."""
    folders = "|".join(re.escape(folder.name) for folder in Path("/").iterdir())
    return [re.sub(rf"(?<![\w.])(~|/({folders}))/\S*", "...", line) for line in lines]
