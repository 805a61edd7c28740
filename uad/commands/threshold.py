"""`uad threshold`: set how strict a model is, on labelled images, without touching its weights."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from engines.errors import UserError
from engines.plan_file import SUFFIX
from uad.command_line import parse
from uad.commands.choices import DataOptions, Reading, Running
from uad.options import about, above_zero, check_fields, part, positional

if TYPE_CHECKING:
    from engines.metadata import ModelInfo
    from uad.evaluation.evaluate import ScoredImage
    from uad.evaluation.strictness import Cost, Scores


@dataclass
class ThresholdOptions:
    """Set how strict a model is: choose its thresholds on labelled images, and say what that costs on them."""

    model: Path = field(metadata=positional(".onnx or .plan file, whose thresholds are rewritten"))
    data: DataOptions
    target_fpr: Optional[float] = field(
        default=None, metadata=about("part of the good images that may be called defective, such as 0.005")
    )
    target_recall: Optional[float] = field(
        default=None, metadata=about("in place of it: part of the defects that must be found, such as 0.99")
    )
    common: bool = field(
        default=False, metadata=about("one threshold for all classes, on all images, in place of one for each class")
    )
    limit: Optional[float] = field(
        default=None,
        metadata=about(
            "in place of thresholds: class distance beyond which a part is unknown, for every class; the farthest good "
            "image of training lies at 1"
        ),
    )
    restore: bool = field(default=False, metadata=about("put back thresholds and limits that were there before"))
    running: Running = field(default_factory=Running, metadata=part())
    reading: Reading = field(default_factory=Reading, metadata=part())

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        if self.model.suffix not in (".onnx", SUFFIX):
            raise UserError(f"{self.model}: thresholds are set in .onnx and {SUFFIX} files: export it first")
        given = [value for value in (self.target_fpr, self.target_recall, self.limit) if value is not None]
        if not self.restore and len(given) != 1:
            raise UserError("give --target-fpr, --target-recall or --limit, one of them")
        if self.limit is not None:
            above_zero(limit=self.limit)
        for name, value in (("--target-fpr", self.target_fpr), ("--target-recall", self.target_recall)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} {value}: give a part of the images, from 0 to 1")
        if self.target_fpr == 1:
            raise UserError("--target-fpr 1.0: every good image would be called defective")


def threshold(options: ThresholdOptions) -> "List[Cost]":
    """Rewrite the thresholds of a model; what each class pays on the images, and all together.

    A class without images keeps its threshold. So does an unknown class, unless every class has images.

    Raises:
        UserError: the model, an image or the file cannot serve, or a class lacks images.
    """
    changed, rows = _chosen(options)
    _rewrite(options.model, changed)
    return rows


def _chosen(options: ThresholdOptions) -> "Tuple[ModelInfo, List[Cost]]":
    """The description with the new thresholds, and what they cost."""
    from engines.files import check_output
    from engines.model_file import read_info
    from uad.evaluation.strictness import ALL, choose, costs

    options.reading.begin()
    check_output(options.model, "MODEL")
    info = read_info(options.model)
    before = {**info.thresholds, ALL: info.threshold}
    if options.restore:
        return _restored(options.model, info), []
    if options.limit is not None:
        return _with_limit(options, info, options.limit)
    scores = {name: each for name, each in _scores(options).items() if name in info.thresholds}
    if not scores:
        raise UserError(f"{options.data.root} holds no class that {options.model} knows: {', '.join(info.thresholds)}")
    missing = [name for name in info.thresholds if name not in scores]
    if options.common and missing:
        raise UserError(f"--common sets the threshold of {missing[0]} too, of which there is no image: give some")
    new = choose(scores, options.target_fpr, options.target_recall, options.common)
    if missing:
        new[ALL] = info.threshold
    thresholds = {name: new.get(name, before[name]) for name in info.thresholds}
    former = info.former_thresholds or {**info.thresholds, "": info.threshold}
    changed = dataclasses.replace(info, thresholds=thresholds, threshold=new[ALL], former_thresholds=former)
    return changed, costs(scores, before, new)


def _restored(path: Path, info: "ModelInfo") -> "ModelInfo":
    """The description with the thresholds and the limits of before."""
    if info.former_thresholds is None and info.former_limits is None:
        raise UserError(f"{path}: its thresholds were not changed by uad threshold")
    thresholds = info.former_thresholds or {**info.thresholds, "": info.threshold}
    return dataclasses.replace(
        info,
        thresholds={name: value for name, value in thresholds.items() if name},
        threshold=thresholds[""],
        limits=info.limits if info.former_limits is None else info.former_limits,
        former_thresholds=None,
        former_limits=None,
    )


def _with_limit(options: ThresholdOptions, info: "ModelInfo", limit: float) -> "Tuple[ModelInfo, List[Cost]]":
    """The description with one limit for every class, and which images are unknown by it."""
    from uad.evaluation.strictness import ALL, Scores, costs

    if "class_distance" not in info.outputs:
        raise UserError(f"{options.model} tells no class distance: train it with a bank, such as --model.bank 4000")
    by_class: Dict[str, Scores] = {}
    for image in _judged(options):
        each = by_class.setdefault(str(image.seen_as), Scores([], []))
        (each.defects if image.sample.is_defect else each.good).append(float(image.class_distance or 0.0))
    limits = dict.fromkeys(info.classes, limit)
    former = info.limits if info.former_limits is None else info.former_limits
    rows = costs(by_class, {**info.limits, ALL: math.nan}, {**limits, ALL: limit})
    return dataclasses.replace(info, limits=limits, former_limits=former), rows


def _scores(options: ThresholdOptions) -> "Dict[str, Scores]":
    """The scores of the test images, by class."""
    from uad.evaluation.strictness import Scores

    by_class: Dict[str, Scores] = {}
    for image in _judged(options):
        each = by_class.setdefault(image.sample.class_name, Scores([], []))
        (each.defects if image.sample.is_defect else each.good).append(image.score)
    return by_class


def _judged(options: ThresholdOptions) -> "List[ScoredImage]":
    from uad.data.folder import labelled_samples
    from uad.evaluation.evaluate import evaluate
    from uad.progress import progress

    samples = labelled_samples(options.data.root, options.data.classes)
    with options.running.load(options.model) as engine, progress("Judging", len(samples)) as step:
        return evaluate(engine, samples, None, step).images


def _rewrite(path: Path, info: "ModelInfo") -> None:
    from engines.model_file import load_model, save_model
    from engines.plan_file import read_description, save_description
    from export.triton import rewrite_thresholds

    if path.suffix == SUFFIX:
        save_description(info, read_description(path)[1], path)
    else:
        save_model(load_model(path), info, path)
    rewrite_thresholds(path, info)


def main(arguments: Sequence[str]) -> None:
    """Set, and print what it costs."""
    from uad.tables import cost_table, limit_table

    options = parse(ThresholdOptions, arguments, "threshold")
    changed, rows = _chosen(options)
    if options.restore:
        _rewrite(options.model, changed)
        print(f"{options.model}: thresholds and limits are those of before")
        return
    if options.limit is not None:
        print(limit_table(rows), flush=True)
        _rewrite(options.model, changed)
        print(f"\n{options.model}: limits are set; --restore puts back those of before")
        return
    print(cost_table(rows), flush=True)  # before what could go wrong with the file
    _rewrite(options.model, changed)
    print(f"\n{options.model}: thresholds are set; --restore puts back those of before")
    kept = [name for name in changed.thresholds if name not in {row.class_name for row in rows}]
    if kept:
        print(f"no images of {', '.join(kept)}: thresholds of these and of unknown classes stay")
    of_all = rows[-1].false_alarms if options.target_fpr is not None else rows[-1].found
    if of_all is None:
        return
    if options.target_fpr is not None and of_all.high > options.target_fpr:
        asked, bound, images = options.target_fpr, f"at most {100 * of_all.high:.1f}%", "good images"
    elif options.target_recall is not None and of_all.low < options.target_recall:
        asked, bound, images = options.target_recall, f"at least {100 * of_all.low:.1f}%", "defects"
    else:
        return
    print(f"{of_all.of} {images} cannot promise {100 * asked:g}%: with 95% confidence the rate is {bound}")
