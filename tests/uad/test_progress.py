"""uad.progress: a bar for work, and none for nothing."""

import pytest

from uad.progress import progress


def test_a_bar_has_a_step_for_each_part_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Counting", 3) as step:
        for _ in range(3):
            step()
    said = capsys.readouterr().err
    assert "Counting" in said and "3/3" in said


def test_nothing_to_do_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Counting", 0) as step:
        step()
    assert capsys.readouterr().err == ""
