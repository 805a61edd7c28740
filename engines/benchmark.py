"""How fast and how big: latency, throughput and memory of models, measured in turns.

Each model lives in a fresh process of its own that loads it, and measures only when it is told to, so that the models
take turns (A B A B) on an otherwise idle machine and a drift of its speed meets all of them alike. Or all measure at
once, which is the rate of a whole module whose GPU and DLAs work together. Latency is host
array in, host array out, by one clock (time.perf_counter) whatever the runtime. A runtime on a GPU tells by the GPU's
clock, too, how long the copies and the computing took.

Run as `python -m engines.benchmark MODEL RUNTIME BATCH THREADS` this file is such a process. It ends with the process
that started it, however that one ends.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Optional, Sequence, Union

import numpy as np

import engines
from engines import jetson
from engines.errors import UserError, warnings_as_lines
from engines.images import read_resized
from engines.metadata import is_defect

ROUNDS = 5  # turns of each model
MINIMUM_RUNS = 200  # of each model, over all turns
WARM_UP_SECONDS = 0.5
WARM_UP_RUNS = 10
INPUTS = 4  # different random images, taken in turn
MOST_PHOTOGRAPHS = 64  # files that are taken in turn
LATENCY = "latency"
PATIENCE = 600.0  # seconds without an answer, beyond those asked for, after which a process is stopped
# Runs a module with the search path of this process: -m would put the current folder first, PYTHONPATH a whole
# site-packages before the standard library.
LAUNCH = (
    "import sys; sys.path[:] = sys.argv[1].split(chr(10)); module = sys.argv[2]; del sys.argv[1:3]; "
    "import runpy; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
Run = Dict[str, float]  # LATENCY -> ms, and each of `Engine.parts_ms` -> ms


class Worker:
    """A process that holds one model. Use as a context manager."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start `command`, which must call `serve`, and wait until its model is loaded and warm.

        Raises:
            UserError: the model cannot be loaded; with the process's own message.
        """
        self._process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input: IO[str] = self._process.stdin
        self._output: IO[str] = self._process.stdout
        try:
            self.description = self._answer(0.0)
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> "List[Run]":
        """Run the model for about `seconds`; each run."""
        runs: List[Run] = self._ask(f"run {seconds}", seconds)["runs"]
        return runs

    def judge(self, photographs: Sequence[str], seconds: float) -> "List[float]":
        """From photographs to decisions for about `seconds`; each run of a batch, ms.

        Raises:
            UserError: a photograph cannot be read.
        """
        ms: List[float] = self._ask(f"judge {json.dumps([seconds, *photographs])}", seconds)["ms"]
        return ms

    def memory(self) -> Dict[str, Optional[float]]:
        """`ram_mb` and `ram_peak_mb` of the process (resident set), in units of 10^6 bytes; None where no one tells."""
        return self._ask("memory", 0.0)

    def close(self) -> None:
        """End the process; may be called twice."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _ask(self, line: str, seconds: float) -> Dict[str, Any]:
        try:
            self._input.write(line + "\n")
            self._input.flush()
        except BrokenPipeError:
            pass
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Dict[str, Any]:
        """The next answer, which takes about so many seconds."""
        limit = PATIENCE + seconds
        late: List[bool] = []

        def stop() -> None:
            late.append(True)
            self._process.kill()

        alarm = threading.Timer(limit, stop)
        alarm.start()
        line = self._output.readline()
        alarm.cancel()
        if not line:
            self._process.wait()
            if late:
                raise UserError(f"the measuring process gave no answer in {limit:.0f} s and was stopped")
            raise UserError(f"the measuring process ended with code {self._process.returncode}")
        answer: Dict[str, Any] = json.loads(line)
        if "error" in answer:
            self._process.wait()
            raise UserError(answer["error"])
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def worker_command(
    path: Union[str, Path], runtime: Optional[str], batch: Optional[int], threads: Optional[int]
) -> List[str]:
    """The command of a process that measures a model file; see `engines.load`."""
    return module_command("engines.benchmark", str(path), runtime or "", str(batch or 0), str(threads or 0))


def module_command(module: str, *arguments: str) -> List[str]:
    """The command of a process that runs a module, which finds what this process finds."""
    return [sys.executable, "-c", LAUNCH, "\n".join(sys.path), module, *arguments]


def benchmark(
    paths: Sequence[str],
    commands: Sequence[Sequence[str]],
    seconds: float,
    progress: Callable[[], object] = lambda: None,
    minimum: int = MINIMUM_RUNS,
    *,
    together: bool = False,
    photographs: Sequence[str] = (),
) -> List[Dict[str, Any]]:
    """Measure models in turns, or together; a report for each, with the keys of `uad bench --json`.

    Args:
        paths: model files, in the order of the report; one may come twice.
        commands: the command of each one's process.
        seconds: of measuring for each model, at least.
        progress: called after each of the `ROUNDS` rounds.
        minimum: runs of each model, at least.
        together: all models run at the same time, and not in turns.
        photographs: files; if any, the way from file to decision is measured, too, at the end of each turn.

    Raises:
        UserError: a model cannot be loaded, or a photograph not be read.
    """
    with contextlib.ExitStack() as stack:
        workers, taken_mb = [], []
        for command in commands:
            before = jetson.memory_available_mb()
            workers.append(stack.enter_context(Worker(command)))
            after = jetson.memory_available_mb()
            taken_mb.append(before - after if jetson.is_jetson() and before and after else None)
        runs: List[List[Run]] = [[] for _ in workers]
        judged: List[List[float]] = [[] for _ in workers]
        groups = [list(range(len(workers)))] if together else [[index] for index in range(len(workers))]
        threads = stack.enter_context(ThreadPoolExecutor(len(workers)))
        some = list(photographs[:MOST_PHOTOGRAPHS])
        for turn in range(ROUNDS):
            wanted = minimum * (turn + 1) // ROUNDS
            for group in groups:
                span = seconds / ROUNDS
                while True:
                    answers = [threads.submit(workers[index].measure, span) for index in group]
                    for index, answer in zip(group, answers):
                        runs[index] += answer.result()
                    if all(len(runs[index]) >= wanted for index in group):
                        break
                    span = 0.2
                if some:
                    asked = [threads.submit(workers[index].judge, some, seconds / ROUNDS) for index in group]
                    for index, decisions in zip(group, asked):
                        judged[index] += decisions.result()
            progress()
        reports: List[Dict[str, Any]] = []
        for path, worker, measured, ms, mb in zip(paths, workers, runs, judged, taken_mb):
            report = dict(worker.description, model=path, **summarize(measured, worker.description["batch"]))
            report.update(together=together, photograph_ms=_percentiles(ms) if ms else None)
            report.update(worker.memory(), unified_mb=mb)
            report["file_mb"] = Path(path).stat().st_size / 1e6
            report["ratio_to_first"] = report["latency_ms"]["p50"] / (reports or [report])[0]["latency_ms"]["p50"]
            reports.append(report)
        return reports


def summarize(runs: Sequence[Run], batch: int) -> Dict[str, Any]:
    """Percentiles of latencies in ms, and images a second at the mean latency, one run after another.

    The parts of a run, where there are any, have percentiles of their own.
    """
    parts_ms = {name: _percentiles([run[name] for run in runs]) for name in runs[0]}
    latency_ms = parts_ms.pop(LATENCY)
    return {
        "latency_ms": latency_ms,
        "parts_ms": parts_ms or None,
        "runs": len(runs),
        "images_per_second": 1000.0 * batch / latency_ms["mean"],
    }


def _percentiles(values: Sequence[float]) -> Dict[str, float]:
    p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
    return {"p50": p50, "p90": p90, "p99": p99, "max": float(np.max(values)), "mean": float(np.mean(values))}


def serve(load: Callable[[], engines.Engine], threads: Optional[int]) -> None:
    """Hold one model and measure it when a line on stdin says so; answers are lines of JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints goes to stderr

    def answer(values: Dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    orders = _orders()
    try:
        start = time.perf_counter()
        engine = load()
        load_seconds = time.perf_counter() - start
    except UserError as error:
        answer({"error": str(error)})
        return
    images = np.random.default_rng(0).integers(
        0, 256, (INPUTS, engine.batch, engine.info.height, engine.info.width, 3), np.uint8
    )
    _measure(engine, images, WARM_UP_SECONDS, WARM_UP_RUNS)
    answer(
        {
            "runtime": engine.runtime,
            "precision": engine.info.precision,
            "arithmetic": engine.arithmetic,
            "batch": engine.batch,
            "threads": threads,
            "load_s": load_seconds,
            "device_mem_mb": engine.device_mem_mb,
        }
    )
    while True:
        order = orders.get().split(maxsplit=1)
        if order[0] == "memory":
            answer(memory_of())
        elif order[0] == "judge":
            seconds, *photographs = json.loads(order[1])
            try:
                answer({"ms": _judge(engine, photographs, seconds)})
            except UserError as error:
                answer({"error": str(error)})
                return
        else:
            _measure(engine, images, 0.0, 2)  # the caches are cold after the others' turns
            answer({"runs": _measure(engine, images, float(order[1]), 1)})


def _orders() -> "queue.Queue[str]":
    """The lines of stdin as they come. This process ends when there will be no more, whatever it is doing."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as stdin:  # a buffered one cannot be left while it is read
            for line in stdin:
                lines.put(line.decode())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _measure(engine: engines.Engine, images: np.ndarray, seconds: float, runs: int) -> List[Run]:
    """Run for at least `seconds` and `runs`; each run."""
    measured: List[Run] = []
    end = time.perf_counter() + seconds
    while len(measured) < runs or time.perf_counter() < end:
        image = images[len(measured) % len(images)]
        start = time.perf_counter()
        engine.run(image)
        latency = 1000.0 * (time.perf_counter() - start)
        measured.append({LATENCY: latency, **engine.parts_ms()})
    return measured


def _judge(engine: engines.Engine, photographs: Sequence[str], seconds: float) -> List[float]:
    """From photographs to decisions for at least `seconds` and one round of the files; each run of a batch, ms."""
    measured: List[float] = []
    end = time.perf_counter() + seconds
    size, threshold, taken = engine.info.size, engine.info.threshold, 0
    while taken < len(photographs) or time.perf_counter() < end:
        paths = [photographs[(taken + index) % len(photographs)] for index in range(engine.batch)]
        start = time.perf_counter()
        prediction = engine.infer(np.stack([read_resized(path, [size])[0] for path in paths]), paths)
        for score in prediction.score:
            is_defect(float(score), threshold)
        measured.append(1000.0 * (time.perf_counter() - start))
        taken += engine.batch
    return measured


def memory_of(process: Union[int, str] = "self") -> Dict[str, Optional[float]]:
    """Resident memory of a process, where Linux tells it in /proc; its peak counts from the program's start."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        status = ""
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
    wanted = {"ram_mb": kilobytes.get("VmRSS"), "ram_peak_mb": kilobytes.get("VmHWM")}
    return {key: None if value is None else value * 1024 / 1e6 for key, value in wanted.items()}


def main(arguments: Sequence[str]) -> None:
    """Serve one model; see the module."""
    path, runtime, batch, threads = arguments
    count = int(threads) or None
    with warnings_as_lines():
        serve(lambda: engines.load(path, runtime or None, batch=int(batch) or None, threads=count), count)


if __name__ == "__main__":
    main(sys.argv[1:])
