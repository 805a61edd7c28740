"""uad.judging.decisions: which files are judged, and as which class."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import not_finite_for_grey, save_tiny
from image_folders import make_class, noise, save
from PIL import Image

import engines
from engines.errors import UadWarning, UserError
from uad import cli
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, predict
from uad.judging import decisions, overlays
from uad.judging.decisions import AHEAD, MOST_THREADS, decide, regions_of
from uad.judging.inputs import class_of, find_images
from uad.judging.overlays import CONTOUR, overlay
from uad.judging.photographs import Photograph
from uad.judging.predictions import Decision, Region, json_line, read_predictions

CLASSES = ["bolt", "nut"]


def judge(model: Path, inputs: list[Path], out: Path) -> list[tuple[str, str]]:
    """(name, class) of each image that is judged."""
    decisions = predict(PredictOptions(model, inputs, out, overwrite=True, running=Running(runtime="onnxruntime")))
    return [(Path(decision.image).name, decision.class_name) for decision in decisions]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model" / "a.onnx")


def test_results_of_an_earlier_call_are_never_judged(model: Path, tmp_path: Path) -> None:
    for index in range(3):
        save(noise(index), tmp_path / "photos" / f"{index}.png")
    expected = [(f"{index}.png", "") for index in range(3)]
    assert judge(model, [tmp_path / "photos"], tmp_path / "photos" / "res") == expected
    assert len(list((tmp_path / "photos" / "res" / "overlays").glob("*.jpg"))) == 3
    assert judge(model, [tmp_path / "photos"], tmp_path / "elsewhere") == expected


def test_the_results_may_go_into_the_folder_of_the_photographs(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "photos" / "0.png")
    for _ in range(2):
        assert judge(model, [tmp_path / "photos"], tmp_path / "photos") == [("0.png", "")]


def test_an_image_that_is_given_twice_is_judged_once(model: Path, tmp_path: Path) -> None:
    path = save(noise(0), tmp_path / "photos" / "0.png")
    assert judge(model, [tmp_path / "photos", path], tmp_path / "out") == [("0.png", "")]


def test_hidden_folders_dead_links_and_linked_folders(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "photos" / "0.png")
    save(noise(1), tmp_path / "photos" / ".thumbnails" / "0.png")
    save(noise(2), tmp_path / "elsewhere" / "1.png")
    (tmp_path / "photos" / "today").symlink_to(tmp_path / "elsewhere")
    assert [name for name, _ in judge(model, [tmp_path / "photos"], tmp_path / "out")] == ["0.png", "1.png"]
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="1 link to nothing, .*gone.png"):
        find_images([tmp_path / "photos"])


def test_a_link_into_a_store_has_the_class_of_its_own_folder(model: Path, tmp_path: Path) -> None:
    save(noise(0), tmp_path / "store" / "bolt" / "abc.png")
    link = tmp_path / "data" / "nut" / "test" / "spot" / "000.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "store" / "bolt" / "abc.png")
    assert judge(model, [tmp_path / "data"], tmp_path / "out") == [("000.png", "nut")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "nut"),
        ("nut", "nut"),
        ("nut/test", "nut"),
        ("nut/test/spot", "nut"),
        ("nut/test/spot/000.png", "nut"),
    ],
)
def test_the_class_comes_from_the_folders_below_what_is_given(given: str, expected: str, tmp_path: Path) -> None:
    make_class(tmp_path, "nut")
    path, source = tmp_path / "nut" / "test" / "spot" / "000.png", tmp_path / given
    assert class_of(path, source, CLASSES) == expected


def test_folders_far_above_what_is_given_say_nothing(tmp_path: Path) -> None:
    path = save(noise(0), tmp_path / "bolt" / "project" / "new" / "photos" / "0.png")
    assert class_of(path, path.parent, CLASSES) is None
    assert class_of(path, tmp_path / "bolt", CLASSES) == "bolt"


def test_photographs_are_read_with_the_depth_of_their_class(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
    deep = tmp_path / "data" / "nut" / "0.png"
    deep.parent.mkdir(parents=True)
    Image.fromarray(values).save(deep)
    same = save(
        np.repeat(np.rint(values * (255 / 4095)).astype(np.uint8)[..., None], 3, 2), tmp_path / "same" / "0.png"
    )
    model = save_tiny(tmp_path / "model" / "a.onnx", depths={"nut": 12})
    found = [
        predict(PredictOptions(model, [path], tmp_path / "out" / path.parts[-2]))[0].score for path in (deep, same)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_innermost_folder_counts(tmp_path: Path) -> None:
    path = save(noise(0), tmp_path / "bolt" / "nut" / "0.png")
    assert class_of(path, tmp_path, CLASSES) == "nut"


def test_a_missing_input_and_a_folder_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such file or folder"):
        find_images([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in .*empty: expected .png"):
        find_images([tmp_path / "empty"])


def test_an_overlay_marks_what_is_above_the_threshold_by_hand() -> None:
    photograph = np.full((2, 2, 3), 100, np.uint8)
    shown = overlay(photograph, np.array([[0.0, 0.5], [1.0, 2.0]], np.float32), threshold=1.0)
    assert shown.shape == (2, 4, 3)
    np.testing.assert_array_equal(shown[:, :2], photograph)
    # Below half the threshold nothing; at the threshold half, yellow and orange half and half; above it the outline.
    np.testing.assert_array_equal(shown[0, 2:], [[100, 100, 100], [100, 100, 100]])
    np.testing.assert_allclose(shown[1, 2], 35 + 0.65 * np.array([226.5, 161, 33]), atol=1.5)
    np.testing.assert_array_equal(shown[1, 3], CONTOUR)


def test_the_outline_is_that_of_the_region_and_its_inside_is_coloured() -> None:
    anomaly_map = np.zeros((40, 40), np.float32)
    anomaly_map[10:30, 10:30] = 2.0
    marked = overlay(np.full((40, 40, 3), 100, np.uint8), anomaly_map, threshold=1.0)[:, 40:]
    is_outline = (marked == CONTOUR).all(axis=2)
    assert is_outline.sum() == 76 and is_outline[10, 10:30].all() and not is_outline[11:29, 11:29].any()
    np.testing.assert_allclose(marked[20, 20], 35 + 0.65 * np.array([213, 94, 0]), atol=1.5)


def test_regions_are_told_in_pixels_of_the_photograph() -> None:
    anomaly_map = np.zeros((16, 16), np.float32)
    anomaly_map[2:4, 3:7] = 5.0
    anomaly_map[10, 10] = 3.0
    found = regions_of(anomaly_map, 1.0, size=(16, 16), photograph=(160, 320))
    assert found == (Region(60, 20, 80, 20, 8 * 200), Region(200, 100, 20, 10, 200))
    assert regions_of(anomaly_map, 5.0, (16, 16), (160, 320)) == ()


def test_regions_that_touch_at_a_corner_are_one() -> None:
    (region,) = regions_of(np.eye(3, dtype=np.float32)[:2], 0.5, size=(2, 3), photograph=(2, 3))
    assert region == Region(0, 0, 2, 2, 2)


NAMES = [b"pi\xe8ce.png", b"a" * 240 + b".png", ("\u87ba" * 80).encode() + b".png", b"=1+1.png"]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_any_name_is_judged_and_written(name: bytes, model: Path, tmp_path: Path) -> None:
    photograph = tmp_path / os.fsdecode(name)
    save(noise(0), tmp_path / "0.png").rename(photograph)
    judge(model, [photograph], tmp_path / "out")
    (row,) = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert row.image == str(photograph) and Path(row.overlay).is_file()
    assert os.fsencode(photograph) in (tmp_path / "out" / "predictions.csv").read_bytes()


@pytest.mark.filterwarnings("always::engines.errors.UadWarning")
def test_a_name_moves_no_cursor(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\nb"
    folder = tmp_path / "in"
    save(noise(0), folder / f"{name}.png")
    (folder / f"{name}.png.jpg").write_bytes(b"no image")
    (folder / f"{name}.raw").write_bytes(b"passed over")
    arguments = ["predict", str(model), str(folder), "--runtime", "onnxruntime"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert cli.main([*arguments, "--strict", "--out", str(tmp_path / "other")]) == 2
    said = capsys.readouterr()
    shown = r"a\x1b[2J\nb"
    assert f"{shown}.png.jpg (not an image)" in said.out and f"{shown}.png" in said.out
    assert "2 of no known class, by their folders: judged by the threshold of an unknown class" in said.out
    assert f"{shown}.raw" in said.err and "uad: error: " in said.err
    assert "\x1b[2J" not in said.out + said.err


def test_an_overlay_that_cannot_be_written_is_a_line_and_the_rest_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        save(noise(index), tmp_path / f"{index}.png")

    def too_long(folder: Path, photograph: Photograph) -> Path:
        return folder / ("x" * 300 if photograph.path.stem == "1" else f"{photograph.path.stem}.png")

    monkeypatch.setattr("uad.judging.decisions.overlay_path", too_long)
    with pytest.warns(UadWarning, match="1.png has no overlay: .*File name too long"):
        judge(model, [tmp_path / f"{index}.png" for index in range(3)], tmp_path / "out")
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert [bool(row["overlay"]) for row in csv.DictReader(file)] == [True, False, True]


def test_a_pattern_that_the_shell_left_alone_is_expanded(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.jpg", "b/3.png"):
        save(noise(0), tmp_path / name)
    assert [path.name for path in find_images([tmp_path / "*" / "*.png"])] == ["1.png", "3.png"]
    assert len(find_images([tmp_path / "**" / "*.*"])) == 3
    (tmp_path / "[a].png").write_bytes((tmp_path / "a" / "1.png").read_bytes())
    assert [path.name for path in find_images([tmp_path / "[a].png"])] == ["[a].png"]
    with pytest.raises(UserError, match="no such file"):
        find_images([tmp_path / "*.webp"])
    with pytest.raises(UserError, match="no such file"):
        find_images([tmp_path / ("x" * 300)])


def test_a_video_and_a_pipe_get_a_hint(tmp_path: Path) -> None:
    (tmp_path / "line.MP4").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is a video: .*ffmpeg"):
        find_images([tmp_path / "line.MP4"])
    with pytest.raises(UserError, match="is a pipe"):
        find_images([tmp_path / "pipe.png"])


@pytest.mark.parametrize(
    ("size", "shown"),
    [((300, 400), (300, 400)), ((4000, 4000), (2000, 2000)), ((50, 64_000), (25, 32_000)), ((1, 99_000), (1, 32_000))],
)
def test_a_photograph_is_drawn_at_a_size_that_a_file_can_have(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert overlays.shown_size(size) == shown


def test_the_overlay_of_a_large_photograph_is_reduced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "SHOWN", 400)
    Image.new("RGB", (80, 20)).save(tmp_path / "large.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    judge(model, [tmp_path / "large.png", tmp_path / "small.png"], tmp_path / "out")
    sizes = []
    for path in sorted((tmp_path / "out" / "overlays").glob("*.jpg")):  # large, small
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(80, 10), (40, 20)]  # the photograph twice, side by side


# Real folders: unreadable files, stops, many photographs --------------------------------------------------------------


def many(folder: Path, count: int) -> Path:
    for index in range(count):
        save(noise(index), folder / f"{index:03d}.png")
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_cannot_be_read_is_a_row_and_the_rest_goes_on(model: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 5)
    (photos / "001.png").write_bytes(b"no image")
    (photos / "003.png").write_bytes((photos / "002.png").read_bytes()[:100])
    decisions = predict(PredictOptions(model, [photos], tmp_path / "out"))
    assert [decision.decision == "unreadable" for decision in decisions] == [False, True, False, True, False]
    rows = rows_of(tmp_path / "out")
    assert [Path(row["image"]).name for row in rows] == [f"{index:03d}.png" for index in range(5)]
    assert rows[1]["score"] == rows[1]["overlay"] == "" and "001.png (not an image)" in rows[1]["error"]
    assert len(list((tmp_path / "out" / "overlays").glob("*.jpg"))) == 3


def test_a_photograph_that_was_cut_short_is_judged_where_that_is_accepted_and_its_row_says_so(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(0, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    (refused,) = predict(PredictOptions(model, [path], tmp_path / "out"))
    assert refused.decision == "unreadable" and "cut short" in refused.error and not refused.note
    (judged,) = predict(PredictOptions(model, [path], tmp_path / "more", accept_truncated=True))
    assert judged.score is not None and not judged.error
    assert rows_of(tmp_path / "more")[0]["note"].startswith("cut short")


def grey(path: Path) -> Path:
    return save(np.full((16, 16, 3), 127, np.uint8), path)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_photograph_whose_score_is_not_finite_is_a_row_and_the_rest_goes_on(batch: int, tmp_path: Path) -> None:
    model, photos = save_tiny(tmp_path / "a.onnx", not_finite_for_grey()), many(tmp_path / "photos", 6)
    grey(photos / "002.png")
    with engines.load(model, "onnxruntime", batch=batch) as engine:
        found = [decision for _, decision in decide(engine, map(Photograph, sorted(photos.iterdir())), None)]
    assert [decision.decision == "unreadable" for decision in found] == [index == 2 for index in range(6)]
    assert "a score that is not finite" in found[2].error and found[2].score is None
    options = PredictOptions(model, [photos], tmp_path / "out", running=Running("onnxruntime"))
    predict(options)
    save(noise(3), photos / "002.png")
    assert not any(each.error for each in predict(dataclasses.replace(options, resume=True)))


def test_eight_in_a_row_that_are_not_finite_end_the_work_and_what_was_judged_stays(tmp_path: Path) -> None:
    model, photos = save_tiny(tmp_path / "a.onnx", not_finite_for_grey()), many(tmp_path / "photos", 3)
    for index in range(7):
        grey(photos / f"1{index}.png")
    options = PredictOptions(model, [photos], tmp_path / "out", running=Running("onnxruntime"))
    assert [each.decision for each in predict(options)].count("unreadable") == 7
    grey(photos / "17.png")
    with pytest.raises(UserError, match="8 photographs in a row scores that are not finite: train or export"):
        predict(dataclasses.replace(options, out=tmp_path / "more"))
    assert [row["decision"] for row in rows_of(tmp_path / "more")][3:] == ["unreadable"] * 8


def test_strict_stops_at_the_first_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 3)
    (photos / "001.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="001.png"):
        predict(PredictOptions(model, [photos], tmp_path / "out", strict=True))
    assert [Path(row["image"]).name for row in rows_of(tmp_path / "out")] == ["000.png"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The photographs that are decoded, as they are."""
    found: list[Path] = []

    def noting(original: Callable[..., object]) -> Callable[..., object]:
        def noted(file: object, *arguments: object, **settings: object) -> object:
            found.append(Path(str(file)))
            return original(file, *arguments, **settings)

        return noted

    monkeypatch.setattr(decisions, "read_resized", noting(decisions.read_resized))
    return found


def test_every_photograph_is_decoded_once(read: list[Path], model: Path, tmp_path: Path) -> None:
    for drawn in ("all", "none"):
        predict(PredictOptions(model, [many(tmp_path / "photos", 7)], tmp_path / drawn, overlays=drawn))  # type: ignore[arg-type]
        assert len(read) == len(set(read)) == 7
        read.clear()


def test_scores_and_regions_do_not_depend_on_what_is_drawn(model: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "photos", 4)
    Image.new("L", (100, 37), 90).save(photos / "grey.jpg")
    found = []
    for drawn in ("all", "none"):
        each = predict(PredictOptions(model, [photos], tmp_path / drawn, overlays=drawn))  # type: ignore[arg-type]
        found.append([dataclasses.replace(decision, overlay="", seconds=0.0) for decision in each])
    assert found[0] == found[1] and any(decision.regions for decision in found[0])


def test_few_photographs_are_in_memory_at_a_time(read: list[Path], model: Path, tmp_path: Path) -> None:
    with engines.load(model, "onnxruntime") as engine:
        photographs = map(Photograph, sorted(many(tmp_path / "photos", 30).iterdir()))
        for judged, _ in enumerate(decide(engine, photographs, None)):
            assert len(read) <= judged + 1 + MOST_THREADS + AHEAD


class Crowd:
    """How many are between `enter` and `leave`, and how many were at most."""

    def __init__(self) -> None:
        self._lock, self.inside, self.most = threading.Lock(), 0, 0

    def enter(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1


@pytest.mark.parametrize("lanes", [1, 3])
def test_no_more_photographs_are_in_memory_than_threads_nor_judged_than_lanes(
    lanes: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see, finish, held, judged = decisions._see, decisions._finish, Crowd(), Crowd()
    monkeypatch.setattr(decisions, "MOST_THREADS", 2)
    monkeypatch.setattr(decisions, "_see", lambda *given: (held.enter(), see(*given))[1])
    monkeypatch.setattr(decisions, "_finish", lambda *given: (finish(*given), held.leave())[0])
    with engines.load(model, "onnxruntime", lanes=lanes) as engine:
        infer = engine.infer

        def slow_infer(*given: object) -> object:
            judged.enter()
            time.sleep(0.01)
            judged.leave()
            return infer(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(engine, "infer", slow_infer)
        photographs = map(Photograph, sorted(many(tmp_path / "photos", 30).iterdir()))
        assert len(list(decide(engine, photographs, tmp_path))) == 30
    assert judged.most == lanes and 2 <= held.most <= lanes + 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_lanes_change_no_decision(runtime: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    photographs = sorted(many(tmp_path / "photos", 40).iterdir())
    found = []
    for lanes in (1, 2, 4):
        with engines.load(model, runtime, threads=lanes, lanes=lanes) as engine:
            judged = decide(engine, map(Photograph, photographs), None)
            found.append([dataclasses.replace(each, seconds=0.0) for _, each in judged])
    assert found[0] == found[1] == found[2] and len({each.score for each in found[0]}) == 40


@pytest.mark.parametrize(("which", "drawn"), [("all", 4), ("defects", 2), ("none", 0)])
def test_overlays_on_request(which: str, drawn: int, model: Path, tmp_path: Path) -> None:
    from graphs import with_readout

    photos = many(tmp_path / "photos", 4)
    scores = sorted(each.score or 0.0 for each in predict(PredictOptions(model, [photos], tmp_path / "out")))
    model = save_tiny(tmp_path / "m" / "a.onnx", threshold=(scores[1] + scores[2]) / 2)
    decisions = predict(PredictOptions(model, [photos], tmp_path / "new", overlays=which))  # type: ignore[arg-type]
    assert with_readout and len(list((tmp_path / "new").glob("overlays/*.jpg"))) == drawn
    assert sum(bool(decision.overlay) for decision in decisions) == drawn
    for decision in decisions:
        assert bool(decision.regions) == (decision.decision == "defect")


def test_old_overlays_go_and_other_pictures_stay(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(PredictOptions(model, [many(tmp_path / "photos", 3)], out))
    save(noise(0), out / "overlays" / "mine.jpg")
    save(noise(0), out / "overlays" / "000-01234567.png")  # as earlier versions wrote them
    predict(PredictOptions(model, [tmp_path / "photos" / "000.png"], out, overwrite=True))
    assert sorted(path.name.split("-")[0] for path in (out / "overlays").glob("*.*g")) == ["000", "mine.jpg"]


def test_a_stopped_call_goes_on_where_it_was(
    read: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = many(tmp_path / "photos", 12), tmp_path / "out"
    original, judged = engines.Engine.infer, []

    def dies(self: engines.Engine, *arguments: object) -> engines.Prediction:
        if len(judged) == 8:
            raise KeyboardInterrupt
        judged.append(0)
        return original(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(engines.Engine, "infer", dies)
        with pytest.raises(KeyboardInterrupt):
            predict(PredictOptions(model, [photos], out))
    before = rows_of(out)
    assert 0 < len(before) < 12
    with open(out / "predictions.jsonl", "a") as file:
        file.write('{"image": "half a li')  # as a kill leaves it
    (photos / "011.png").write_bytes(b"no image")
    read.clear()
    predict(PredictOptions(model, [photos], out, resume=True))
    assert sorted(path.name for path in read) == [f"{index:03d}.png" for index in range(len(before), 11)]
    rows = rows_of(out)
    assert [Path(row["image"]).name for row in rows] == [f"{index:03d}.png" for index in range(12)]
    assert rows[: len(before)] == before and rows[-1]["decision"] == "unreadable"
    save(noise(7), photos / "011.png")
    assert [each.decision for each in predict(PredictOptions(model, [photos], out, resume=True))].count(
        "unreadable"
    ) == 0
    assert len(rows_of(out)) == len(read_predictions(out / "predictions.jsonl")) == 12


def test_a_folder_holds_what_one_model_said(model: Path, tmp_path: Path) -> None:
    photos, out = many(tmp_path / "photos", 2), tmp_path / "out"
    predict(PredictOptions(model, [photos], out))
    other = save_tiny(tmp_path / "m" / "a.onnx", threshold=0.5)
    with pytest.raises(UserError, match="holds what another model said: give another --out"):
        predict(PredictOptions(other, [photos], out, resume=True))
    with pytest.raises(UserError, match="holds results: give another folder, or --overwrite, or --resume"):
        predict(PredictOptions(other, [photos], out))
    assert len(predict(PredictOptions(other, [photos], out, overwrite=True))) == 2


def test_names_come_from_standard_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = many(tmp_path / "photos", 3)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / '002.png'}\n\n{photos / '000.png'}\n"))
    assert judge(model, [Path("-")], tmp_path / "out") == [("002.png", ""), ("000.png", "")]
    with pytest.raises(UserError, match="standard input named none"):
        judge(model, [Path("-")], tmp_path / "out")
    monkeypatch.setattr("sys.stdin", None)  # as a service manager starts a process
    with pytest.raises(UserError, match="standard input is closed"):
        judge(model, [Path("-")], tmp_path / "out")


def test_rows_say_what_the_decision_is(tmp_path: Path) -> None:
    decision = Decision("a.png", "", 2.5, 1.0, "defect", regions=(Region(1, 2, 3, 4, 5),), seconds=0.25)
    assert json.loads(json_line(decision))["regions"] == [{"left": 1, "top": 2, "width": 3, "height": 4, "area": 5}]
    (tmp_path / "rows").write_text(json_line(decision) + "half")
    assert read_predictions(tmp_path / "rows") == [decision]
