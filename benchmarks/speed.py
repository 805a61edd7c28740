"""Latency, throughput, memory and size of one model at each precision on each CPU runtime, in one run, in turns.

    python benchmarks/speed.py --backbone resnet18 --out benchmarks/results/speed-resnet18.json

The weights are random: they do not change the speed. Torch eager FP32 is the baseline that ratios refer to.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from agreement import NAMES
from commands import command
from machine import footer, machine

from engines.benchmark import ROUNDS, benchmark, worker_command
from uad.data.synthetic import draw_dataset
from uad.open import worker_command as any_worker_command
from uad.progress import progress
from uad.tables import benchmark_table

RUNTIMES = ("openvino", "onnxruntime")
PRECISIONS = ("fp32", "fp16", "int8")


def main() -> None:
    """Make the files, measure them, write JSON and the table made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stfpm", choices=list(NAMES))
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = _make_files(folder, options.model, options.backbone)
        paths = [str(files["ckpt"])]
        commands = [any_worker_command(files["ckpt"], None, 1, options.threads)]
        for runtime in RUNTIMES:
            for precision in PRECISIONS:
                paths.append(str(files[precision]))
                commands.append(worker_command(str(files[precision]), runtime, 1, options.threads))
        with progress("Measuring in turns", ROUNDS) as step:
            reports = benchmark(paths, commands, options.seconds, step)
    for report in reports:
        report["model"] = Path(report["model"]).name
    settings = {"model": options.model, "backbone": options.backbone, "size": [256, 256]}
    result = {"machine": machine(), **settings, "reports": reports}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(result))
    print(benchmark_table(reports))


def _make_files(folder: Path, model: str, backbone: str) -> "dict[str, Path]":
    draw_dataset(folder / "images", n_train=4, n_test_good=0, n_test_defect=0)
    settings = ["--model", model, "--model.backbone", backbone, "--model.weights", "none", "--trainer.max_steps", "1"]
    command(["fit", "--data.root", str(folder / "images"), "--out", str(folder / "run"), *settings])
    files = {"ckpt": folder / "run" / "model.ckpt"}
    for precision in PRECISIONS:
        files[precision] = folder / f"{backbone}.{precision}.onnx"
        export = ["export", str(files["ckpt"]), "--precision", precision, "--target", "cpu"]
        export += ["--out", str(files[precision])]
        command([*export, "--calibration-data", str(folder / "images"), "--calibration-images", "12"])
    return files


def page(result: "dict[str, Any]") -> str:
    """The table."""
    return (
        f"# Speed of {NAMES[result.get('model', 'stfpm')]} on {result['backbone']}, 256x256, batch 1\n\n"
        f"{benchmark_table(result['reports'])}\n\n{footer(result['machine'])}"
    )


if __name__ == "__main__":
    main()
