"""Makes TensorRT and pycuda seem installed in a process that starts with this folder and `tests` on PYTHONPATH.

FAKE_TENSORRT names the release, FAKE_GPU the GPU. See `fakes.tensorrt` and `fakes.cuda`.
"""

import os
import sys

if "FAKE_TENSORRT" in os.environ:
    from fakes.cuda import Gpu
    from fakes.tensorrt import fake_modules

    sys.modules.update(fake_modules(os.environ["FAKE_TENSORRT"], Gpu(os.environ.get("FAKE_GPU", "Xavier"))))
