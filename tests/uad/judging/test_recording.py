"""uad.judging.recording: a decision is given out once it is safe, and a photograph that kills is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from disks import files_of_at_most
from graphs import save_tiny, tiny_info
from image_folders import noise, save

from engines.errors import UserError
from uad.judging import ledger as ledger_module
from uad.judging.ledger import MOST_TRIES, Ledger, NoRoomError
from uad.judging.photographs import Photograph
from uad.judging.predictions import Decision, read_predictions
from uad.judging.recording import record
from uad.judging.views import Views

ROOT = Path(__file__).resolve().parents[3]


def photographs(folder: Path, count: int) -> list[Photograph]:
    return [Photograph(save(noise(index), folder / f"{index:03d}.png")) for index in range(count)]


def judge(photographs: Iterable[Photograph]) -> Iterator[tuple[Photograph, Decision]]:
    for photograph in photographs:
        photograph.read()
        yield photograph, Decision(str(photograph.path), "", 0.5, 1.0, "good", note="x" * 300)


def lines(out: Path) -> int:
    return len(read_predictions(out / "predictions.jsonl"))


@pytest.mark.parametrize("every", [0.0, 60.0])
def test_what_is_given_out_is_safe(every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "COMMIT_EVERY", every)
    given = photographs(tmp_path / "in", 5)
    with Ledger(tmp_path / "out", "m") as ledger, Views(ledger) as views:
        for count, (number, photograph, decision) in enumerate(record(ledger, views, judge, given, tiny_info()), 1):
            assert number == count and decision.image == str(photograph.path)
            assert len(list(ledger.rows())) == lines(tmp_path / "out") >= count
            assert every == 0.0 or len(list(ledger.rows())) == 5


def test_what_was_judged_before_an_error_is_kept(tmp_path: Path) -> None:
    def fails(photographs: Iterable[Photograph]) -> Iterator[tuple[Photograph, Decision]]:
        for index, each in enumerate(judge(photographs)):
            if index == 3:
                raise UserError("the fourth")
            yield each

    with pytest.raises(UserError, match="the fourth"), Ledger(tmp_path / "out", "m") as ledger, Views(ledger) as views:
        list(record(ledger, views, fails, photographs(tmp_path / "in", 5), tiny_info()))
    with Ledger(tmp_path / "out", "m") as ledger:
        assert len(list(ledger.rows())) == lines(tmp_path / "out") == 3
        assert ledger.tries(Photograph(tmp_path / "in" / "004.png")) == 0  # no process was killed


def test_a_full_disk_is_waited_for_and_nothing_is_given_out_before(tmp_path: Path) -> None:
    given, waits, out = photographs(tmp_path / "in", 400), [], []
    full = files_of_at_most(50_000)

    def wait(error: NoRoomError) -> None:
        waits.append(len(out))
        if len(waits) == 3:
            full.__exit__(None, None, None)

    with Ledger(tmp_path / "out", "m") as ledger, Views(ledger) as views:
        full.__enter__()
        for each in record(ledger, views, judge, given, tiny_info(), wait):
            out.append(each)
    assert waits == [0, 0, 0] and len(out) == 400 == lines(tmp_path / "out")


def test_a_photograph_that_kills_its_process_is_set_aside_and_no_other(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "a.onnx")
    photographs(tmp_path / "in", 12)
    script = (
        "import os, sys; import uad.judging.decisions as decisions\n"
        "see = decisions._see\n"
        "decisions._see = lambda engine, photograph, *more: "
        "os._exit(9) if photograph.path.name == '003.png' else see(engine, photograph, *more)\n"
        "from uad.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "predict",
        str(model),
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--resume", "--overlays", "none", "--runtime", "onnxruntime"]
    codes = [subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode for _ in range(MOST_TRIES + 1)]
    assert codes == [9] * MOST_TRIES + [1]
    rows = {Path(row.image).name: row for row in read_predictions(tmp_path / "out" / "predictions.jsonl")}
    assert len(rows) == lines(tmp_path / "out") == 12
    assert [name for name, row in rows.items() if row.error] == ["003.png"]
    assert f"ended the process {MOST_TRIES} times: set aside" in rows["003.png"].error
    with Ledger(tmp_path / "out", "m") as ledger:
        assert [row.state for row in ledger.rows()].count("set aside") == 1
