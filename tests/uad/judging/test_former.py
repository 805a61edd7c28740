"""uad.judging.former: results of before there was a ledger are gone on with."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from graphs import save_tiny
from image_folders import noise, save

from engines.errors import UadWarning, UserError
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, predict
from uad.judging.ledger import Ledger, digest_of_model
from uad.judging.predictions import Decision, json_line, read_predictions

LINE = '{"image": %s, "class": "", "score": 0.5, "threshold": 1.0, "decision": "good", "overlay": "", "regions": [], '
LINE += '"error": "", "seconds": 0.1}\n'  # as it was written before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model" / "a.onnx")


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [save(noise(index), tmp_path / "in" / f"{index}.png") for index in range(3)]
    for path in paths:
        os.utime(path, (1e9, 1e9))
    return paths


def former(out: Path, model: Path, photographs: list[Path], journal: bool = False) -> None:
    import json

    out.mkdir()
    (out / "predictions.model").write_text(digest_of_model(model) + "\n")
    (out / "predictions.csv").write_text("image\n")
    lines = "".join(LINE % json.dumps(str(path)) for path in photographs)
    (out / "predictions.jsonl").write_text(lines + '{"image": "hal')
    if journal:
        with sqlite3.connect(str(out / "journal.sqlite")) as rows:
            rows.execute("CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, decision TEXT)")
            for path in photographs:
                status = path.stat()
                rows.execute(
                    "INSERT INTO files VALUES (?, ?, ?, 'good')",
                    (os.fsencode(path), status.st_size, status.st_mtime_ns),
                )
        rows.close()


@pytest.mark.parametrize("journal", [False, True])
def test_rows_of_before_are_read_once_and_told(
    journal: bool, model: Path, photographs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    former(out, model, photographs[:2], journal)
    options = PredictOptions(model, [tmp_path / "in"], out, resume=True, running=Running("onnxruntime"))
    with pytest.warns(UadWarning, match="2 rows of an earlier uad were read into ledger.sqlite"):
        judged = predict(options)
    assert [each.score == 0.5 for each in judged] == [True, True, False]
    assert len(read_predictions(out / "predictions.jsonl")) == 3
    assert not (out / "predictions.model").exists() and not (out / "journal.sqlite").exists()
    assert [each.score for each in predict(options)] == [each.score for each in judged]


def test_a_photograph_that_is_newer_than_its_row_is_judged(
    model: Path, photographs: list[Path], tmp_path: Path
) -> None:
    former(tmp_path / "out", model, photographs)
    save(noise(9), photographs[1])
    os.utime(photographs[1], None)
    os.utime(tmp_path / "out" / "predictions.jsonl", (2e9, 1.1e9))
    judged = predict(PredictOptions(model, [tmp_path / "in"], tmp_path / "out", resume=True))
    assert [each.score == 0.5 for each in judged] == [True, False, True]


def test_damaged_rows_are_told_and_kept(model: Path, photographs: list[Path], tmp_path: Path) -> None:
    former(tmp_path / "out", model, photographs)
    (tmp_path / "out" / "predictions.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="predictions.jsonl, line 1 is no prediction"):
        predict(PredictOptions(model, [tmp_path / "in"], tmp_path / "out", resume=True))
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == "[1]\n"


def test_results_of_before_are_not_replaced_unasked(model: Path, photographs: list[Path], tmp_path: Path) -> None:
    former(tmp_path / "out", model, photographs)
    with pytest.raises(UserError, match="holds results: give another folder, or --overwrite"):
        predict(PredictOptions(model, [tmp_path / "in"], tmp_path / "out"))


def test_parts_of_parquet_are_read(model: Path, photographs: list[Path], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows = [{"image": str(path), "class": "", "score": 0.5, "threshold": 1.0, "decision": "good", "overlay": "",
             "regions": [], "error": "", "seconds": 0.1} for path in photographs[:2]]  # fmt: skip
    kinds = {name: pyarrow.string() for name in rows[0]}
    kinds.update(score=pyarrow.float64(), threshold=pyarrow.float64(), seconds=pyarrow.float64())
    fields = [(name, pyarrow.int64()) for name in ("left", "top", "width", "height", "area")]
    kinds["regions"] = pyarrow.list_(pyarrow.struct(fields))
    schema = pyarrow.schema(kinds.items()).with_metadata({b"uad.model": digest_of_model(model)})
    part = tmp_path / "out" / "predictions" / "part-000000.parquet"
    part.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), part)
    judged = predict(PredictOptions(model, [tmp_path / "in"], tmp_path / "out", resume=True))
    assert [each.score == 0.5 for each in judged] == [True, True, False] and not part.exists()


def test_a_folder_with_a_ledger_is_left_as_it_is(model: Path, photographs: list[Path], tmp_path: Path) -> None:
    options = PredictOptions(model, [tmp_path / "in"], tmp_path / "out", resume=True)
    predict(options)
    line = json_line(Decision("x.png", "", 0.5, 1.0, "good"))
    (tmp_path / "out" / "predictions.jsonl").write_text(line)
    (tmp_path / "out" / "predictions.model").write_text(digest_of_model(model) + "\n")
    predict(options)
    with Ledger(tmp_path / "out", digest_of_model(model)) as ledger:
        assert len(list(ledger.rows())) == 3 == len(read_predictions(tmp_path / "out" / "predictions.jsonl"))
