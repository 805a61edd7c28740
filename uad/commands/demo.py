"""`uad demo`: the whole path on images that the project draws itself, offline, in a few minutes on two cores.

It runs the commands that a user would, shows each, and ends with one table of what they measured.
"""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

from engines.cpu import cpu_flags, saturates
from engines.files import make_folder
from uad.command_line import parse
from uad.commands import bench, export, fit, predict, test
from uad.data.synthetic import DEMO, GOOD, draw_dataset
from uad.options import about, check_fields
from uad.tables import markdown

if TYPE_CHECKING:
    from uad.judging.predictions import Decision

COMMANDS = {"fit": fit.main, "export": export.main, "test": test.main, "bench": bench.main}

PRECISIONS = ("fp32", "fp16", "int8")
EXPLANATION = """
One model was trained on good images of all five products, and saved in three precisions.
  image AUROC   how often an image with a defect scores above a good one: 0.5 is guessing, 1 is always
  pixel AUROC   the same for the pixels of a defect
  agreement     rank correlation of the scores with those of the trained model: 1 is the same judgement
  ms            time to judge one image, median; the models took turns on this machine
On images of your own, in folders IMAGES/PART/train/good, at 256 by 256 pixels:
  uad fit --data.root IMAGES --out RUN
  uad export RUN/model.ckpt --precision int8 --calibration-data IMAGES --out model.int8.onnx
  uad predict model.int8.onnx PHOTOS --out RESULTS"""


@dataclass
class DemoOptions:
    """Draw images, then fit, export, test and bench on them."""

    out: Path = field(default=Path("demo"), metadata=about("folder for the images, the run and the results"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)


def demo(options: DemoOptions) -> str:
    """Draw images, train, export, test, time and predict; returns the closing table.

    Raises:
        UserError: training or the teacher's weights are not installed, or the folder cannot be written to.
    """
    from uad.judging.sheet import contact_sheet

    fit.require_training()
    out = make_folder(options.out)
    images = out / "images"
    print("Drawing images of five products, good ones and ones with a defect")
    draw_dataset(images)
    commands = _commands(out, images)
    for command in commands:
        print(f"\n$ uad {' '.join(command)}", flush=True)
        COMMANDS[command[0]](command[1:])
    model, tests, predictions = (
        out / "model.int8.onnx",
        [images / name / "test" for name in DEMO],
        out / "predictions",
    )
    print(f"\n$ uad predict {model} {' '.join(map(str, tests))} --out {predictions} --overwrite", flush=True)
    sheet = out / "sheet.png"
    shown = first_of_each(predict.predict(predict.PredictOptions(model, tests, predictions, overwrite=True)))
    contact_sheet([shown[name, is_good] for name in DEMO for is_good in (True, False)], sheet)
    return "\n".join(["", _table(out), EXPLANATION, f"Look at what it saw: {sheet}"])


def first_of_each(decisions: "Sequence[Decision]") -> "Dict[Tuple[str, bool], Decision]":
    """The first photograph of each product that is good (True), and that is defective, as they come."""
    first: Dict[Tuple[str, bool], Decision] = {}
    for decision in decisions:
        first.setdefault((decision.class_name, Path(decision.image).parent.name == GOOD), decision)
    return first


def _commands(out: Path, images: Path) -> List[List[str]]:
    run, root = str(out / "run"), str(images)
    files = {precision: str(out / f"model.{precision}.onnx") for precision in PRECISIONS}
    fit = ["fit", "--data.root", root, "--data.image_size", "128", "--model.backbone", "efficientnet_lite0"]
    commands = [[*fit, "--trainer.max_epochs", "15", "--out", run, "--overwrite"]]
    int8 = ["--calibration-data", root]
    if saturates(platform.machine(), cpu_flags()) is not False:  # OpenVINO's INT8 sums, see engines/cpu.py
        int8 += ["--weight-bits", "7"]
    for precision, file in files.items():
        export = ["export", f"{run}/model.ckpt", "--precision", precision, "--target", "cpu", "--out", file]
        commands.append([*export, *int8] if precision == "int8" else export)
    for precision, file in files.items():
        test = ["test", file, "--reference", f"{run}/model.ckpt", "--data.root", root]
        commands.append([*test, "--json", str(out / f"test.{precision}.json")])
    commands.append(["bench", *files.values(), "--json", str(out / "bench.json")])
    return commands


def _table(out: Path) -> str:
    header = ["precision", "image AUROC", "lowest class", "pixel AUROC", "agreement", "ms", "file MB"]
    rows = []
    for speed in json.loads((out / "bench.json").read_text(encoding="utf-8")):
        accuracy: Dict[str, Any] = json.loads((out / f"test.{speed['precision']}.json").read_text(encoding="utf-8"))
        lowest = min(figures["image_auroc"] for figures in accuracy["classes"].values())
        row = [speed["precision"], f"{accuracy['image_auroc']:.3f}", f"{lowest:.3f}", f"{accuracy['pixel_auroc']:.3f}"]
        row += [f"{accuracy['agreement']['spearman']:.3f}", f"{speed['latency_ms']['p50']:.1f}"]
        rows.append([*row, f"{speed['file_mb']:.1f}"])
    return markdown(header, rows)


def main(arguments: Sequence[str]) -> None:
    """Run it, and print the closing table."""
    print(demo(parse(DemoOptions, arguments, "demo")))
