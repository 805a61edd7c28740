"""Any model file as an engine, or as a process to measure: a checkpoint through torch, the rest through `engines`."""

import sys
from pathlib import Path
from typing import List, Optional, Union

import engines
from engines import benchmark, plan_file
from engines.errors import RuntimeNotInstalled


def open_engine(
    path: Union[str, Path],
    runtime: Optional[str] = None,
    *,
    batch: Optional[int] = None,
    threads: Optional[int] = None,
) -> engines.Engine:
    """Load a .ckpt, .onnx or .plan file; see `engines.load`. The runtime is that of .onnx files, nothing else has two.

    Raises:
        RuntimeNotInstalled: torch is not installed.
        UserError: all that `engines.load` and `uad.training.checkpoint.load_checkpoint` raise.
    """
    if Path(path).suffix != ".ckpt":
        return engines.load(path, _runtime_of(path, runtime), batch=batch, threads=threads)
    try:
        from uad.training.torch_engine import TorchEngine
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    return TorchEngine(path, batch=batch or 1, threads=threads)


def worker_command(path: Path, runtime: Optional[str], batch: Optional[int], threads: Optional[int]) -> List[str]:
    """The command of a process that measures this model; see `open_engine`."""
    if path.suffix != ".ckpt":
        return benchmark.worker_command(str(path), _runtime_of(path, runtime), batch, threads)
    return [sys.executable, "-m", "uad.training.torch_worker", str(path), str(batch or 0), str(threads or 0)]


def _runtime_of(path: Union[str, Path], runtime: Optional[str]) -> Optional[str]:
    """The runtime asked for, where the file can run in more than one."""
    return None if Path(path).suffix == plan_file.SUFFIX else runtime
