"""uad.judging.views: what is read of a ledger is what the ledger says, whatever a stop left of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from disks import files_of_at_most

from engines.errors import OutputError, UserError
from uad.judging.ledger import Ledger, NoRoomError
from uad.judging.photographs import Photograph, Stamp
from uad.judging.predictions import Decision, Region, read_predictions
from uad.judging.views import Views, check_form, write

FILES = ("predictions.jsonl", "predictions.csv")


def add(ledger: Ledger, *names: str, **changes: Any) -> None:
    for name in names:
        given = {"class_name": "nut", "score": 1.5, "threshold": 1.0, "decision": "defect", **changes}
        ledger.add(Photograph(Path("/photos") / name, stamp=Stamp(1, 2, 3, 4)), Decision(name, **given))
    ledger.commit()


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def names(out: Path) -> list[str]:
    with open(out / "predictions.csv", newline="") as file:
        of_table = [row["image"] for row in csv.DictReader(file)]
    assert of_table == [row.image for row in read_predictions(out / "predictions.jsonl")]
    return of_table


def test_rows_stand_in_both_files_as_they_are_committed(tmp_path: Path) -> None:
    regions = (Region(1, 2, 3, 4, 9), Region(5, 6, 7, 8, 2))
    with Ledger(tmp_path, "m") as ledger, Views(ledger) as views:
        assert names(tmp_path) == []
        add(ledger, "a.png", regions=regions)
        assert names(tmp_path) == []
        views.catch_up()
        assert names(tmp_path) == ["a.png"]
        assert read_predictions(tmp_path / "predictions.jsonl")[0].regions == regions
        add(ledger, "b.png", "c.png")
        views.catch_up()
        views.catch_up()
        assert names(tmp_path) == ["a.png", "b.png", "c.png"]


DAMAGE = {
    "nothing": lambda content, safe: content,
    "half a line more": lambda content, safe: content + b'{"image": "hal',
    "the last line cut": lambda content, safe: content[:-9],
    "all that was not synced": lambda content, safe: content[:safe],
    "zeros for what was not synced": lambda content, safe: content[:safe] + bytes(len(content) - safe),
    "synced lines, too": lambda content, safe: content[: safe - 5],
    "everything": lambda content, safe: b"",
    "something else": lambda content, safe: b"x" * len(content),
    "lines of somebody": lambda content, safe: content + b"my own line\n",
    "a word changed before": lambda content, safe: content.replace(b"a.png", b"a.jpeg.png"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("damaged", FILES)
def test_what_differs_is_made_again(damaged: str, damage: str, tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        with Views(ledger) as views:
            add(ledger, "a.png", "b.png")
            views.catch_up()
        safe = (tmp_path / damaged).stat().st_size  # closed, and so synced
        views = Views(ledger).__enter__()
        add(ledger, "c.png", "d.png")
        views.catch_up()
        views._close.close()  # as a process that is killed
    expected = contents(tmp_path)
    path = tmp_path / damaged
    path.write_bytes(DAMAGE[damage](path.read_bytes(), safe))
    with Ledger(tmp_path, "m") as ledger, Views(ledger):
        assert contents(tmp_path) == expected
        add(ledger, "e.png")
    assert names(tmp_path) == ["a.png", "b.png", "c.png", "d.png", "e.png"]


@pytest.mark.parametrize("missing", FILES)
def test_a_file_that_is_gone_is_made_again(missing: str, tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger, Views(ledger):
        add(ledger, "a.png", "b.png")
    expected = contents(tmp_path)
    (tmp_path / missing).unlink()
    with Ledger(tmp_path, "m") as ledger, Views(ledger):
        assert contents(tmp_path) == expected


def test_rows_that_are_forgotten_leave_the_files(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        with Views(ledger):
            add(ledger, "a.png", "b.png", "c.png")
        ledger.forget([2])
        with Views(ledger):
            add(ledger, "d.png")
    assert names(tmp_path) == ["a.png", "c.png", "d.png"]


def test_a_full_disk_is_told_and_what_is_missing_is_written_when_there_is_room(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger, Views(ledger) as views:
        add(ledger, "a.png", error="x" * 5000)
        with files_of_at_most(3000), pytest.raises(NoRoomError, match="cannot write .*predictions.jsonl"):
            views.catch_up()
        add(ledger, "b.png")
        views.catch_up()
        assert names(tmp_path) == ["a.png", "b.png"]


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").mkdir()
    with Ledger(tmp_path, "m") as ledger, pytest.raises(OutputError, match="predictions.csv is a folder"):
        Views(ledger).__enter__()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_one_file_says_what_the_views_say(form: str, tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        with Views(ledger):
            add(ledger, "a.png", "=1+1.png")
        write(ledger, tmp_path / f"all.{form}")
    assert (tmp_path / f"all.{form}").read_bytes() == (tmp_path / f"predictions.{form}").read_bytes()


def test_a_parquet_file_says_what_a_line_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr("uad.judging.views.AT_ONCE", 2)
    with Ledger(tmp_path, "m") as ledger:
        add(ledger, "a.png", regions=(Region(1, 2, 3, 4, 9),), seconds=0.25)
        add(ledger, "b\udcff.png", score=None, decision="unreadable", error="b.png (empty file)")
        add(ledger, "c.png")
        write(ledger, tmp_path / "all.parquet")
    first, second, _ = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert first["regions"] == [{"left": 1, "top": 2, "width": 3, "height": 4, "area": 9}]
    assert (first["image"], first["class"], first["score"], first["seconds"]) == ("a.png", "nut", 1.5, 0.25)
    assert (second["image"], second["score"], second["regions"]) == ("b\\udcff.png", None, [])


def test_a_form_that_nobody_knows_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--to .*rows.xlsx: name a file \*.csv, \*.jsonl, \*.parquet"):
        check_form(tmp_path / "rows.xlsx", "--to")
    check_form(None, "--to")
