"""`uad predict` on a folder of real photographs: its rate beside the model's own, its memory, and what a kill loses.

    python benchmarks/photographs.py --model model.int8.onnx --images FOLDER --work DIR \
        --out benchmarks/results/photographs.json

Each call is a process of its own. Peak memory is the resident set of that process. For the last row a call is killed
twice (SIGKILL) while it judges, and goes on with --resume; its lines are compared with those of the call that was left
alone: each photograph once, with the same score.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from commands import command
from machine import footer, machine

from engines.benchmark import memory_of
from engines.files import write_json, write_text
from uad.judging.predictions import ROWS, read_predictions
from uad.tables import markdown

UAD = [sys.executable, "-c", "import sys; from uad.cli import main; sys.exit(main(sys.argv[1:]))"]
THREADS = 2


def main() -> None:
    """Measure, and write JSON and the page made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = benched(options)
    result: dict[str, Any] = {"machine": machine(), "runtime": bench["runtime"], "precision": bench["precision"]}
    own = [bench["images_per_second"]]
    result["calls"] = {}
    for overlays in ("none", "defects", "all"):
        result["calls"][overlays] = called(options, overlays)
        own.append(benched(options)["images_per_second"])
    result["engine_per_second"] = statistics.median(own)
    result["killed"] = killed(options)
    write_json(options.out, result)
    write_text(options.out.with_suffix(".md"), page(result))


def benched(options: argparse.Namespace) -> "dict[str, Any]":
    """The model alone, one image at a time on all threads, as `uad bench` has it."""
    alone = options.work / "bench.json"
    command(["bench", str(options.model), "--threads", str(THREADS), "--seconds", "5", "--json", str(alone)])
    (bench,) = json.loads(alone.read_text(encoding="utf-8"))
    return dict(bench)


def predict(options: argparse.Namespace, out: Path, *flags: str) -> "subprocess.Popen[bytes]":
    """A process that judges all photographs."""
    arguments = ["predict", options.model, *options.images, "--out", out, "--threads", THREADS, *flags]
    log = open(options.work / "log", "wb")  # noqa: SIM115
    return subprocess.Popen([*UAD, *map(str, arguments)], stdout=log, stderr=log)


def called(options: argparse.Namespace, overlays: str) -> "dict[str, Any]":
    """One call from its start to its end."""
    out = options.work / overlays
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    process = predict(options, out, "--overlays", overlays)
    peak = 0.0
    while process.poll() is None:
        # What `wait4` tells counts what the parent held as the process was started.
        peak = max(peak, memory_of(process.pid)["ram_peak_mb"] or 0.0)
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    rows = read_predictions(out / ROWS)
    assert process.returncode == 0, (options.work / "log").read_text()
    return {
        "photographs": len(rows),
        "defects": sum(row.decision == "defect" for row in rows),
        "seconds": seconds,
        "start_s": seconds - _judging_seconds(out),
        "peak_mb": peak,
    }


def _judging_seconds(out: Path) -> float:
    """From the first line to the last, by the times of the files."""
    return (out / ROWS).stat().st_mtime - (out / "predictions.model").stat().st_mtime


def killed(options: argparse.Namespace) -> "dict[str, Any]":
    """Kill a call twice, go on, and compare with the call that was left alone."""
    out, whole = options.work / "killed", {row.image: row for row in read_predictions(options.work / "none" / ROWS)}
    shutil.rmtree(out, ignore_errors=True)
    done = []
    for part in (1, 2):
        process = predict(options, out, "--overlays", "none", *(["--resume"] if done else []))
        while not (out / ROWS).exists() or _lines(out) < len(whole) * part // 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done.append(_lines(out))
    assert predict(options, out, "--overlays", "none", "--resume").wait() == 0
    rows = read_predictions(out / ROWS)
    return {
        "lines_at_kill": done,
        "lines": len(rows),
        "photographs": len({row.image for row in rows}),
        "same_scores": sum(row.score == whole[row.image].score for row in rows),
        "table_lines": len((out / "predictions.csv").read_text(encoding="utf-8").splitlines()) - 1,
    }


def _lines(out: Path) -> int:
    return (out / ROWS).read_bytes().count(b"\n")


def page(result: "dict[str, Any]") -> str:
    """A row for each call."""
    own = result["engine_per_second"]
    first = next(iter(result["calls"].values()))
    lines = [f"# uad predict on {first['photographs']:,} real photographs, {THREADS} threads", ""]
    lines += [
        f"The model alone ({result['precision']}, {result['runtime']}), as `uad bench` has it: {own:.1f} images a"
    ]
    lines += ["second, the median of four measurements between the calls. The start, loading of the model included,"]
    lines += ["counts in the first rate and not in the second.", ""]
    rows = []
    for overlays, call in result["calls"].items():
        judging = call["photographs"] / (call["seconds"] - call["start_s"])
        rates = [call["photographs"] / call["seconds"], judging]
        row = [overlays, str(call["defects"]), *(f"{rate:.1f}" for rate in rates), f"{judging / own:.2f}"]
        rows.append([*row, f"{call['start_s']:.1f}", f"{call['peak_mb']:.0f}"])
    header = ["overlays", "defects", "a second", "a second, judging", "of the model's own", "start, s", "peak MB"]
    gone = result["killed"]
    lines += [markdown(header, rows), ""]
    lines += [f"Killed twice, after {gone['lines_at_kill'][0]:,} and {gone['lines_at_kill'][1]:,} lines, and resumed:"]
    lines += [f"{gone['lines']:,} lines of {gone['photographs']:,} photographs, {gone['table_lines']:,} in the table;"]
    lines += [f"{gone['same_scores']:,} scores are those of the call that was left alone.", ""]
    return "\n".join([*lines, footer(result["machine"])])


if __name__ == "__main__":
    main()
