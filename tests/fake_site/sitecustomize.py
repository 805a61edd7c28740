"""Makes TensorRT and pycuda seem installed in a process that starts with this folder and `tests` on PYTHONPATH.

FAKE_TENSORRT names the release, FAKE_GPU the GPU. See `fake_tensorrt` and `fake_cuda`.
"""

import os
import sys

if "FAKE_TENSORRT" in os.environ:
    from fake_cuda import Gpu
    from fake_tensorrt import fake_modules

    sys.modules.update(fake_modules(os.environ["FAKE_TENSORRT"], Gpu(os.environ.get("FAKE_GPU", "Xavier"))))
