"""engines.metadata and the reading of model files: what a file says of itself, or why it is not one of ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from graphs import save_tiny, tiny, tiny_info

from engines.errors import ModelFileError
from engines.metadata import FORMAT, ModelInfo
from engines.model_file import KEY, info_of, load_model, read_info, save_model

FULL = tiny_info(
    precision="int8",
    calibration={"calibrator": "entropy", "images": 32, "seed": 0},
    residual_scales={"/teacher/conv/Conv_output_0": 0.0123456789},
    float_layers=["/teacher/conv/Conv"],
    checkpoint_sha256="ab" * 32,
    versions={"onnx": "1.17.0"},
)


def described(**changes: Any) -> str:
    return json.dumps({**json.loads(FULL.to_json()), **changes})


def test_json_round_trip_keeps_every_field() -> None:
    assert ModelInfo.from_json(FULL.to_json(), "a.onnx") == FULL


def test_json_is_one_line() -> None:
    assert "\n" not in FULL.to_json()


def test_a_key_that_a_later_release_added_is_ignored() -> None:
    assert ModelInfo.from_json(described(added="later"), "a.onnx") == FULL


def test_a_file_from_before_float_layers_keeps_none() -> None:
    values = json.loads(FULL.to_json())
    del values["float_layers"]
    assert ModelInfo.from_json(json.dumps(values), "a.onnx") == dataclasses.replace(FULL, float_layers=[])


def test_newer_format_is_refused() -> None:
    with pytest.raises(ModelFileError, match=f"a.onnx has format {FORMAT + 1}, .* update uad"):
        ModelInfo.from_json(described(format=FORMAT + 1), "a.onnx")


def test_newer_format_without_todays_keys_asks_for_an_update_too() -> None:
    # A new format number is there for files that this program cannot read, so it is looked at first.
    with pytest.raises(ModelFileError, match="update uad"):
        ModelInfo.from_json(json.dumps({"format": FORMAT + 1}), "a.onnx")


@pytest.mark.parametrize("key", ["model", "classes", "thresholds", "threshold", "height", "width", "map_stride"])
def test_missing_key_is_an_error(key: str) -> None:
    values = json.loads(FULL.to_json())
    del values[key]
    with pytest.raises(ModelFileError, match=f"a.onnx: its description cannot be read .*{key}"):
        ModelInfo.from_json(json.dumps(values), "a.onnx")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"text"', "3"])
def test_text_that_is_no_description_is_an_error(text: str) -> None:
    with pytest.raises(ModelFileError, match="a.onnx: its description cannot be read"):
        ModelInfo.from_json(text, "a.onnx")


@pytest.mark.parametrize("format", ["1", None])
def test_format_that_is_no_number_is_an_error(format: Any) -> None:
    with pytest.raises(ModelFileError, match="a.onnx"):
        ModelInfo.from_json(described(format=format), "a.onnx")


def test_size_is_height_and_width() -> None:
    assert dataclasses.replace(FULL, height=16, width=32).size == (16, 32)


def test_threshold_of_a_known_class_is_its_own() -> None:
    assert FULL.threshold_of("bolt") == 0.25


@pytest.mark.parametrize("name", [None, "", "screw"])
def test_threshold_of_an_unknown_class_is_the_global_one(name: str | None) -> None:
    assert FULL.threshold_of(name) == 0.4


def test_file_round_trip_keeps_the_description_and_the_graph(tmp_path: Path) -> None:
    save_model(tiny(), FULL, tmp_path / "a.onnx")
    assert read_info(tmp_path / "a.onnx") == FULL
    loaded = load_model(tmp_path / "a.onnx")
    assert info_of(loaded, "a.onnx") == FULL
    assert loaded.graph == tiny().graph


def test_saving_twice_leaves_one_description(tmp_path: Path) -> None:
    model = tiny()
    for threshold in (0.1, 0.2):
        save_model(model, dataclasses.replace(FULL, threshold=threshold), tmp_path / "a.onnx")
    assert [entry.key for entry in load_model(tmp_path / "a.onnx").metadata_props] == [KEY]
    assert read_info(tmp_path / "a.onnx").threshold == 0.2


def test_a_graph_that_onnx_refuses_does_not_replace_the_file(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "a.onnx")
    before = path.read_bytes()
    broken = tiny()
    broken.graph.node[3].input[0] = "nobody computes this"
    with pytest.raises(onnx.checker.ValidationError):
        save_model(broken, FULL, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_onnx_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    model = tiny()
    model.metadata_props.add(key="names", value="{}")
    onnx.save(model, str(path))
    with pytest.raises(ModelFileError, match="other.onnx is not a model of uad .*uad export"):
        read_info(path)


def test_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is not a graph")
    with pytest.raises(ModelFileError, match="text.onnx is not an ONNX file, or is damaged"):
        read_info(path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "half.onnx")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError, match="half.onnx"):
        read_info(path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(ModelFileError, match="empty.onnx"):
        read_info(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a.onnx: no such file"):
        read_info(tmp_path / "a.onnx")
