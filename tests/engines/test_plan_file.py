"""engines.plan_file: a plan and its description, whole, together, or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from graphs import tiny_info

import engines
from engines import plan_file
from engines.errors import ModelFileError, OutputError
from engines.model_file import load_model
from engines.plan_file import PlanInfo, description_path, read_description, read_plan, save_plan

PLAN = PlanInfo(
    "8.5.2.2", "11.4", "Xavier", "7.2", ["INT8"], 31, {"min": 1, "opt": 1, "max": 1}, 1024, [], "uad export a.onnx"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_plan(b"the plan", tiny_info(precision="int8"), PLAN, tmp_path / "a.plan")
    return tmp_path / "a.plan"


def test_what_is_written_is_read(path: Path) -> None:
    content, info, plan = read_plan(path)
    assert (content, info) == (b"the plan", tiny_info(precision="int8"))
    assert plan.sha256 and plan == PlanInfo(**{**vars(PLAN), "sha256": plan.sha256})
    assert engines.read_info(path) == info
    assert sorted(os.listdir(path.parent)) == ["a.plan", "a.plan.json"]


def test_a_plan_without_its_description(path: Path) -> None:
    description_path(path).unlink()
    for read in (read_description, read_plan, engines.read_info):
        with pytest.raises(
            ModelFileError, match="a.plan.json, which says what the plan is, is not beside it: .*uad export"
        ):
            read(path)


def test_a_description_without_its_plan(path: Path) -> None:
    path.unlink()
    with pytest.raises(ModelFileError, match="a.plan: no such file"):
        engines.read_info(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"model": {}}', '{"model": {}, "plan": {"tensorrt": "8"}}', "[" * 100_000]
)
def test_a_damaged_description(text: str, path: Path) -> None:
    description_path(path).write_text(text)
    with pytest.raises(ModelFileError, match="a.plan.json cannot be read"):
        read_description(path)


@pytest.mark.parametrize(
    "changes", [{"float32_layers": "31"}, {"batch": {"min": "1"}}, {"warnings": [1]}, {"dla_core": "0"}, {"flags": {}}]
)
def test_a_description_of_other_types(changes: dict[str, object], path: Path) -> None:
    content = json.loads(description_path(path).read_text())
    content["plan"].update(changes)
    description_path(path).write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=f"a.plan.json cannot be read .{next(iter(changes))} is"):
        read_description(path)


def test_a_description_of_a_newer_format(path: Path) -> None:
    content = json.loads(description_path(path).read_text())
    content["model"]["format"] = 99
    description_path(path).write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="has format 99"):
        read_description(path)


@pytest.mark.parametrize("content", [b"", b"the pla", b"the plan of another"])
def test_a_plan_that_is_not_the_one_described(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert read_description(path)  # what is said of it can be read
    with pytest.raises(ModelFileError, match="a.plan is not the plan that a.plan.json describes.*uad export a.onnx"):
        read_plan(path)


def test_a_write_that_fails_leaves_the_former_pair(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_plan(b"another", tiny_info(), PLAN, path)
    monkeypatch.undo()
    assert read_plan(path)[0] == b"the plan"
    assert sorted(os.listdir(path.parent)) == ["a.plan", "a.plan.json"]


def test_a_plan_is_no_onnx_file(path: Path) -> None:
    with pytest.raises(ModelFileError, match="a.plan is a TensorRT plan: give the .onnx file that it was built from"):
        load_model(path)


def test_suffix_is_that_of_the_runtime() -> None:
    assert engines.RUNTIMES["tensorrt"].suffix == plan_file.SUFFIX == ".plan"
