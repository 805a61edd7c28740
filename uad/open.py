"""Any model file as an engine, or as a process to measure: a checkpoint through torch, the rest through `engines`."""

from pathlib import Path
from typing import List, Optional, Sequence, Union

import engines
from engines import benchmark, plan_file
from engines.errors import RuntimeNotInstalled, UserError


def open_engine(
    path: Union[str, Path],
    runtime: Optional[str] = None,
    *,
    batch: Optional[int] = None,
    threads: Optional[int] = None,
    lanes: int = 1,
) -> engines.Engine:
    """Load a .ckpt, .onnx or .plan file; see `engines.load`. Only an .onnx file has a runtime and lanes.

    Raises:
        RuntimeNotInstalled: torch is not installed.
        UserError: all that `engines.load` and `uad.training.checkpoint.load_checkpoint` raise.
    """
    if Path(path).suffix != ".ckpt":
        return engines.load(path, _runtime_of(path, runtime), batch=batch, threads=threads, lanes=lanes)
    try:
        from uad.training.torch_engine import TorchEngine
    except ImportError as error:
        raise RuntimeNotInstalled(
            f"{path} needs torch ({error}): pip install '.[train]' in the folder of uad"
        ) from error
    return TorchEngine(path, batch=batch, threads=threads)


def info_of(path: Path) -> engines.ModelInfo:
    """What a model file says of itself; that of a plan can be read where there is no GPU.

    Raises:
        UserError: as `open_engine`.
    """
    if path.suffix != ".ckpt":
        return engines.read_info(path)
    with open_engine(path) as engine:
        return engine.info


def worker_command(path: Path, runtime: Optional[str], batch: Optional[int], threads: Optional[int]) -> List[str]:
    """The command of a process that measures this model; see `open_engine`."""
    if path.suffix != ".ckpt":
        return benchmark.worker_command(str(path), _runtime_of(path, runtime), batch, threads)
    return benchmark.module_command("uad.training.torch_worker", str(path), str(batch or 0), str(threads or 0))


def _runtime_of(path: Union[str, Path], runtime: Optional[str]) -> Optional[str]:
    """The runtime asked for, where the file can run in more than one."""
    return None if Path(path).suffix == plan_file.SUFFIX else runtime


def keep_descriptions(models: Sequence[Path], outputs: Sequence[Optional[Path]]) -> None:
    """Refuse to write figures over what says what a plan is, and without which the plan is worthless.

    Raises:
        UserError: an output is the description of one of the models.
    """
    described = {plan_file.description_path(model).resolve() for model in models if model.suffix == plan_file.SUFFIX}
    for output in outputs:
        if output is not None and output.resolve() in described:
            raise UserError(f"{output} says what the plan is, and must stay: give another file for the figures")
