"""How far above its values on good images a channel must reach in INT8, so that defects are not cut off.

    python benchmarks/margin.py --fp32 RUN/fp32.onnx --data IMAGES --work DIR --out benchmarks/results

Equalisation (`export.equalize`) gives each channel the range that it has on good images times a margin. For each margin
an INT8 file is exported, and held-out good images are judged, as they are and with a defect drawn on them
(`uad.data.defects`). No test image is looked at.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from machine import footer, machine

import engines
import export.equalize
from engines.files import write_json
from uad.commands.export import ExportOptions
from uad.commands.export import export as export_model
from uad.data.content import digests_of
from uad.data.defects import with_defects
from uad.data.folder import train_samples, with_depths
from uad.data.reading import load_images
from uad.evaluation.metrics import image_auroc, spearman
from uad.exporting.settings import Calibration
from uad.tables import markdown

MARGINS = (1.0, 1.5, 2.0)
MOST = 40  # held-out images of a class


def main() -> None:
    """Measure; what was measured before is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fp32", type=Path, required=True, nargs="+")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="the training root of each file")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for fp32, root in zip(options.fp32, options.data, strict=True):
        rows += measured(fp32, root, options.work)
        write_json(options.out / "margin.json", {"machine": machine(), "rows": rows})
    result = json.loads((options.out / "margin.json").read_text(encoding="utf-8"))
    (options.out / "margin.md").write_text(page(result), encoding="utf-8")


def measured(fp32: Path, root: Path, work: Path) -> "list[dict[str, object]]":
    """A row for each class and margin."""
    info = engines.read_info(fp32)
    good_images = with_depths(train_samples(root), info.depth_of)
    known = {digest for digests in info.held_out.values() for digest in digests}
    held = [sample for sample, digest in zip(good_images, digests_of(good_images), strict=True) if digest in known]
    held = [sample for name in info.classes for sample in [s for s in held if s.class_name == name][:MOST]]
    good = load_images(held, info.size)
    images = np.concatenate([good, with_defects(good)])
    names = np.array([sample.class_name for sample in held] * 2)
    is_defect = np.repeat([False, True], len(held))
    with engines.load(fp32, "onnxruntime") as engine:
        expected = engine.infer(images).score
    rows: list[dict[str, object]] = []
    for margin in MARGINS:
        file = work / f"{root.name}-{margin:g}.onnx"
        if not file.exists():
            export.equalize.MARGIN = margin
            data = Calibration(data=str(root))
            export_model(ExportOptions(fp32, file, precision="int8", calibration=data, target="cpu"))
        with engines.load(file, "onnxruntime") as engine:
            found = engine.infer(images).score
        for name in info.classes:
            of, bad = names == name, (names == name) & is_defect
            row = {"class": name, "margin": margin, "images": int(of.sum())}
            row["auroc_fp32"], row["auroc"] = (image_auroc(each[of], is_defect[of]) for each in (expected, found))
            row["spearman_good"] = spearman(found[of & ~is_defect], expected[of & ~is_defect])
            row["spearman_defects"] = spearman(found[bad], expected[bad])
            row["score_of_defects"] = float(np.median(found[bad] / expected[bad]))
            rows.append(row)
        print(root.name, margin, rows[-len(info.classes) :], flush=True)
    return rows


def page(result: "dict[str, object]") -> str:
    header = ["class", "margin", "AUROC fp32", "AUROC", "Spearman good", "Spearman defects", "score of defects"]
    keys = ("auroc_fp32", "auroc", "spearman_good", "spearman_defects", "score_of_defects")
    rows: list[dict[str, float]] = result["rows"]  # type: ignore[assignment]
    table = [[str(row["class"]), f"{row['margin']:g}", *(f"{row[key]:.3f}" for key in keys)] for row in rows]
    for margin in MARGINS:
        chosen = [row for row in rows if row["margin"] == margin]
        table.append(["mean", f"{margin:g}", *(f"{np.mean([row[key] for row in chosen]):.3f}" for key in keys)])
    text = "## Room above good images in equalised channels, held-out good images with drawn defects\n\n"
    where: dict[str, object] = result["machine"]  # type: ignore[assignment]
    return f"{text}{markdown(header, table)}\n\n{footer(where)}"


if __name__ == "__main__":
    main()
