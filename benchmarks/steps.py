"""How many steps a training needs: what finished runs of several lengths see, on held-out good images and in a test.

    uad fit --config configs/stfpm.yaml --data.root IMAGES --trainer.max_epochs 7 --out RUN7   # and of other lengths
    python benchmarks/steps.py --runs RUN7 ... RUN27 --trained-with "drawn defects" \
        --out benchmarks/results/steps.json --picture docs/steps.svg

The criterion is the image AUROC, mean over the classes, of held-out good images against copies of them with faint
defects (`uad.data.defects.with_faint_defects`). The length is chosen by it. The test's image AUROC, from the run's
metrics.json, stands beside it and chooses nothing. What the page holds of runs that were trained with something else
stays.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import commit, footer, machine

from engines.files import write_json, write_text
from uad.data.defects import with_faint_defects
from uad.data.module import AnomalyData
from uad.evaluation.metrics import image_auroc
from uad.tables import markdown
from uad.training.torch_engine import TorchEngine

NAMES = {
    "stfpm": "STFPM",
    "dcam": "DCAM",
    "reverse_distillation": "Reverse Distillation",
    "efficient_ad": "EfficientAD",
    "uninformed_students": "Uninformed Students",
}
TICKS = (500, 1000, 2000, 4000)  # of the picture, steps


def main() -> None:
    """Judge the runs one by one; JSON, page and picture are written after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--trained-with", required=True, help="what these runs have in common")
    options = parser.parse_args()
    before = json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.out.exists() else []
    kept = [run for run in before if run["with"] != options.trained_with]
    result: dict[str, Any] = {"machine": machine(), "runs": kept}
    for run in options.runs:
        result["runs"].append({"with": options.trained_with, **judged(run), "commit": commit()})
        result["runs"].sort(key=lambda each: (each["root"], each["with"], each["steps"]))
        print(run, "judged", flush=True)
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))
        if options.picture:
            draw(result, options.picture)


def judged(run: Path) -> "dict[str, Any]":
    """The length of a run, the criterion, and what its test found."""
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        *_, last = csv.DictReader(file)
    model, tested = settings["model"], json.loads((run / "metrics.json").read_text(encoding="utf-8"))["classes"]
    return {
        "model": " on ".join((NAMES[model["name"]], model.get("backbone") or model["network"])),
        "root": Path(settings["data"]["root"]).name,
        "epochs": int(last["epoch"]) + 1,
        "steps": int(last["step"]),
        "batch": settings["data"]["batch_size"],
        "criterion": criterion(run, settings["data"]),
        "test": {name: figures["image_auroc"] for name, figures in tested.items()},
    }


def criterion(run: Path, settings: "dict[str, Any]") -> "dict[str, float]":
    """Image AUROC, by class, of a run's held-out good images against copies of them with faint defects."""
    data = AnomalyData(**{**settings, "root": Path(settings["root"])})
    data.setup("fit")
    held_out, found = data.held_out_good(""), {}
    with TorchEngine(run / "model.ckpt", batch=8) as engine:
        for label, name in enumerate(held_out.classes):
            good = held_out.image[held_out.label == label].numpy()
            images = np.concatenate([good, with_faint_defects(good, seed=label)])
            found[name] = image_auroc(engine.infer(images).score, np.arange(len(images)) >= len(good))
    return found


def page(result: "dict[str, Any]") -> str:
    """One table for each root: a row for each length."""
    title = f"{result['runs'][0]['model']}, runs of several lengths"
    parts = [f"## {title}: image AUROC of held-out good images with faint drawn defects, and of the test\n"]
    for root in dict.fromkeys(run["root"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["root"] == root]
        header = ["trained with", "steps", "epochs", "images seen", "held-out"]
        header += [*(f"test, {name}" for name in runs[0]["test"]), "test"]
        rows = []
        for run in runs:
            test = [*run["test"].values(), _mean(run["test"])]
            lengths = (run["steps"], run["epochs"], run["steps"] * run["batch"])
            figures = (f"{value:.3f}" for value in (_mean(run["criterion"]), *test))
            rows.append([run["with"], *(f"{each:,}" for each in lengths), *figures])
        parts.append(f"{root}:\n\n{markdown(header, rows)}\n")
    return "\n".join([*parts, footer(result["machine"], (run["commit"] for run in result["runs"]))])


def draw(result: "dict[str, Any]", path: Path) -> None:
    """Both means against the steps, a colour for each root."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "uad"  # the same picture, the same file
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, (root, trained_with) in enumerate(dict.fromkeys((run["root"], run["with"]) for run in result["runs"])):
        runs = [run for run in result["runs"] if (run["root"], run["with"]) == (root, trained_with)]
        for key, line, told in (("criterion", "-o", "held-out"), ("test", "--s", "test")):
            means = [_mean(run[key]) for run in runs]
            axes.plot(
                [run["steps"] for run in runs], means, line, color=f"C{colour}", label=f"{root}, {trained_with}: {told}"
            )
    axes.set(xscale="log", xlabel="optimizer steps", ylabel="mean image AUROC")
    axes.set_xticks(TICKS, [f"{tick:,}" for tick in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def _mean(figures: "dict[str, float]") -> float:
    return float(np.mean(list(figures.values())))


if __name__ == "__main__":
    main()
