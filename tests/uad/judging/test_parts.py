"""uad.judging.parts: rows of Parquet, each part whole or absent."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from graphs import save_tiny
from image_folders import noise, save

from engines.errors import UserError
from engines.model_file import read_info
from uad.judging import parts as parts_module
from uad.judging.archive import FAILED, Work, Worker
from uad.judging.parts import Parts, table_of
from uad.judging.predictions import Decision, Region, digest_of

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


def decision(name: str, **changes: Any) -> Decision:
    given = {"class_name": "nut", "score": 1.5, "threshold": 1.0, "decision": "defect", **changes}
    return Decision(name, **given)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    return path


def test_a_row_says_what_a_line_says(model: Path, tmp_path: Path) -> None:
    regions = (Region(1, 2, 3, 4, 9), Region(5, 6, 7, 8, 2))
    with Parts(tmp_path, model, resume=False) as parts:
        parts.append(table_of([decision("a.png", regions=regions, seconds=0.25)]))
        parts.append(table_of([decision("b.png", score=None, decision="unreadable", error="b.png (empty file)")]))
    (path,) = (tmp_path / "predictions").iterdir()
    first, second = parquet.read_table(path).to_pylist()
    assert first["regions"] == [
        {"left": 1, "top": 2, "width": 3, "height": 4, "area": 9},
        {"left": 5, "top": 6, "width": 7, "height": 8, "area": 2},
    ]
    assert (first["image"], first["class"], first["score"], first["seconds"]) == ("a.png", "nut", 1.5, 0.25)
    assert (second["score"], second["regions"], second["error"]) == (None, [], "b.png (empty file)")
    assert parts.counts() == {"defect": 1, "unreadable": 1}


def test_parts_are_written_when_they_are_large_or_old(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(parts_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(parts_module, "ROWS", 4)
    written = lambda: len(list((tmp_path / "predictions").glob("part-*")))  # noqa: E731
    with Parts(tmp_path, model, resume=False) as parts:
        parts.append(table_of([decision("a.png"), decision("b.png")]))
        assert written() == 0
        parts.append(table_of([decision("c.png"), decision("d.png")]))
        assert written() == 1
        now[0] = parts_module.SECONDS - 1
        parts.append(table_of([decision("e.png")]))
        assert written() == 1
        now[0] = parts_module.SECONDS
        parts.append(table_of([decision("f.png")]))
        assert written() == 2
    assert written() == 2 and sum(parts.counts().values()) == 6


def test_an_error_keeps_the_rows_that_came_before(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Parts(tmp_path, model, resume=False) as parts:
        parts.append(table_of([decision("a.png")]))
        raise KeyboardInterrupt
    with Parts(tmp_path, model, resume=True) as parts:
        assert Path("a.png") in parts and Path("b.png") not in parts


def test_later_parts_have_later_numbers(model: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        with Parts(tmp_path, model, resume=True) as parts:
            parts.append(table_of([decision(name)]))
    names = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert names == ["part-000000.parquet", "part-000001.parquet"]
    with Parts(tmp_path, model, resume=False) as parts:
        parts.append(table_of([decision("c.png")]))
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["part-000000.parquet"]
    assert parts.counts() == {"defect": 1}


def test_another_model_and_damage_are_said(model: Path, tmp_path: Path) -> None:
    with Parts(tmp_path, model, resume=False) as parts:
        parts.append(table_of([decision("a.png")]))
    (path,) = (tmp_path / "predictions").iterdir()
    model.write_bytes(b"other weights")
    with pytest.raises(UserError, match="part-000000.parquet holds what another model said"):
        Parts(tmp_path, model, resume=True)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="part-000000.parquet is no part of predictions"):
        Parts(tmp_path, model, resume=True)


def test_a_name_that_is_no_text_is_found_again(model: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(b"\xff.png"))
    with Parts(tmp_path, model, resume=False) as parts:
        parts.append(table_of([decision(str(path))]))
    with Parts(tmp_path, model, resume=True) as parts:
        assert path in parts


def test_a_worker_gives_a_row_for_each_photograph_and_one_for_its_own_failure(tmp_path: Path) -> None:
    model, photograph = save_tiny(tmp_path / "a.onnx"), save(noise(0), tmp_path / "nut" / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    asked = pyarrow.table(
        {
            "image": [b"a.png", b"bad.png"],
            "path": [bytes(photograph), bytes(tmp_path / "bad.png")],
            "class": pyarrow.array(["nut", None], pyarrow.string()),
        }
    )
    work = Work(str(model), digest_of(model), "onnxruntime", 1, None, False, 100.0)
    first, second = Worker(work)(asked).to_pylist()
    assert (first["image"], first["class"], first["threshold"]) == ("a.png", "nut", read_info(model).thresholds["nut"])
    assert (first["decision"] == "defect") == (first["score"] > first["threshold"])
    assert (second["image"], second["decision"]) == ("bad.png", "unreadable") and "bad.png" in second["error"]
    (failed,) = Worker(dataclasses.replace(work, digest="other"))(asked).to_pylist()
    assert failed["decision"] == FAILED and "copy the model there" in failed["error"]
