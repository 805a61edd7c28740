"""Runs and measures a built model: `load(path)` gives an `Engine`, `Engine.infer(images)` a `Prediction`.

Needs numpy alone; a runtime is imported when it is chosen.
"""

import importlib
import importlib.util
import threading
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from engines import plan_file
from engines.base import Engine, Prediction
from engines.errors import ModelFileError, RuntimeNotInstalled, UserError
from engines.metadata import ModelInfo
from engines.model_file import read_info

__all__ = [
    "RUNTIMES",
    "Engine",
    "ModelInfo",
    "Prediction",
    "how_to_install",
    "installed_runtimes",
    "load",
    "missing",
    "read_info",
]


class Runtime(NamedTuple):
    """What runs model files."""

    engine: str  # "module:Class", made as Class(path, info, batch=, threads=, lanes=)
    suffix: str  # of the files that it runs
    packages: Tuple[str, ...]  # that must be installed; each is imported by its own name


# In order of preference.
RUNTIMES: Dict[str, Runtime] = {
    "openvino": Runtime("engines.openvino:OpenVinoEngine", ".onnx", ("openvino",)),
    "onnxruntime": Runtime("engines.onnxruntime:OnnxRuntimeEngine", ".onnx", ("onnxruntime",)),
    "tensorrt": Runtime("engines.tensorrt:TensorRtEngine", plan_file.SUFFIX, ("tensorrt", "pycuda")),
}

# A runtime's first run builds tables inside it. OpenVINO's two threads that do so together wait for each other for ever
# (the table behind `Type.to_dtype` calls Python while it is made), deaf to signals. So that run is made in one thread.
_first_run = threading.Lock()


def missing(runtime: str) -> List[str]:
    """The packages that a runtime wants and that are not installed."""
    return [package for package in RUNTIMES[runtime].packages if not importlib.util.find_spec(package)]


def installed_runtimes() -> List[str]:
    """The names in `RUNTIMES` of which every package is installed, best first."""
    return [name for name in RUNTIMES if not missing(name)]


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
        path: an ONNX file or a TensorRT plan, written by `uad export`.
        runtime: a name in `RUNTIMES`; None takes the first that is installed and runs such files.
        batch: images in one run; None is 1, or what a plan was built for.
        threads: CPU threads for the runs that go on at a time; None leaves it to the runtime.
        lanes: how many runs may go on at a time on a CPU, see `Engine.lanes`; a GPU has one.

    Raises:
        ModelFileError: the file is missing, damaged, not a model of this project, or not one that the runtime runs.
        RuntimeNotInstalled: the runtime is not installed.
        UserError: an unknown runtime, or no GPU where one is needed.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise UserError(f"unknown runtime '{runtime}': choose one of {', '.join(RUNTIMES)}")
    suffix = Path(path).suffix
    fitting = [name for name, each in RUNTIMES.items() if each.suffix == suffix]
    if not fitting:
        raise ModelFileError(f"{path}: engines run .onnx and .plan files: make one with uad export")
    if runtime is not None and runtime not in fitting:
        wanted = RUNTIMES[runtime].suffix
        raise ModelFileError(f"{path}: {runtime} runs {wanted} files: make one with uad export --out FILE{wanted}")
    installed = [name for name in fitting if not missing(name)]
    name = runtime or (installed or fitting)[0]
    if name not in installed:
        if runtime:
            raise RuntimeNotInstalled(f"the runtime {name} is not installed: {how_to_install(name)}")
        mend = ", or ".join(how_to_install(each) for each in fitting)
        raise RuntimeNotInstalled(f"no runtime for {suffix} files is installed: {mend}")
    info = read_info(path)
    module_name, class_name = RUNTIMES[name].engine.split(":")
    engine_class = getattr(importlib.import_module(module_name), class_name)
    engine: Engine = engine_class(str(path), info, batch=batch, threads=threads, lanes=lanes)
    with _first_run:
        engine.run(np.zeros((engine.batch, info.height, info.width, 3), np.uint8))
    return engine


def how_to_install(runtime: str) -> str:
    """What to do about the packages that a runtime lacks, in a line."""
    lacks = missing(runtime)
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
