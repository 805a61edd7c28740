"""engines.files: an output is whole or absent."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest
from disks import files_of_at_most

from engines import files
from engines.errors import OutputError
from engines.files import check_output, make_folder, only_writer, replacing, write_csv, write_json, write_text


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


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link, dangling = tmp_path / "store" / "real.json", tmp_path / "link.json", tmp_path / "new.json"
    real.write_text("{}")
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "store" / "later.json")
    for path in (link, dangling):
        write_json(path, [1])
        assert path.is_symlink() and json.loads(path.read_text()) == [1]
    assert json.loads(real.read_text()) == [1]
    assert names(tmp_path / "store") == ["later.json", "real.json"]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o020666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    before = device.stat()
    write_json(device, [1])
    assert (device.stat().st_mode, device.stat().st_ino) == (before.st_mode, before.st_ino)
    assert names(tmp_path) == ["null"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        write_json(pipe, [1])
        assert reader.communicate()[0] == "[\n 1\n]\n"
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_the_own_output_gets_it_in_the_order_it_was_printed(name: str, tmp_path: Path) -> None:
    code = f"from engines.files import write_text\nprint(1)\nwrite_text({name!r}, '2\\n')\nprint(3)"
    root = str(Path(__file__).resolve().parents[2])
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(tmp_path / "out", "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, cwd=root, env=buffered)
    assert (tmp_path / "out").read_text() == "1\n2\n3\n"
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=root, env=buffered)
    assert piped.stdout == "1\n2\n3\n"


def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    usual, private = tmp_path / "usual", tmp_path / "private"
    usual.touch()
    private.touch(0o600)
    write_text(private, "x")
    write_text(tmp_path / "new", "x")
    assert private.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode == usual.stat().st_mode


def test_two_writers_with_one_process_number_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert names(tmp_path) == ["a"]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    sync, rename = os.fsync, os.replace

    def watched_sync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def watched_rename(source: str, target: str) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_rename)
    write_text(tmp_path / "a", "x")
    assert done == ["file", "rename", "folder"]


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with files_of_at_most(1000), pytest.raises(OutputError, match="cannot write .*/a "):
        write_text(tmp_path / "a", "x" * 100_000)
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_an_output_is_refused_before_the_work_by_the_flag_that_gave_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output(None, "--json")
    check_output(tmp_path / "x" / "a.json", "--json")
    check_output(Path("/dev/null"), "--json")
    assert (tmp_path / "x").is_dir()
    with pytest.raises(OutputError, match="file.*--json"):
        check_output(tmp_path / "file" / "a.json", "--json")
    (tmp_path / "link.json").symlink_to(tmp_path / "file" / "a.json")
    with pytest.raises(OutputError, match="file.*--json"):
        check_output(tmp_path / "link.json", "--json")
    with pytest.raises(OutputError, match="is a folder.*--scores"):
        check_output(tmp_path, "--scores")


def test_names_that_are_no_text_are_written_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"pi\xe8ce.png")
    write_csv(tmp_path / "a.csv", ["image"], [[name]])
    write_json(tmp_path / "a.json", [name])
    assert b"pi\xe8ce.png" in (tmp_path / "a.csv").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [name]


@pytest.mark.parametrize("beginning", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_a_spreadsheet_would_compute_is_text(beginning: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["image", "score"], [[f"{beginning}1+1.png", -1.5], ["a=1", 2.0]])
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [[f"'{beginning}1+1.png", "-1.5"], ["a=1", "2.0"]]


def test_one_writer_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()} of .* writes to {tmp_path}"):
        only_writer(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())
    (tmp_path / ".uad-lock").write_text("of a process that was killed\n")
    with only_writer(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".uad-lock").read_text()


def test_a_lock_that_was_removed_meanwhile_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, path = files._opened_lock, tmp_path / ".uad-lock"
    seen: list[Path] = []

    def removed_once(path: Path) -> TextIO:
        file = opened(path)
        if not seen:
            path.unlink()  # the process that held it ended between our opening and our locking
        seen.append(path)
        return file

    monkeypatch.setattr(files, "_opened_lock", removed_once)
    with only_writer(tmp_path):
        assert len(seen) == 2 and path.exists()
        monkeypatch.undo()
        with pytest.raises(OutputError):
            only_writer(tmp_path).__enter__()
