"""uad.evaluation.decisions: which files are judged, and as which class."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from graphs import save_tiny
from image_folders import make_class, noise, save
from PIL import Image

import engines
from engines.errors import Doubt, UserError
from uad.evaluation import decisions
from uad.evaluation.decisions import class_of, decide, find_images

CLASSES = ["bolt", "nut"]


def judge(model: Path, inputs: list[Path], out: Path) -> list[tuple[str, str]]:
    """(name, class) of each image that is judged."""
    with engines.load(model, "onnxruntime") as engine:
        decisions = decide(engine, find_images(inputs), out)
    return [(Path(decision.image).name, decision.class_name) for decision in decisions]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model" / "a.onnx")


def test_results_of_an_earlier_call_are_never_judged(model: Path, tmp_path: Path) -> None:
    for index in range(3):
        save(noise(index), tmp_path / "photos" / f"{index}.png")
    expected = [(f"{index}.png", "") for index in range(3)]
    assert judge(model, [tmp_path / "photos"], tmp_path / "photos" / "res") == expected
    assert len(list((tmp_path / "photos" / "res" / "overlays").glob("*.png"))) == 3
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
    with engines.load(model, "onnxruntime") as engine:
        found = [decide(engine, find_images([path.parent]), tmp_path / "out")[0].score for path in (deep, same)]
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
    from uad.evaluation.decisions import overlay

    photograph = np.full((2, 2, 3), 100, np.uint8)
    shown = overlay(photograph, np.array([[0.0, 0.5], [1.0, 2.0]], np.float32), threshold=1.0)
    assert shown.shape == (2, 4, 3)
    np.testing.assert_array_equal(shown[:, :2], photograph)
    # Below half the threshold nothing; at the threshold half red, at 1.5 times full: 0.35 * 100 + 0.65 * (255, 0, 0).
    np.testing.assert_array_equal(shown[0, 2:], [[100, 100, 100], [100, 100, 100]])
    np.testing.assert_array_equal(shown[1, 2], np.rint([0.35 * 100 + 0.65 * 255, 0.35 * 100 + 0.65 * 127.5, 35]))
    np.testing.assert_array_equal(shown[1, 3], np.rint([0.35 * 100 + 0.65 * 255, 35, 35]))


NAMES = [b"pi\xe8ce.png", b"a" * 240 + b".png", ("\u87ba" * 80).encode() + b".png", b"=1+1.png"]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_any_name_is_judged_and_written(name: bytes, model: Path, tmp_path: Path) -> None:
    photograph = tmp_path / os.fsdecode(name)
    save(noise(0), tmp_path / "0.png").rename(photograph)
    judge(model, [photograph], tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert row["image"] == str(photograph) and Path(row["overlay"]).is_file()
    assert os.fsencode(photograph) in (tmp_path / "out" / "predictions.csv").read_bytes()


def test_an_overlay_that_cannot_be_written_is_a_line_and_the_rest_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        save(noise(index), tmp_path / f"{index}.png")
    monkeypatch.setattr(decisions, "_short", lambda name: "x" * 300 if name == "1" else name)
    with pytest.warns(Doubt, match="1.png has no overlay: .*File name too long"):
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


def test_the_overlay_of_a_large_photograph_is_reduced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "SHOWN", 400)
    Image.new("RGB", (80, 20)).save(tmp_path / "large.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    judge(model, [tmp_path / "large.png", tmp_path / "small.png"], tmp_path / "out")
    sizes = []
    for path in sorted((tmp_path / "out" / "overlays").glob("*.png")):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(80, 10), (40, 20)]  # the photograph twice, side by side
