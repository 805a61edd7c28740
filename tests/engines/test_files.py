"""engines.files: an output is whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import OutputError
from engines.files import make_folder, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_leaves_the_file_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_replacing_shows_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replacing(target) as temporary:
        assert temporary.parent == target.parent  # a rename is atomic within one file system only
        temporary.write_text("ne")
        assert target.read_text() == "old"
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_replacing_leaves_nothing_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError("stop")
    assert names(tmp_path) == []


def test_replacing_keeps_the_old_file_after_an_exception(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyError("stop")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_replacing_makes_the_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "x" / "y" / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "new"


def test_replacing_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder") as caught, replacing(tmp_path):
        pass
    assert str(tmp_path) in str(caught.value)


def test_replacing_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to the folder") as caught, replacing(tmp_path / "file" / "a"):
        pass
    assert str(tmp_path / "file") in str(caught.value)


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write .*No space left") as caught, replacing(tmp_path / "a") as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")
    assert str(tmp_path / "a") in str(caught.value)
    assert names(tmp_path) == []


def test_make_folder_makes_parents_and_may_be_called_twice(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "y"
    assert make_folder(folder) == folder
    assert make_folder(str(folder)) == folder
    assert folder.is_dir() and names(folder) == []


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_make_folder_in_place_of_a_file_is_an_output_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to the folder .*--out") as caught:
        make_folder(tmp_path / below)
    assert str(tmp_path / below) in str(caught.value)
