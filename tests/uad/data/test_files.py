"""uad.data.files: which files below a folder are images, whoever may enter it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from image_folders import noise, save

from engines.errors import UadWarning
from uad.data.files import folders_in, images_below


def test_a_folder_that_may_not_be_entered_is_passed_over_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", "lost+found", "below"):
        save(noise(0), tmp_path / folder / "0.png")
    scandir, access = os.scandir, os.access

    def refusing(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("lost+found") and access(path, mode))
    for found, expected in (
        (lambda: images_below(tmp_path), [tmp_path / "0.png", tmp_path / "below" / "0.png"]),
        (lambda: folders_in(tmp_path), [tmp_path / "below"]),
    ):
        with pytest.warns(UadWarning, match="lost.found is passed over: this user may not enter it"):
            assert found() == expected
