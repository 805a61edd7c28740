"""Checks that need TensorRT and a GPU; a rehearsal takes the stand-in of tests/fakes where that is on the path."""

import json
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import onnx
from run import Failed, Place, Skipped, run_uad

import engines
from engines.errors import UserError
from engines.tensorrt import import_cuda
from export.quantize import observe
from export.tensorrt import require
from uad.data.folder import test_samples
from uad.data.reading import load_images
from uad.evaluation.metrics import spearman

MODELS = ("stfpm", "reverse_distillation")  # folders of the runs of the checks of training
MOST = 8  # images at once
# Least rank correlation of a plan's scores with ONNX Runtime's, of the same file. In INT8 a rounding that falls the
# other way changes those behind it. Of a rehearsal's random weights little is left.
LEAST_AGREEMENT = {"fp16": 0.99, "int8": 0.95}
REHEARSED = 0.5
RUNS = 1000


def plans_in_fp16(place: Place) -> Dict[str, Any]:
    """Plans of two models: their scores beside ONNX Runtime's, for 1 and 8 images, and the precision of the head."""
    return _plans(place, "fp16")


def plans_in_int8(place: Place) -> Dict[str, Any]:
    """The same in INT8, with FP16 beside it."""
    return _plans(place, "int8")


def bench_of_the_plans(place: Place) -> Dict[str, Any]:
    """uad bench: latency, images a second and memory of the plans."""
    _require()
    files = [place.needed(f"{name}.fp16.plan") for name in MODELS]
    report = place.work / "bench.json"
    run_uad("bench", *files, "--batch", 1, "--seconds", place.either(3, 0) or 0.1, "--json", report)
    keys = ("latency_ms", "images_per_second", "device_mem_mb", "file_mb")
    rows = json.loads(report.read_text())
    return {name: {key: row[key] for key in keys} for name, row in zip(MODELS, rows)}


def photographs(place: Place) -> Dict[str, Any]:
    """uad predict: photographs to decisions and overlays."""
    _require()
    plan, out = place.needed(f"{MODELS[0]}.fp16.plan"), place.work / "decisions"
    folders = sorted(place.images.glob("*/test"))
    run_uad("predict", plan, *folders, "--out", out)
    lines = (out / "predictions.csv").read_text(encoding="utf-8").splitlines()
    wanted = len(test_samples(place.images))
    if len(lines) - 1 != wanted:
        raise Failed(f"{len(lines) - 1} of {wanted} photographs were judged")
    return {"photographs": wanted}


def a_thousand_runs(place: Place) -> Dict[str, Any]:
    """1,000 runs of a plan: neither the process nor the GPU's memory may grow, and scores stay the same."""
    _require()
    images = _images(place)[:1]
    with engines.load(place.needed(f"{MODELS[0]}.fp16.plan")) as engine:
        first = engine.infer(images).score
        for _ in range(20):
            engine.infer(images)
        before = _resident_mb(), _free_gpu_mb()
        for _ in range(place.either(RUNS, 50)):
            last = engine.infer(images).score
        grown, taken = _resident_mb() - before[0], before[1] - _free_gpu_mb()
    if grown > 20 or taken > 20:
        raise Failed(f"the process grew by {grown:.0f} MB, what the GPU holds by {taken:.0f} MB")
    if not np.array_equal(first, last):
        raise Failed(f"the score of the same image was {first[0]} first and {last[0]} at the end")
    return {"process_grew_mb": round(grown, 1), "gpu_grew_mb": round(taken, 1)}


def _plans(place: Place, precision: str) -> Dict[str, Any]:
    _require()
    return {name: _plan(place, name, precision) for name in MODELS}


def _plan(place: Place, name: str, precision: str) -> Dict[str, Any]:
    checkpoint = place.needed(f"{name}/model.ckpt")
    file, plan = place.work / f"{name}.{precision}.onnx", place.work / f"{name}.{precision}.plan"
    calibration = ["--calibration-data", place.images] if precision == "int8" else []
    run_uad("export", checkpoint, "--precision", precision, *calibration, "--out", file)
    run_uad("export", file, "--max-batch", MOST, "--out", plan)
    images = _images(place)
    # Node by node, as the file says: a runtime that fuses nodes rounds some sums once more.
    names = ["score", "class_index"]
    seen = list(observe(onnx.load(file), names, images))
    score, class_index = (np.concatenate([each[name] for each in seen]) for name in names)
    with engines.load(plan, batch=1) as engine:
        alone = np.concatenate([engine.infer(image[None]).score for image in images])
        layers = engine.layers()
    with engines.load(plan, batch=MOST) as engine:
        together = engine.infer(images)
    agreement = spearman(together.score, score)
    least = REHEARSED if place.is_rehearsal else LEAST_AGREEMENT[precision]
    if not np.isfinite(together.anomaly_map).all() or agreement is None or agreement < least:
        raise Failed(f"{plan.name}: rank correlation {agreement} with ONNX Runtime, {least} is wanted")
    return {
        "spearman_with_onnxruntime": round(agreement, 5),
        "most_relative_difference": _apart(together.score, score),
        "most_relative_difference_of_1_and_8": _apart(alone, together.score),
        "same_class": float((together.class_index == class_index).mean()),
        "layers": len(layers),
        "layers_of_the_head": _check_head(plan, layers),
        "plan_mb": round(plan.stat().st_size / 1e6, 1),
    }


def _check_head(plan: Path, layers: List[Any]) -> int:
    """How many layers of the plan are the head's alone.

    Raises:
        Failed: one of them gives float16, or none bears the head's name.
    """
    head = [layer for layer in layers if "/head/" in layer["Name"] and "/student/" not in layer["Name"]]
    if not head:
        raise Failed(f"{plan.name}: no layer bears the name of the head")
    for layer in head:
        formats = [output.get("Format/Datatype", "") for output in layer.get("Outputs", [])]
        if any("16" in each or "Half" in each for each in formats):
            raise Failed(f"{plan.name}: {layer['Name']} of the head gives {', '.join(formats)}")
    return len(head)


def _require() -> None:
    try:
        require()
    except UserError as error:
        raise Skipped(str(error)) from error


def _images(place: Place) -> np.ndarray:
    """Two batches of test images, (N, H, W, 3) uint8."""
    samples = test_samples(place.images)
    some = samples[:: max(len(samples) // (2 * MOST), 1)][: 2 * MOST]
    return np.stack(list(load_images(some, (place.size, place.size))))


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one / other - 1).max())


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def _free_gpu_mb() -> float:
    cuda = import_cuda()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        return float(cuda.mem_get_info()[0]) / 1e6
    finally:
        cuda.Context.pop()
