"""uad.judging.watching: every photograph that arrives is judged once, whatever happens to the process."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import save_tiny
from image_folders import noise, save
from PIL import Image

from engines.errors import OutputError, UadWarning, UserError
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, watch
from uad.judging import watching
from uad.judging.predictions import Decision, read_predictions
from uad.judging.watching import Arrivals, Journal

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model" / "a.onnx")


@pytest.fixture(params=["notes", "looks"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files are found: the system notes them, or the folder is looked at."""
    if request.param == "notes":
        pytest.importorskip("watchdog", reason="watchdog is not installed")
    else:
        monkeypatch.setitem(sys.modules, "watchdog.observers", None)
    return str(request.param)


@pytest.fixture
def watched(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Decision]]]:
    """Start watching the folder `line`; gives the decisions, as they come. It is stopped in the end."""
    monkeypatch.setattr(watching, "EVERY", 0.05)
    (tmp_path / "line").mkdir(exist_ok=True)
    stop, threads = threading.Event(), []

    def start(**settings: object) -> list[Decision]:
        decisions: list[Decision] = []
        options = PredictOptions(
            model, [], tmp_path / "out", watch=tmp_path / "line", running=Running(runtime="onnxruntime"), **settings
        )  # type: ignore[arg-type]
        threads.append(threading.Thread(target=watch, args=(options, stop, decisions.append)))
        threads[-1].start()
        return decisions

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def watched_until(options: PredictOptions, count: int) -> tuple[list[Decision], dict[str, int]]:
    """Watch until so many photographs were judged, and a little longer; the decisions, and what the journal holds."""
    judged: list[Decision] = []
    stop, counts = threading.Event(), {}
    thread = threading.Thread(target=lambda: counts.update(watch(options, stop, judged.append)))
    thread.start()
    alive = options.out / "heartbeat.json"
    begun = time.time()
    wait_for(lambda: alive.exists() and json.loads(alive.read_text())["time"] > begun, 30)
    wait_for(lambda: len(judged) >= count)
    time.sleep(0.3)
    stop.set()
    thread.join()
    return judged, counts


def wait_for(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(noise(seed)).save(content, "png")
    return content.getvalue()


def names(decisions: list[Decision]) -> list[str]:
    return [Path(decision.image).name for decision in decisions]


def test_what_is_there_and_what_arrives_is_judged_once(
    source: str, watched: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    save(noise(0), tmp_path / "line" / "0.png")
    decisions = watched()
    wait_for(lambda: len(decisions) == 1)
    begun = time.monotonic()
    save(noise(1), tmp_path / "line" / "today" / "1.png")
    save(noise(2), tmp_path / "elsewhere.png").rename(tmp_path / "line" / "2.png")
    (tmp_path / "line" / "note.txt").write_text("no photograph")
    save(noise(3), tmp_path / "line" / ".hidden" / "3.png")
    wait_for(lambda: len(decisions) == 3)
    assert time.monotonic() - begun < 1.0
    time.sleep(0.3)
    assert sorted(names(decisions)) == ["0.png", "1.png", "2.png"]
    assert len(read_predictions(tmp_path / "out" / "predictions.jsonl")) == 3


def test_a_file_that_is_being_written_is_waited_for(
    source: str, watched: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    decisions, content = watched(), png(5)
    with open(tmp_path / "line" / "slow.png", "wb") as file:
        for start in range(0, len(content), len(content) // 6 + 1):
            assert not decisions
            file.write(content[start : start + len(content) // 6 + 1])
            file.flush()
            time.sleep(0.15)  # it stays as it is for longer than the time between two looks
    wait_for(lambda: bool(decisions))
    assert names(decisions) == ["slow.png"] and not decisions[0].error


def test_a_broken_file_is_set_aside_after_a_while_and_judged_when_it_is_mended(
    watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.4)
    decisions = watched()
    path = tmp_path / "line" / "broken.png"
    path.write_bytes(png(0)[:200])
    time.sleep(0.2)
    assert not decisions
    wait_for(lambda: bool(decisions))
    assert decisions[0].decision == "unreadable" and "broken.png" in decisions[0].error
    path.write_bytes(png(0))
    wait_for(lambda: len(decisions) == 2)
    assert not decisions[1].error


def test_a_name_that_comes_again_is_another_photograph(watched: Callable[..., list[Decision]], tmp_path: Path) -> None:
    decisions = watched()
    for count in (1, 2):
        (tmp_path / "line" / "camera.png").write_bytes(png(count))
        wait_for(lambda count=count: len(decisions) == count)  # type: ignore[misc]
    assert decisions[0].score != decisions[1].score


def test_nothing_is_judged_again_after_a_restart_nor_missed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.02)
    (tmp_path / "line").mkdir()
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line")
    judged: list[Decision] = []
    for round_ in range(3):
        for index in range(3):
            save(noise(10 * round_ + index), tmp_path / "line" / f"{round_}{index}.png")
        more, counts = watched_until(options, 3)
        judged += more
        assert sum(counts.values()) == 3 * (round_ + 1)
    assert sorted(names(judged)) == sorted({f"{round_}{index}.png" for round_ in range(3) for index in range(3)})
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_a_kill_between_the_lines_and_the_journal_judges_nothing_twice(model: Path, tmp_path: Path) -> None:
    path = save(noise(0), tmp_path / "line" / "0.png")
    out = tmp_path / "out"
    options = PredictOptions(model, [], out, watch=tmp_path / "line")
    assert len(watched_until(options, 1)[0]) == 1
    (out / "journal.sqlite").unlink()  # the line is there, the journal does not know
    lines = (out / "predictions.csv").read_text().splitlines(keepends=True)
    (out / "predictions.csv").write_text(lines[0] + lines[1][:5])  # and of the table's line only a part
    with open(out / "predictions.jsonl", "a") as file:
        file.write('{"half a line')
    judged, counts = watched_until(options, 0)
    assert judged == [] and sum(counts.values()) == 1 and path.exists()
    assert (out / "predictions.csv").read_text().splitlines(keepends=True) == lines
    assert len(read_predictions(out / "predictions.jsonl")) == 1


def test_a_name_that_came_again_while_nobody_watched_is_not_missed(model: Path, tmp_path: Path) -> None:
    path = save(noise(0), tmp_path / "line" / "camera.png")
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line")
    first, _ = watched_until(options, 1)
    path.write_bytes(png(1))
    second, _ = watched_until(options, 1)
    assert [each.score for each in first] != [each.score for each in second] and len(second) == 1


def test_what_a_kill_left_is_moved_at_the_next_start(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "line" / "0.png")
    (tmp_path / "line" / "bad.png").write_bytes(b"no image")
    os.utime(tmp_path / "line" / "bad.png", (1, 1))
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line")
    watched_until(options, 1)
    judged, _ = watched_until(dataclasses.replace(options, move_to=tmp_path / "done"), 0)
    assert "0.png" not in names(judged) and (tmp_path / "done" / "0.png").exists()
    assert (tmp_path / "line" / "bad.png").exists()


def test_where_the_system_watches_no_more_the_folder_is_looked_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observers = pytest.importorskip("watchdog.observers", reason="watchdog is not installed")

    def full(self: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(observers.Observer, "start", full)
    (tmp_path / "line").mkdir()
    with pytest.warns(UadWarning, match="inotify watch limit"):
        arrivals = Arrivals(tmp_path / "line")
    path = save(noise(0), tmp_path / "line" / "0.png")
    assert arrivals.take() == arrivals.take() == {str(path)}


def test_judged_photographs_move_and_none_is_overwritten_and_what_cannot_be_read_stays(
    watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.1)
    decisions = watched(move_to=tmp_path / "done")
    for count in (1, 2):
        save(noise(count), tmp_path / "line" / "a" / "0.png")
        wait_for(lambda count=count: len(decisions) == count)  # type: ignore[misc]
    (tmp_path / "line" / "a" / "broken.png").write_bytes(b"no image")
    wait_for(lambda: len(decisions) == 3)
    time.sleep(0.2)
    assert sorted(path.name for path in (tmp_path / "done" / "a").iterdir()) == ["0-1.png", "0.png"]
    assert [path.name for path in (tmp_path / "line" / "a").iterdir()] == ["broken.png"]


def test_the_heartbeat_says_what_goes_on(
    watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT", 0.1)
    decisions, alive = watched(), tmp_path / "out" / "heartbeat.json"
    save(noise(0), tmp_path / "line" / "0.png")
    wait_for(lambda: bool(decisions))
    wait_for(lambda: json.loads(alive.read_text()).get(decisions[0].decision) == 1)
    told = json.loads(alive.read_text())
    assert told["process"] == os.getpid() and told["waiting"] == 0 and told["per_second"] > 0
    before = told["time"]
    wait_for(lambda: json.loads(alive.read_text())["time"] > before)


def test_the_results_may_lie_in_the_folder_that_is_watched(
    source: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.05)
    save(noise(0), tmp_path / "line" / "0.png")
    judged, _ = watched_until(PredictOptions(model, [], tmp_path / "line" / "out", watch=tmp_path / "line"), 1)
    assert names(judged) == ["0.png"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "line" / "0.png")
    command = [sys.executable, "-c", "import sys; from uad.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["predict", str(model), "--watch", str(tmp_path / "line"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        wait_for(lambda: (tmp_path / "out" / "heartbeat.json").exists(), 60)
        wait_for(lambda: len((tmp_path / "out" / "predictions.jsonl").read_text()) > 10)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "Ctrl-C ends it" in out and ("1 defect" in out or "1 good" in out) and "Traceback" not in err


def test_a_journal_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(OutputError, match="cannot be used as a journal"):
        Journal(tmp_path / "journal.sqlite")


def test_mistakes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    for settings, told in [
        (dict(images=[]), "give photographs, or --watch FOLDER"),
        (dict(images=[tmp_path], watch=tmp_path / "line"), "give photographs, or --watch FOLDER"),
        (dict(images=[tmp_path], move_to=tmp_path), "--move-to is for --watch"),
        (dict(images=[], watch=tmp_path / "no"), "no is no folder"),
        (dict(images=[], watch=tmp_path / "line", resume=True), "--watch always goes on"),
        (
            dict(images=[], watch=tmp_path / "line", move_to=tmp_path / "line" / "x"),
            "lies in the folder that is watched",
        ),
    ]:
        with pytest.raises(UserError, match=told):
            PredictOptions(model, out=tmp_path / "out", **settings)  # type: ignore[arg-type]
