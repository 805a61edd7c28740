"""Which class, and whether any: how often a model sees an image as another class, and a part that it does not know.

    python benchmarks/unknown.py --weights mobilenet_v2-imagenet.pth --data IMAGES [IMAGES ...] --work DIR \
        --out benchmarks/results/unknown

The teacher's features of every image are computed once, and PatchCore is made of those of some classes: what
`uad fit --model patchcore` does, without looking at an image again. Each class is left out once, and its images are put
before the model of the others. Classes are told by the nearest centroid, which the graph computes, by a linear layer in
closed form, and by the nearer bank of the two nearest centroids; of all real classes, and of thirty, to which drawn
products are added. Backbone MobileNetV2, 256x256, one seed. What is in --work is not made again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import command, exported
from machine import commit, footer, machine
from torch import Tensor

import engines
from engines.files import write_json, write_text
from engines.model_file import load_model, read_info, save_model
from uad.data.batches import GoodImages
from uad.data.folder import draw, find_classes, hold_out, test_samples, train_samples
from uad.data.reading import load_images
from uad.data.synthetic import PRODUCTS, draw_image
from uad.evaluation.thresholds import limits_at
from uad.models.head import pooled
from uad.models.patchcore import PatchCore
from uad.tables import markdown

SIZE = (256, 256)
TRAINED, TESTED = 200, 60  # images of a class at most; tested ones good, and as many with defects
DRAWN_TRAINED, DRAWN_TESTED = 40, 20  # of a drawn class
TINTS = ((1.0, 1.0, 1.0), (1.0, 0.7, 0.7), (0.7, 1.0, 0.7), (0.7, 0.7, 1.0))
MOST_CLASSES = 30
PARTS = ("training", "held out", "good", "defects")


def main() -> None:
    """Measure; write JSON and the page made from it after each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+")
    parser.add_argument("--patches", type=int, default=1000, help="of each class")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--int8-runtime", default="openvino", help="onnxruntime on a CPU without VNNI")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(), "patches": options.patches, "left_out": {}, "told": []}
    images = real_images(options)
    for name in images:
        result["left_out"][name] = kept(
            options.work / f"left-out-{name}.json", partial(left_out, options, images, name)
        )
        write(options.out, result)
    for classes in (images, {**images, **drawn_images(options, MOST_CLASSES - len(images))}):
        path = options.work / f"told-{len(classes)}.json"
        result["told"].append(kept(path, partial(told, options, classes)))
        write(options.out, result)
    result["int8"] = kept(options.work / "int8.json", partial(in_int8, options))
    write(options.out, result)
    result["latency"] = kept(options.work / "latency.json", partial(timed, options))
    write(options.out, result)


def write(out: Path, result: "dict[str, Any]") -> None:
    """JSON and page."""
    write_json(out.with_suffix(".json"), result)
    write_text(out.with_suffix(".md"), page(result))


def kept(path: Path, measure: Callable[[], "dict[str, Any]"]) -> Any:
    """What was measured before, or is measured now."""
    if not path.exists():
        write_json(path, {**measure(), "commit": commit()})
    return json.loads(path.read_text(encoding="utf-8"))


Levels = list[Tensor]  # of the teacher, (N, C, h, w) each
Images = dict[str, dict[str, Levels]]  # class -> part -> levels


def real_images(options: argparse.Namespace) -> Images:
    """The levels of the images of each class of the roots."""
    network = PatchCore(weights=str(options.weights)).eval().network
    images: Images = {}
    for root in options.data:
        for name in find_classes(root):
            path = options.work / f"levels-{name}.pt"
            if not path.exists():
                training, held_out = hold_out(train_samples(root, [name]), 0.1, 0)
                tests = test_samples(root, [name])
                parts = [draw(training, TRAINED, 0), held_out]
                parts += [draw([each for each in tests if each.is_defect == bad], TESTED, 0) for bad in (False, True)]
                torch.save(
                    {part: levels_of(network, load_images(few, SIZE)) for part, few in zip(PARTS, parts, strict=True)},
                    path,
                )
            images[name] = torch.load(path, weights_only=True)
    return images


def drawn_images(options: argparse.Namespace, count: int) -> Images:
    """The levels of so many drawn classes: products of `uad.data.synthetic`, each in several tints."""
    network = PatchCore(weights=str(options.weights)).eval().network
    kinds = [(product, tint) for tint in TINTS for product in PRODUCTS][:count]
    images: Images = {}
    for product, tint in kinds:
        name = f"{product} {tint}"
        path = options.work / f"levels-{len(images)}-{product}.pt"
        if not path.exists():
            seeds = range(DRAWN_TRAINED + DRAWN_TESTED)
            pictures = [draw_image(product, size=SIZE[0], key=(seed,))[0] for seed in seeds]
            levels = levels_of(network, (np.stack(pictures) * np.array(tint)).astype(np.uint8))
            parts = {"training": slice(0, DRAWN_TRAINED), "good": slice(DRAWN_TRAINED, None)}
            torch.save({part: [level[some].clone() for level in levels] for part, some in parts.items()}, path)
        images[name] = torch.load(path, weights_only=True)
    return images


@torch.no_grad()
def levels_of(network: Any, images: "np.ndarray") -> Levels:
    """What the teacher says of images (N, H, W, 3) uint8."""
    seen = [network.features(part) for part in torch.split(torch.from_numpy(images), 16)]
    return [torch.cat(level).contiguous() for level in zip(*seen, strict=True)]


def model_of(options: argparse.Namespace, images: Images) -> Any:
    """PatchCore of these classes; its images are places among the levels in place of pixels."""
    model = PatchCore(weights=str(options.weights), bank=options.patches).eval()
    parts = [each["training"] for each in images.values()]
    levels = [torch.cat(level) for level in zip(*parts, strict=True)]
    model.network.features = lambda places: [level[places] for level in levels]  # type: ignore[assignment,method-assign]
    labels = [torch.full((len(part[0]),), index) for index, part in enumerate(parts)]
    good = GoodImages(torch.arange(len(levels[0])), torch.cat(labels), list(images))
    model.prepare(good)
    model.fit_readout(good, good)
    return model


@torch.no_grad()
def judged(model: Any, levels: Levels) -> "tuple[list[int], list[float]]":
    """Class index and class distance of each image."""
    outputs = [
        model.network.head(list(some)) for some in zip(*(torch.split(level, 16) for level in levels), strict=True)
    ]
    _, _, index, distance = (torch.cat(each).tolist() for each in zip(*outputs, strict=True))
    return index, distance


def left_out(options: argparse.Namespace, images: Images, name: str) -> "dict[str, Any]":
    """Put the images of one class before the model of the others."""
    known = {each: parts for each, parts in images.items() if each != name}
    classes, model = list(known), model_of(options, known)
    distances: list[float] = []
    names: list[str] = []
    for each, parts in known.items():
        index, distance = judged(model, parts["held out"])
        distances += [far for seen, far in zip(index, distance, strict=True) if classes[seen] == each]
        names += [each for seen in index if classes[seen] == each]
    limits = limits_at(distances, names, classes)

    def unknown(levels: Levels) -> "list[bool]":
        return [far > limits[classes[seen]] for seen, far in zip(*judged(model, levels), strict=True)]

    index, distance = judged(model, images[name]["good"])
    relative = [far / limits[classes[seen]] for seen, far in zip(index, distance, strict=True)]
    return {
        "seen_as": classes[Counter(index).most_common(1)[0][0]],
        "good": sum(unknown(images[name]["good"])),
        "of_good": len(index),
        "median": float(np.median(relative)),  # in units of the limit
        "least": float(min(relative)),
        "defects": sum(unknown(images[name]["defects"])),
        "of_defects": len(images[name]["defects"][0]),
        "known": {
            each: {
                part: [sum(unknown(parts[part])), len(parts[part][0])] for part in ("good", "defects") if parts[part]
            }
            for each, parts in known.items()
        },
    }


def told(options: argparse.Namespace, images: Images) -> "dict[str, Any]":
    """Errors of each way to tell the class of test images, good and defective, of which there are some."""
    training = [pooled(each["training"][-1]) for each in images.values()]
    tests = [
        (index, each[part])
        for index, each in enumerate(images.values())
        for part in ("good", "defects")
        if part in each
    ]
    features = torch.cat([pooled(levels[-1]) for _, levels in tests])
    labels = torch.cat([torch.full((len(levels[0]),), index) for index, levels in tests])
    spread = torch.cat(training).std(dim=0, correction=0).clamp_min(1e-3)
    centroids = torch.stack([each.mean(dim=0) for each in training]) / spread
    away = torch.cdist(features / spread, centroids)
    model = model_of(options, images)
    two = away.topk(2, dim=1, largest=False).indices
    far = torch.tensor([far_from_both(model, tests, image, pair) for image, pair in enumerate(two.tolist())])
    by_bank = two.gather(1, far.argmin(dim=1, keepdim=True))[:, 0]
    by_line = linear(training, spread, features)
    errors = {
        name: int((found != labels).sum())
        for name, found in (("centroid", away.argmin(dim=1)), ("linear", by_line), ("banks", by_bank))
    }
    return {"classes": len(images), "images": len(labels), "errors": errors}


@torch.no_grad()
def far_from_both(model: Any, tests: "list[tuple[int, Levels]]", image: int, pair: "list[int]") -> "list[float]":
    """The class distances of one of the test images from two classes."""
    for _, levels in tests:
        if image < len(levels[0]):
            bank, one = model.network.head.bank, [level[image : image + 1] for level in levels]
            labels = [torch.tensor([index]) for index in pair]
            return [float(bank.class_distance(bank(one, label), label)) for label in labels]
        image -= len(levels[0])
    raise IndexError(image)


def linear(training: "list[Tensor]", spread: Tensor, features: Tensor) -> Tensor:
    """The class by a linear layer: ridge regression of one-hot labels on pooled features, weight 1 an image."""
    given = torch.cat(training).double() / spread
    labels = torch.cat([torch.full((len(each),), index) for index, each in enumerate(training)])
    wanted = torch.nn.functional.one_hot(labels).double()
    mean, of_wanted = given.mean(dim=0), wanted.mean(dim=0)
    given = given - mean
    ridge = len(given) * torch.eye(given.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(given.T @ given + ridge, given.T @ (wanted - of_wanted))
    found: Tensor = ((features.double() / spread - mean) @ weight + of_wanted).argmax(dim=1)
    return found


def in_int8(options: argparse.Namespace) -> "dict[str, Any]":
    """In how many test images of all classes INT8 sees another class than FP32; and whom it calls unknown."""
    root = options.work / "images"
    root.mkdir(exist_ok=True)
    for data in options.data:
        for name, folder in find_classes(data).items():
            if not (root / name).exists():
                (root / name).symlink_to(folder.absolute(), target_is_directory=True)
    run = options.work / "run"
    if not (run / "model.ckpt").exists():
        fit = ["fit", "--model", "patchcore", "--model.bank", str(options.patches), "--data.root", str(root)]
        command([*fit, "--model.weights", str(options.weights), "--out", str(run)])
    files = exported(run / "model.ckpt", root, run)
    samples = test_samples(root)
    found = []
    for path, runtime in zip(files, ("onnxruntime", options.int8_runtime), strict=True):
        with engines.load(path, runtime, batch=8) as engine:
            info, parts = engine.info, []
            for start in range(0, len(samples), 64):
                parts.append(engine.infer(load_images(samples[start : start + 64], SIZE)))
            index = np.concatenate([part.class_index for part in parts])
            far = np.concatenate([part.class_distance for part in parts])
            limit = np.array([info.limits[info.classes[each]] for each in index])
            found.append((index, far > limit))
    right = np.array([info.classes.index(sample.class_name) for sample in samples])
    good = np.array([not sample.is_defect for sample in samples])
    (index, unknown), (other, other_unknown) = found
    return {
        "images": len(samples),
        "good": int(good.sum()),
        "errors": [int((each != right).sum()) for each in (index, other)],
        "differ": int((index != other).sum()),
        "good_unknown": [int(each[good].sum()) for each in (unknown, other_unknown)],
        "defects_unknown": [int(each[~good].sum()) for each in (unknown, other_unknown)],
    }


def timed(options: argparse.Namespace) -> "dict[str, Any]":
    """The files of all real classes, and the same that tell no class, in turns: p50 in ms."""
    found: dict[str, Any] = {}
    for precision, runtime in (("fp32", "openvino"), ("int8", options.int8_runtime)):
        path, report = options.work / "run" / f"{precision}.onnx", options.work / f"bench-{precision}.json"
        model, without = load_model(path), path.with_name(f"{precision}-no-class.onnx")
        del model.graph.output[2:]
        save_model(model, read_info(path), without)
        flags = ["--runtime", runtime, "--threads", "2", "--seconds", "10", "--json", str(report)]
        command(["bench", str(without), str(path), *flags])
        reports = json.loads(report.read_text(encoding="utf-8"))
        found[precision] = [runtime, *(each["latency_ms"]["p50"] for each in reports), reports[1]["ratio_to_first"]]
    return found


def page(result: "dict[str, Any]") -> str:
    """The Markdown."""
    rows = []
    for name, each in result["left_out"].items():
        known, bad = (
            [sum(parts[part][place] for parts in each["known"].values() if part in parts) for place in (0, 1)]
            for part in ("good", "defects")
        )
        cells = [
            name,
            each["seen_as"],
            f"{each['good']} of {each['of_good']}",
            f"{each['defects']} of {each['of_defects']}",
        ]
        cells += [f"{each['least']:.2f}, {each['median']:.2f}", f"{known[0]} of {known[1]}", f"{bad[0]} of {bad[1]}"]
        rows.append(cells)
    header = ["left out", "seen mostly as", "good, unknown", "defects, unknown", "least and median distance, in limits"]
    header += ["known good, unknown", "known defects, unknown"]
    text = f"""# Which class, and whether any

Banks of {result["patches"]:,} patches a class and no student (`uad fit --model patchcore`), MobileNetV2, 256x256, FP32.
Each class was left out once; its test images were put before the model of the others, {TESTED} good ones at most and as
many with defects. The limits are those of `uad.evaluation.thresholds.limits_at`, on held-out good images.

{markdown(header, rows)}
"""
    if result["told"]:
        rows = [
            [
                str(each["classes"]),
                str(each["images"]),
                *(str(each["errors"][key]) for key in ("centroid", "linear", "banks")),
            ]
            for each in result["told"]
        ]
        header = ["classes", "test images", "nearest centroid", "linear layer", "nearer bank of two"]
        text += f"""
Images that are seen as another class, defects among them. {MOST_CLASSES} classes: the real ones, and drawn products in
several tints.

{markdown(header, rows)}
"""
    if "int8" in result:
        each = result["int8"]
        rows = [
            [name, *(str(each[key][place]) for key in ("errors", "good_unknown", "defects_unknown"))]
            for place, name in enumerate(("FP32", "INT8"))
        ]
        header = ["precision", "seen as another class", "good, unknown", "defects, unknown"]
        text += f"""
One model of all real classes, exported: {each["images"]:,} test images, {each["good"]:,} of them good. INT8 sees
another class than FP32 in {each["differ"]} of them.

{markdown(header, rows)}
"""
    if "latency" in result:
        rows = [
            [name.upper(), result["latency"][name][0], *(f"{value:.2f}" for value in result["latency"][name][1:3])]
            + [f"{100 * (result['latency'][name][3] - 1):+.1f}%"]
            for name in ("fp32", "int8")
        ]
        text += f"""
What telling the class costs: ms an image, 2 threads, of the file without and with `class_index` and `class_distance`.

{markdown(["precision", "runtime", "without", "with", "difference"], rows)}
"""
    commits = [each["commit"] for each in result["left_out"].values()] + [each["commit"] for each in result["told"]]
    commits += [result[part]["commit"] for part in ("int8", "latency") if part in result]
    return text + "\n" + footer(result["machine"], commits)


if __name__ == "__main__":
    main()
