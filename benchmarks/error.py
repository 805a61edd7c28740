"""Where the error of INT8 comes from: maps of one model with some of its fake quantizers on, beside its float maps.

    python benchmarks/error.py --ckpt RUN/model.ckpt --data.root IMAGES --out FILE.json

The error of a map is the mean squared difference of the roots of both maps, as a map is a sum of squares, over
held-out good images and copies of them with faint drawn defects. Each part of the quantizers is switched on alone; a
share is its error beside the error of all of them. Shares need not add up to 1. Bias correction and the read-out that
is fitted again come last, each on top of what stands above it. Then each quantizer of an activation is switched off
alone. No test image is seen.
"""

import argparse
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import commit, footer, machine
from torch import Tensor

from engines.files import write_json, write_text
from export.bias import BiasCorrection
from uad.data.batches import GoodImages
from uad.data.defects import with_faint_defects
from uad.data.module import AnomalyData
from uad.evaluation.metrics import spearman
from uad.tables import markdown
from uad.training.fake_quant import TensorQuantizer
from uad.training.qat import QuantizationAware

FAINT = 1e-3  # added to anomaly maps before their root is taken
DEAREST = 12  # quantizers that are named
EVERY = 4  # of the images, on which one quantizer after the other is switched off


def main() -> None:
    """Quantize, switch, compare; write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--data.root", dest="root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8, help="held-out images of each class")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, data = prepared(options.ckpt, options.root, corrected=False)
    good = data.held_out_good("").first_of_each_class(options.images)
    drawn = np.concatenate([with_faint_defects(images, seed=label) for label, images in of_class(good)])
    images = torch.cat([good.image, torch.from_numpy(drawn)])
    labels = torch.cat([good.label, torch.cat([good.label[good.label == label] for label, _ in of_class(good)])])
    expected = judged(model.reference, images)
    rows = []
    for name, chosen in parts(model).items():
        rows.append(compared(name, with_only(model, chosen, images), expected, labels, data.class_names))
        print(rows[-1], flush=True)
    model, _ = prepared(options.ckpt, options.root, corrected=True)
    corrected = compared("all, biases corrected", judged(model.network, images), expected, labels, data.class_names)
    rows.append(corrected)
    print(corrected, flush=True)
    without = without_each(model, images[::EVERY], (expected[0][::EVERY], expected[1][::EVERY]), labels[::EVERY])
    switch_on(model, quantizers(model))
    model.fit_readout(data.some_for_training(model.images_of_each_class, "Fitting the read-out"), good)
    rows.append(compared("and the read-out fitted", judged(model.network, images), expected, labels, data.class_names))
    result = {"machine": machine(), "commit": commit(), "rows": rows, "without": without, "model": model.start.model}
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


def of_class(good: GoodImages) -> "Iterable[tuple[int, np.ndarray]]":
    """The images of each class."""
    for label in range(len(good.classes)):
        yield label, good.image[good.label == label].numpy()


def prepared(ckpt: Path, root: Path, corrected: bool) -> "tuple[QuantizationAware, AnomalyData]":
    """The model as quantization-aware training starts with it, and its images."""
    model = QuantizationAware(ckpt)
    data = AnomalyData(root=root, classes=model.start.classes, image_size=model.start.size)
    data.setup("fit")
    with patch.object(BiasCorrection, "correct", BiasCorrection.correct if corrected else unchanged):
        model.prepare(data.some_for_training(model.images_of_each_class, "Preparing"))
    return model.eval(), data


def unchanged(correction: BiasCorrection, quantized: Any, step: Any = None) -> Any:
    """The graph, whose biases are not corrected."""
    return quantized


def judged(network: torch.nn.Module, images: Tensor) -> "tuple[Tensor, Tensor]":
    """Scores (N,), and roots of maps (N, h, w)."""
    with torch.inference_mode():
        outputs = [network(some)[:2] for some in images.split(8)]
    score, maps = (torch.cat(each) for each in zip(*outputs, strict=True))
    return score, rooted(maps)


def rooted(anomaly_map: Tensor) -> Tensor:
    """The root of a map; what rounding may have put below 0 counts as 0."""
    return (anomaly_map.clamp_min(0.0) + FAINT).sqrt()


def quantizers(model: QuantizationAware) -> "dict[str, TensorQuantizer]":
    """By the path of the first module that reads them."""
    return {name: each for name, each in model.network.named_modules() if isinstance(each, TensorQuantizer)}


def parts(model: QuantizationAware) -> "dict[str, list[str]]":
    """Name of a part of the quantizers -> their paths."""
    found = quantizers(model)

    def those(chosen: "Callable[[str], bool]") -> "list[str]":
        return [name for name in found if chosen(name)]

    def is_weight(name: str) -> bool:
        return name.endswith("_weight_quantizer")

    return {
        "none": [],
        "weights of the teacher": those(lambda name: is_weight(name) and name.startswith("teacher.")),
        "weights of the student": those(lambda name: is_weight(name) and name.startswith("student.")),
        "activations of the teacher": those(lambda name: not is_weight(name) and name.startswith("teacher.")),
        "activations of the student": those(lambda name: not is_weight(name) and name.startswith("student.")),
        "weights": those(is_weight),
        "activations": those(lambda name: not is_weight(name)),
        "the teacher": those(lambda name: name.startswith("teacher.")),
        "the student": those(lambda name: name.startswith("student.")),
        "all": list(found),
    }


def with_only(model: QuantizationAware, chosen: "list[str]", images: Tensor) -> "tuple[Tensor, Tensor]":
    """What the network makes of images where these quantizers alone are on."""
    switch_on(model, chosen)
    return judged(model.network, images)


def switch_on(model: QuantizationAware, chosen: "Collection[str]") -> None:
    """These quantizers, and no other."""
    for name, quantizer in quantizers(model).items():
        (quantizer.enable if name in chosen else quantizer.disable)()


def compared(
    name: str, found: "tuple[Tensor, Tensor]", expected: "tuple[Tensor, Tensor]", labels: Tensor, classes: "list[str]"
) -> "dict[str, Any]":
    """Error of the maps and rank correlation of the scores, by class."""
    error = (found[1] - expected[1]).square().mean(dim=(1, 2))
    row: dict[str, Any] = {"part": name, "error": {}, "spearman": {}}
    for label, each in enumerate(classes):
        some = labels == label
        row["error"][each] = float(error[some].mean())
        row["spearman"][each] = spearman(found[0][some].numpy(), expected[0][some].numpy())
    return row


def without_each(
    model: QuantizationAware, images: Tensor, expected: "tuple[Tensor, Tensor]", labels: Tensor
) -> "list[dict[str, Any]]":
    """What is left of the error, mean of the classes, where one quantizer of an activation is off; the least first."""

    def errors(chosen: "list[str]") -> Tensor:
        error = (with_only(model, chosen, images)[1] - expected[1]).square().mean(dim=(1, 2))
        return torch.stack([error[labels == label].mean() for label in labels.unique()])

    names = list(quantizers(model))
    whole = errors(names)
    rows: list[dict[str, Any]] = []
    for name in names:
        if not name.endswith("_weight_quantizer"):
            left = errors([other for other in names if other != name]) / whole
            rows.append({"quantizer": name, "left": float(left.mean())})
            print(rows[-1], flush=True)
    return sorted(rows, key=lambda row: float(row["left"]))[:DEAREST]


def page(result: "dict[str, Any]") -> str:
    """Shares and rank correlations by class, and the dearest quantizers."""
    rows = result["rows"]
    classes = list(rows[0]["error"])
    whole = next(row["error"] for row in rows if row["part"] == "all")
    shares, orders = [], []
    for row in rows:
        values = [row["error"][name] / whole[name] for name in classes]
        shares.append([row["part"], *(f"{value:.2f}" for value in (np.mean(values), *values))])
        correlations = [row["spearman"][name] for name in classes]
        orders.append([row["part"], *(f"{value:.3f}" for value in (np.mean(correlations), *correlations))])
    lines = [f"# Where the error of INT8 comes from: {result['model']}", ""]
    lines += ["Error of the maps, beside that of all:", ""]
    lines += [markdown(["quantized", "mean", *classes], shares), "", "Rank correlation of scores with float's:", ""]
    lines += [markdown(["quantized", "mean", *classes], orders), ""]
    lines += ["What is left of the error, biases corrected, where one activation is not quantized:", ""]
    left = [[f"`{row['quantizer']}`", f"{row['left']:.2f}"] for row in result["without"]]
    lines += [markdown(["quantizer", "left"], left), ""]
    return "\n".join([*lines, footer(result["machine"], [result["commit"]])])


if __name__ == "__main__":
    main()
