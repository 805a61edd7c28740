"""uad.data.cache: what a student learns is computed once, comes back as it was, and never of other images."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engines.errors import UadWarning  # noqa: E402
from uad.data.cache import kept_targets, key_of  # noqa: E402

IMAGES = torch.randint(0, 256, (20, 8, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KEY = {"images": "a", "size": [8, 12], "weights": "b"}


class Teacher:
    """Two levels, and how many images it was shown."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.seen = factor, 0

    def __call__(self, images: Any) -> Any:
        self.seen += len(images)
        fine = self.factor * images.permute(0, 3, 1, 2).float()  # not contiguous
        return [fine, fine[:, :1, ::2, ::2] / 3]


def test_they_come_back_image_by_image_and_are_computed_once(tmp_path: Path) -> None:
    teacher = Teacher()
    first = kept_targets(teacher, IMAGES, tmp_path / "t", KEY)
    second = kept_targets(teacher, IMAGES, tmp_path / "t", KEY)
    assert teacher.seen == len(IMAGES)
    for one, other, expected in zip(first, second, Teacher()(IMAGES)):
        assert one.dtype == torch.float16
        assert torch.equal(one, expected.half()) and torch.equal(other, expected.half())


def test_those_of_another_key_are_made_anew(tmp_path: Path) -> None:
    kept_targets(Teacher(), IMAGES, tmp_path / "t", KEY)
    (fine, _) = kept_targets(Teacher(0.5), IMAGES, tmp_path / "t", {**KEY, "weights": "c"})
    assert torch.equal(fine, Teacher(0.5)(IMAGES)[0].half())


@pytest.mark.parametrize("content", [None, "", "[]", '{"of": 1}', json.dumps({"shapes": [[3, 8, 12]], "of": {}})])
def test_those_that_were_cut_short_are_made_anew(tmp_path: Path, content: Any) -> None:
    kept_targets(Teacher(), IMAGES, tmp_path / "t", KEY)
    (tmp_path / "t" / "0.bin").write_bytes(b"half a fi")
    (tmp_path / "t" / "key.json").unlink()
    if content is not None:
        (tmp_path / "t" / "key.json").write_text(content)
    (fine, _) = kept_targets(Teacher(), IMAGES, tmp_path / "t", KEY)
    assert torch.equal(fine, Teacher()(IMAGES)[0].half())


def test_a_file_that_lost_its_end_is_made_anew(tmp_path: Path) -> None:
    kept_targets(Teacher(), IMAGES, tmp_path / "t", KEY)
    with open(tmp_path / "t" / "1.bin", "r+b") as file:
        file.truncate(100)
    (_, coarse) = kept_targets(Teacher(), IMAGES, tmp_path / "t", KEY)
    assert torch.equal(coarse, Teacher()(IMAGES)[1].half())


def test_the_key_is_not_there_before_the_files_are_whole(tmp_path: Path) -> None:
    def stopped(images: Any) -> Any:
        if torch.equal(images[0], IMAGES[16]):
            raise KeyboardInterrupt
        return Teacher()(images)

    with pytest.raises(KeyboardInterrupt):
        kept_targets(stopped, IMAGES, tmp_path / "t", KEY)
    assert not (tmp_path / "t" / "key.json").exists()


def test_without_room_nothing_is_kept_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.warns(UadWarning, match="has no room"):
        assert kept_targets(Teacher(), IMAGES, tmp_path / "t", KEY) == []
    assert not (tmp_path / "t").exists()


def test_what_float16_cannot_hold_is_not_kept_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(UadWarning, match="float16"):
        assert kept_targets(Teacher(1e4), IMAGES, tmp_path / "t", KEY) == []
    assert not (tmp_path / "t").exists()


def test_the_key_changes_with_content_size_and_weights() -> None:
    listed, weights = {"a.png": ["nut", "training", 3, "aa"]}, {"teacher.w": torch.ones(2)}
    key = key_of(listed, (8, 12), weights)
    assert key == key_of(dict(listed), (8, 12), {"teacher.w": torch.ones(2)})
    assert key != key_of({"a.png": ["nut", "training", 3, "bb"]}, (8, 12), weights)
    assert key != key_of(listed, (12, 8), weights)
    assert key != key_of(listed, (8, 12), {"teacher.w": torch.tensor([1.0, 1.001])})
    assert key != key_of(listed, (8, 12), {"student.w": torch.ones(2)})
