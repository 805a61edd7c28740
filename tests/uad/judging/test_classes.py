"""What is said of the class of a photograph: which one the model sees, and whether it is any."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import pytest
from graphs import dark_and_bright, save_tiny
from image_folders import save

import engines
from uad import cli
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, predict, watch
from uad.judging.ledger import Ledger
from uad.judging.predictions import Decision, read_predictions

LIMITS = {"bolt": 100.0, "nut": 100.0}


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Bolts and nuts in turn, five; the last bolt lies among the nuts, the others where they belong."""
    _, images = dark_and_bright()
    names = ("bolt", "nut", "bolt", "nut", "nut")
    return [
        save(image, tmp_path / "in" / name / f"{index}.png") for index, (name, image) in enumerate(zip(names, images))
    ]


def model(tmp_path: Path, **limits: float) -> Path:
    return save_tiny(tmp_path / "a.onnx", dark_and_bright()[0], limits={**LIMITS, **limits})


def judged(model: Path, tmp_path: Path, *inputs: Path, **more: object) -> list[Decision]:
    options = PredictOptions(
        model, list(inputs), tmp_path / "out", overwrite=True, running=Running(runtime="onnxruntime"), **more
    )  # type: ignore[arg-type]
    return predict(options)


def test_the_row_says_both_classes_and_how_far_it_is(photographs: list[Path], tmp_path: Path) -> None:
    file = model(tmp_path)
    rows = judged(file, tmp_path, tmp_path / "in")
    assert [row.class_name for row in rows] == ["bolt", "bolt", "nut", "nut", "nut"]
    assert [row.seen_as for row in rows] == ["bolt", "bolt", "nut", "nut", "bolt"]
    with engines.load(file, "onnxruntime") as engine:
        distance = engine.infer(dark_and_bright()[1]).class_distance
    assert [row.class_distance for row in rows] == pytest.approx([distance[place] for place in (0, 2, 1, 3, 4)])
    with (tmp_path / "out" / "predictions.csv").open(newline="") as table:
        written = list(csv.DictReader(table))
    assert written[4]["class"] == "nut" and written[4]["seen_as"] == "bolt"
    assert float(written[4]["class_distance"]) == rows[4].class_distance
    assert read_predictions(tmp_path / "out" / "predictions.jsonl") == rows
    assert [row.is_of_other_class for row in rows] == [False] * 4 + [True]


def test_a_class_that_is_given_sets_the_threshold_else_the_one_that_is_seen(
    photographs: list[Path], tmp_path: Path
) -> None:
    rows = judged(model(tmp_path), tmp_path, tmp_path / "in")
    assert [row.threshold for row in rows] == [0.25, 0.25, 0.5, 0.5, 0.5]
    alone = [save(image, tmp_path / "flat" / f"{index}.png") for index, image in enumerate(dark_and_bright()[1])]
    rows = judged(model(tmp_path), tmp_path, *alone)  # nothing is said of their class
    assert [row.class_name for row in rows] == [""] * 5 and [row.threshold for row in rows] == [0.25, 0.5] * 2 + [0.25]


def test_what_is_beyond_the_limit_of_its_class_is_unknown_and_is_drawn(photographs: list[Path], tmp_path: Path) -> None:
    known = judged(model(tmp_path), tmp_path, tmp_path / "in")
    assert {row.decision for row in known} <= {"defect", "good"}
    rows = judged(model(tmp_path, bolt=0.0), tmp_path, tmp_path / "in", overlays="defects")
    assert [row.decision == "unknown" for row in rows] == [True, True, False, False, True]
    assert all(row.overlay and row.score is not None for row in rows if row.decision == "unknown")
    assert rows[0].regions == known[0].regions and not rows[4].is_of_other_class
    old = Decision("a.png", "nut", 1.0, 0.5, "defect")  # of a file that tells no class
    assert not old.is_of_other_class


def test_the_summary_counts_them(photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--out", str(tmp_path / "out"), "--runtime", "onnxruntime", "--overwrite"]
    assert cli.main(["predict", str(model(tmp_path)), str(tmp_path / "in"), *flags]) == 0
    said = capsys.readouterr().out
    assert "1 are seen as another class than their folder's: see the column seen_as" in said
    assert "no part that the model knows" not in said and "of no known class" not in said
    assert cli.main(["predict", str(model(tmp_path, nut=0.0)), str(tmp_path / "in"), *flags]) == 0
    assert ", 2 of no part that the model knows" in capsys.readouterr().out
    alone = save(dark_and_bright()[1][0], tmp_path / "alone.png")
    assert cli.main(["predict", str(model(tmp_path)), str(alone), *flags]) == 0
    assert "of no known class" not in capsys.readouterr().out


def test_a_watch_counts_them_across_starts(photographs: list[Path], tmp_path: Path) -> None:
    file, out, prom = model(tmp_path, nut=0.0), tmp_path / "out", tmp_path / "uad.prom"
    for start in range(2):
        options = PredictOptions(
            file, [], out, watch=tmp_path / "in", metrics=prom, running=Running(runtime="onnxruntime")
        )
        stop, seen = threading.Event(), []

        def judged(decision: Decision, stop: threading.Event = stop, seen: list[Decision] = seen) -> None:
            seen.append(decision)
            if len(seen) == 5:
                stop.set()

        if start:
            stop.set()
        counts = watch(options, stop, judged)
        assert counts["unknown"] == 2 and len(seen) == (0 if start else 5)
        alive = json.loads((out / "heartbeat.json").read_text())
        assert alive["unknown"] == 2 and alive["of_other_class"] == 1
        assert "uad_of_other_class 1\n" in prom.read_text()
        assert 'uad_photographs_total{decision="unknown"} 2' in prom.read_text()
    with Ledger(out, "another") as ledger:
        assert ledger.of_other_class() == 1
