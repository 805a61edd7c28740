"""uad.judging.ledger: a photograph is what its stamp says, and a row that was committed stays."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disks import files_of_at_most

from engines.errors import OutputError
from engines.plan_file import description_path
from uad.judging import ledger as ledger_module
from uad.judging.ledger import MOST_TRIES, Ledger, NoRoomError, digest_of_model
from uad.judging.photographs import Photograph, place_of, stamp_of
from uad.judging.predictions import Decision

ROOT = Path(__file__).resolve().parents[3]


def photograph(path: Path, content: bytes = b"pixels") -> Photograph:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    made = Photograph(path)
    made.read()
    return made


def decision(path: Path, **changes: object) -> Decision:
    return Decision(str(path), "nut", 1.5, 1.0, "defect", **changes)  # type: ignore[arg-type]


def known(ledger: Ledger, path: Path, careful: bool = False) -> bool:
    return ledger.knows(Photograph(path, stamp=stamp_of(path)), careful) is not None


def test_a_photograph_is_known_by_any_spelling_and_a_changed_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = photograph(tmp_path / "in" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    with Ledger(tmp_path / "out", "m") as ledger:
        ledger.add(one, decision(one.path))
        assert not known(ledger, one.path)
        ledger.commit()
        assert all(known(ledger, Path(path)) for path in (one.path, "in/a.png", "in/../in/a.png", "link/a.png"))
        photograph(tmp_path / "in" / "a.png", b"others")
        assert not known(ledger, one.path)
    with Ledger(tmp_path / "out", "m") as ledger:
        assert not known(ledger, one.path) and ledger.counts() == {"defect": 1}


def test_an_entry_that_changes_without_its_content_is_the_same_photograph(tmp_path: Path) -> None:
    one = photograph(tmp_path / "a.png")
    with Ledger(tmp_path / "out", "m") as ledger:
        ledger.add(one, decision(one.path))
        ledger.commit()
        os.chmod(one.path, 0o600)
        assert stamp_of(one.path) != one.stamp and known(ledger, one.path)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_coarse_clock_hides_no_photograph(in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, at = tmp_path / "latest.bmp", 1_700_000_000
    one = photograph(path, b"good part")
    os.utime(path, (at, at))
    one = Photograph(path)
    one.read()
    with Ledger(tmp_path / "out", "m") as ledger:
        ledger.add(one, decision(path))
        ledger.commit()
        assert known(ledger, path, careful=True)
        path.write_bytes(b"bad  part") if in_place else photograph(tmp_path / "b", b"bad  part").path.replace(path)
        os.utime(path, (at, at))
        assert stamp_of(path)[:2] == one.stamp[:2]  # type: ignore[index]
        assert not known(ledger, path, careful=True)
        # Where not even the entry's time and number tell:
        row = ledger.newest([place_of(path)])[place_of(path)]
        assert ledger.knows(Photograph(path, stamp=row.stamp)) is not None
        monkeypatch.setattr("uad.judging.photographs.stamp_of", lambda path: row.stamp)
        assert ledger.knows(Photograph(path, stamp=row.stamp), careful=True) is None


def test_a_stamp_that_is_settled_is_trusted_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "SETTLED_AFTER", -1.0)
    one = photograph(tmp_path / "a.png")
    with Ledger(tmp_path / "out", "m") as ledger:
        ledger.add(one, decision(one.path))
        ledger.commit()
        read: list[Path] = []

        def noted(photograph: Photograph) -> None:
            read.append(photograph.path)
            photograph.digest = one.digest

        monkeypatch.setattr(Photograph, "read", noted)
        for _ in range(3):
            assert known(ledger, one.path, careful=True)
            ledger.commit()
        assert len(read) == 1


def test_what_one_model_could_not_judge_another_may(tmp_path: Path) -> None:
    one = photograph(tmp_path / "a.png")
    for model, expected in (("m", True), ("m", True), ("other", False)):
        with Ledger(tmp_path / "out", model) as ledger:
            if ledger.counts() == {}:
                ledger.add(one, Decision(str(one.path), "", None, 1.0, "unreadable", error="cut short"))
                ledger.commit()
            assert known(ledger, one.path) == expected


def test_a_process_that_is_killed_leaves_what_it_had_in_hand(tmp_path: Path) -> None:
    one, two = photograph(tmp_path / "a.png"), photograph(tmp_path / "b.png")
    script = (
        "import os, sys; from pathlib import Path; from uad.judging.ledger import Ledger\n"
        "from uad.judging.photographs import Photograph; from uad.judging.predictions import Decision\n"
        "ledger = Ledger(Path(sys.argv[1]), 'm').__enter__()\n"
        "photographs = [Photograph(Path(each)) for each in sys.argv[2:]]\n"
        "ledger.begin(photographs); photographs[1].read()\n"
        "ledger.add(photographs[1], Decision('b.png', '', 0.5, 1.0, 'good')); ledger.commit(); os._exit(9)\n"
    )
    for tries in range(1, MOST_TRIES + 1):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "out"), str(one.path), str(two.path)], cwd=ROOT)
        ledger = Ledger(tmp_path / "out", "m")
        ledger.__enter__()
        assert (ledger.tries(one), ledger.tries(two)) == (tries, 0)
        ledger._close.close()  # as a process that is killed: what it had in hand stays
    with Ledger(tmp_path / "out", "m") as ledger:
        assert ledger.tries(one) == MOST_TRIES
        ledger.add(one, decision(one.path, error="set aside"))
        assert ledger.tries(one) == 0  # another photograph of this name is another one
    with Ledger(tmp_path / "out", "m") as ledger:
        assert ledger.tries(one) == 0  # the process before ended by itself


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from uad.judging.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1]), 'm'): print('open', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        try:
            with pytest.raises(OutputError, match=f"process {process.pid} of .* writes to .*: end it first"):
                Ledger(tmp_path, "m").__enter__()
            rows = sqlite3.connect(f"file:{tmp_path / 'ledger.sqlite'}?mode=ro", uri=True)
            assert rows.execute("SELECT COUNT(*) FROM photographs").fetchone() == (0,)  # who reads may
            rows.close()
        finally:
            process.kill()
    with Ledger(tmp_path, "m"):  # a lock does not outlive its process
        pass


def test_a_full_disk_is_told_and_what_was_added_is_kept(tmp_path: Path) -> None:
    one = photograph(tmp_path / "a.png")
    with Ledger(tmp_path / "out", "m") as ledger:
        ledger.add(one, decision(one.path, note="x" * 200_000))
        with files_of_at_most(100_000), pytest.raises(NoRoomError, match="make room on its disk"):
            ledger.commit()
        ledger.commit()
        assert known(ledger, one.path)
    with Ledger(tmp_path / "out", "m") as ledger:
        assert ledger.counts() == {"defect": 1}


def test_files_that_are_no_ledger_are_told_in_one_line(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(OutputError) as error:
            Ledger(tmp_path, "m").__enter__()
        return str(error.value)

    path = tmp_path / "ledger.sqlite"
    path.write_bytes(np.random.default_rng(0).bytes(9000))
    assert "is no ledger, or is damaged" in refused()
    path.unlink()
    with sqlite3.connect(str(path)) as rows:
        rows.execute("CREATE TABLE files (name TEXT)")
    assert "is of another program" in refused()
    path.unlink()
    with Ledger(tmp_path, "m") as ledger:
        ledger._rows.execute("PRAGMA user_version = 2")
    assert "is of a later version of uad (2)" in refused()


def test_damage_in_the_middle_is_told_in_one_line(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        for index in range(300):
            one = photograph(tmp_path / "in" / f"{index}.png")
            ledger.add(one, decision(one.path, note="x" * 300))
    path = tmp_path / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    content[8192:] = np.random.default_rng(0).bytes(len(content) - 8192)
    path.write_bytes(bytes(content))
    with pytest.raises(OutputError, match="ledger.sqlite is no ledger, or is damaged"), Ledger(tmp_path, "m") as ledger:
        list(ledger.rows())


def test_a_plan_with_other_thresholds_is_another_model(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"weights")
    description_path(plan).write_text('{"thresholds": 1}', encoding="utf-8")
    before = digest_of_model(plan)
    description_path(plan).write_text('{"thresholds": 2}', encoding="utf-8")
    assert digest_of_model(plan) != before


@pytest.mark.parametrize("name", [b"pi\xe8ce.png", "\u87ba.png".encode(), b"a'b\n.png"])
def test_any_name_is_kept(name: bytes, tmp_path: Path) -> None:
    one = photograph(tmp_path / os.fsdecode(name))
    with Ledger(tmp_path / "out", "m") as ledger:
        ledger.add(one, decision(one.path))
        ledger.commit()
        (row,) = ledger.rows()
        assert known(ledger, one.path) and row.decision == decision(one.path)
