"""Work that is ended at every step by a kill or a loss of power, and then started again: what is judged, lost, twice.

    python tests/crashing.py MODEL WORK watch|predict COUNT LOSS ...

Each start is a process of its own, forked before anything is loaded. A step is a call that leaves something on the
disk. A loss of power takes back what was not synced: lines of the views, which are cut off or become zeros, and
renames. What SQLite committed stays, as it promises.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, judge, watch
from uad.judging import arrivals, decisions, watching
from uad.judging.ledger import Ledger
from uad.judging.predictions import read_predictions
from uad.judging.views import View

KILLED = 9
LOSSES = ("nothing", "cut", "zeros")  # of the lines that were not synced; with the last two renames are taken back


def steps() -> list[tuple[Any, str]]:
    """What leaves something on the disk."""
    return [
        (decisions, "write_picture"),
        (Ledger, "begin"),
        (Ledger, "commit"),
        (View, "catch_up"),
        (View, "sync"),
        (watching, "move"),
        (watching.os, "rename"),
        (Ledger, "note_moved"),
    ]


def end_at(step: int) -> None:
    """End this process, as a kill would, before (even numbers) or after (odd) a step."""
    taken = itertools.count()

    def counting(action: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            if next(taken) == step:
                os._exit(KILLED)
            result = action(*arguments, **settings)
            if next(taken) == step:
                os._exit(KILLED)
            return result

        return counted

    for place, name in steps():
        setattr(place, name, counting(getattr(place, name)))


def run(mode: str, model: Path, work: Path, step: int | None) -> int:
    """Judge what is there in a process of its own, which ends at a step, or by itself; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            if step is not None:
                end_at(step)
            _judge(mode, model, work)
        os._exit(0)
    except BaseException as error:  # noqa: B902
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)


def _judge(mode: str, model: Path, work: Path) -> None:
    running = Running("onnxruntime", threads=1)
    if mode == "predict":
        judge(PredictOptions(model, [work / "line"], work / "out", resume=True, running=running), lambda *_: None)
        return
    options = PredictOptions(
        model, [], work / "out", watch=work / "line", move_to=work / "done", running=running, overlays="defects"
    )
    stop = threading.Event()
    sys.modules["inotify_simple"] = None  # type: ignore[assignment]  # looks follow each other faster
    arrivals.EVERY = watching.EVERY = 0.01

    def stop_when_done() -> None:
        until = time.monotonic() + 20
        while list((work / "line").iterdir()) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        stop.set()

    threading.Thread(target=stop_when_done, daemon=True).start()
    watch(options, stop)


def lose_power(work: Path, loss: str) -> None:
    """Take back what was not synced."""
    if loss == "nothing" or not (work / "out" / "ledger.sqlite").exists():
        return
    with contextlib.closing(sqlite3.connect(str(work / "out" / "ledger.sqlite"))) as rows:
        for name, size in rows.execute("SELECT name, bytes FROM views"):
            content = (work / "out" / name).read_bytes()
            rest = bytes(len(content) - size) if loss == "zeros" else b""
            (work / "out" / name).write_bytes(content[:size] + rest)
    if (work / "done").is_dir():
        for path in (work / "done").iterdir():
            path.rename(work / "line" / path.name)


def accounted(mode: str, work: Path, names: list[str]) -> dict[str, int]:
    """How many photographs were judged once, lost, and judged twice, by every record of it."""
    with contextlib.closing(sqlite3.connect(str(work / "out" / "ledger.sqlite"))) as rows:
        found = [Path(json.loads(line)["image"]).name for (line,) in rows.execute("SELECT line FROM photographs")]
    lines = [Path(row.image).name for row in read_predictions(work / "out" / "predictions.jsonl")]
    table = (work / "out" / "predictions.csv").read_text().splitlines()[1:]
    if lines != found or len(table) != len(found):
        return {"judged": 0, "lost": len(names), "twice": 0}
    if mode == "watch":
        at_rest = sorted(path.name for path in (work / "done").iterdir())
        if at_rest != names or list((work / "line").iterdir()):
            return {"judged": 0, "lost": len(set(names) - set(at_rest)), "twice": len(set(at_rest) - set(names))}
    counts = collections.Counter(found)
    return {
        "judged": sum(counts[name] == 1 for name in names),
        "lost": sum(counts[name] == 0 for name in names),
        "twice": sum(counts[name] > 1 for name in names),
    }


def main() -> None:
    """Print a line of JSON: how often the work was ended, and what was judged, lost and judged twice in all."""
    from image_folders import noise, save

    model, work, mode, count, losses = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]
    total: collections.Counter[str] = collections.Counter()
    for loss in losses:
        for step in itertools.count():
            shutil.rmtree(work, ignore_errors=True)
            for index in range(count):
                path = save(noise(index), work / "line" / f"{index}.png")
                os.utime(path, (1e9, 1e9))
            names = sorted(path.name for path in (work / "line").iterdir())
            code = run(mode, model, work, step)
            if code == 0:  # it has no more steps
                break
            assert code == KILLED, code
            lose_power(work, loss)
            code = run(mode, model, work, None)
            assert code == 0, code
            found = accounted(mode, work, names)
            if found != {"judged": count, "lost": 0, "twice": 0}:
                print(f"{loss}, step {step}: {found}", file=sys.stderr)
            total.update(ended=1, **found)
    print(json.dumps(total))


if __name__ == "__main__":
    main()
