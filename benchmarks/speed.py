"""Latency, throughput, memory and size of models at each precision on each CPU runtime, in one run, in turns.

    python benchmarks/speed.py --models stfpm:mobilenet_v2 reverse_distillation:mobilenet_v2 \
        --out benchmarks/results/speed.json

The weights are random: they do not change the speed. DCAM's network is STFPM's. Torch eager FP32 of the first model is
the baseline that ratios refer to. --others takes ONNX files of other programs, such as `anomalib_efficient_ad.py`
writes; `foreign.py` says how they are measured.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

from commands import command, with_network
from machine import footer, machine

from engines.benchmark import MINIMUM_RUNS, ROUNDS, benchmark, worker_command
from engines.files import write_json, write_text
from uad.data.synthetic import draw_dataset
from uad.progress import progress
from uad.tables import benchmark_table

RUNTIMES = ("openvino", "onnxruntime")
PRECISIONS = ("fp32", "fp16", "int8")


def main() -> None:
    """Make the files, measure them, write JSON and the table made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL:BACKBONE[:SETTING:VALUE]")
    parser.add_argument("--sizes", nargs="+", default=["256x256"], metavar="HEIGHTxWIDTH", help="of the images, pixels")
    parser.add_argument("--others", nargs="*", default=[], type=Path, metavar="FILE.onnx")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS, help="of each file, at least")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths, commands = [], []
        for each, size in itertools.product(options.models, options.sizes):
            folder = each.replace(":", "-") + (f"-{size}" if len(options.sizes) > 1 else "")
            files = _make_files(Path(name) / folder, options.precisions, size, *each.split(":"))
            paths.append(str(files["ckpt"]))
            commands.append(worker_command(files["ckpt"], None, 1, options.threads))
            for runtime in options.runtimes:
                for precision in options.precisions:
                    paths.append(str(files[precision]))
                    commands.append(worker_command(str(files[precision]), runtime, 1, options.threads))
        for file in options.others:
            paths.append(str(file))
            foreign = str(Path(__file__).with_name("foreign.py"))
            commands.append([sys.executable, foreign, str(file.resolve()), str(options.threads)])
        with progress("Measuring in turns", ROUNDS) as step:
            reports = benchmark(paths, commands, options.seconds, step, options.runs)
    for report in reports:
        path = Path(report["model"])
        report["model"] = path.stem if path in options.others else path.parent.name
    result: dict[str, Any] = {"machine": machine(), "sizes": options.sizes, "threads": options.threads}
    result.update(reports=reports, others=[path.stem for path in options.others])
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))
    print(benchmark_table(reports))


def _make_files(
    folder: Path, precisions: "list[str]", size: str, model: str, backbone: str, *setting: str
) -> "dict[str, Path]":
    draw_dataset(folder / "images", n_train=4, n_test_good=0, n_test_defect=0)
    settings = ["--model", model, *with_network(backbone, "none"), "--trainer.max_steps", "1"]
    settings += ["--data.image_size", f"[{size.replace('x', ',')}]"]
    settings += [f"--model.{setting[0]}", setting[1]] if setting else []
    command(["fit", "--data.root", str(folder / "images"), "--out", str(folder / "run"), *settings])
    files = {"ckpt": (folder / "run" / "model.ckpt").rename(folder / "model.ckpt")}
    for precision in precisions:
        files[precision] = folder / f"{precision}.onnx"
        export = ["export", str(files["ckpt"]), "--precision", precision, "--target", "cpu"]
        export += ["--out", str(files[precision])]
        command([*export, "--calibration-data", str(folder / "images"), "--calibration-images", "12"])
    return files


def page(result: "dict[str, Any]") -> str:
    """The table."""
    lines = [
        f"# Speed at {' and '.join(result.get('sizes', ['256x256']))}, batch 1",
        "",
        f"All files in turns, {result['threads']} threads. The weights are random, which does not change the speed.",
        "DCAM's network is STFPM's.",
    ]
    if result.get("others"):
        lines.append(f"Of {', '.join(result['others'])} the network alone is timed, without what makes pixels float.")
    lines += ["", benchmark_table(result["reports"])]
    return "\n".join([*lines, "", footer(result["machine"])])


if __name__ == "__main__":
    main()
