"""engines.benchmark: the figures, the turns, and the processes that measure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from graphs import save_tiny
from image_folders import noise, save

import engines
from engines import benchmark as bench
from engines.benchmark import Worker, benchmark, summarize, worker_command
from engines.errors import UserError

KEYS = {
    "model",
    "runtime",
    "precision",
    "arithmetic",
    "batch",
    "threads",
    "latency_ms",
    "parts_ms",
    "images_per_second",
    "runs",
    "ram_mb",
    "ram_peak_mb",
    "unified_mb",
    "device_mem_mb",
    "file_mb",
    "load_s",
    "ratio_to_first",
    "together",
    "photograph_ms",
}  # of `uad bench --json`

# A process that serves an engine of our own: it notes each run in a file, and prints what would upset the answers.
FAKE = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import time
import numpy as np
from engines import Engine, Prediction
from engines.benchmark import serve
from graphs import tiny_info

class Fake(Engine):
    runtime, arithmetic, info, batch = "fake", "f32", tiny_info(), 2

    def run(self, images):
        assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
        print("noise on stdout")
        time.sleep({sleep!r})
        with open({log!r}, "a") as log:
            log.write({name!r})
        return Prediction(np.zeros(2, np.float32), np.zeros((2, 4, 4), np.float32))

    def close(self):
        pass

serve(Fake, 3)
"""


def fake(name: str, log: Path, sleep: float = 0.0) -> list[str]:
    tests = Path(__file__).resolve().parents[1]
    script = FAKE.format(root=str(tests.parent), tests=str(tests), log=str(log), name=name, sleep=sleep)
    return [sys.executable, "-c", script]


def test_summary_of_a_hundred_and_one_latencies() -> None:
    summary = summarize([{"latency": float(value)} for value in range(101)], batch=4)
    assert summary == {
        "latency_ms": {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0, "mean": 50.0},
        "parts_ms": None,
        "runs": 101,
        "images_per_second": 80.0,  # 4 images in 50 ms
    }


def test_parts_of_a_run_have_percentiles_of_their_own() -> None:
    runs = [{"latency": 10.0, "compute": 7.0}, {"latency": 20.0, "compute": 9.0}]
    assert summarize(runs, batch=1)["parts_ms"]["compute"]["p50"] == 8.0
    assert summarize(runs, batch=1)["latency_ms"]["p50"] == 15.0


def test_summary_interpolates_between_two_latencies() -> None:
    summary = summarize([{"latency": 10.0}, {"latency": 20.0}], batch=1)
    assert summary["latency_ms"] == pytest.approx({"p50": 15.0, "p90": 19.0, "p99": 19.9, "max": 20.0, "mean": 15.0})
    assert summary["images_per_second"] == pytest.approx(1000 / 15)


def test_the_mean_counts_the_slow_runs() -> None:
    summary = summarize([{"latency": each} for each in [1.0] * 99 + [101.0]], batch=1)
    assert summary["latency_ms"]["p50"] == 1.0
    assert summary["latency_ms"]["mean"] == pytest.approx(2.0)
    assert summary["images_per_second"] == pytest.approx(500.0)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two models, the second with a larger file and a larger batch, on ONNX Runtime, for the least number of runs."""
    folder = tmp_path_factory.mktemp("models")
    paths = [str(save_tiny(folder / "a.onnx")), str(save_tiny(folder / "b.onnx", checkpoint_sha256="0" * 5000))]
    commands = [worker_command(path, "onnxruntime", batch, 1) for path, batch in ((paths[0], 1), (paths[1], 2))]
    return benchmark(paths, commands, seconds=0.0)


def test_reports_have_all_keys_in_the_order_asked(reports: list[dict[str, Any]]) -> None:
    assert [Path(report["model"]).name for report in reports] == ["a.onnx", "b.onnx"]
    for report in reports:
        assert set(report) >= KEYS
        assert set(report["latency_ms"]) == {"p50", "p90", "p99", "max", "mean"}


def test_reports_repeat_what_was_asked(reports: list[dict[str, Any]]) -> None:
    assert [report["batch"] for report in reports] == [1, 2]
    for report in reports:
        assert (report["runtime"], report["precision"], report["arithmetic"]) == ("onnxruntime", "fp32", "f32")
        assert report["threads"] == 1 and report["device_mem_mb"] is None


def test_figures_of_a_report_agree_with_each_other(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        latency = report["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert report["images_per_second"] == pytest.approx(1000 * report["batch"] / latency["mean"])
        assert report["file_mb"] == Path(report["model"]).stat().st_size / 1e6
        assert 5 < report["ram_mb"] <= report["ram_peak_mb"]  # numpy alone takes more than 5 MB
        assert report["load_s"] > 0


def test_ratio_is_to_the_first(reports: list[dict[str, Any]]) -> None:
    assert reports[0]["ratio_to_first"] == 1.0
    medians = [report["latency_ms"]["p50"] for report in reports]
    assert reports[1]["ratio_to_first"] == pytest.approx(medians[1] / medians[0])


def test_runs_are_at_least_the_minimum_however_short_the_time(reports: list[dict[str, Any]]) -> None:
    assert bench.ROUNDS == 5
    assert all(report["runs"] >= 200 for report in reports)


def test_models_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    rounds: list[str] = []
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        Path(path).touch()
    commands = [fake("A", log, sleep=0.02), fake("B", log, sleep=0.02)]
    reports = benchmark(paths, commands, 0.01, lambda: rounds.append(log.read_text()), minimum=20)
    assert all(20 <= report["runs"] < 200 for report in reports)
    turns = "".join(name for index, name in enumerate(rounds[-1]) if rounds[-1][index - 1 : index] != name)
    # Warm-up of A, of B, and then five rounds.
    assert turns == "AB" + "AB" * bench.ROUNDS
    assert len(rounds) == bench.ROUNDS
    assert [report["batch"] for report in reports] == [2, 2]


def test_models_measure_at_the_same_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        Path(path).touch()
    commands = [fake("A", log, sleep=0.02), fake("B", log, sleep=0.02)]
    reports = benchmark(paths, commands, 0.5, together=True, minimum=20)
    measured = log.read_text()[-60:]
    assert all(report["together"] and report["runs"] >= 20 for report in reports)
    changes = sum(one != other for one, other in zip(measured, measured[1:]))
    assert changes > 20  # in turns there would be one for each of the last turns


def test_from_photograph_to_decision(tmp_path: Path) -> None:
    path = str(save_tiny(tmp_path / "a.onnx"))
    photographs = [str(save(noise(index, size=300), tmp_path / f"{index}.png")) for index in range(3)]
    (report,) = benchmark([path], [worker_command(path, "onnxruntime", 2, 1)], 0.01, photographs=photographs)
    judged = report["photograph_ms"]
    assert set(judged) == {"p50", "p90", "p99", "max", "mean"}
    assert judged["p50"] > report["latency_ms"]["p50"]  # decoding comes on top


def test_a_photograph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = str(save_tiny(tmp_path / "a.onnx"))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="b.png"):
        benchmark([path], [worker_command(path, "onnxruntime", 1, 1)], 0.01, photographs=[str(tmp_path / "b.png")])


def test_what_a_runtime_prints_does_not_reach_the_answers(tmp_path: Path) -> None:
    with Worker(fake("A", tmp_path / "log")) as worker:
        assert worker.description["runtime"] == "fake" and worker.description["threads"] == 3
        assert all(run["latency"] > 0 for run in worker.measure(0.0))
        assert (worker.memory()["ram_mb"] or 0) > 5


def test_first_runs_of_a_turn_are_not_counted(tmp_path: Path) -> None:
    # The caches are cold after the turns of the others.
    log = tmp_path / "log"
    with Worker(fake("A", log)) as worker:
        before = len(log.read_text())
        measured = worker.measure(0.0)
        assert len(log.read_text()) - before > len(measured) == 1


def test_worker_may_be_closed_twice(tmp_path: Path) -> None:
    worker = Worker(fake("A", tmp_path / "log"))
    worker.close()
    worker.close()


def test_broken_model_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_text("not a model")
    with pytest.raises(UserError, match="broken.onnx is not an ONNX file, or is damaged") as error:
        benchmark([str(path)], [worker_command(str(path), "onnxruntime", 1, None)], 0.01)
    assert "\n" not in str(error.value)


def test_process_that_ends_unasked_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="ended with code 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"])


def test_pipes_of_a_process_that_ended_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            started.append(self)
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(UserError):
        Worker(worker_command(str(tmp_path / "missing.onnx"), None, 1, None))
    assert started[0].stdin.closed and started[0].stdout.closed


def test_process_that_ends_while_it_measures_is_an_error(tmp_path: Path) -> None:
    with Worker(fake("A", tmp_path / "log")) as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(UserError, match="ended with code"):
            worker.measure(0.0)


def test_an_error_ends_the_processes_that_already_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Noted(Worker):
        def __init__(self, command: Any) -> None:
            started.append(self)
            super().__init__(command)

    monkeypatch.setattr(bench, "Worker", Noted)
    broken = worker_command(str(tmp_path / "missing.onnx"), None, 1, None)
    with pytest.raises(UserError, match="missing.onnx: no such file"):
        benchmark(["a", "b"], [fake("A", tmp_path / "log"), broken], 0.01)
    assert [worker._process.poll() is not None for worker in started] == [True, True]


@pytest.mark.parametrize("runtime", engines.installed_runtimes(".onnx"))
def test_scoring_never_imports_torch(runtime: str, tmp_path: Path) -> None:
    path = str(save_tiny(tmp_path / "a.onnx"))
    script = (
        "import sys, numpy, engines, engines.benchmark\n"
        f"engines.load({path!r}, {runtime!r}).infer(numpy.zeros((1, 16, 16, 3), numpy.uint8))\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'pytorch_quantization', 'sklearn', 'scipy', 'PIL'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[2]))
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_a_process_that_does_not_answer_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PATIENCE", 0.5)
    with pytest.raises(UserError, match="no answer in 0 s and was stopped|no answer in 1 s and was stopped"):
        Worker([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_ends_with_the_one_that_started_it_though_it_measures(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "from engines.benchmark import Worker\n"
        f"worker = Worker({fake('A', log)!r})\n"
        "print(worker._process.pid, flush=True)\n"
        "worker.measure(60.0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        time.sleep(0.5)
        process.kill()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("it went on")


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_finds_what_this_one_finds_and_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the current folder was searched')")
    (tmp_path / "told.py").write_text("import sys; print(sys.path, sys.argv[1:], __name__)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/nowhere")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    ended = subprocess.run(bench.module_command("told", "a b"), capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == f"{sys.path} ['a b'] __main__"


def test_memory_is_unknown_where_no_one_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    from uad.tables import benchmark_table

    def absent(self: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", absent)
        memory = bench.memory_of()
    assert memory == {"ram_mb": None, "ram_peak_mb": None}
    report = {**dict.fromkeys(KEYS, 1.0), "model": "m", "runtime": "r", "precision": "fp32", **memory}
    report.update(summarize([{"latency": 1.0}], 1), device_mem_mb=None, together=False, photograph_ms=None)
    assert "| - |" in benchmark_table([report]).replace("  ", "").replace("|-", "| -")


def test_a_table_of_what_ran_together_ends_with_the_rate_of_all() -> None:
    from uad.tables import benchmark_table

    report = {**dict.fromkeys(KEYS, 1.0), "model": "m", "runtime": "r", "precision": "fp32", "device_mem_mb": None}
    report.update(summarize([{"latency": 10.0}], 1), together=True, photograph_ms={"p50": 12.5, "p99": 20.0})
    table = benchmark_table([report, report])
    assert table.endswith("\n\ntogether, at the same time: 200.0 images/s")
    assert (
        "photograph p50 ms" in table
        and " 12.50 " in table
        and "together" not in benchmark_table([{**report, "together": False}])
    )
