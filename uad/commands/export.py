"""`uad export`: a checkpoint or an ONNX file to an ONNX file or a TensorRT plan of the asked precision."""

import dataclasses
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from engines.errors import Doubt, RuntimeNotInstalled, UserError
from engines.images import MEGAPIXELS, allow
from engines.plan_file import SUFFIX
from export.calibrate import PERCENTILE
from export.errors import CalibrationError, ExportError
from uad.commands.choices import LARGEST_IMAGE, Calibrator, Device, OnnxRuntime, Precision, Target
from uad.options import about, above_zero, at_least, flag_of, parse, positional, settle

if TYPE_CHECKING:
    import onnx

    from engines.metadata import ModelInfo
    from export.calibrate import Histogram
    from export.placement import Placement
    from export.quantize import QuantizationReport
    from export.tensorrt import PlanSettings
    from uad.exporting.float_layers import Choice
    from uad.exporting.images import CalibrationImages
    from uad.exporting.refit import Refit
    from uad.training.checkpoint import Quantization

MAX_DROP = 0.2
TENSORRT_ENTROPY = "tensorrt-entropy"
WORKSPACE_MB = 1024  # an 8 GB Jetson shares its memory between CPU and GPU


@dataclass
class ExportOptions:
    """Write a trained model as an ONNX file or a TensorRT plan in fp32, fp16, int8 or a mixture."""

    model: Path = field(metadata=positional("model.ckpt of a run, or an .onnx file of uad"))
    out: Path = field(
        metadata=about("the .onnx file to write, or the .plan that TensorRT builds for the GPU of this machine")
    )
    precision: Optional[Precision] = field(
        default=None,
        metadata=about(
            "of the backbone; auto is int8 that leaves in fp32 the layers it must; if not given that of the model"
        ),
    )
    calibrator: Optional[Calibrator] = field(
        default=None,
        metadata=about(
            "for int8 and auto: what chooses the ranges; percentile if not given; tensorrt-entropy is TensorRT's own, "
            "of releases 8"
        ),
    )
    percentile: Optional[float] = field(
        default=None,
        metadata=about(f"for --calibrator percentile: percent of the values not clipped; {PERCENTILE} if not given"),
    )
    calibration_data: Optional[str] = field(
        default=None,
        metadata=about(
            "for int8 and auto: folder of good images, best the one that was trained on; for int8 also random-normal; "
            "for fp16, if given, to fit the read-out and thresholds again, as for int8 and auto"
        ),
    )
    calibration_images: Optional[int] = field(
        default=None,
        metadata=about("how many of them, spread over the classes; if not given 128, or all (for auto half of them)"),
    )
    calibration_classes: Optional[List[str]] = field(
        default=None, metadata=about("which classes of that folder, as [a,b]; all if not given")
    )
    max_drop: Optional[float] = field(
        default=None,
        metadata=about(
            "for auto: by how many points of 0.01 the rank correlation of image scores with those of fp32 may fall "
            f"short of 1, mean over the classes, on good images that did not calibrate; {MAX_DROP} if not given"
        ),
    )
    validation_data: Optional[Path] = field(
        default=None,
        metadata=about(
            "for auto: folder with labelled CLASS/test images, on which the mean image AUROC may fall by --max-drop "
            "too; layers are chosen on them, so report no accuracy on them"
        ),
    )
    weight_bits: Optional[int] = field(
        default=None,
        metadata=about(
            "for int8: 7 keeps OpenVINO right on an x86 CPU without VNNI, which uad doctor names, on a coarser grid; "
            "8 if not given"
        ),
    )
    explain: Optional[Path] = field(
        default=None,
        metadata=about("for int8 and auto: folder for layers.csv, .md and .png, which name the layers that hurt"),
    )
    runtime: Optional[OnnxRuntime] = field(
        default=None,
        metadata=about("what runs the models that auto and --explain compare; the fastest installed if not given"),
    )
    seed: int = field(default=0, metadata=about("of the draw of calibration images"))
    max_megapixels: float = field(default=MEGAPIXELS, metadata=LARGEST_IMAGE)
    target: Target = field(
        default="jetson-xavier-nx",
        metadata=about(
            "what the file is for: cpu is the smallest, tensorrt and jetson-xavier-nx are what TensorRT takes"
        ),
    )
    batch: Optional[int] = field(
        default=None, metadata=about("for a plan: how many images it takes at once, always; 1 if not given")
    )
    max_batch: Optional[int] = field(
        default=None, metadata=about("for a plan: how many images it takes at most, in place of --batch")
    )
    workspace_mb: Optional[int] = field(
        default=None,
        metadata=about(f"for a plan: memory that TensorRT may take for one layer, MB; {WORKSPACE_MB} if not given"),
    )
    timing_cache: Optional[Path] = field(
        default=None,
        metadata=about("for a plan: where TensorRT keeps its timings for the next build; in ~/.cache/uad if not given"),
    )

    triton: Optional[Path] = field(
        default=None,
        metadata=about("model repository of a Triton server, to which the file is copied, with its settings"),
    )
    triton_backend: Optional[OnnxRuntime] = field(
        default=None, metadata=about("with --triton: what runs an .onnx file there; onnxruntime if not given")
    )
    implicit: bool = field(
        default=False,
        metadata=about("for an int8 plan of TensorRT 8: a range for each tensor in place of Q/DQ, as a DLA needs it"),
    )
    calibration_cache: Optional[Path] = field(
        default=None,
        metadata=about("with --implicit: file for these ranges in TensorRT's own form, from which it then reads them"),
    )
    device: Device = field(default="gpu", metadata=about("for a plan: what runs it, as far as it can"))
    gpu_fallback: bool = field(
        default=False, metadata=about("with --device dla:0 or dla:1: the GPU runs what the DLA cannot")
    )

    def __post_init__(self) -> None:
        """Raise ExportError or UserError for what cannot be."""
        settle(self)
        above_zero(max_megapixels=self.max_megapixels)
        if self.calibration_data is not None:
            self.calibration_data = os.path.expanduser(self.calibration_data)
        above_zero(percentile=self.percentile)
        at_least(1, calibration_images=self.calibration_images, batch=self.batch, max_batch=self.max_batch)
        at_least(16, workspace_mb=self.workspace_mb)
        at_least(0, max_drop=self.max_drop, seed=self.seed)
        if self.out.suffix not in (".onnx", SUFFIX):
            raise ExportError(f"--out {self.out}: give a file that ends in .onnx or {SUFFIX}")
        if self.out.suffix == SUFFIX and self.target == "cpu":
            raise ExportError(f"--target cpu is for .onnx files: a {SUFFIX} runs on a GPU")
        for name in ("batch", "max_batch", "workspace_mb", "timing_cache", "implicit", "device"):
            if getattr(self, name) not in (None, False, "gpu") and self.out.suffix != SUFFIX:
                raise ExportError(f"{flag_of(name)} is for --out FILE{SUFFIX}, not {self.out}")
        if self.calibration_cache is not None and not self.implicit:
            raise ExportError("--calibration-cache is for --implicit: Q/DQ holds the ranges otherwise")
        if self.triton_backend is not None and (self.triton is None or self.out.suffix == SUFFIX):
            raise ExportError("--triton-backend is for --triton and an .onnx file")
        if self.gpu_fallback and self.device == "gpu":
            raise ExportError("--gpu-fallback is for --device dla:0 or dla:1")
        if self.max_batch is not None and self.device != "gpu":
            raise ExportError(f"--device {self.device} takes a fixed number of images: give --batch, not --max-batch")
        if self.batch is not None and self.max_batch is not None:
            raise ExportError("--batch is a fixed number of images, --max-batch the most: give one of them")
        if self.out.resolve() == self.model.resolve():
            raise ExportError(f"--out {self.out} is the model itself: give another file")
        for name in ("max_drop", "validation_data"):
            if getattr(self, name) is not None and self.precision != "auto":
                raise ExportError(f"{flag_of(name)} is for --precision auto{_not(self.precision)}")
        if self.weight_bits is not None and (self.weight_bits not in (7, 8) or self.precision != "int8"):
            raise ExportError(f"--weight-bits {self.weight_bits}: give 7 or 8, with --precision int8")
        if self.percentile is not None and self.calibrator not in (None, "percentile"):
            raise ExportError(f"--percentile is for --calibrator percentile, not {self.calibrator}")
        if self.explain is not None and self.precision not in ("int8", "auto"):
            raise ExportError(f"--explain is for --precision int8 or auto{_not(self.precision)}")


def export(options: ExportOptions) -> str:
    """Write the file; returns a summary of a line or two.

    Raises:
        UserError: the model, the calibration data or the output cannot serve.
    """
    from engines.files import check_output
    from engines.model_file import save_model
    from engines.qdq import for_cpu, for_tensorrt
    from export.check import check_model

    is_plan = options.out.suffix == SUFFIX
    check_output(options.out, "--out")
    check_output(options.calibration_cache, "--calibration-cache")
    allow(options.max_megapixels)
    if is_plan or options.calibrator == TENSORRT_ENTROPY:
        from export.tensorrt import require

        require()
    if options.explain is not None:
        _prepare_to_explain(options.explain)
    source = _load(options.model)
    if source.quantization is not None:
        result = _with_learned_ranges(source, source.quantization, options)
    elif source.info.precision != "fp32":
        result = _for_another_target(source, options)
    elif options.precision == "fp16":
        result = _half(source, options)
    elif options.precision in ("int8", "auto"):
        result = _post_training(source, options)
    elif options.precision is None and options.calibration_data is not None:
        raise ExportError("--calibration-data is for --precision int8, auto or fp16: give one of them")
    else:
        result = Result(source.model, source.info)
    info = dataclasses.replace(result.info, versions={**result.info.versions, **_versions()})
    model = for_cpu(result.model) if options.target == "cpu" else for_tensorrt(result.model)
    problems = check_model(model, options.target)
    if problems:
        raise ExportError(f"{options.target} would refuse the result: {'; '.join(problems)}")
    built = ""
    if is_plan:
        built = _build(model, info, options)
    else:
        save_model(model, info, options.out)
    if options.triton is not None:
        built += f", in {_into_repository(info, options)}"
    return f"{options.out}: {info.precision}, {options.out.stat().st_size / 1e6:.1f} MB{built}{result.summary}"


def _into_repository(info: "ModelInfo", options: ExportOptions) -> "Path":
    from engines.plan_file import read_description
    from export.triton import write_repository

    assert options.triton is not None
    plan = read_description(options.out)[1] if options.out.suffix == SUFFIX else None
    return write_repository(options.out, info, plan, options.triton, options.triton_backend)


def _build(model: "onnx.ModelProto", info: "ModelInfo", options: ExportOptions) -> str:
    """Have TensorRT build the plan, and write it; returns what it was built with."""
    from engines.plan_file import save_plan
    from export.tensorrt import build_plan
    from uad.progress import phases

    if options.implicit and info.precision not in ("int8", "mixed"):
        raise ExportError(f"--implicit is for int8, and this would be {info.precision}: add --precision int8")
    if options.device != "gpu" and info.precision == "fp32":
        raise ExportError(f"--device {options.device} computes in int8 and fp16: add --precision int8 or fp16")
    if options.device != "gpu" and info.precision != "fp16" and not options.implicit:
        raise ExportError(f"--device {options.device} takes int8 without Q/DQ only: add --implicit")
    settings = _plan_settings(options)
    with phases("Building the plan") as watch:
        plan, built = build_plan(model, info, settings, watch)
    save_plan(plan, info, built, options.out)
    said = f" by TensorRT {built.tensorrt} for {built.device}"
    if built.ranges:
        said += f", {built.ranges} tensors with a range"
    if built.dla_core is not None:
        said += f", {built.dla_layers} layers on DLA {built.dla_core}"
    return said + (f"; what it warns of is in {options.out}.json" if built.warnings else "")


def _plan_settings(options: ExportOptions) -> "PlanSettings":
    from export.tensorrt import PlanSettings

    return PlanSettings(
        command=_command_again(options),
        workspace_mb=options.workspace_mb or WORKSPACE_MB,
        batch=options.batch or 1,
        max_batch=options.max_batch,
        timing_cache=options.timing_cache,
        implicit=options.implicit,
        calibration_cache=options.calibration_cache,
        dla_core=None if options.device == "gpu" else int(options.device[len("dla:") :]),
        gpu_fallback=options.gpu_fallback,
    )


def _command_again(options: ExportOptions) -> str:
    """The command that builds a plan again, with the names of files and without their folders."""
    words = ["uad", "export", options.model.name]
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if (
            each.name in ("model", "out", "explain", "timing_cache", "calibration_cache", "triton")
            or value == each.default
        ):
            continue
        if each.name in ("calibration_data", "validation_data"):
            value = Path(value).name
        words.append(flag_of(each.name))
        if value is not True:
            words.append(f"[{','.join(value)}]" if isinstance(value, list) else str(value))
    return " ".join([*words, "--out", options.out.name])


@dataclass(frozen=True)
class Source:
    """The graph to start from: float32, or an ONNX file of another precision, which only changes its form."""

    path: Path
    model: "onnx.ModelProto"
    info: "ModelInfo"
    quantization: "Optional[Quantization]" = None  # the ranges it was trained with, if it was


@dataclass(frozen=True)
class Result:
    """The graph to write."""

    model: "onnx.ModelProto"
    info: "ModelInfo"
    summary: str = ""  # what to say of it


@dataclass(frozen=True)
class Calibrated:
    """A float32 graph, equalised, and what its tensors were seen to hold."""

    model: "onnx.ModelProto"
    placement: "Placement"  # with no layer kept in float
    histograms: "Dict[str, Histogram]"
    amax: Dict[str, float]


def _load(path: Path) -> Source:
    from engines.model_file import info_of, load_model

    if path.suffix in (".onnx", SUFFIX):
        model = load_model(path)
        return Source(path, model, info_of(model, path))
    try:
        from export.onnx import export_network
        from uad.training.checkpoint import load_checkpoint
        from uad.training.fold import fold
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    checkpoint = load_checkpoint(path)
    network = checkpoint.network
    folded = network if checkpoint.quantization else fold(network)
    model = export_network(folded, checkpoint.info.size, beside=network)
    return Source(path, model, checkpoint.info, checkpoint.quantization)


def _with_learned_ranges(source: Source, quantization: "Quantization", options: ExportOptions) -> Result:
    """The INT8 graph of a checkpoint that was trained under fake quantization."""
    from export.placement import place
    from export.quantize import with_ranges

    if options.precision not in (None, "int8"):
        raise ExportError(f"{source.path} was trained for int{quantization.bits}: export it with --precision int8")
    if quantization.bits != 8:
        raise ExportError(f"{source.path} was trained for a simulation of int{quantization.bits}: only int8 runs")
    _refuse_calibration(options, f"{source.path} brings its own ranges")
    placement = place(source.model)
    missing = sorted(set(placement.ranged()) - set(quantization.amax))
    if missing:
        raise ExportError(f"{source.path} has no range of {missing[0]}: train it again")
    quantized, info, report = with_ranges(source.model, source.info, quantization.amax, placement)
    return Result(quantized, info, _report_summary(report, []))


def _for_another_target(source: Source, options: ExportOptions) -> Result:
    """The graph of a file that is not fp32, as it is: only a float32 graph can be made another precision."""
    found = source.info.precision
    if options.precision not in (None, found):
        raise ExportError(f"{source.path} is {found} already: export from the checkpoint or its fp32 file")
    _refuse_calibration(options, f"{source.path} is {found} already")
    return Result(source.model, source.info)


def _refuse_calibration(options: ExportOptions, why: str) -> None:
    for name in ("calibration_data", "calibrator", "percentile", "weight_bits", "explain"):
        if getattr(options, name) is not None:
            raise ExportError(f"{why}: leave out {flag_of(name)}")


def _half(source: Source, options: ExportOptions) -> Result:
    """The FP16 graph; with images, what passes its range on them stays in float32, and it is fitted to them."""
    from export.float16 import beyond_float16, to_float16
    from uad.exporting.images import RANDOM_NORMAL
    from uad.exporting.refit import Refit
    from uad.progress import counted, progress

    if options.calibration_data == RANDOM_NORMAL:
        raise CalibrationError("fp16 needs no ranges, and random-normal images show no class: give a folder, or none")
    images = None if options.calibration_data is None else _images(source, options)
    if images is None:
        kept = beyond_float16(source.model)
    else:
        with progress("Looking for what float16 cannot hold", images.count) as step:
            kept = beyond_float16(source.model, counted(images, step))
    info = dataclasses.replace(source.info, precision="fp16", float_layers=kept)
    told = f"; left in float32, beyond the range of float16: {', '.join(kept)}" if kept else ""
    half = Result(to_float16(source.model, kept), info, told)
    if images is None:
        return dataclasses.replace(half, summary=f"{told}\nno images given: read-out and thresholds stay those of fp32")
    return _fitted(half, Refit(source.model, images), images)


def _images(source: Source, options: ExportOptions) -> "CalibrationImages":
    from uad.exporting.doubts import calibration_doubts
    from uad.exporting.images import calibration_images

    assert options.calibration_data is not None
    images = calibration_images(
        source.info,
        options.calibration_data,
        options.calibration_images,
        options.calibration_classes,
        options.seed,
        spare_half=options.precision == "auto",
    )
    for doubt in calibration_doubts(source.model, images):
        warnings.warn(f"{options.calibration_data}: {doubt}", Doubt, stacklevel=2)
    return images


def _fitted(result: Result, refit: "Refit", images: "CalibrationImages") -> Result:
    """A graph of another precision with the read-out and the thresholds that it needs."""
    from uad.evaluation.metrics import too_few
    from uad.exporting.refit import choose_thresholds, share_above
    from uad.progress import progress

    with progress("Fitting the read-out again", refit.passes) as step:
        model = refit.readout(result.model, step)
    with progress("Choosing thresholds", len(images.held_out)) as step:
        info, chosen = choose_thresholds(model, result.info, images.held_out, step)
    info = dataclasses.replace(info, refitted={"images": refit.counts, "thresholds": chosen})
    told = _fitted_summary(refit, images, info.precision, chosen)
    unchanged = [sample for sample in images.readout if sample.class_name not in chosen]
    if unchanged:
        asked = f"{100 * info.false_positive_rate:g}% was asked for"
        with progress("Trying thresholds", len(unchanged)) as step:
            for name, share in share_above(model, info, unchanged, step).items():
                told += f"\n{name}: {100 * share:.0f}% of the good images given lie above its threshold, {asked}"
    counts = Counter(sample.class_name for sample in images.held_out)
    few = too_few(counts, info.false_positive_rate)
    return Result(model, info, result.summary + told + (f"\n{few}" if few else ""))


def _fitted_summary(refit: "Refit", images: "CalibrationImages", precision: str, chosen: Sequence[str]) -> str:
    """What the read-out and the thresholds rest on, and which classes keep those of the float model."""
    from uad.exporting.refit import FEWEST_IMAGES

    classes = images.info.classes
    if refit.statistics is None:
        told = "\nthe read-out rests on no statistics"
    elif refit.counts:
        told = f"\nread-out fitted again on {sum(refit.counts.values())} good images"
        told += _but([name for name in classes if name not in refit.counts])
    else:
        why = f"fewer than {FEWEST_IMAGES} images of a class" if images.readout else "no class is known"
        told = f"\n{why}: the read-out keeps its statistics, with deviations of at least the noise of {precision}"
    if not chosen:
        return told + "; thresholds stay those of fp32"
    return told + "; thresholds chosen again" + _but([name for name in classes if name not in chosen])


def _post_training(source: Source, options: ExportOptions) -> Result:
    """The INT8 or mixed graph by post-training quantization; writes the files of --explain."""
    from export.placement import place
    from export.quantize import with_ranges, with_seven_bits
    from uad.data.folder import test_samples, with_depths
    from uad.exporting.float_layers import (
        Comparison,
        check_labelled,
        choose_float_layers,
        good_for_agreement,
        most_trials,
    )
    from uad.exporting.refit import Refit
    from uad.progress import progress

    is_auto = options.precision == "auto"
    if options.calibration_data is None:
        wanted = "a folder of good images" + ("" if is_auto else ", or random-normal")
        raise CalibrationError(f"{options.precision} needs --calibration-data: {wanted}")
    images = _images(source, options)
    good = good_for_agreement(images.spare) if is_auto else []
    folder = options.validation_data
    labelled = [] if folder is None else check_labelled(with_depths(test_samples(folder), source.info.depth_of), folder)
    calibrator = options.calibrator or "percentile"
    percentile = options.percentile or PERCENTILE
    refit = Refit(source.model, images)
    calibrated = _calibrate(source, images, options, percentile)
    damage: Dict[str, float] = {}
    judged_on = ""
    if is_auto or options.explain is not None:
        damage, judged_on = _damage(source, calibrated, images, options.runtime)
    choice = None
    max_drop = MAX_DROP if options.max_drop is None else options.max_drop
    if is_auto:
        comparison = Comparison(source.model, source.info, good, labelled, options.runtime, refit.readout)
        with progress("Choosing layers", most_trials(len(damage))) as step:
            choice = choose_float_layers(
                calibrated.model, source.info, calibrated.amax, list(damage), comparison, max_drop, step
            )
    float_layers = choice.float_layers if choice else []
    if options.explain is not None:
        _explain(calibrated, damage, float_layers, judged_on, options.explain)
    told = _choice_summary(choice, len(damage), len(good), len(labelled)) if choice else ""
    if choice and len(float_layers) == len(damage):
        return Result(source.model, source.info, told)  # nothing is quantized: it stays the fp32 model
    placement = place(calibrated.model, float_layers) if float_layers else calibrated.placement
    quantized, info, report = with_ranges(calibrated.model, source.info, calibrated.amax, placement)
    if options.weight_bits == 7:
        quantized, info = with_seven_bits(calibrated.model, quantized), dataclasses.replace(info, weight_bits=7)
    if float_layers:
        info = dataclasses.replace(info, precision="mixed", float_layers=float_layers)
    description: Dict[str, Any] = {
        "calibrator": calibrator,
        "percentile": percentile if calibrator == "percentile" else None,
        "data": images.source,
        "images": images.count,
        "classes": sorted({sample.class_name for sample in images.samples}),
        "seed": images.seed,
        "dead": len(report.dead),
    }
    if choice:
        description.update(max_drop=max_drop, agreement=dataclasses.asdict(choice.agreement))
    info = dataclasses.replace(info, calibration=description)
    if images.source == "images":  # noise says nothing of the mean of a channel
        quantized = _corrected(calibrated.model, quantized, images)
    return _fitted(Result(quantized, info, _report_summary(report, float_layers) + told), refit, images)


def _calibrate(source: Source, images: "CalibrationImages", options: ExportOptions, percentile: float) -> Calibrated:
    """Equalise the graph, and find the ranges of its tensors, with histograms of more where --explain wants them."""
    from export.calibrate import calibrator, merged
    from export.equalize import equalizable, equalize
    from export.explain import observed_tensors
    from export.placement import place
    from export.quantize import collect_histograms, ranges
    from uad.progress import counted, progress

    model = source.model
    # Noise says nothing of where the values of a channel end.
    if images.source == "images" and equalizable(model):
        with progress("Equalising", images.count) as step:
            model = equalize(model, counted(images, step))
    placement = place(model)
    ranged = placement.ranged()
    if options.calibrator == TENSORRT_ENTROPY:
        amax = _ranges_of_tensorrt(model, source.info, images, ranged, options)
        wanted = observed_tensors(placement) if options.explain else []
    else:
        wanted = observed_tensors(placement) if options.explain else ranged
    by_class = []
    if wanted:
        with progress("Calibrating", images.count) as step:
            by_class = [collect_histograms(model, wanted, counted(group, step)) for group in images.by_class()]
    if options.calibrator != TENSORRT_ENTROPY:
        rule = calibrator(options.calibrator or "percentile", percentile=percentile)
        amax = ranges(by_class, ranged, rule)
    histograms = {name: merged([of_class[name] for of_class in by_class]) for name in wanted}
    return Calibrated(model, placement, histograms, amax)


def _ranges_of_tensorrt(
    model: "onnx.ModelProto",
    info: "ModelInfo",
    images: "CalibrationImages",
    names: Sequence[str],
    options: ExportOptions,
) -> Dict[str, float]:
    """Tensor -> amax, of those named, as TensorRT's entropy calibrator has it."""
    from engines.qdq import for_tensorrt
    from export.tensorrt import calibrate
    from uad.progress import phases

    with phases("Calibrating with TensorRT") as watch:
        found = calibrate(for_tensorrt(model), info, images, _plan_settings(options), watch)
    missing = [name for name in names if name not in found]
    if missing:
        raise CalibrationError(f"TensorRT's calibrator gives no range for {missing[0]}: take another --calibrator")
    return {name: found[name] for name in names}


def _corrected(
    model: "onnx.ModelProto", quantized: "onnx.ModelProto", images: "CalibrationImages"
) -> "onnx.ModelProto":
    from export.bias import CORRECTION_IMAGES, by_depth, correct_biases
    from uad.data.folder import draw, load_images
    from uad.progress import progress

    some = list(load_images(draw(images.samples, CORRECTION_IMAGES, images.seed), images.info.size))
    with progress("Correcting biases", len(by_depth(model))) as step:
        return correct_biases(model, quantized, some, step)


def _damage(
    source: Source, calibrated: Calibrated, images: "CalibrationImages", runtime: Optional[str]
) -> Tuple[Dict[str, float], str]:
    """Layer -> dB, the worst first, and in words on which images."""
    from export.sensitivity import sensitivity
    from uad.exporting.refit import FEWEST_IMAGES, Refit
    from uad.progress import progress

    refit = Refit(source.model, images, FEWEST_IMAGES)  # each layer is fitted to: more images would take long

    pixels, classes, judged_on = images.to_judge_layers()
    layers = calibrated.placement.layers
    with progress("Judging layers", len(layers)) as step:
        damage = sensitivity(
            calibrated.model, source.info, calibrated.amax, layers, pixels, classes, runtime, step, refit.readout
        )
    return damage, judged_on


def _prepare_to_explain(folder: Path) -> None:
    from engines.files import make_folder
    from export.explain import require_matplotlib

    require_matplotlib()
    make_folder(folder, flag="--explain")


def _explain(
    calibrated: Calibrated, damage: Dict[str, float], float_layers: Sequence[str], judged_on: str, folder: Path
) -> None:
    from engines.files import write_text
    from export.explain import layer_reports, plot, write_reports
    from uad.tables import layer_table

    reports = layer_reports(
        calibrated.model, calibrated.placement, calibrated.histograms, calibrated.amax, damage, float_layers
    )
    write_reports(folder / "layers.csv", reports)
    plot(folder / "layers.png", reports)
    write_text(folder / "layers.md", layer_table(reports, judged_on) + "\n")


def _report_summary(report: "QuantizationReport", chosen: Sequence[str]) -> str:
    summary = f"; {report.tensors} activations and {report.weights} weights in int8"
    if report.dead:
        summary += f" ({len(report.dead)} with dead channels)"
    impossible = [name for name in report.float_nodes if name not in chosen]
    if impossible:
        summary += f"; left in float: {', '.join(impossible)}"
    return summary


def _choice_summary(choice: "Choice", layers: int, good: int, labelled: int) -> str:
    """Which layers auto left in float, and the agreement reached."""
    left = f"\n{len(choice.float_layers)} of {layers} layers left in float"
    if choice.float_layers:
        left += f": {', '.join(choice.float_layers)}"
    plain = f" (plain int8: {choice.int8.spearman:.4f})"
    left += f"\nSpearman with fp32 {choice.agreement.spearman:.4f}{plain}, on {good} good images not used to calibrate"
    left += ", as they are and with drawn defects"
    if choice.agreement.auroc_drop is not None:
        plain = f" (plain int8: {100 * choice.int8.auroc_drop:.2f})" if choice.int8.auroc_drop is not None else ""
        drop = f"{100 * choice.agreement.auroc_drop:.2f} points{plain}"
        left += f"\nmean image AUROC falls by {drop}, on {labelled} labelled images"
    return left


def _not(precision: Optional[str]) -> str:
    return f", not {precision}" if precision else ""


def _but(names: Sequence[str]) -> str:
    return f", but not for {', '.join(names)}" if names else ""


def _versions() -> Dict[str, str]:
    found = {}
    for name in ("uad", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise UserError(f"{name} is not installed: pip install {name}") from error
    return found


def main(arguments: Sequence[str]) -> None:
    """Export, and print the summary."""
    print(export(parse(ExportOptions, arguments, "export")))
