"""`uad export`: a checkpoint or an ONNX file to an ONNX file or a TensorRT plan of the asked precision."""

import dataclasses
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Literal, Optional, Sequence

from engines.errors import UserError
from engines.plan_file import SUFFIX
from export.errors import ExportError
from uad.command_line import parse
from uad.commands.choices import Reading, Target
from uad.exporting.settings import TENSORRT_ENTROPY, WORKSPACE_MB, Calibration, Choice, Plan
from uad.options import about, check_fields, given_fields, part, positional, refuse_given

if TYPE_CHECKING:
    import onnx

    from engines.metadata import ModelInfo
    from engines.plan_file import PlanInfo
    from export.tensorrt import PlanSettings
    from uad.exporting.source import Graph, Source

Precision = Literal["fp32", "fp16", "int8", "auto"]
NOT_IN_A_COMMAND = ("--explain", "--timing-cache", "--calibration-cache", "--triton")  # that builds a plan again


@dataclass
class Triton:
    """A model repository of a Triton server."""

    repository: Optional[Path] = field(
        default=None,
        metadata=about("model repository of a Triton server, to which the file is copied, with its settings", "triton"),
    )
    backend: Optional[Literal["openvino", "onnxruntime"]] = field(
        default=None,
        metadata=about("with --triton: what runs an .onnx file there; onnxruntime if not given", "triton-backend"),
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)


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
            "precision of the backbone; auto is int8 that leaves in fp32 the layers it must; the model's if not given"
        ),
    )
    target: Target = field(
        default="jetson-xavier-nx",
        metadata=about(
            "what the file is for: cpu is the smallest, tensorrt and jetson-xavier-nx are what TensorRT takes"
        ),
    )
    calibration: Calibration = field(default_factory=Calibration, metadata=part())
    choice: Choice = field(default_factory=Choice, metadata=part())
    plan: Plan = field(default_factory=Plan, metadata=part())
    triton: Triton = field(default_factory=Triton, metadata=part())
    reading: Reading = field(default_factory=Reading, metadata=part())

    def __post_init__(self) -> None:
        """Raise ExportError or UserError for what cannot be."""
        check_fields(self)
        if self.out.suffix not in (".onnx", SUFFIX):
            raise ExportError(f"--out {self.out}: give a file that ends in .onnx or {SUFFIX}")
        if self.out.resolve() == self.model.resolve():
            raise ExportError(f"--out {self.out} is the model itself: give another file")
        if self.is_plan and self.target == "cpu":
            raise ExportError(f"--target cpu is for .onnx files: a {SUFFIX} runs on a GPU")
        if self.triton.backend is not None and (self.triton.repository is None or self.is_plan):
            raise ExportError("--triton-backend is for --triton and an .onnx file")
        asked, bits = self.precision, self.calibration.weight_bits
        if bits is not None and asked != "int8":
            raise ExportError(f"--weight-bits {bits}: give 7 or 8, with --precision int8")
        if not self.is_plan:
            refuse_given(self.plan, f"is for --out FILE{SUFFIX}, not {self.out}")
        if self.calibration.like is not None and asked not in (None, "int8"):
            raise ExportError(f"--like is for --precision int8, not {asked}")
        if asked in ("fp32", "fp16"):
            images = ("data", "images", "classes", "seed") if asked == "fp16" and self.calibration.data else ()
            refuse_given(self.calibration, f"is for --precision int8 or auto, not {asked}", but=images)
        if asked != "auto":
            also = ("explain", "runtime") if asked == "int8" else ()
            wanted = "int8 or auto" if self.choice.explain else "auto"
            refuse_given(self.choice, f"is for --precision {wanted}{f', not {asked}' if asked else ''}", but=also)
        if asked == "int8" and self.choice.runtime is not None and self.choice.explain is None:
            raise ExportError("--runtime is for --precision auto, or --explain: nothing is compared otherwise")

    @property
    def is_plan(self) -> bool:
        """Whether TensorRT builds what is written."""
        return self.out.suffix == SUFFIX


@dataclass(frozen=True)
class Exported:
    """The file that was written, and what was found on the way."""

    path: Path
    graph: "Graph"
    plan: "Optional[PlanInfo]" = None  # how it was built; None for an ONNX file
    repository: Optional[Path] = None  # folder of the model in Triton's repository

    @property
    def info(self) -> "ModelInfo":
        """The description in the file."""
        return self.graph.info


def export(options: ExportOptions) -> Exported:
    """Write the file.

    Raises:
        UserError: the model, the calibration data or the output cannot serve.
    """
    from engines.files import check_output
    from engines.model_file import save_model
    from engines.qdq import for_cpu, for_tensorrt
    from export.check import check_model
    from uad.exporting.post_training import prepare_to_explain
    from uad.exporting.source import load_source

    check_output(options.out, "--out")
    check_output(options.plan.calibration_cache, "--calibration-cache")
    options.reading.begin()
    if options.is_plan or options.calibration.calibrator == TENSORRT_ENTROPY:
        from export.tensorrt import require

        require()
    if options.choice.explain is not None:
        prepare_to_explain(options.choice.explain)
    graph = _made(load_source(options.model), options)
    info = dataclasses.replace(graph.info, versions={**graph.info.versions, **_versions()})
    graph = dataclasses.replace(graph, info=info)
    model = for_cpu(graph.model) if options.target == "cpu" else for_tensorrt(graph.model)
    problems = check_model(model, options.target)
    if problems:
        raise ExportError(f"{options.target} would refuse the result: {'; '.join(problems)}")
    if options.is_plan:
        _build(model, info, options)
    else:
        save_model(model, info, options.out)
    return _delivered(graph, options)


def _made(source: "Source", options: ExportOptions) -> "Graph":
    """The graph of the asked precision."""
    from uad.exporting.extending import extended
    from uad.exporting.half import to_half
    from uad.exporting.post_training import quantize
    from uad.exporting.source import Graph, with_learned_ranges

    asked, given = options.precision, source.info.precision
    if source.quantization is not None:
        if asked not in (None, "int8"):
            trained = f"{source.path} was trained for int{source.quantization.bits}"
            raise ExportError(f"{trained}: export it with --precision int8")
        _refuse_calibration(options, f"{source.path} brings its own ranges")
        return with_learned_ranges(source)
    if given != "fp32":  # only a float32 graph can be made another precision
        if asked not in (None, given):
            raise ExportError(f"{source.path} is {given} already: export from the checkpoint or its fp32 file")
        _refuse_calibration(options, f"{source.path} is {given} already")
        return Graph(source.model, source.info)
    if asked == "fp16":
        return to_half(source, options.calibration)
    if options.calibration.like is not None:
        return extended(source, options.calibration)
    if asked in ("int8", "auto"):
        return quantize(source, asked == "auto", options.calibration, options.choice, _plan_settings(options))
    if asked is None:
        refuse_given(options.calibration, "is for --precision int8, auto or fp16: give one of them")
    return Graph(source.model, source.info)


def _refuse_calibration(options: ExportOptions, why: str) -> None:
    for flag in (*given_fields(options.calibration), *given_fields(options.choice)):
        raise ExportError(f"{why}: leave out {flag}")


def _build(model: "onnx.ModelProto", info: "ModelInfo", options: ExportOptions) -> None:
    """Have TensorRT build the plan, and write it."""
    from engines.plan_file import save_plan
    from export.tensorrt import build_plan
    from uad.progress import phases

    options.plan.check(info.precision)
    with phases("Building the plan") as watch:
        plan, built = build_plan(model, info, _plan_settings(options), watch)
    save_plan(plan, info, built, options.out)


def _plan_settings(options: ExportOptions) -> "PlanSettings":
    from export.tensorrt import PlanSettings

    plan = options.plan
    return PlanSettings(
        command=_command_again(options),
        workspace_mb=plan.workspace_mb or WORKSPACE_MB,
        batch=plan.batch or 1,
        max_batch=plan.max_batch,
        timing_cache=plan.timing_cache,
        implicit=plan.implicit,
        int8_only=plan.int8_only,
        calibration_cache=plan.calibration_cache,
        dla_core=plan.dla_core,
        gpu_fallback=plan.gpu_fallback,
    )


def _command_again(options: ExportOptions) -> str:
    """The command that builds a plan again, with the names of files and without their folders."""
    words = ["uad", "export", options.model.name]
    for flag, value in given_fields(options).items():
        if flag in ("--out", "--model", *NOT_IN_A_COMMAND):
            continue
        if flag in ("--calibration-data", "--validation-data"):
            value = Path(value).name
        words += [flag] if value is True else [flag, f"[{','.join(value)}]" if isinstance(value, list) else str(value)]
    return " ".join([*words, "--out", options.out.name])


def _delivered(graph: "Graph", options: ExportOptions) -> Exported:
    """What was written, copied into Triton's repository if that was asked."""
    from engines.plan_file import read_description
    from export.triton import write_repository

    plan, repository = read_description(options.out)[1] if options.is_plan else None, None
    if options.triton.repository is not None:
        repository = write_repository(options.out, graph.info, plan, options.triton.repository, options.triton.backend)
    return Exported(options.out, graph, plan, repository)


def _versions() -> Dict[str, str]:
    versions = {}
    for name in ("uad", "onnx", "onnxruntime", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError as error:
            raise UserError(f"{name} is not installed: pip install {name}") from error
    return versions


def main(arguments: Sequence[str]) -> None:
    """Export, and print what was found."""
    from uad.exporting.summary import summary

    made = export(parse(ExportOptions, arguments, "export"))
    print(summary(made.path, made.graph, made.plan, made.repository))
