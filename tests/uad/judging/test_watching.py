"""uad.judging.watching: every photograph that arrives is judged once, whatever happens to the process."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import files_of_at_most
from graphs import save_tiny
from image_folders import noise, save
from PIL import Image

import engines
from engines.errors import OutputError, UadWarning, UserError
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, watch
from uad.judging import arrivals, watching
from uad.judging.arrivals import Arrivals
from uad.judging.decisions import decide
from uad.judging.photographs import Photograph
from uad.judging.predictions import Decision, read_predictions

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model" / "a.onnx")


@pytest.fixture(params=["notes", "looks"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files are found: the system notes them, or the folder is looked at."""
    if request.param == "notes":
        pytest.importorskip("inotify_simple", reason="inotify_simple is not installed")
    else:
        monkeypatch.setitem(sys.modules, "inotify_simple", None)
    return str(request.param)


@pytest.fixture
def watched(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Decision]]]:
    """Start watching the folder `line`; gives the decisions, as they come. It is stopped in the end."""
    monkeypatch.setattr(watching, "EVERY", 0.05)
    monkeypatch.setattr(arrivals, "EVERY", 0.05)
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


def bmp(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(noise(seed)).save(content, "bmp")
    return content.getvalue()


def decided(model: Path, path: Path) -> Decision:
    with engines.load(model, "onnxruntime") as engine:
        ((_, decision),) = decide(engine, [Photograph(path)], None)
    return decision


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


def test_files_that_no_look_takes_are_told_once_for_each_suffix(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    with Arrivals(folder) as found:
        found.take()
        for name in ("1.tga", "2.tga", "3.avif", "notes.txt", "4.part"):
            (folder / name).write_bytes(b"no image by name")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            time.sleep(0.3)
            found.take()
            (folder / "4.part").rename(folder / "4.png")  # as a camera that writes beside the place
            time.sleep(0.3)
            read, names = found.take()
            assert {*names, *(each.path for each in read)} == {folder / "4.png"}
            found.take()
    said = sorted(str(each.message).partition(" are")[0] for each in told)
    assert said == ["files named *.avif", "files named *.tga"]


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
    inotify = pytest.importorskip("inotify_simple", reason="inotify_simple is not installed")

    def full(self: object, path: str, mask: int) -> int:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(inotify.INotify, "add_watch", full)
    monkeypatch.setattr(arrivals, "EVERY", 0.0)
    (tmp_path / "line").mkdir()
    with pytest.warns(UadWarning, match="inotify watch limit"), Arrivals(tmp_path / "line") as found:
        path = save(noise(0), tmp_path / "line" / "0.png")
        assert found.take() == ([], {path})
        time.sleep(0.05)
        assert found.take() == ([], {path})


def test_where_notes_cannot_be_read_any_more_the_folder_is_looked_at(
    watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("inotify_simple", reason="inotify_simple is not installed")
    monkeypatch.setattr(Arrivals, "_note", lambda self, note: 1 / 0)
    decisions = watched()
    wait_for((tmp_path / "out" / "heartbeat.json").exists)
    for index in range(3):
        save(noise(index), tmp_path / "line" / f"{index}.png")
        wait_for(lambda count=index + 1: len(decisions) == count, 3)  # type: ignore[misc]


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
    monkeypatch.setattr(arrivals, "EVERY", 0.05)
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


def test_a_photograph_whose_place_was_reserved_is_judged_when_it_is_whole(
    source: str, watched: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    decisions = watched()
    content = bmp(0)
    with open(tmp_path / "line" / "slow.bmp", "wb") as file:
        file.truncate(len(content))
        for start in range(0, len(content), len(content) // 4 + 1):
            file.seek(start)
            file.write(content[start : start + len(content) // 4 + 1])
            file.flush()
            time.sleep(0.4)
            assert not decisions or start + len(content) // 4 + 1 >= len(content)
    wait_for(lambda: bool(decisions))
    time.sleep(0.3)
    expected = tmp_path / "whole.bmp"
    expected.write_bytes(content)
    whole = decided(tmp_path / "model" / "a.onnx", expected)
    assert [each.score for each in decisions] == [pytest.approx(whole.score)]


def test_a_file_that_stays_open_is_judged_after_a_while(
    watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("inotify_simple", reason="inotify_simple is not installed")
    monkeypatch.setattr(watching, "OPEN_FOR", 0.8)
    decisions = watched()
    wait_for((tmp_path / "out" / "heartbeat.json").exists)
    with open(tmp_path / "line" / "a.bmp", "wb") as file:
        file.write(bmp(0))
        file.flush()
        time.sleep(0.5)
        assert not decisions
        wait_for(lambda: bool(decisions))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_camera_with_one_name_loses_nothing(
    in_place: bool, watched: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    pytest.importorskip("inotify_simple", reason="inotify_simple is not installed")
    decisions = watched(move_to=tmp_path / "done")
    wait_for((tmp_path / "out" / "heartbeat.json").exists)
    latest, count = tmp_path / "line" / "latest.png", 60
    for index in range(count):
        if in_place:
            latest.write_bytes(png(index))
        else:
            (tmp_path / "line" / "x.tmp").write_bytes(png(index))
            (tmp_path / "line" / "x.tmp").replace(latest)
        time.sleep(0.05)
    wait_for(lambda: len(decisions) == count)
    assert len({each.score for each in decisions}) == len({each.overlay for each in decisions}) == count
    moved = [Path(each.moved_to) for each in decisions]
    wait_for(lambda: all(path.exists() for path in moved))
    assert [path.read_bytes() for path in moved] == [png(index) for index in range(count)]
    wait_for(lambda: not latest.exists())


def test_equal_size_and_time_hide_no_photograph_that_is_moved(
    source: str, watched: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    decisions, at = watched(move_to=tmp_path / "done"), int(time.time()) // 2 * 2
    for index in range(2):
        (tmp_path / "line" / "x.tmp").write_bytes(bmp(index))
        os.utime(tmp_path / "line" / "x.tmp", (at, at))
        (tmp_path / "line" / "x.tmp").replace(tmp_path / "line" / "latest.bmp")
        wait_for(lambda count=index + 1: len(decisions) == count)  # type: ignore[misc]
        wait_for(lambda: not (tmp_path / "line" / "latest.bmp").exists())
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["latest-1.bmp", "latest.bmp"]
    assert decisions[0].score != decisions[1].score


def test_a_folder_that_goes_and_comes_back_is_watched_again(
    source: str, watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT", 0.05)
    alive = tmp_path / "out" / "heartbeat.json"

    def is_there() -> bool:
        return alive.exists() and bool(json.loads(alive.read_text())["folder_is_there"])

    decisions = watched()
    save(noise(0), tmp_path / "line" / "0.png")
    wait_for(lambda: len(decisions) == 1 and is_there())
    shutil.rmtree(tmp_path / "line")
    wait_for(lambda: not is_there())
    (tmp_path / "line").mkdir()
    wait_for(is_there)
    for index in (1, 2):
        save(noise(index), tmp_path / "line" / f"{index}.png")
        begun = time.monotonic()
        wait_for(lambda count=index + 1: len(decisions) == count)  # type: ignore[misc]
        assert time.monotonic() - begun < 1.5


def test_new_folders_links_and_moves_between_folders_are_heard(
    watched: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "line" / "linked").symlink_to(tmp_path / "elsewhere")
    decisions = watched()
    wait_for((tmp_path / "out" / "heartbeat.json").exists)
    save(noise(0), tmp_path / "elsewhere" / "deep" / "0.png")
    save(noise(1), tmp_path / "side" / "a" / "b" / "1.png")
    (tmp_path / "side").rename(tmp_path / "line" / "side")
    wait_for(lambda: len(decisions) == 2)
    (tmp_path / "line" / "side").rename(tmp_path / "line" / "other")
    time.sleep(0.5)  # what lies there was looked for as the folder came: from here on only notes tell of files
    save(noise(2), tmp_path / "line" / "other" / "a" / "b" / "2.png")
    wait_for(lambda: "2.png" in names(decisions))
    assert [name for name in names(decisions) if name != "1.png"] == ["0.png", "2.png"]


def test_a_full_disk_is_waited_for_and_nothing_is_moved_before(
    watched: Callable[..., list[Decision]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(watching, "ROOM_EVERY", 0.05)
    monkeypatch.setattr(watching, "HEARTBEAT", 0.05)
    decisions = watched(move_to=tmp_path / "done", overlays="none")
    wait_for((tmp_path / "out" / "heartbeat.json").exists)
    for index in range(8):
        (tmp_path / "side").mkdir(exist_ok=True)
        (tmp_path / "side" / f"{index}.png").write_bytes(png(index))
    with files_of_at_most(4000):
        for path in sorted((tmp_path / "side").iterdir()):
            path.rename(tmp_path / "line" / path.name)
        wait_for(lambda: "it is waited for" in capsys.readouterr().err)
        time.sleep(0.3)
        assert not decisions and not list((tmp_path / "done").iterdir())
        assert "room" in json.loads((tmp_path / "out" / "heartbeat.json").read_text())["problem"]
    wait_for(lambda: len(decisions) == 8)
    wait_for(lambda: len(list((tmp_path / "done").iterdir())) == 8)
    wait_for(lambda: json.loads((tmp_path / "out" / "heartbeat.json").read_text())["problem"] == "")
    assert "has room again" in capsys.readouterr().err


def test_a_move_to_another_disk_that_is_killed_is_ended_at_the_next_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*paths: str) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(watching.os, "rename", other_disk)
    path = save(noise(0), tmp_path / "line" / "0.png")
    content = path.read_bytes()
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line", move_to=tmp_path / "done")
    watched_until(options, 1)
    assert not path.exists() and (tmp_path / "done" / "0.png").read_bytes() == content
    path.write_bytes(content)  # as if the process had been killed before the file was removed here
    with sqlite3.connect(str(tmp_path / "out" / "ledger.sqlite")) as rows:
        status = path.stat()
        rows.execute(
            "UPDATE photographs SET modified = ?, changed = ?, number = ?, state = 'judged'",
            (status.st_mtime_ns, status.st_ctime_ns, status.st_ino),
        )
    rows.close()
    judged, _ = watched_until(options, 0)
    wait_for(lambda: not path.exists())
    assert not judged and [each.name for each in (tmp_path / "done").iterdir()] == ["0.png"]


def test_where_the_camera_has_replaced_a_file_what_was_judged_is_written(tmp_path: Path) -> None:
    path = save(noise(0), tmp_path / "latest.png")
    photograph = Photograph(path)
    photograph.read()
    before = path.read_bytes()
    save(noise(1), path)
    watching.move(photograph, tmp_path / "done" / "latest.png")
    assert (tmp_path / "done" / "latest.png").read_bytes() == before and path.exists()


def test_no_file_is_overwritten_by_a_move_that_was_planned_before_a_kill(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "line" / "0.png")
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line", move_to=tmp_path / "done")
    watched_until(options, 1)
    (tmp_path / "done" / "0.png").rename(tmp_path / "line" / "0.png")  # as if it had been killed before the move
    other = save(noise(1), tmp_path / "done" / "0.png").read_bytes()
    judged, _ = watched_until(options, 0)
    assert not judged and (tmp_path / "done" / "0.png").read_bytes() == other
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["0-1.png", "0.png"]


def test_other_thresholds_judge_new_photographs_and_old_rows_stand(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "line" / "0.png")
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line")
    watched_until(options, 1)
    save_tiny(model, threshold=123.0)
    save(noise(1), tmp_path / "line" / "1.png")
    with pytest.warns(UadWarning, match="is not what judged before: rows of before stand"):
        judged, counts = watched_until(options, 1)
    assert names(judged) == ["1.png"] and judged[0].threshold == 123.0 and sum(counts.values()) == 2


def test_a_second_process_is_refused(watched: Callable[..., list[Decision]], model: Path, tmp_path: Path) -> None:
    watched()
    wait_for((tmp_path / "out" / "heartbeat.json").exists)
    with pytest.raises(OutputError, match=f"process {os.getpid()} of .* writes to"):
        watch(PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line"), threading.Event())


def test_counts_are_there_for_prometheus(watched: Callable[..., list[Decision]], tmp_path: Path) -> None:
    decisions = watched(metrics=tmp_path / "uad.prom")
    save(noise(0), tmp_path / "line" / "0.png")
    wait_for(lambda: bool(decisions))
    name = f'uad_photographs_total{{decision="{decisions[0].decision}"}} 1'
    wait_for(lambda: (tmp_path / "uad.prom").exists() and name in (tmp_path / "uad.prom").read_text())
    lines = (tmp_path / "uad.prom").read_text().splitlines()
    kinds = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    values = {line.split("{")[0].split()[0]: float(line.split()[-1]) for line in lines if not line.startswith("#")}
    assert kinds == set(values) and values["uad_well"] == 1 and values["uad_waiting"] == 0


def test_a_place_to_move_to_that_cannot_be_is_told_at_the_start(model: Path, tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    (tmp_path / "file").touch()
    options = PredictOptions(model, [], tmp_path / "out", watch=tmp_path / "line", move_to=tmp_path / "file" / "done")
    with pytest.raises(OutputError, match="choose another with --move-to"):
        watch(options, threading.Event())


def test_a_long_queue_is_judged_a_few_at_a_time_and_the_heartbeat_tells_it(
    watched: Callable[..., list[Decision]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT", 0.0)
    first = save(noise(0), tmp_path / "line" / "000.png")
    for index in range(1, 200):
        shutil.copyfile(first, tmp_path / "line" / f"{index:03d}.png")
    decisions, waiting = watched(overlays="none"), set()
    alive = tmp_path / "out" / "heartbeat.json"
    while len(decisions) < 200:
        if alive.exists():
            waiting.add(json.loads(alive.read_text())["waiting"])
    assert max(waiting) > 100 and len(set(names(decisions))) == 200


STUCK = """
import sys, time
import uad.judging.decisions as decisions
see = decisions._see
def stuck(engine, photograph, *more):
    if photograph.path.name == "1.png":
        {how}
    return see(engine, photograph, *more)
decisions._see = stuck
from uad.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("time.sleep(600)", 3), ("import ctypes; ctypes.PyDLL(None).sleep(600)", 1)])
def test_a_process_in_which_nothing_moves_ends_and_the_photograph_is_set_aside_in_the_end(
    how: str, code: int, model: Path, tmp_path: Path
) -> None:
    for index in range(3):
        save(noise(index), tmp_path / "line" / f"{index}.png")
    command = [sys.executable, "-c", STUCK.format(how=how), "predict", str(model), "--watch", str(tmp_path / "line")]
    command += ["--out", str(tmp_path / "out"), "--time-limit", "1", "--overlays", "none", "--runtime", "onnxruntime"]
    for _ in range(3):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert "1.png" in done.stderr if code == 3 else "Timeout" in done.stderr
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        rows = tmp_path / "out" / "predictions.jsonl"
        wait_for(lambda: len(read_predictions(rows)) == 3, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert [Path(row.image).name for row in read_predictions(rows) if row.error] == ["1.png"]


def test_sigterm_ends_a_process_that_is_stuck(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "line" / "1.png")
    command = [sys.executable, "-c", STUCK.format(how="time.sleep(600)"), "predict", str(model)]
    command += ["--watch", str(tmp_path / "line"), "--out", str(tmp_path / "out"), "--time-limit", "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "1.png takes longer than" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 3


def test_mistakes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    for settings, told in [
        (dict(images=[]), "give photographs, or --watch FOLDER"),
        (dict(images=[tmp_path], watch=tmp_path / "line"), "give photographs, or --watch FOLDER"),
        (dict(images=[tmp_path], move_to=tmp_path), "--move-to and --metrics are for --watch"),
        (dict(images=[], watch=tmp_path / "no"), "no is no folder"),
        (dict(images=[], watch=tmp_path / "line", resume=True), "--watch always goes on"),
        (
            dict(images=[], watch=tmp_path / "line", move_to=tmp_path / "line" / "x"),
            "lies in the folder that is watched",
        ),
    ]:
        with pytest.raises(UserError, match=told):
            PredictOptions(model, out=tmp_path / "out", **settings)  # type: ignore[arg-type]
