"""uad.judging.predictions: one folder holds what one model said."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UserError
from engines.plan_file import description_path
from uad.judging.predictions import Predictions, digest_of


def test_a_plan_with_other_thresholds_is_another_model(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"weights")
    description_path(plan).write_text('{"thresholds": 1}', encoding="utf-8")
    with Predictions(tmp_path / "out", plan, resume=False):
        before = digest_of(plan)
    description_path(plan).write_text('{"thresholds": 2}', encoding="utf-8")
    assert digest_of(plan) != before
    with pytest.raises(UserError, match="holds what another model said"):
        Predictions(tmp_path / "out", plan, resume=True)
