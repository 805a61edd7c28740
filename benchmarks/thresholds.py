"""How thresholds should follow a model into INT8, where few good images were held out: decisions that flip.

    python benchmarks/thresholds.py RUN --data.root IMAGES --out FILE.json

RUN is a run of `uad fit` on IMAGES. Its FP32 and INT8 files judge the held-out good images and the test images. Then
the held-out images of each class are cut to some numbers, drawn by chance. FP32's thresholds are chosen on what is
left, as `uad fit` would. The INT8 file takes them as they are (kept), or has thresholds chosen by the same rule on its
own scores (quantile), or by the pairs (`uad.evaluation.thresholds.paired_threshold`). What counts is how many test
images the INT8 file then decides otherwise than FP32. The test chooses nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from commands import command
from machine import footer, machine

import engines
from engines.files import write_json, write_text
from engines.metadata import ModelInfo
from uad.data.content import digests_of
from uad.data.folder import Sample, test_samples, train_samples, with_depths
from uad.data.reading import load_images
from uad.evaluation.thresholds import paired_threshold, threshold_at
from uad.tables import markdown

CUTS = (5, 10, 20, 1000)  # held-out images of a class, at most
DRAWS = 50
RATE = 0.05
RULES = ("kept", "quantile", "paired")
Scores = dict[str, dict[str, np.ndarray]]  # "held out" or "test" -> class -> (N, 2), FP32's and INT8's


def main() -> None:
    """Export, judge, cut; write JSON and the table made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data.root", dest="root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = [options.run / f"thresholds-{name}.onnx" for name in ("fp32", "int8")]
    for file, more in zip(files, ([], ["--calibration-data", str(options.root)]), strict=True):
        if not file.exists():
            precision = file.stem.rpartition("-")[2]
            flags = ["--precision", precision, "--target", "cpu", *more, "--out", str(file)]
            command(["export", str(options.run / "model.ckpt"), *flags])
    scores = judged(files, options.root)
    result: dict[str, Any] = {
        "machine": machine(),
        "size": list(engines.read_info(files[0]).size),
        "held_out": {name: len(each) for name, each in scores["held out"].items()},
        "test": {name: len(each) for name, each in scores["test"].items()},
        "flipped": {str(cut): flipped(scores, cut) for cut in CUTS},
    }
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(json.loads(options.out.read_text(encoding="utf-8"))))


def judged(files: "list[Path]", root: Path) -> Scores:
    """The scores of both files."""
    info = engines.read_info(files[0])
    good, tests = train_samples(root), test_samples(root)
    known = {digest for digests in info.held_out.values() for digest in digests}
    held_out = [sample for sample, digest in zip(good, digests_of(good), strict=True) if digest in known]
    found: list[dict[str, dict[str, np.ndarray]]] = []
    for file in files:
        with engines.load(file, "onnxruntime") as engine:
            found.append({"held out": scored(engine, info, held_out), "test": scored(engine, info, tests)})
    return {
        part: {name: np.stack([found[0][part][name], found[1][part][name]], axis=1) for name in found[0][part]}
        for part in ("held out", "test")
    }


def scored(engine: engines.Engine, info: ModelInfo, samples: "list[Sample]") -> "dict[str, np.ndarray]":
    """Class -> scores (N,)."""
    scores: dict[str, list[float]] = {name: [] for name in info.classes}
    for sample in with_depths(samples, info.depth_of):
        scores[sample.class_name].append(float(engine.infer(load_images([sample], info.size)).score[0]))
    return {name: np.array(each) for name, each in scores.items()}


def flipped(scores: Scores, cut: int) -> "dict[str, dict[str, float]]":
    """Class -> rule -> share of the test images whose decision flips, mean over the draws."""
    random = np.random.default_rng(0)
    shares: dict[str, dict[str, float]] = {}
    for name, held_out in scores["held out"].items():
        test, counts = scores["test"][name], dict.fromkeys(RULES, 0.0)
        draws = DRAWS if len(held_out) > cut else 1
        for _ in range(draws):
            some = held_out[random.permutation(len(held_out))[:cut]]
            fp32 = threshold_at(some[:, 0], RATE)
            thresholds = {
                "kept": fp32,
                "quantile": threshold_at(some[:, 1], RATE),
                "paired": paired_threshold(some[:, 1], some[:, 0], fp32),
            }
            for rule, threshold in thresholds.items():
                counts[rule] += float(np.mean((test[:, 1] > threshold) != (test[:, 0] > fp32))) / draws
        shares[name] = counts
    return shares


def page(result: "dict[str, Any]") -> str:
    """The figures as Markdown."""
    lines = ["# Thresholds after INT8: decisions that flip", ""]
    height, width = result["size"]
    lines += [
        f"One STFPM of {len(result['test'])} classes, {height} by {width} pixels, INT8 by percentile, in ONNX Runtime.",
        "Test images that INT8 decides otherwise than FP32, percent. FP32's thresholds are chosen on so many held-out",
        f"images of a class, for 5% false alarms; mean over {DRAWS} draws. *kept*: INT8 takes them. *quantile*: the",
        "same rule on INT8's scores. *paired*, which `uad export` takes: they part the held-out images as FP32's do.",
        "",
    ]
    header = ["class", "held out", *(f"{label(cut)}: {rule}" for cut in result["flipped"] for rule in RULES)]
    rows = []
    for name, count in result["held_out"].items():
        cells = [f"{100 * each[name][rule]:.1f}" for each in result["flipped"].values() for rule in RULES]
        rows.append([name, str(count), *cells])
    for what, of in (("mean", np.mean), ("worst", np.max)):
        cells = [
            f"{100 * float(of([values[rule] for values in each.values()])):.1f}"
            for each in result["flipped"].values()
            for rule in RULES
        ]
        rows.append([what, "", *cells])
    return "\n".join([*lines, markdown(header, rows), "", footer(result["machine"])])


def label(cut: str) -> str:
    """`5`, or `all`."""
    return "all" if int(cut) >= CUTS[-1] else cut


if __name__ == "__main__":
    main()
