"""Any model file as an engine, or as a process to measure: a checkpoint through torch, the rest through `engines`."""

import sys
from pathlib import Path
from typing import List, Optional, Union

import engines
from engines import benchmark
from engines.errors import RuntimeNotInstalled


def open_engine(
    path: Union[str, Path], runtime: Optional[str] = None, *, batch: int = 1, threads: Optional[int] = None
) -> engines.Engine:
    """Load a .ckpt or .onnx file. Torch runs a checkpoint, whatever the runtime; see `engines.load`.

    Raises:
        RuntimeNotInstalled: torch is not installed.
        UserError: all that `engines.load` and `uad.training.checkpoint.load_checkpoint` raise.
    """
    if Path(path).suffix != ".ckpt":
        return engines.load(path, runtime, batch=batch, threads=threads)
    try:
        from uad.training.torch_engine import TorchEngine
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    return TorchEngine(path, batch=batch, threads=threads)


def worker_command(path: Path, runtime: Optional[str], batch: int, threads: Optional[int]) -> List[str]:
    """The command of a process that measures this model. A checkpoint always runs in torch, whatever the runtime."""
    if path.suffix != ".ckpt":
        return benchmark.worker_command(str(path), runtime, batch, threads)
    return [sys.executable, "-m", "uad.training.torch_worker", str(path), str(batch), str(threads or 0)]
