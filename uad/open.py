"""Any model file as an engine, or as a process to measure: a checkpoint through torch, the rest through `engines`."""

import sys
from pathlib import Path
from typing import List, Optional, Union

import engines
from engines import benchmark
from engines.errors import RuntimeNotInstalled, UserError


def open_engine(
    path: Union[str, Path], runtime: Optional[str] = None, *, batch: int = 1, threads: Optional[int] = None
) -> engines.Engine:
    """Load a .ckpt or .onnx file; see `engines.load`.

    Raises:
        UserError: a runtime that cannot run this kind of file, and all that `engines.load` raises.
    """
    if Path(path).suffix != ".ckpt":
        if runtime == "torch":
            raise UserError(f"torch runs .ckpt files only: choose another runtime for {path}")
        return engines.load(path, runtime, batch=batch, threads=threads)
    if runtime not in (None, "torch"):
        raise UserError(f"{path} is a checkpoint, which torch runs: export it for {runtime}")
    try:
        from uad.checkpoint import TorchEngine
    except ImportError as error:
        raise RuntimeNotInstalled(f"{path} needs torch ({error}): pip install 'uad[train]'") from error
    return TorchEngine(path, batch=batch, threads=threads)


def worker_command(path: Path, runtime: Optional[str], batch: int, threads: Optional[int]) -> List[str]:
    """The command of a process that measures this model. A checkpoint always runs in torch, whatever the runtime."""
    if path.suffix != ".ckpt":
        return benchmark.worker_command(str(path), runtime, batch, threads)
    return [sys.executable, "-m", "uad.torch_worker", str(path), str(batch), str(threads or 0)]
