"""A class that is added to a trained model, beside the same class trained from the start.

    python benchmarks/new_part.py --weights mobilenet_v2-imagenet.pth --data IMAGES --work DIR \
        --out benchmarks/results/new_part

For each model: one is trained on all classes, and for each class that is named one on the others, to which the class is
added (`uad fit --add-class`). Image AUROC on test images, in FP32, and the seconds that adding takes, with reading and
testing. Configs of the repository, MobileNetV2, 256x256, one seed. What is in --work is not made again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from commands import command
from machine import commit, footer, machine

from engines.files import write_json, write_text
from uad.data.folder import find_classes
from uad.tables import markdown

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = ("patchcore", "stfpm")


def main() -> None:
    """Make and test; write JSON and the page made from it after each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--added", nargs="+", help="classes to add; all if not given. The student's model takes the first"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, help="of the student's training; as in its config if not given")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix")
    options = parser.parse_args()
    classes = list(find_classes(options.data))
    result: dict[str, Any] = {"machine": machine(), "data": options.data.name, "steps": options.steps, "rows": []}
    for model in options.models:
        for name in (options.added or classes)[: 1 if model == "stfpm" else None]:
            result["rows"].append(measured(options, model, name, classes))
            write_json(options.out.with_suffix(".json"), result)
            write_text(options.out.with_suffix(".md"), page(result))


def measured(options: argparse.Namespace, model: str, name: str, classes: "list[str]") -> "dict[str, Any]":
    """One class and one model."""
    whole = trained(options, model, options.work / model / "all", classes)
    before = trained(
        options, model, options.work / model / f"without-{name}", [each for each in classes if each != name]
    )
    added, note = options.work / model / f"with-{name}", options.work / model / f"with-{name}.json"
    if not note.exists():
        begun = time.perf_counter()
        flags = ["--add-class", name, "--ckpt", str(before / "model.ckpt"), "--data.root", str(options.data)]
        command(["fit", *flags, "--out", str(added)])
        write_json(note, {"seconds": time.perf_counter() - begun, "commit": commit()})
    noted = json.loads(note.read_text(encoding="utf-8"))
    images = json.loads((added / "run.json").read_text(encoding="utf-8"))["images"]
    return {
        "model": model,
        "added": name,
        "images": len(images),
        "auroc": [auroc(run, name) for run in (whole, added)],
        "unknown": [of(run, name, "n_good_unknown") for run in (whole, added)],
        "good": of(added, name, "n_good"),
        **noted,
    }


def trained(options: argparse.Namespace, model: str, run: Path, classes: "list[str]") -> Path:
    """The run of a model of some classes."""
    if not (run / "metrics.json").exists():
        flags = ["--config", str(CONFIGS / f"{model}.yaml"), "--data.root", str(options.data), "--overwrite"]
        flags += ["--data.classes", f"[{','.join(classes)}]", "--model.weights", str(options.weights)]
        if model == "stfpm" and options.steps is not None:
            flags += ["--trainer.max_steps", str(options.steps)]
        command(["fit", *flags, "--out", str(run)])
    return run


def of(run: Path, name: str, figure: str) -> Any:
    """A figure of a class on its test images."""
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))["classes"][name][figure]


def auroc(run: Path, name: str) -> float:
    """Image AUROC of a class."""
    return float(of(run, name, "image_auroc"))


def page(result: "dict[str, Any]") -> str:
    """The Markdown."""
    rows = []
    for row in result["rows"]:
        whole, added = row["auroc"]
        cells = [row["model"], row["added"], str(row["images"]), f"{row['seconds']:.0f}"]
        cells += [f"{whole:.3f}", f"{added:.3f}", f"{added - whole:+.3f}"]
        rows.append([*cells, f"{row['unknown'][1]} of {row['good']}"])
    header = ["model", "class added", "good images", "seconds", "from the start", "added", "difference"]
    header += ["its good images, unknown"]
    steps = f" The student took {result['steps']} steps." if result["steps"] is not None else ""
    return f"""# A new part

Image AUROC of a class of {result["data"]} that was trained with the others, and of the same class added to a model of
the others by `uad fit --add-class`. The configs of the repository: a bank of 4,000 patches a class, in `stfpm` beside
a student, which does not learn the class that is added. The seconds hold reading all good images and testing.{steps}

{markdown(header, rows)}

{footer(result["machine"], [row["commit"] for row in result["rows"]])}"""


if __name__ == "__main__":
    main()
