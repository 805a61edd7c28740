"""Photographs that arrive for minutes, some broken, some written slowly: is every one accounted for, and memory flat?

    python benchmarks/watched.py --model model.int8.onnx --images FOLDER --work DIR --minutes 10 \
        --out benchmarks/results/watched.json

Photographs of FOLDER are copied into a watched folder under new names, `RATE` a second. One in forty is cut short and
stays so; one in forty is written in parts over two seconds. `uad predict --watch` is a process of its own, stopped by
SIGTERM in the end. Memory is its resident set, once a second.
"""

import argparse
import collections
import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import footer, machine
from photographs import UAD

from engines.benchmark import memory_of
from engines.files import write_json, write_text
from uad.data.files import images_below
from uad.judging.predictions import ROWS, read_predictions
from uad.tables import markdown

RATE = 20  # a second
BROKEN, SLOW = 0, 20  # of each forty


def main() -> None:
    """Let photographs arrive, and write JSON and the page made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    line, out = options.work / "line", options.work / "out"
    line.mkdir(parents=True)
    command = [*UAD, "predict", str(options.model), "--watch", str(line), "--out", str(out), "--overlays", "none"]
    with open(options.work / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    while not (out / "heartbeat.json").exists():
        time.sleep(0.1)
    memory: list[float] = []
    stop = threading.Event()
    seen: dict[str, float] = {}
    watchers = [
        threading.Thread(target=_note_memory, args=(process.pid, memory, stop)),
        threading.Thread(target=_note_lines, args=(out / ROWS, seen, stop)),
    ]
    for watcher in watchers:
        watcher.start()
    arrived = arrive(sorted(images_below(options.images)), line, round(options.minutes * 60 * RATE))
    time.sleep(12)  # what is broken is waited for
    stop.set()
    for watcher in watchers:
        watcher.join()
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    result = {"machine": machine(), "minutes": options.minutes, "code": code, **accounted(arrived, out)}
    result["memory_mb"] = {"after_a_tenth": memory[len(memory) // 10], "end": memory[-1], "most": max(memory)}
    late = [seen[name] - done for name, (kind, done) in arrived.items() if kind != "broken" and name in seen]
    result["seconds_to_line"] = {f"p{each}": float(np.percentile(late, each)) for each in (50, 99, 100)}
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


def arrive(photographs: "list[Path]", line: Path, count: int) -> "dict[str, tuple[str, float]]":
    """Write so many; name -> what was done to it, and when it was complete."""
    arrived: dict[str, tuple[str, float]] = {}
    begun, threads = time.time(), []
    for index in range(count):
        time.sleep(max(0.0, begun + index / RATE - time.time()))
        source = photographs[index % len(photographs)]
        path, content = line / f"{index:06d}{source.suffix}", source.read_bytes()
        kind = {BROKEN: "broken", SLOW: "slow"}.get(index % 40, "whole")
        if kind == "slow":
            threads.append(threading.Thread(target=_slowly, args=(path, content, arrived)))
            threads[-1].start()
            continue
        path.write_bytes(content[: len(content) // 2] if kind == "broken" else content)
        arrived[path.name] = kind, time.time()
    for thread in threads:
        thread.join()
    return arrived


def _slowly(path: Path, content: bytes, arrived: "dict[str, tuple[str, float]]") -> None:
    with open(path, "wb") as file:
        for part in np.array_split(np.frombuffer(content, np.uint8), 5):
            file.write(part.tobytes())
            file.flush()
            time.sleep(0.4)
    arrived[path.name] = "slow", time.time()


def _note_memory(process: int, memory: "list[float]", stop: threading.Event) -> None:
    while not stop.wait(1.0):
        memory.append(memory_of(process)["ram_mb"] or 0.0)


def _note_lines(rows: Path, seen: "dict[str, float]", stop: threading.Event) -> None:
    """Name -> when its line was there, to a tenth of a second."""
    with open(rows, encoding="utf-8") as file:
        rest = ""
        while not stop.wait(0.1):
            *lines, rest = (rest + file.read()).split("\n")
            for line in lines:
                seen.setdefault(Path(json.loads(line)["image"]).name, time.time())


def accounted(arrived: "dict[str, tuple[str, float]]", out: Path) -> "dict[str, Any]":
    """Lines by what was done to the photograph, and those that are missing or come twice."""
    rows = read_predictions(out / ROWS)
    lines = collections.Counter(Path(row.image).name for row in rows)
    decided = {Path(row.image).name: row.decision for row in rows}
    kinds = {}
    for kind in ("whole", "slow", "broken"):
        names = [name for name, (done, _) in arrived.items() if done == kind]
        unreadable = sum(decided.get(name) == "unreadable" for name in names)
        kinds[kind] = {"arrived": len(names), "lines": sum(lines[name] for name in names), "unreadable": unreadable}
    twice = sum(count > 1 for count in lines.values())
    return {"kinds": kinds, "missing": sum(name not in lines for name in arrived), "twice": twice}


def page(result: "dict[str, Any]") -> str:
    """A row for each kind of photograph."""
    lines = [f"# uad predict --watch, {result['minutes']:g} minutes at {RATE} photographs a second", ""]
    rows = [
        [kind, *(f"{each[key]:,}" for key in ("arrived", "lines", "unreadable"))]
        for kind, each in result["kinds"].items()
    ]
    lines += [markdown(["photographs", "arrived", "lines", "unreadable"], rows), ""]
    lines += [
        f"Missing {result['missing']}, judged twice {result['twice']}. After SIGTERM the exit code is {result['code']}."
    ]
    late = result["seconds_to_line"]
    lines += [
        f"From the photograph's last byte to its line: half within {late['p50']:.2f} s, 99% within {late['p99']:.2f} s,"
    ]
    lines += [f"all within {late['p100']:.2f} s."]
    memory = result["memory_mb"]
    lines += [
        f"Resident memory: {memory['after_a_tenth']:.0f} MB after a tenth of the time, {memory['end']:.0f} in the end,"
    ]
    lines += [f"{memory['most']:.0f} MB at most.", ""]
    return "\n".join([*lines, footer(result["machine"])])


if __name__ == "__main__":
    main()
