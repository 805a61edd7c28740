"""Runs and measures a built model: `load(path)` gives an `Engine`, `Engine.infer(images)` a `Prediction`.

Needs numpy alone; a runtime is imported when it is chosen.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Dict, List, Optional, Union

from engines.base import Engine, Prediction
from engines.errors import ModelFileError, RuntimeNotInstalled, UserError
from engines.metadata import ModelInfo
from engines.model_file import read_info

__all__ = ["RUNTIMES", "Engine", "ModelInfo", "Prediction", "installed_runtimes", "load", "read_info"]

# In order of preference. Each class is made as Class(path, info, batch=, threads=).
RUNTIMES: Dict[str, str] = {
    "openvino": "engines.openvino:OpenVinoEngine",
    "onnxruntime": "engines.onnxruntime:OnnxRuntimeEngine",
}


def installed_runtimes() -> List[str]:
    """The names in `RUNTIMES` whose package is installed, best first."""
    return [name for name in RUNTIMES if importlib.util.find_spec(name)]


def load(
    path: Union[str, Path], runtime: Optional[str] = None, *, batch: int = 1, threads: Optional[int] = None
) -> Engine:
    """Load a model file.

    Args:
        path: an ONNX file written by `uad export`.
        runtime: a name in `RUNTIMES`; None takes the first that is installed.
        batch: images in one run.
        threads: CPU threads for one run; None leaves it to the runtime.

    Raises:
        ModelFileError: the file is missing, damaged, or not a model of this project.
        RuntimeNotInstalled: the runtime is not installed.
        UserError: an unknown runtime.
    """
    installed = installed_runtimes()
    if runtime is None and not installed:
        raise RuntimeNotInstalled("no runtime is installed: pip install onnxruntime, or openvino")
    name = runtime or installed[0]
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime '{name}': choose one of {', '.join(RUNTIMES)}")
    if name not in installed:
        raise RuntimeNotInstalled(f"the runtime {name} is not installed: pip install {name}")
    if Path(path).suffix != ".onnx":
        raise ModelFileError(f"{path}: engines run .onnx files: make one with uad export")
    info = read_info(path)
    module_name, class_name = RUNTIMES[name].split(":")
    engine_class = getattr(importlib.import_module(module_name), class_name)
    engine: Engine = engine_class(str(path), info, batch=batch, threads=threads)
    return engine
