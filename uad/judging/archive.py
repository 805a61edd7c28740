"""An archive judged by many machines: Ray Data hands photographs to workers, each of which has an engine of its own.

Photographs and the model lie at the same paths on every machine, and `uad` is installed on each. The rows come back to
the process that asked, which records them. What a worker had when it died Ray gives to another, and its rows come
once.

Ray Data: https://docs.ray.io/en/latest/data/batch_inference.html
"""

import contextlib
import dataclasses
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple

from engines import Engine, ModelInfo, load, plan_file, runtime_for
from engines.errors import RuntimeNotInstalled, UserError, warnings_as_lines
from engines.images import limit_megapixels
from uad.judging.decisions import decide
from uad.judging.ledger import digest_of_model
from uad.judging.photographs import Photograph, Stamp
from uad.judging.predictions import Decision, decision_of, json_line, not_judged

if TYPE_CHECKING:
    import pyarrow

BLOCK = 256  # photographs that a worker is given at a time
REACHED = 10.0  # seconds within which a cluster answers
TRIES = 2  # of a block, and then of each photograph alone, whose worker dies


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
    accept_truncated: bool = False


class Worker:
    """An engine in a process of Ray's; called with photographs, it gives decisions."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._engine: Optional[Engine] = None

    def __call__(self, photographs: "pyarrow.Table") -> "pyarrow.Table":
        """A table of `index`, `path` (bytes, absolute) and `class` to `index`, `line`, `stamp` and `digest`.

        What goes wrong with the model is a row of index -1: of an error Ray keeps no more than a part of its text.
        """
        import pyarrow

        work, rows = self._work, photographs.to_pylist()
        given = [Photograph(Path(os.fsdecode(row["path"])), row["class"]) for row in rows]
        overlays = None if work.overlays is None else Path(work.overlays)
        try:
            self._engine = engine = self._engine or self._open()
            with warnings_as_lines():
                judged = list(decide(engine, given, overlays, work.only_defects, work.accept_truncated))
        except UserError as error:
            return pyarrow.Table.from_pylist([{"index": -1, "line": str(error), "stamp": None, "digest": b""}])
        return pyarrow.Table.from_pylist(
            [
                {
                    "index": row["index"],
                    "line": json_line(each),
                    "stamp": seen.stamp and list(seen.stamp),
                    "digest": seen.digest,
                }
                for row, (seen, each) in zip(rows, judged)
            ]
        )

    def _open(self) -> Engine:
        work = self._work
        if digest_of_model(Path(work.model)) != work.digest:
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
    ray: Any, work: Work, photographs: Sequence[Photograph], info: ModelInfo
) -> Iterator[Tuple[Photograph, Decision]]:
    """Judge photographs on a Ray cluster; each has one decision, in no order.

    Photographs whose worker died `TRIES` times are given out alone; one whose worker dies again so often has a decision
    that says so.

    Args:
        ray: the module, connected; see `cluster`.
        work: what each worker does. A plan takes a GPU for each, other models `threads` CPUs.
        photographs: to be judged.
        info: the description of the model.

    Raises:
        UserError: the cluster has no room for a worker, or what a worker raised.
    """
    left = dict(enumerate(photographs))
    for block in (BLOCK, 1):
        for index, line, stamp, digest in _rows(ray, work, left, block):
            photograph = left.pop(index)
            photograph.stamp, photograph.digest = Stamp(*stamp) if stamp else None, digest
            yield photograph, dataclasses.replace(decision_of(line), image=str(photograph.path))
    for photograph in left.values():
        error = f"{photograph.path} (ended its worker {2 * TRIES} times: set aside)"
        yield photograph, not_judged(photograph.path, photograph.class_name, info, error)


def _rows(
    ray: Any, work: Work, photographs: Dict[int, Photograph], size: int
) -> Iterator[Tuple[int, str, Optional[List[int]], bytes]]:
    """What workers say, in blocks of that size; nothing of blocks whose workers died."""
    import pyarrow

    if not photographs:
        return
    items = list(photographs.items())
    blocks = [
        pyarrow.table(
            {
                "index": [index for index, _ in part],
                "path": [os.fsencode(os.path.abspath(each.path)) for _, each in part],
                "class": pyarrow.array([each.class_name for _, each in part], pyarrow.string()),
            }
        )
        for part in (items[start : start + size] for start in range(0, len(items), size))
    ]
    with _errors(ray):
        cpus, gpus = (0, 1) if Path(work.model).suffix == plan_file.SUFFIX else (work.threads, 0)
        pool = ray.data.ActorPoolStrategy(
            size=min(_workers(ray, cpus, gpus), len(blocks)),
            # What waits in a worker that dies counts as tried, too: who is alone has nobody in front.
            max_tasks_in_flight_per_actor=1 if size == 1 else None,
        )
        # The blocks are there already: a step of Ray's in front would wait for ever for a CPU that a worker holds.
        tables = ray.data.from_arrow(blocks).map_batches(
            Worker,
            fn_constructor_args=(work,),
            compute=pool,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=TRIES - 1,
        )
        for table in tables.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                if row["index"] < 0:
                    raise UserError(row["line"])
                yield row["index"], row["line"], row["stamp"], row["digest"]


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
    errored, context.max_errored_blocks = context.max_errored_blocks, -1
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the error itself is raised
    try:
        yield
    except ray.exceptions.RayError as error:
        raise UserError(f"a worker of the Ray cluster failed: {error}") from error
    finally:
        context.enable_progress_bars = bars
        context.max_errored_blocks = errored
        logger.setLevel(level)
