"""uad.tables: a cell holds what it is given, whatever that is."""

from __future__ import annotations

import pytest

from uad.tables import markdown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script>"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("pi\udce8ce", r"pi\udce8ce"),
        ("\u87ba\u4e1d", "\u87ba\u4e1d"),
    ],
)
def test_a_name_stays_in_its_cell(name: str, shown: str) -> None:
    table = markdown(["class", "good"], [[name, "3"]])
    assert table.splitlines()[-1].split(" | ")[0].rstrip() == f"| {shown}"
