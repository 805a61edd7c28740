"""Makes TensorRT and pycuda seem installed in a process that starts with this folder and `tests` on PYTHONPATH.

FAKE_TENSORRT names the release, FAKE_GPU the GPU. See `fake_tensorrt` and `fake_cuda`.
"""

import importlib.machinery
import os
import sys

if "FAKE_TENSORRT" in os.environ:
    from fake_cuda import Gpu
    from fake_tensorrt import fake_tensorrt

    gpu = Gpu(os.environ.get("FAKE_GPU", "Xavier"))
    for module in (fake_tensorrt(os.environ["FAKE_TENSORRT"], gpu), gpu.package, gpu.driver):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
