"""A stand-in for the module `tensorrt` of a given release.

It holds whoever calls it to that release: a class, method, property or enum value that the release lacks raises
AttributeError, an argument of another kind TypeError. `api.json` has the names, read off the pybind sources of
NVIDIA/TensorRT at the tags. What the parser makes of a graph follows onnx/onnx-tensorrt, branch 8.5-GA.

A plan is the ONNX graph with a header, and runs in ONNX Runtime. Where a release may compute a layer in float16 and was
not forbidden to, the plan does: it rounds what the layer gives to float16.
"""

from __future__ import annotations

import importlib.machinery
from typing import Any

from fakes.cuda import Gpu
from fakes.tensorrt import api, builder, network, parser, runtime
from fakes.tensorrt.api import RELEASES, Release

__all__ = ["RELEASES", "fake_modules", "fake_tensorrt"]


def fake_modules(version: str, gpu: Gpu) -> dict[str, Any]:
    """What stands in `sys.modules` where TensorRT and pycuda are installed."""
    found = {module.__name__: module for module in (fake_tensorrt(version, gpu), gpu.package, gpu.driver)}
    for name, module in found.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return found


def fake_tensorrt(version: str, gpu: Gpu) -> Any:
    """The module; its attribute `_builds` lists every build, and `_failure` makes builds fail with that message."""
    release = Release(version, gpu)
    for kind in (*api.CLASSES, *network.CLASSES, *parser.CLASSES, *builder.CLASSES, *runtime.CLASSES):
        release.add(kind)
    return release.module
