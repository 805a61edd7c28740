"""What is left when commands are killed, and how much memory a photograph of 100 megapixels takes.

python benchmarks/nothing_lost.py --kills 50 --out benchmarks/results/nothing_lost.json

Images and model are drawn and tiny: only the files count. Each kill (SIGKILL) comes at a random moment of the time that
the command takes when it is left alone, over what earlier kills have left. Then every file that has a name is read.
"""

import argparse
import contextlib
import csv
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from machine import footer, machine
from memory import peak_mb
from PIL import Image

from engines.files import write_json, write_text
from engines.model_file import read_info
from uad.tables import markdown

FIT = ["--model.weights", "none", "--data.image_size", "64", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
SIDE = 10_000  # pixels of the large photograph


def main() -> None:
    """Measure, write JSON and the page made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw(work / "images")
        finish(["fit", "--data.root", str(work / "images"), *FIT, "--out", str(work / "start")])
        finish(["export", str(work / "start" / "model.ckpt"), "--out", str(work / "fp32.onnx")])
        result = {"machine": machine(), "rows": kill(work, options.kills), "peak_mb": large(work), "side": SIDE}
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))
    print(page(result))


def page(result: "dict[str, Any]") -> str:
    """A row for each command, and a row for each large photograph."""
    kills = [[row["command"], *(str(row[key]) for key in ("kills", "read", "half", "left"))] for row in result["rows"]]
    total = ["all", *(str(sum(row[key] for row in result["rows"])) for key in ("kills", "read", "half", "left"))]
    megapixels = result["side"] ** 2 / 1e6
    peaks = [[name, f"{peak:.0f}"] for name, peak in result["peak_mb"].items()]
    text = [
        "# Nothing lost",
        "",
        "Commands that were killed at random moments. Every file with a name was read after each kill: checkpoints by",
        "torch, models by onnx's checker, tables, figures and pictures. Left over: `.uad-*.part`, which nothing reads.",
        "",
        markdown(["command", "kills", "files read", "half a file", "left over"], [*kills, total]),
        "",
        f"Peak memory of `uad predict` on one photograph of {megapixels:.0f} megapixels, ONNX Runtime.",
        "",
        markdown(["photograph", "peak MB"], peaks),
        "",
        footer(result["machine"]),
    ]
    return "\n".join(text)


def draw(root: Path) -> None:
    """Two classes of noise, with good images, one kind of defect and its masks."""
    chance = np.random.default_rng(0)
    for name in ("bolt", "nut"):
        for part, count in (("train/good", 8), ("test/good", 3), ("test/spot", 3), ("ground_truth/spot", 3)):
            (root / name / part).mkdir(parents=True)
            for index in range(count):
                pixels = chance.integers(0, 256, (64, 64, 3), np.uint8)
                if part == "ground_truth/spot":
                    pixels[:] = 0
                    pixels[20:30, 20:30] = 255
                Image.fromarray(pixels).save(root / name / part / f"{index:03d}.png")


def kill(work: Path, count: int) -> "list[dict[str, Any]]":
    """Kill the commands in turn; a row for each."""
    chance = random.Random(0)
    names = ("fit", "export", "test", "predict")
    rows = {name: {"command": f"uad {name}", "kills": 0, "read": 0, "half": 0} for name in names}
    outputs = {name: work / "killed" / name for name in names}
    seconds: dict[str, float] = {}
    for turn in range(count):
        name = names[turn % len(names)]
        if name not in seconds:
            start = time.perf_counter()
            finish(arguments(name, work, outputs[name]))
            seconds[name] = time.perf_counter() - start
        while not killed(arguments(name, work, outputs[name]), chance.uniform(0.2, 1.0) * seconds[name]):
            pass  # it was faster this time
        found = [path for path in sorted(outputs[name].rglob("*")) if path.is_file() and not is_left_over(path)]
        broken = [path for path in found if not is_whole(path)]
        for path in broken:
            print(f"{name}, kill {turn}: {path.name} is half a file", file=sys.stderr)
        row = rows[name]
        row.update(kills=row["kills"] + 1, read=row["read"] + len(found), half=row["half"] + len(broken))
        print(f"kill {turn + 1}: {name}, {len(found)} files", file=sys.stderr)
    finish(arguments("fit", work, outputs["fit"]))  # what was killed so often comes to its end
    for name in names:
        rows[name]["left"] = sum(is_left_over(path) for path in outputs[name].rglob("*"))
    return list(rows.values())


def arguments(name: str, work: Path, out: Path) -> "list[str]":
    """A command that writes into `out`, over what is there; a training that was stopped goes on."""
    if name == "fit":
        going = out / "new" if (out / "new" / "run.json").exists() else out
        stopped = (going / "last.ckpt").exists() and not json.loads((going / "run.json").read_text())["finished"]
        if stopped:
            return ["fit", "--resume", str(out)]
        longer = ["--trainer.max_epochs", "12", "--overwrite"]
        return ["fit", "--data.root", str(work / "images"), *FIT, *longer, "--out", str(out)]
    if name == "export":
        calibrated = ["--precision", "int8", "--calibration-data", str(work / "images"), "--explain", str(out)]
        return ["export", str(work / "fp32.onnx"), *calibrated, "--out", str(out / "int8.onnx")]
    if name == "test":
        files = ["--json", str(out / "figures.json"), "--scores", str(out / "scores.csv")]
        return ["test", str(work / "fp32.onnx"), "--data.root", str(work / "images"), *files]
    return ["predict", str(work / "fp32.onnx"), str(work / "images"), "--out", str(out), "--overwrite"]


def finish(command: "list[str]") -> None:
    """Run a command to its end."""
    subprocess.run(
        [sys.executable, "-m", "uad.cli", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def killed(command: "list[str]", after: float) -> bool:
    """Run a command and kill it after so many seconds; whether it was still running then."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "uad.cli", *command], **quiet) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def is_left_over(path: Path) -> bool:
    """Whether a file is one that was not finished, and has no name yet, or is SQLite's own or a lock."""
    return (
        path.name.startswith(".uad-") and path.name.endswith((".part", "-lock")) or path.name.endswith(("-wal", "-shm"))
    )


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".onnx":
            read_info(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            return all(map(json.loads, path.read_text().splitlines()))
        elif path.suffix == ".sqlite":
            with contextlib.closing(sqlite3.connect(str(path))) as rows:
                return bool(rows.execute("PRAGMA integrity_check").fetchone() == ("ok",))
        elif path.suffix == ".csv":
            text = path.read_text()
            widths = {len(row) for row in csv.reader(text.splitlines())}
            return text.endswith("\n") and len(widths) == 1
        elif path.suffix == ".yaml":
            return isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        else:
            return path.suffix == ".md" and path.read_text().endswith("\n") or path.name == ".uad-results"
    except Exception:  # whatever a reader raises, the file is broken
        return False
    return True


def large(work: Path) -> "dict[str, float]":
    """Peak memory of predicting a large photograph of each kind, MB."""
    pixels = np.tile(
        np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8), (SIDE // 1000, SIDE // 1000, 1)
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "JPEG": ("a.jpg", Image.fromarray(pixels), {}),
        "JPEG that EXIF turns": ("b.jpg", Image.fromarray(pixels), {"exif": turned}),
        "PNG with transparency": ("c.png", Image.fromarray(pixels).convert("RGBA"), {"compress_level": 1}),
        "PNG of 16 bits": ("d.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {"compress_level": 1}),
    }
    peaks = {}
    for name, (file, image, settings) in kinds.items():
        image.save(work / file, **settings)
        command = ["predict", str(work / "fp32.onnx"), str(work / file), "--runtime", "onnxruntime"]
        peaks[name] = peak_mb(["-m", "uad.cli", *command, "--out", str(work / "large")])
    return peaks


if __name__ == "__main__":
    main()
