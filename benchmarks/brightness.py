"""Whether the brightness of a whole image decides: good test images may be lit otherwise than those of training.

    python benchmarks/brightness.py --data IMAGES [IMAGES ...] --models MODEL [MODEL ...] --out benchmarks/results

For each class: the mean brightness of good training images, good test images and defective ones; how well that alone,
as its distance from training's mean, tells defects; and what the model of the root makes of held-out good images at the
brightness of the good test images. It should not tell these from the same images as they were: 0.5 is best there.
Nothing is chosen by these figures.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from machine import footer, machine

import engines
from engines.files import write_json, write_text
from uad.data.folder import test_samples
from uad.data.module import AnomalyData
from uad.data.reading import load_images
from uad.evaluation.metrics import image_auroc
from uad.tables import markdown

COLUMNS = ("brightness alone", "the model", "darkened")


def main() -> None:
    """Look at the roots one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, nargs="+")
    parser.add_argument("--models", type=Path, required=True, nargs="+", help="a unified model of each root")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "classes": {}}
    for root, model in zip(options.data, options.models, strict=True):
        result["classes"].update(of_root(root, model))
        write_json(options.out / "brightness.json", result)
        write_text(options.out / "brightness.md", page(result))


def of_root(root: Path, model: Path) -> "dict[str, dict[str, Any]]":
    """The figures of every class."""
    data = AnomalyData(root)
    data.setup("fit")
    training, held_out, found = data.some_for_training(10**9, ""), data.held_out_good(""), {}
    with engines.load(model, batch=8) as engine:
        for label, name in enumerate(held_out.classes):
            known = training.image[training.label == label].numpy().mean(axis=(1, 2, 3))
            samples = test_samples(root, [name])
            images, is_defect = load_images(samples, data.size), np.array([sample.is_defect for sample in samples])
            test = images.mean(axis=(1, 2, 3))
            good = held_out.image[held_out.label == label].numpy()
            factor = test[~is_defect].mean() / known.mean()
            changed = np.clip(good * factor, 0, 255).astype(np.uint8)
            scores = np.concatenate([engine.infer(good).score, engine.infer(changed).score])
            found[name] = {
                "brightness": {
                    part: [float(values.mean()), float(values.std())]
                    for part, values in (("training", known), ("good", test[~is_defect]), ("defects", test[is_defect]))
                },
                "brightness alone": image_auroc(np.abs(test - known.mean()), is_defect),
                "the model": image_auroc(engine.infer(images).score, is_defect),
                "factor": float(factor),
                "darkened": image_auroc(scores, np.arange(len(scores)) >= len(good)),
            }
            print(name, found[name], flush=True)
    return found


def page(result: "dict[str, Any]") -> str:
    """A row for each class."""
    header = ["class", "training", "test, good", "test, defects", *("AUROC of " + name for name in COLUMNS[:2])]
    header += ["factor", "told from as it was"]
    rows = []
    for name, found in result["classes"].items():
        grey = [f"{mean:.0f} ± {std:.1f}" for mean, std in found["brightness"].values()]
        aurocs = [f"{found[key]:.3f}" for key in COLUMNS]
        rows.append([name, *grey, *aurocs[:2], f"{found['factor']:.3f}", aurocs[2]])
    text = "## Mean brightness of images, grey levels, and what it decides\n"
    return "\n".join([text, markdown(header, rows), "", footer(result["machine"])])


if __name__ == "__main__":
    main()
