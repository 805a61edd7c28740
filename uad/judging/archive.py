"""An archive judged by many machines: Ray Data hands photographs to workers, each of which has an engine of its own.

Photographs and the model lie at the same paths on every machine, and `uad` is installed on each. The rows come back to
the process that asked, which keeps them (see `uad.judging.parts`). What a worker had when it died Ray gives to
another, and its rows come once.

Ray Data: https://docs.ray.io/en/latest/data/batch_inference.html
"""

import contextlib
import dataclasses
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional

from engines import Engine, load, plan_file, runtime_for
from engines.errors import RuntimeNotInstalled, UserError, warnings_as_lines
from engines.images import limit_megapixels
from uad.judging.decisions import decide
from uad.judging.parts import table_of
from uad.judging.predictions import Decision, digest_of

if TYPE_CHECKING:
    import pyarrow

BLOCK = 256  # photographs that a worker is given at a time
FAILED = "failed"  # in the place of a decision: the worker cannot judge at all
REACHED = 10.0  # seconds within which a cluster answers


@dataclasses.dataclass(frozen=True)
class Work:
    """What each worker needs to know; all paths are absolute."""

    model: str
    digest: str  # digest of the model file, the same on every machine
    runtime: Optional[str]
    threads: int
    overlays: Optional[str]
    only_defects: bool
    max_megapixels: float


class Worker:
    """An engine in a process of Ray's; called with photographs, it gives decisions."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._engine: Optional[Engine] = None

    def __call__(self, photographs: "pyarrow.Table") -> "pyarrow.Table":
        """A table of `image` (bytes of the path as it was given), `path` (bytes, absolute) and `class` to decisions.

        What goes wrong with the model is a row, too, `FAILED`: of an error Ray keeps no more than a part of its text.
        """
        rows = photographs.to_pylist()
        classes = {Path(os.fsdecode(row["path"])): row["class"] for row in rows}
        overlays = None if self._work.overlays is None else Path(self._work.overlays)
        try:
            self._engine = engine = self._engine or self._open()
            with warnings_as_lines():
                decisions = list(decide(engine, classes, overlays, self._work.only_defects))
        except UserError as error:
            return table_of([Decision("", "", None, 0.0, FAILED, error=str(error))])
        given = (os.fsdecode(row["image"]) for row in rows)
        return table_of([dataclasses.replace(decision, image=image) for decision, image in zip(decisions, given)])

    def _open(self) -> Engine:
        work = self._work
        if digest_of(Path(work.model)) != work.digest:
            raise UserError(f"{work.model} is another file on {socket.gethostname()}: copy the model there")
        limit_megapixels(work.max_megapixels)
        return load(work.model, runtime_for(work.model, work.runtime), threads=work.threads)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """The module ray, connected; a cluster that this process is connected to already serves as it is.

    Args:
        address: host:port, or what else `ray.init` takes; "local" starts a cluster on this machine, and ends it.

    Raises:
        RuntimeNotInstalled: Ray is not installed.
        UserError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeNotInstalled(f"--ray needs Ray Data ({error}): pip install 'ray[data]'") from error
    if ray.is_initialized():
        yield ray
        return
    settings: Dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdecimal():  # Ray tries for minutes
            socket.create_connection((host, int(port)), REACHED).close()
        ray.init(address=address, logging_level=logging.ERROR, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        token = "" if "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise UserError(f"--ray {address}: no Ray cluster there ({error}){token}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def judge_archive(
    ray: Any, work: Work, photographs: Dict[Path, Optional[str]], judged: "Callable[[pyarrow.Table], object]"
) -> None:
    """Judge photographs on a Ray cluster; every row comes once, in no order.

    Args:
        ray: the module, connected; see `cluster`.
        work: what each worker does. A plan takes a GPU for each, other models `threads` CPUs.
        photographs: each with its class, if it is known.
        judged: called with each pyarrow.Table of rows, whose columns are those of `Decision`.

    Raises:
        UserError: the cluster has no room for a worker, or what a worker raised.
    """
    import pyarrow

    if not photographs:
        return
    items = list(photographs.items())
    blocks = [
        pyarrow.table(
            {
                "image": [os.fsencode(path) for path, _ in part],
                "path": [os.fsencode(os.path.abspath(path)) for path, _ in part],
                "class": pyarrow.array([name for _, name in part], pyarrow.string()),
            }
        )
        for part in (items[start : start + BLOCK] for start in range(0, len(items), BLOCK))
    ]
    with _errors(ray):
        cpus, gpus = (0, 1) if Path(work.model).suffix == plan_file.SUFFIX else (work.threads, 0)
        pool = ray.data.ActorPoolStrategy(size=min(_workers(ray, cpus, gpus), len(blocks)))
        # The blocks are there already: a step of Ray's in front would wait for ever for a CPU that a worker holds.
        tables = ray.data.from_arrow(blocks).map_batches(
            Worker,
            fn_constructor_args=(work,),
            compute=pool,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for table in tables.iter_batches(batch_size=None, batch_format="pyarrow"):
            for decision, error in zip(table["decision"].to_pylist(), table["error"].to_pylist()):
                if decision == FAILED:
                    raise UserError(error)
            judged(table)


def _workers(ray: Any, cpus: int, gpus: int) -> int:
    """How many workers, each of which takes so much, a cluster has room for."""
    there: Dict[str, float] = ray.cluster_resources()
    name, each = ("GPU", gpus) if gpus else ("CPU", cpus)
    workers = int(there.get(name, 0)) // each
    if workers == 0:
        raise UserError(f"a worker takes {each} {name}, the Ray cluster has {there.get(name, 0):g}")
    return workers


@contextlib.contextmanager
def _errors(ray: Any) -> Iterator[None]:
    """What Ray raises, as a UserError; nothing of what it says along the way."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the error itself is raised
    try:
        yield
    except ray.exceptions.RayError as error:
        raise UserError(f"a worker of the Ray cluster failed: {error}") from error
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
