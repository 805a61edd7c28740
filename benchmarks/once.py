"""Is each photograph judged once, whatever happens? Kills, losses of power, full disks, two writers, one name for all.

    python benchmarks/once.py --model model.onnx --images FOLDER --work DIR --out benchmarks/results/once.json

FOLDER holds a few hundred photographs, which come again under other names. WORK is a folder that may be emptied.
`uad predict` is a process of its own; a kill is SIGKILL. What was judged is told by the ledger, predictions.csv and
predictions.jsonl together, and with --move-to by the folders: each photograph lies in one place, with its own content.
A scenario that stands in the result already is left out, so that the script can be started again.
"""

import argparse
import collections
import contextlib
import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import footer, machine
from photographs import UAD

from engines.files import write_json, write_text
from uad.data.files import images_below
from uad.judging.predictions import ROWS, read_predictions
from uad.judging.views import TABLE
from uad.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
KILLS = {"watch": 90, "predict": 90, "archive": 20}
NO_OVERLAYS = ("--overlays", "none")


class Scenario:
    """A folder of photographs, and what `uad predict` makes of them."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.model, self.images = options.model.absolute(), sorted(images_below(options.images))
        self.work = options.work.absolute() / name.split()[0]
        shutil.rmtree(self.work, ignore_errors=True)
        self.line, self.out, self.done = (self.work / each for each in ("line", "out", "done"))
        self.line.mkdir(parents=True)
        self.random = random.Random(0)

    def put(self, index: int, name: "str | None" = None) -> None:
        """Write a photograph beside its place, and rename it into it."""
        source = self.images[index % len(self.images)]
        target = self.line / (name or f"{index:06d}{source.suffix}")
        beside = self.work / f"beside{source.suffix}"
        shutil.copyfile(source, beside)
        beside.rename(target)

    def start(self, *flags: str, quiet: bool = True) -> "subprocess.Popen[str]":
        """Start `uad predict`."""
        command = [*UAD, "predict", str(self.model), *flags, "--out", str(self.out), *NO_OVERLAYS]
        errors = subprocess.DEVNULL if quiet else subprocess.PIPE
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, text=True, cwd=ROOT)

    def watch(self, *flags: str) -> "subprocess.Popen[str]":
        """Start to watch; returns at its first heartbeat."""
        alive, begun = self.out / "heartbeat.json", time.time()
        process = self.start("--watch", str(self.line), *flags)
        while not alive.exists() or alive.stat().st_mtime < begun:
            time.sleep(0.02)
            assert process.poll() is None
        return process

    def rows(self) -> int:
        """How many there are."""
        path = self.out / ROWS
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(self, rows: int, seconds: float = 120.0) -> None:
        """Wait until there are so many rows, at most so long."""
        until = time.monotonic() + seconds
        while self.rows() < rows and time.monotonic() < until:
            time.sleep(0.1)

    def names(self) -> "list[str]":
        """Of the photographs with rows, where all records say the same."""
        with open(self.out / TABLE, newline="", encoding="utf-8") as file:
            table = [row["image"] for row in csv.DictReader(file)]
        lines = [row.image for row in read_predictions(self.out / ROWS)]
        return [Path(each).name for each in lines] if table == lines else []

    def accounted(self, expected: "list[str]") -> "dict[str, int]":
        """How many were judged once, lost, and judged twice."""
        counts = collections.Counter(self.names())
        once = sum(counts[name] == 1 for name in expected)
        return {
            "photographs": len(expected),
            "judged": once,
            "lost": sum(counts[name] == 0 for name in expected),
            "twice": sum(counts[name] > 1 for name in expected),
        }

    def moved(self) -> int:
        """How many photographs lie where they were to be moved, none of them twice."""
        return len(list(self.done.iterdir())) if self.done.is_dir() and not list(self.line.iterdir()) else -1


def end(process: "subprocess.Popen[str]") -> int:
    """Tell a process to end."""
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def watch_killed(one: Scenario) -> "dict[str, Any]":
    """Photographs arrive while the watch is killed at random instants, and started again."""
    index = itertools.count()
    for _ in range(KILLS["watch"]):
        process = one.start("--watch", str(one.line), "--move-to", str(one.done))
        until = time.monotonic() + one.random.uniform(0.2, 2.5)
        while time.monotonic() < until:
            one.put(next(index))
            time.sleep(0.02)
        process.kill()
        process.wait()
    count = next(index)
    process = one.watch("--move-to", str(one.done))
    one.wait_for(count)
    time.sleep(1)
    end(process)
    found = one.accounted([f"{number:06d}{one.images[number % len(one.images)].suffix}" for number in range(count)])
    return {**found, "moved": one.moved(), "times": KILLS["watch"]}


def _killed(one: Scenario, kind: str, count: int, seconds: "tuple[float, float]", *flags: str) -> "dict[str, Any]":
    """The same call with --resume, killed at random instants until it has ended so often."""
    for index in range(count):
        one.put(index)
    expected = sorted(path.name for path in one.line.iterdir())
    for _ in range(KILLS[kind]):
        process = one.start(str(one.line), "--resume", *flags)
        try:
            process.wait(one.random.uniform(*seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if one.rows() == count:  # all is judged: some of it again, from nothing
            for path in list(one.line.iterdir())[: count // 2]:
                os.utime(path)  # another time is another photograph
            shutil.rmtree(one.out)
    assert one.start(str(one.line), "--resume", *flags).wait() == 0
    return {**one.accounted(expected), "times": KILLS[kind]}


def predict_killed(one: Scenario) -> "dict[str, Any]":
    """`uad predict --resume` killed at random instants."""
    return _killed(one, "predict", 4000, (0.3, 2.5))


def archive_killed(one: Scenario) -> "dict[str, Any]":
    """`uad predict --ray local --resume` killed at random instants."""
    try:
        return _killed(one, "archive", 6000, (4.0, 14.0), "--ray", "local")
    finally:
        subprocess.run(["pkill", "-9", "-f", "ray::|raylet|gcs_server"], check=False)


def power(one: Scenario) -> "dict[str, Any]":
    """The process is ended before and after each step, and what was not synced is taken back."""
    total: collections.Counter[str] = collections.Counter()
    for mode in ("watch", "predict"):
        command = [
            sys.executable,
            str(ROOT / "tests" / "crashing.py"),
            str(one.model),
            str(one.work / "crashing"),
            mode,
        ]
        done = subprocess.run([*command, "5", "nothing", "cut", "zeros"], capture_output=True, text=True, check=True)
        total.update(json.loads(done.stdout.splitlines()[-1]))
    return {
        "photographs": 5 * total["ended"],
        **{key: total[key] for key in ("judged", "lost", "twice")},
        "times": total["ended"],
    }


def full_disk(one: Scenario) -> "dict[str, Any]":
    """The disk of the results is full for ten seconds while photographs arrive and are moved."""
    one.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(one.out)], check=True)
    process = one.watch("--move-to", str(one.done))
    try:
        filler = one.out / "filler"
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for index in range(200):
            one.put(index)
            time.sleep(0.05)
        waited, early = one.rows(), len(list(one.done.iterdir())) if one.done.exists() else 0
        filler.unlink()
        one.wait_for(200)
        time.sleep(2)
        code = end(process)
        assert code == 0 and waited < 200 and early <= waited, (code, waited, early)
        expected = [f"{number:06d}{one.images[number % len(one.images)].suffix}" for number in range(200)]
        return {**one.accounted(expected), "moved": one.moved(), "times": 1}
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", str(one.out)], check=True)


def two_writers(one: Scenario) -> "dict[str, Any]":
    """A second process is started on the same folder."""
    first = one.watch()
    second = one.start("--watch", str(one.line), quiet=False)
    for index in range(100):
        one.put(index)
        time.sleep(0.02)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2 and f"process {first.pid}" in said, said
    one.wait_for(100)
    end(first)
    expected = [f"{number:06d}{one.images[number % len(one.images)].suffix}" for number in range(100)]
    return {**one.accounted(expected), "times": 1}


def one_name(one: Scenario) -> "dict[str, Any]":
    """A camera with one name for all photographs, 20 a second for two minutes; they are moved."""
    process, count, begun = one.watch("--move-to", str(one.done)), 2400, time.monotonic()
    for index in range(count):
        time.sleep(max(0.0, begun + index / 20 - time.monotonic()))
        one.put(index, "latest.png")
    one.wait_for(count, 30)
    time.sleep(1)
    end(process)
    return _by_content(one, count)


def _by_content(one: Scenario, count: int) -> "dict[str, Any]":
    """Photographs of one name are told by the content of what was moved."""
    contents = collections.Counter(path.read_bytes() for path in one.done.iterdir())
    expected = collections.Counter(one.images[index % len(one.images)].read_bytes() for index in range(count))
    lost, twice = sum((expected - contents).values()), sum((contents - expected).values())
    if len(one.names()) != count:
        lost, twice = lost + max(0, count - len(one.names())), twice + max(0, len(one.names()) - count)
    return {
        "photographs": count, "judged": count - lost, "lost": lost, "twice": twice, "moved": one.moved(), "times": 1
    }  # fmt: skip


def clock_back(one: Scenario) -> "dict[str, Any]":
    """The clock is set back an hour while photographs of one name arrive: their times go back."""
    process = one.watch("--move-to", str(one.done))
    for index in range(200):
        source, at = one.images[index % len(one.images)], time.time() + (3600 if index < 100 else 0)
        shutil.copyfile(source, one.work / "beside.png")
        os.utime(one.work / "beside.png", (at, at))
        (one.work / "beside.png").rename(one.line / "latest.png")
        time.sleep(0.05)
    one.wait_for(200, 30)
    time.sleep(1)
    end(process)
    return _by_content(one, 200)


def many(one: Scenario) -> "dict[str, Any]":
    """50,000 photographs lie there as the watch starts; it is stopped in the middle and started again."""
    for source in one.images:
        shutil.copyfile(source, one.work / source.name)
    copies = [one.work / source.name for source in one.images]
    for index in range(50_000):
        os.link(copies[index % len(copies)], one.line / f"{index:06d}{copies[index % len(copies)].suffix}")
    process, begun = one.watch(), time.monotonic()
    one.wait_for(25_000, 600)
    assert end(process) == 0
    process = one.watch()
    one.wait_for(50_000, 600)
    seconds = time.monotonic() - begun
    time.sleep(1)
    end(process)
    return {**one.accounted(sorted(path.name for path in one.line.iterdir())), "times": 1, "seconds": seconds}


SCENARIOS: "dict[str, Callable[[Scenario], dict[str, Any]]]" = {
    "watch, SIGKILL at random instants": watch_killed,
    "predict, SIGKILL at random instants": predict_killed,
    "power cut or kill at every step": power,
    "full disk, with --move-to": full_disk,
    "writers, two at a time": two_writers,
    "camera with one name, 20 a second, 2 minutes, with --move-to": one_name,
    "clock set back an hour, one name, with --move-to": clock_back,
    "50,000 photographs in a folder, stopped once": many,
    "archive (Ray), SIGKILL at random instants": archive_killed,
}


def main() -> None:
    """Run what is missing, and write JSON and the page made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"scenarios": {}}
    for name, scenario in SCENARIOS.items():
        if name in done["scenarios"]:
            continue
        where = machine()
        found = scenario(Scenario(options, name))
        done["machine"] = where
        done["scenarios"][name] = {**found, "commit": where["commit"]}
        print(name, found, flush=True)
        write_json(options.out, done)
    write_text(options.out.with_suffix(".md"), page(done))


def page(result: "dict[str, Any]") -> str:
    """A row for each scenario."""
    rows = [[name, *_cells(found)] for name, found in result["scenarios"].items()]
    head = ["what happens", "times", "photographs", "judged once", "lost", "twice", "moved"]
    lines = ["# Is each photograph judged once, whatever happens?", "", markdown(head, rows), ""]
    seconds = result["scenarios"]["50,000 photographs in a folder, stopped once"]["seconds"]
    lines += [f"The 50,000 took {seconds:.0f} s, {50_000 / seconds:.0f} a second, the second start included.", ""]
    commits = [found["commit"] for found in result["scenarios"].values()]
    return "\n".join([*lines, footer(result["machine"], commits)])


def _cells(found: "dict[str, Any]") -> "Iterator[str]":
    for key in ("times", "photographs", "judged", "lost", "twice", "moved"):
        yield f"{found[key]:,}" if key in found else "-"


if __name__ == "__main__":
    main()
