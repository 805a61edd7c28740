"""Images a second in training: `uad fit` beside anomalib's STFPM, on the same images, one after the other.

    python benchmarks/fit_speed.py --data IMAGES --class NAME --anomalib PYTHON --work DIR --out benchmarks/results

PYTHON is the interpreter of an environment of its own, in which anomalib is installed. Both train ResNet-18 at 256x256
in batches of 16, with random weights: these decide no speed. The time of a step is the mean over `STEPS` steps after
the first, reading the images included, validation not. `uad fit` is measured twice: where its teacher runs in every
step, as in a run of one epoch, and where what the student learns was computed before.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from machine import footer, machine

from engines.files import write_json, write_text
from uad.tables import markdown

BATCH, STEPS = 16, 24
PRECISIONS = ("32-true", "bf16-mixed")
PROGRAMS = ("anomalib", "uad, teacher in every step", "uad, targets kept")


def main() -> None:
    """Measure in a process of its own each, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the layout of MVTec AD")
    parser.add_argument("--class", dest="name", required=True, help="whose good images are trained on")
    parser.add_argument("--anomalib", required=True)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    result: dict[str, object] = {"machine": machine(), "rows": rows}
    for precision in options.precisions:
        for program in PROGRAMS:
            root, work = options.data.resolve(), options.work.resolve() / f"{precision}-{PROGRAMS.index(program)}"
            work.mkdir(parents=True, exist_ok=True)
            if program == "anomalib":
                found = of_anomalib(options.anomalib, precision, root / options.name, work)
            else:
                found = of_uad(program, precision, root, options.name, work)
            rows.append({"program": program, "precision": precision, **found})
            print(rows[-1], flush=True)
            write_json(options.out / "fit_speed.json", result)
            write_text(options.out / "fit_speed.md", page(result))


def of_anomalib(python: str, precision: str, images: Path, work: Path) -> "dict[str, object]":
    """The seconds of a step, and the version."""
    worker, figures = Path(__file__).resolve().with_name("anomalib_steps.py"), work / "figures.json"
    settings = [str(images), precision, str(BATCH), str(STEPS), str(figures)]
    subprocess.run([python, str(worker), *settings], check=True, cwd=work)
    return dict(json.loads(figures.read_text()))


def of_uad(program: str, precision: str, root: Path, name: str, work: Path) -> "dict[str, object]":
    """The seconds of a step, as `uad fit --profile` says them."""
    epochs = 2 if program.endswith("kept") else 1
    settings = {
        "data.root": root,
        "data.classes": f"[{name}]",
        "data.batch_size": BATCH,
        "model.backbone": "resnet18",
        "model.weights": "none",
        "trainer.precision": precision,
        "trainer.max_epochs": epochs,
        "trainer.limit_train_batches": STEPS // epochs + 1,
        "trainer.limit_val_batches": 1,
        "out": work / "run",
    }
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    ran = subprocess.run([sys.executable, "-m", "uad.cli", "fit", *flags, "--profile"], capture_output=True, text=True)
    found = re.search(r"a step takes (\S+) s", ran.stdout)
    if ran.returncode or found is None:
        sys.exit(ran.stdout + ran.stderr)
    return {"seconds": float(found.group(1)), "version": ""}


def page(result: "dict[str, object]") -> str:
    rows: list[dict[str, float]] = result["rows"]  # type: ignore[assignment]
    mark = {row["precision"]: row["seconds"] for row in rows if row["program"] == PROGRAMS[0]}
    table = [
        [
            f"{row['program']} {row['version']}".strip(),
            str(row["precision"]),
            f"{row['seconds']:.2f}",
            f"{BATCH / row['seconds']:.1f}",
        ]
        + [f"{mark[row['precision']] / row['seconds']:.2f}"]
        for row in rows
    ]
    text = f"## Training STFPM on ResNet-18, 256x256, batches of {BATCH}\n\n"
    header = ["program", "precision", "s a step", "images/s", "times anomalib's"]
    where: dict[str, object] = result["machine"]  # type: ignore[assignment]
    return f"{text}{markdown(header, table)}\n\n{footer(where)}"


if __name__ == "__main__":
    main()
