"""uad.judging.archive on a real Ray cluster of this machine: each photograph has one row, whoever is killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import save_tiny
from image_folders import noise, save

from engines.errors import UserError
from uad import cli
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, predict
from uad.judging import archive as archive_module
from uad.judging import recording
from uad.judging.archive import cluster
from uad.judging.predictions import Decision, read_predictions

ROOT = Path(__file__).resolve().parents[3]
ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A cluster with room for two workers; what connects in this process is connected to it."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model" / "a.onnx")


def photographs(folder: Path, count: int) -> Path:
    for index in range(count):
        save(noise(index), folder / ("bolt" if index % 2 else "nut") / f"{index:03d}.png")
    return folder


def large_photographs(folder: Path, count: int) -> Path:
    """Some that take a while: the same one under many names."""
    first = save(noise(0, 1200), folder / "000.png")
    for index in range(1, count):
        shutil.copyfile(first, folder / f"{index:03d}.png")
    return folder


def options(model: Path, images: Path, out: Path, **more: Any) -> PredictOptions:
    return PredictOptions(
        model, [images], out, **{"overlays": "none", "ray": "local", "running": Running("onnxruntime"), **more}
    )


def rows(out: Path) -> list[Decision]:
    return read_predictions(out / "predictions.jsonl")


def test_rows_are_what_one_process_says(two_workers: None, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(archive_module, "BLOCK", 4)
    images = photographs(tmp_path / "images", 20)
    (images / "bad.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)  # names stay as they were given
    given = options(model, Path("images"), tmp_path / "out")
    together, alone = predict(given), predict(dataclasses.replace(given, ray=None, out=tmp_path / "alone"))
    found, expected = (
        [dataclasses.replace(row, seconds=0.0, error=row.error.replace(f"{tmp_path}/", "")) for row in each]
        for each in (together, alone)  # workers are told the absolute path
    )
    assert found == expected and len(found) == 21 == len(rows(tmp_path / "out"))
    assert [row.decision for row in found].count("unreadable") == 1
    assert {row.class_name for row in found} == {"bolt", "nut", ""} and any(row.regions for row in found)


def test_a_worker_that_is_killed_loses_nothing_and_nothing_comes_twice(
    two_workers: None, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(archive_module, "BLOCK", 2)
    images = large_photographs(tmp_path / "images", 60)
    killed: list[int] = []
    add, seen = recording.Ledger.add, []

    def add_and_kill(ledger: Any, *given: Any) -> int:
        seen.append(given)
        if not killed and len(seen) >= 16:
            killed.append(max(workers() - before))
            os.kill(killed[0], signal.SIGKILL)
        return add(ledger, *given)

    monkeypatch.setattr(recording.Ledger, "add", add_and_kill)
    before = workers()  # of the test before
    judged = predict(options(model, images, tmp_path / "out"))
    assert killed and killed[0] not in workers()
    names = sorted(row.image for row in rows(tmp_path / "out"))
    assert names == sorted(str(path) for path in images.rglob("*.png"))
    assert len(judged) == 60 and not any(row.error for row in judged)


def test_a_photograph_that_kills_its_worker_is_set_aside_and_the_others_are_judged(model: Path, tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", 8)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "import uad.judging.decisions as decisions\n"
        "see = decisions._see\n"
        "def kill():\n"
        "    time.sleep(1)  # others wait behind it\n"
        "    os._exit(9)\n"
        "decisions._see = lambda engine, photograph, *more: "
        "kill() if photograph.path.name == '003.png' else see(engine, photograph, *more)\n"
    )
    command = [sys.executable, "-c", "import sys; from uad.cli import main; sys.exit(main(sys.argv[1:]))"]
    arguments = ["predict", str(model), str(images), "--out", str(tmp_path / "out"), "--ray", "local"]
    environment = dict(os.environ, PYTHONPATH=f"{site}:{ROOT}")
    done = subprocess.run(
        [*command, *arguments, "--overlays", "none"], capture_output=True, text=True, env=environment, timeout=480
    )
    assert done.returncode == 1 and "7 images" not in done.stdout, done.stderr
    found = {Path(row.image).name: row for row in rows(tmp_path / "out")}
    assert len(found) == len(rows(tmp_path / "out")) == 8
    assert [name for name, row in found.items() if row.error] == ["003.png"]
    assert "ended its worker" in found["003.png"].error


def workers() -> set[int]:
    """The processes of Ray that have an engine."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker(MapBatches(Worker))" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


def test_a_call_that_is_killed_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    images, out = large_photographs(tmp_path / "images", 40), tmp_path / "out"
    script = "import sys, uad.judging.archive as a; a.BLOCK = 2\nfrom uad.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["predict", str(model), str(images), "--out", str(out), "--ray", "local", "--overlays", "none"]
    command = [sys.executable, "-c", script, *arguments]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + 240
        while not (out / "predictions.jsonl").exists() or not rows(out):
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.kill()
        process.wait()
    kept = rows(out)
    assert 0 < len(kept) < 40
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, timeout=480)
    assert done.returncode == 0 and done.stdout.startswith("40 images"), done.stderr
    found = rows(out)
    assert sorted(row.image for row in found) == sorted(str(path) for path in images.rglob("*.png"))
    assert [row for row in found if row in kept] == kept  # they were not judged again


def test_what_could_not_be_read_is_judged_again(two_workers: None, model: Path, tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", 4)
    (images / "bad.png").write_bytes(b"no image")
    given = options(model, images, tmp_path / "out", resume=True)
    assert [row.decision for row in predict(given)].count("unreadable") == 1
    save(noise(9), images / "bad.png")
    assert not any(row.error for row in predict(given))
    assert sorted(Path(row.image).name for row in rows(tmp_path / "out"))[-1] == "bad.png"
    assert len(rows(tmp_path / "out")) == 5


def test_strict_stops_at_what_cannot_be_read(two_workers: None, model: Path, tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", 2)
    (images / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.png"):
        predict(options(model, images, tmp_path / "out", strict=True))


def test_overlays_are_drawn_by_the_workers(two_workers: None, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    images = photographs(tmp_path / "images", 3)
    monkeypatch.chdir(tmp_path)
    predict(options(model, images, Path("out"), overlays="all"))
    assert {Path(row.overlay) for row in rows(tmp_path / "out")} == set((tmp_path / "out/overlays").glob("*.jpg"))
    assert len(list((tmp_path / "out/overlays").glob("*.jpg"))) == 3


def test_what_a_worker_raises_is_one_line(
    two_workers: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    images = photographs(tmp_path / "images", 2)
    monkeypatch.setattr("uad.judging.ledger.digest_of_model", lambda model: "of another file")
    arguments = [str(model), str(images), "--out", str(tmp_path / "out"), "--ray", "local"]
    assert cli.main(["predict", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"uad: error: {model} is another file on {socket.gethostname()}: copy the model there"


def test_a_cluster_without_room_is_said(two_workers: None, model: Path, tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", 2)
    with pytest.raises(UserError, match="a worker takes 3 CPU, the Ray cluster has 2"):
        predict(options(model, images, tmp_path / "out", running=Running("onnxruntime", threads=3)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_no_cluster_there_is_said_and_nothing_of_an_earlier_call_goes(
    address: str, model: Path, tmp_path: Path
) -> None:
    if ray.is_initialized():
        ray.shutdown()
    images = photographs(tmp_path / "images", 2)
    predict(options(model, images, tmp_path / "out", ray=None))
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"--ray {address}: no Ray cluster there"):
        predict(options(model, images, tmp_path / "out", ray=address, overwrite=True))
    assert len(rows(tmp_path / "out")) == 2 and time.monotonic() - begun < 20


def test_ray_that_is_not_installed_is_said(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UserError, match=r"pip install 'ray\[data\]'"), cluster("local"):
        pass
