"""How far two executions of one quantized network may differ: by the last bits of float32, which rounding blows up.

    UAD_DATA=... python benchmarks/rounding.py RUN2/model.ckpt RUN2.onnx FP32.onnx --out rounding.json

The anomaly maps of the fake-quantized network in torch are put beside those of its exported file in ONNX Runtime's
reference execution (no optimisation) and in OpenVINO; and beside those of the very same torch network whose biases were
multiplied by 1 + 3e-7, two units in the last place. FP32 is given as a yardstick.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from machine import footer, machine

import engines
from uad.data.folder import draw, test_samples
from uad.data.reading import load_images
from uad.evaluation.metrics import spearman
from uad.tables import markdown
from uad.training.torch_engine import TorchEngine

IMAGES = 64
NUDGE = 1 + 3e-7


def main() -> None:
    """Measure, write JSON and the table made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="of a quantization-aware run")
    parser.add_argument("file", type=Path, help="its INT8 export")
    parser.add_argument("fp32", type=Path, help="the FP32 file of the run it came from")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with TorchEngine(options.checkpoint, batch=8) as engine:
        images = load_images(draw(test_samples(Path(os.environ["UAD_DATA"])), IMAGES, 0), engine.info.size)
        own = engine.infer(images)
        with torch.no_grad():
            for name, parameter in engine.network.named_parameters():
                if name.endswith("bias"):
                    parameter.mul_(NUDGE)
        others = {"the same in torch, biases x (1 + 3e-7)": engine.infer(images)}
    others["its file, ONNX Runtime without optimisation"] = reference_execution(options.file, images)
    for title, path in (("its file, OpenVINO", options.file), ("FP32, OpenVINO", options.fp32)):
        with engines.load(path, "openvino", batch=8) as engine:
            others[title] = engine.infer(images)
    figures = {title: compare(own, other) for title, other in others.items()}
    result = {"machine": machine(), "images": IMAGES, "figures": figures}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(result))


def page(result: "dict[str, Any]") -> str:
    """A row for each execution."""
    figures = result["figures"]
    rows = [[title, *(f"{figure:.4f}" for figure in found.values())] for title, found in figures.items()]
    header = [
        "fake-quantized network in torch, beside",
        "max map difference / range",
        "RMS / RMS",
        "Spearman of scores",
    ]
    table = markdown(header, rows)
    title = f"# One quantized network, executed twice\n\n{result['images']} test images."
    return f"{title}\n\n{table}\n\n{footer(result['machine'])}"


def reference_execution(path: Path, images: np.ndarray) -> engines.Prediction:
    """ONNX Runtime with every optimisation off: each node as the standard defines it."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, ["CPUExecutionProvider"])
    parts = [session.run(["score", "anomaly_map"], {"image": part}) for part in np.split(images, IMAGES // 8)]
    scores, maps = zip(*parts, strict=True)
    return engines.Prediction(np.concatenate(scores), np.concatenate(maps))


def compare(own: engines.Prediction, other: engines.Prediction) -> "dict[str, float | None]":
    """Greatest difference over the range of the maps, noise over signal, and rank correlation."""
    difference = np.abs(own.anomaly_map - other.anomaly_map)
    return {
        "max_map_difference": float(difference.max() / np.ptp(own.anomaly_map)),
        "rms": float(np.sqrt(np.square(difference).mean() / np.square(own.anomaly_map).mean())),
        "spearman": spearman(own.score, other.score),
    }


if __name__ == "__main__":
    main()
