"""How long a training takes until it sees faint defects: `uad fit` beside anomalib's STFPM, one class, one run.

    UAD_WEIGHTS=... python benchmarks/fit_time.py --data IMAGES --class NAME --anomalib PYTHON --work DIR \
        --out FILE.json

PYTHON is the interpreter of an environment of its own, in which anomalib is installed. Both have the same teacher
(MobileNetV2 with the weights of UAD_WEIGHTS, the same three levels), training images, held-out images and criterion,
that of steps.py. Both keep their own recipe. anomalib's is batches of 32 and SGD, looked at after each epoch. Ours is
batches of 8 and one cycle over a length given in advance, so that each length is a training of its own. Seconds are of
the whole process: start, reading and, for `uad fit`, its test. anomalib's test and the criterion do not count.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import commit, footer, machine
from steps import criterion

from engines.files import write_json, write_text
from uad.data.defects import with_faint_defects
from uad.data.module import AnomalyData
from uad.evaluation.metrics import image_auroc
from uad.tables import markdown

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "stfpm.yaml"
SIZE = 256


def main() -> None:
    """Measure in a process of its own each, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the layout of MVTec AD")
    parser.add_argument("--class", dest="name", required=True)
    parser.add_argument("--anomalib", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 4, 8, 16], help="epochs of each of ours")
    parser.add_argument("--epochs", type=int, default=24, help="of anomalib's")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    result = {"machine": machine(), "class": options.name, "rows": rows}
    options.work.mkdir(parents=True, exist_ok=True)
    weights = Path(os.environ["UAD_WEIGHTS"]).resolve() / "mobilenet_v2-imagenet.pth"

    def write() -> None:
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))
        print(rows[-1], flush=True)

    for epochs in options.lengths:
        run = options.work / f"uad-{epochs}"
        rows.append({"program": "uad", **of_uad(run, options.data.resolve(), options.name, weights, epochs)})
        write()
    for row in of_anomalib(options.work, options.data, options.name, options.anomalib, weights, options.epochs):
        rows.append(row)
        write()


def of_uad(run: Path, root: Path, name: str, weights: Path, epochs: int) -> "dict[str, Any]":
    """Seconds, steps and criterion of a training."""
    settings = {
        "data.root": root,
        "data.classes": f"[{name}]",
        "model.bank": 0,
        "model.weights": weights,
        "trainer.precision": "32-true",
        "trainer.max_epochs": epochs,
        "out": run,
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    shutil.rmtree(run, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "uad.cli", "fit", "--config", str(CONFIG), *flags], check=True)
    seconds = time.perf_counter() - start
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    steps = int((run / "train.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")[1])
    return {"steps": steps, "seconds": seconds, "criterion": criterion(run, data)[name], "commit": commit()}


def of_anomalib(work: Path, root: Path, name: str, python: str, weights: Path, epochs: int) -> "list[dict[str, Any]]":
    """The same after each epoch that doubles the one before, and after the last."""
    data = AnomalyData(root=root, classes=[name])
    data.setup("fit")
    split = work / "split" / name
    shutil.rmtree(split, ignore_errors=True)
    split.mkdir(parents=True)
    for sample in data.training_samples:
        shutil.copy(sample.path, split)
    good = data.held_out_images.numpy()
    images = np.concatenate([good, with_faint_defects(good, seed=0)])
    np.save(work / "images.npy", images)
    worker = Path(__file__).resolve().with_name("anomalib_fit.py")
    files = [split.resolve(), weights, (work / "images.npy").resolve()]
    figures = (work / "figures.json").resolve()
    subprocess.run([python, str(worker), *map(str, files), str(epochs), str(figures)], check=True, cwd=work)
    found = json.loads(figures.read_text())
    looked = [2**power for power in range(12) if 2**power < epochs] + [epochs]
    is_defect = np.arange(len(images)) >= len(good)
    return [
        {
            "program": f"anomalib {found['version']}",
            "steps": epoch * found["steps"],
            "seconds": found["seconds"][epoch - 1],
            "criterion": image_auroc(np.array(found["scores"][epoch - 1]), is_defect),
            "commit": commit(),
        }
        for epoch in looked
    ]


def page(result: "dict[str, Any]") -> str:
    """A row for each length."""
    rows = [
        [row["program"], f"{row['steps']:,}", f"{row['seconds']:.0f}", f"{row['criterion']:.3f}"]
        for row in result["rows"]
    ]
    lines = [
        f"# How long a training takes until it sees faint defects: STFPM on MobileNetV2, {result['class']} alone",
        "",
        f"{SIZE}x{SIZE}, float32, one seed. Criterion: image AUROC of held-out good images against copies with faint",
        "drawn defects. Seconds: of the whole process. `uad fit` is a training of its own for each length.",
        "",
        markdown(["program", "steps", "seconds", "criterion"], rows),
        "",
    ]
    return "\n".join([*lines, footer(result["machine"], [row["commit"] for row in result["rows"]])])


if __name__ == "__main__":
    main()
