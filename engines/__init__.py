"""Runs and measures a built model: `load(path)` gives an `Engine`, `Engine.infer(images)` a `Prediction`.

Needs numpy alone; a runtime is imported when it is chosen.
"""

import functools
import importlib
import importlib.util
import threading
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from engines import model_file, plan_file
from engines.base import Engine, Prediction
from engines.entry_points import entry_points
from engines.errors import ModelFileError, RuntimeNotInstalled, UserError
from engines.metadata import ModelInfo

__all__ = [
    "RUNTIMES",
    "Engine",
    "ModelInfo",
    "Prediction",
    "Runtime",
    "check_runtime",
    "how_to_install",
    "installed_runtimes",
    "load",
    "missing",
    "read_info",
    "runtime_for",
    "runtimes",
]


class Runtime(NamedTuple):
    """What runs model files."""

    engine: str  # "module:Class", made as Class(path, batch=, threads=, lanes=)
    suffix: str  # suffix of the files that it runs
    packages: Tuple[str, ...]  # packages that must be installed; each is imported by its own name


# Those of this project, in order of preference.
RUNTIMES: Dict[str, Runtime] = {
    "openvino": Runtime("engines.openvino:OpenVinoEngine", ".onnx", ("openvino",)),
    "onnxruntime": Runtime("engines.onnxruntime:OnnxRuntimeEngine", ".onnx", ("onnxruntime",)),
    "tensorrt": Runtime("engines.tensorrt:TensorRtEngine", plan_file.SUFFIX, ("tensorrt", "pycuda")),
    "torch": Runtime("uad.training.torch_engine:TorchEngine", ".ckpt", ("torch", "lightning")),
}
# A runtime's first run builds tables inside it. OpenVINO's two threads that do so together wait for each other for ever
# (the table behind `Type.to_dtype` calls Python while it is made), deaf to signals. So that run is made in one thread.
_first_run = threading.Lock()


@functools.lru_cache(maxsize=None)
def runtimes() -> Dict[str, Runtime]:
    """Name -> runtime, in order of preference: `RUNTIMES`, then those that other packages bring.

    A package brings one by an entry point of the group `uad.runtimes`, "module:NAME" of a `Runtime`.
    """
    known = dict(RUNTIMES)
    for name, (module, attribute) in entry_points("uad.runtimes").items():
        known.setdefault(name, getattr(importlib.import_module(module), attribute))
    return known


def missing(runtime: str) -> List[str]:
    """The packages that a runtime wants and that are not installed."""
    return [package for package in runtimes()[runtime].packages if not importlib.util.find_spec(package)]


def installed_runtimes(suffix: Optional[str] = None) -> List[str]:
    """The runtimes with every package installed, best first; with a suffix, those that run such files."""
    return [name for name, each in runtimes().items() if suffix in (None, each.suffix) and not missing(name)]


def check_runtime(name: Optional[str]) -> None:
    """Refuse a runtime that there is not; None is none.

    Raises:
        UserError: names those that there are.
    """
    if name is not None and name not in runtimes():
        raise UserError(f"unknown runtime '{name}': choose one of {', '.join(runtimes())}")


def runtime_for(path: Union[str, Path], asked: Optional[str]) -> Optional[str]:
    """The runtime asked for, if several run files of this kind; else None: the file itself says what runs it."""
    fitting = [name for name, each in runtimes().items() if each.suffix == Path(path).suffix]
    return asked if len(fitting) > 1 else None


def read_info(path: Union[str, Path]) -> ModelInfo:
    """What a model file says of itself; that of a plan can be read where there is no GPU.

    Raises:
        ModelFileError: the file is missing, damaged, not a model of this project, or of a kind that nothing runs.
        RuntimeNotInstalled: a kind of file that only its runtime reads, which is not installed.
    """
    if Path(path).suffix in (".onnx", plan_file.SUFFIX):
        return model_file.read_info(path)
    info: ModelInfo = _engine_class(_choose(path, None)).read_info(path)
    return info


def load(
    path: Union[str, Path],
    runtime: Optional[str] = None,
    *,
    batch: Optional[int] = None,
    threads: Optional[int] = None,
    lanes: int = 1,
) -> Engine:
    """Load a model file.

    Args:
        path: an ONNX file or a TensorRT plan, written by `uad export`, or a checkpoint, written by `uad fit`.
        runtime: a name in `runtimes()`; None takes the first that is installed and runs such files.
        batch: images in one run; None is 1, or what a plan was built for.
        threads: CPU threads for the runs that go on at a time; None leaves it to the runtime.
        lanes: how many runs may go on at a time on a CPU, see `Engine.lanes`; a GPU and torch have one.

    Raises:
        ModelFileError: the file is missing, damaged, not a model of this project, or not one that the runtime runs.
        RuntimeNotInstalled: the runtime is not installed.
        UserError: an unknown runtime, or no GPU where one is needed.
    """
    engine: Engine = _engine_class(_choose(path, runtime))(str(path), batch=batch, threads=threads, lanes=lanes)
    with _first_run:
        engine.run(np.zeros((engine.batch, *engine.info.size, 3), np.uint8))
    return engine


def _choose(path: Union[str, Path], runtime: Optional[str]) -> str:
    """The name of the runtime that is to run a file."""
    check_runtime(runtime)
    suffix = Path(path).suffix
    fitting = [name for name, each in runtimes().items() if each.suffix == suffix]
    if not fitting:
        kinds = ", ".join(dict.fromkeys(each.suffix for each in runtimes().values()))
        raise ModelFileError(f"{path}: engines run {kinds} files: make one with uad export")
    if runtime is not None and runtime not in fitting:
        wanted = runtimes()[runtime].suffix
        raise ModelFileError(f"{path}: {runtime} runs {wanted} files: make one with uad export --out FILE{wanted}")
    installed = [name for name in fitting if not missing(name)]
    name = runtime or (installed or fitting)[0]
    if name not in installed:
        if runtime:
            raise RuntimeNotInstalled(f"the runtime {name} is not installed: {how_to_install(name)}")
        mend = ", or ".join(how_to_install(each) for each in fitting)
        raise RuntimeNotInstalled(f"no runtime for {suffix} files is installed: {mend}")
    return name


def _engine_class(runtime: str) -> Any:
    """The class of a runtime, a subclass of `Engine`."""
    module, _, name = runtimes()[runtime].engine.partition(":")
    return getattr(importlib.import_module(module), name)


def how_to_install(runtime: str) -> str:
    """What to do about the packages that a runtime lacks, in a line."""
    lacks = missing(runtime)
    if runtime == "torch":
        return "pip install '.[train]' in the folder of uad"
    if runtime != "tensorrt":
        return f"pip install {' '.join(lacks)}"
    advice = []
    if "tensorrt" in lacks:
        advice.append(
            "tensorrt is missing: on a Jetson it comes with JetPack (sudo apt install python3-libnvinfer; a virtual "
            "environment sees it if made with --system-site-packages), on a workstation pip install tensorrt"
        )
    if "pycuda" in lacks:
        advice.append(
            "pycuda is missing: with the CUDA toolkit's nvcc on the PATH (export PATH=/usr/local/cuda/bin:$PATH), "
            "pip install pycuda"
        )
    return "; ".join(advice)
