"""`uad doctor`: what is installed, which runtimes work here, and what to do about the rest."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import engines
from engines.cpu import cpu_fields, cpu_flags, saturates
from engines.errors import UserError
from engines.files import check_output, write_json
from engines.plan_file import SUFFIX
from uad.command_line import parse
from uad.options import about, above_zero, check_fields

if TYPE_CHECKING:
    import onnx

    from engines.metadata import ModelInfo

# What each package is for, and what installs it.
PACKAGES = {
    "export and calibration": (
        ".",
        ("numpy", "pillow", "onnx", "onnxruntime", "scikit-learn", "scipy", "pyyaml", "rich"),
    ),
    "training": (
        ".[train]",
        ("torch", "torchvision", "lightning", "torchmetrics", "pytorch-quantization", "jsonargparse"),
    ),
    "the fastest runtime on a CPU": (".[openvino]", ("openvino",)),
    "TensorRT plans on an NVIDIA GPU": (".[tensorrt]", ("tensorrt", "pycuda", "polygraphy")),
    "pictures of what INT8 does": (".[plots]", ("matplotlib",)),
    "pages of uad report": (".[report]", ("jinja2", "matplotlib")),
    "watching a folder without looking at all of it": (".[watch]", ("inotify_simple",)),
}


SECONDS = 10.0  # that the timings of a report take, for each file


@dataclass
class DoctorOptions:
    """Say what is installed and what works here."""

    report: Optional[Path] = field(
        default=None,
        metadata=about("JSON file for a report to send to whoever made the model; it names nothing personal"),
    )
    model: Optional[Path] = field(
        default=None, metadata=about("for --report: .plan or .onnx file to judge ten drawn images with, and to time")
    )
    reference: Optional[Path] = field(
        default=None, metadata=about("for --report: the fp32 .onnx file, to compare --model with")
    )
    seconds: float = field(default=SECONDS, metadata=about("for --report: how long to time each file, seconds"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        above_zero(seconds=self.seconds)
        if self.report is None and (self.model or self.reference):
            raise UserError("--model and --reference are for --report FILE")
        if self.reference is not None and self.model is None:
            raise UserError("--reference is for --model: give the file to compare")


def doctor() -> str:
    """A readable report, one line for each package and each runtime."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}, {_processor()}"]
    for purpose, (extra, packages) in PACKAGES.items():
        versions = [(name, _version(name)) for name in packages]
        missing = [name for name, number in versions if number is None]
        lines.append(
            f"{purpose}: "
            + (f"missing {', '.join(missing)}: pip install '{extra}' in the folder of uad" if missing else "ready")
        )
        lines += [f"  {name} {number}" for name, number in versions if number is not None]
    lines.append("runtimes:")
    lines += [f"  {name}: {answer}" for name, answer in _runtimes()]
    wrong = saturates(platform.machine(), cpu_flags())
    if wrong is not False:
        why = (
            "this CPU has no VNNI, OpenVINO's sums saturate on it"
            if wrong
            else "whether this CPU has VNNI is not known, without it OpenVINO's sums saturate"
        )
        lines.append(f"INT8: {why}: use --runtime onnxruntime, or export with --weight-bits 7")
    return "\n".join(lines)


def _runtimes() -> List[Tuple[str, str]]:
    answers = []
    for name, runtime in engines.runtimes().items():
        if engines.missing(name):
            answers.append((name, f"not installed: {engines.how_to_install(name)}"))
        elif runtime.suffix not in (".onnx", SUFFIX):
            answers.append((name, f"installed; it runs {runtime.suffix} files"))
        else:
            answers.append((name, _try(name)))
    return answers


def _try(runtime: str) -> str:
    """Whether a runtime loads and runs a tiny model; TensorRT builds it first."""
    import tempfile

    import numpy as np

    from engines.metadata import ModelInfo
    from engines.model_file import save_model

    info = ModelInfo("doctor", "none", [], {}, 0.0, 0.0, {}, 8, 8, "", 1, [0.0] * 3, [1.0] * 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"doctor{engines.runtimes()[runtime].suffix}"
        try:
            if runtime == "tensorrt":
                _build(info, path)
            else:
                save_model(_tiny_model(), info, path)
            with engines.load(path, runtime) as engine:
                score = engine.infer(np.full((1, 8, 8, 3), 7, np.uint8)).score
        except Exception as error:  # whatever a broken installation raises is what the user needs to read
            return f"does not work ({type(error).__name__}: {str(error).splitlines()[0]})"
    return "works" if score[0] == 7.0 else f"computes wrongly ({score[0]} for 7)"


def _build(info: "ModelInfo", path: Path) -> None:
    from engines.plan_file import save_plan
    from export.tensorrt import PlanSettings, build_plan

    plan, built = build_plan(_tiny_model(), info, PlanSettings("uad doctor", workspace_mb=64))
    save_plan(plan, info, built, path)


def _tiny_model() -> "onnx.ModelProto":
    """A graph with the project's inputs and outputs: map = mean of channels, score = maximum of map."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], name="/head/Cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["anomaly_map"], name="/head/Mean", axes=[3], keepdims=0),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], name="/head/Max", axes=[1, 2], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])
    anomaly_map = helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", 8, 8])
    graph = helper.make_graph(nodes, "doctor", [image], [score, anomaly_map])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Model name and the instruction sets that matter for INT8."""
    flags = cpu_flags()
    useful = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if flag in flags]
    name = cpu_fields().get("model name", platform.machine())
    return f"{name} ({', '.join(useful) or 'no INT8 instructions found'})"


def _report(options: DoctorOptions, text: str) -> None:
    """Write what is said of this machine, and of a model on it."""
    from engines.benchmark import ROUNDS
    from uad.progress import progress
    from uad.report.device_report import device_report, without_paths

    assert options.report is not None
    content: Dict[str, Any] = {"uad": _version("uad"), "doctor": without_paths(text.splitlines()), "model": None}
    if options.model is not None:
        with progress("Measuring", ROUNDS) as step:
            content["model"] = device_report(options.model, options.reference, options.seconds, step)
    write_json(options.report, content)


def main(arguments: Sequence[str]) -> None:
    """Print the report."""
    options = parse(DoctorOptions, arguments, "doctor")
    if options.report is not None:
        check_output(options.report, "--report")
    text = doctor()
    print(text)
    if options.report is not None:
        _report(options, text)
        print(f"{options.report}: read it before you send it")
