"""engines.metadata and the reading of model files: what a file says of itself, or why it is not one of ours."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import quantize, random_images, save_tiny, set_constant, tiny, tiny_info, with_readout

from engines.errors import ModelFileError
from engines.graph import constants
from engines.metadata import FORMAT, OUTPUTS, ModelInfo, is_defect
from engines.model_file import KEY, info_of, load_model, read_info, save_model
from export.calibrate import calibrator

FULL = tiny_info(
    precision="int8",
    calibration={"calibrator": "entropy", "images": 32, "seed": 0},
    residual_scales={"/teacher/conv/Conv_output_0": 0.0123456789},
    float_layers=["/teacher/conv/Conv"],
    checkpoint_sha256="ab" * 32,
    versions={"onnx": "1.17.0"},
)


MODEL = quantize(tiny(), tiny_info(), random_images(1), calibrator("minmax"))[0]


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


@pytest.mark.parametrize("version", [3, 4])
def test_a_file_of_a_format_before_tells_no_class(version: int) -> None:
    values = json.loads(described(format=version))
    for name in ("outputs", "limits", "former_limits"):
        del values[name]
    info = ModelInfo.from_json(json.dumps(values), "a.onnx")
    assert info == FULL and info.outputs == ["score", "anomaly_map"] and not info.is_unknown("bolt", 99.0)


def test_an_image_beyond_the_limit_of_its_class_is_unknown() -> None:
    info = tiny_info(limits={"bolt": 1.5})
    assert info.is_unknown("bolt", 1.6) and not info.is_unknown("bolt", 1.5)
    assert not info.is_unknown("nut", 9.0) and not info.is_unknown(None, 9.0) and not info.is_unknown("bolt", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": ["score", "map"]}, "its outputs are score, map"),
        ({"outputs": ["score", "anomaly_map", "class_distance"]}, "its outputs are"),
        ({"limits": {"cog": 1.0}}, "limits must be of the classes"),
        ({"former_limits": {"cog": 1.0}}, "former_limits must be of the classes"),
    ],
)
def test_what_no_graph_gives_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        ModelInfo.from_json(described(**changes), "a.onnx")


def test_a_graph_that_gives_other_outputs_than_it_says_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "a.onnx", with_readout())
    assert read_info(path).outputs == list(OUTPUTS)  # saved with what the graph gives
    model = onnx.load(path)
    del model.graph.output[2:]
    onnx.save(model, path)
    with pytest.raises(
        ModelFileError, match=r"gives score, anomaly_map, by its description score, .*: export it again"
    ):
        read_info(path)


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


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"text"', "3", "[" * 100_000])
def test_text_that_is_no_description_is_an_error(text: str) -> None:
    with pytest.raises(ModelFileError, match="a.onnx: its description cannot be read"):
        ModelInfo.from_json(text, "a.onnx")


@pytest.mark.parametrize("format", ["1", None])
def test_format_that_is_no_number_is_an_error(format: Any) -> None:
    with pytest.raises(ModelFileError, match="a.onnx"):
        ModelInfo.from_json(described(format=format), "a.onnx")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": math.nan}, "threshold is nan"),
        ({"thresholds": {"bolt": 0.1, "nut": math.inf}}, "thresholds is .*inf"),
        ({"thresholds": {"bolt": 0.1, "nut": "0.2"}}, "thresholds is .*'0.2'"),
        ({"thresholds": {"bolt": 0.1}}, "thresholds must be of the classes"),
        ({"thresholds": {"bolt": 0.1, "nut": 0.2, "gear": 0.3}}, "thresholds must be of the classes"),
        ({"classes": ["bolt", "bolt", "nut"]}, "a class comes twice"),
        ({"classes": "bolt"}, "classes is bolt"),
        ({"classes": [1, 2]}, "classes is .1, 2."),
        ({"classes": ["bolt", ""]}, "a class has no name"),
        ({"height": 0}, "height is 0"),
        ({"width": -16}, "width is -16"),
        ({"width": "16"}, "width is 16"),
        ({"map_stride": 0}, "map_stride is 0"),
        ({"map_stride": True}, "map_stride is True"),
        ({"false_positive_rate": 1.0}, "false_positive_rate"),
        ({"false_positive_rate": math.nan}, "false_positive_rate"),
        ({"mean": [0.5, 0.5]}, "three colours"),
        ({"mean": [0.5, 0.5, math.nan]}, "mean is .*nan"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be above 0"),
        ({"precision": "int3"}, "the precision is int3"),
        ({"residual_scales": {"x": 0.0}}, "the scale of x is 0.0"),
        ({"residual_scales": {"x": math.nan}}, "residual_scales is .*nan"),
        ({"model": None}, "model is None"),
        ({"calibration": []}, "calibration is"),
        ({"refitted": [1]}, "refitted is .1."),
        ({"refitted": {"images": 3}}, "refitted names no images"),
        ({"refitted": {"thresholds": {"nut": 1}}}, "refitted names no thresholds"),
        ({"versions": {"onnx": 1}}, "versions is .*1"),
        ({"height": 10**9}, "height is 1000000000, 4096 is the most"),
        ({"backbone": "x" * 10_001}, "backbone is xxx"),
        ({"classes": [str(each) for each in range(10_001)]}, "it has 10001 classes"),
        ({"depths": []}, "depths is"),
        ({"depths": {"gear": 12}}, "the depth of gear is 12"),
        ({"depths": {"nut": 11}}, "the depth of nut is 11"),
        ({"weight_bits": 4}, "weight_bits is 4"),
    ],
)
def test_a_field_that_cannot_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=f"a.onnx: its description cannot be read .*{said}"):
        ModelInfo.from_json(described(**changes), "a.onnx")


def test_the_depth_of_an_unknown_class_is_that_of_all_or_16() -> None:
    assert tiny_info().depth_of("nut") == tiny_info().depth_of(None) == 16
    one = tiny_info(depths={"nut": 12})
    assert [one.depth_of(name) for name in ("nut", "bolt", None, "screw")] == [12, 12, 12, 12]
    two = tiny_info(depths={"nut": 12, "bolt": 10})
    assert [two.depth_of(name) for name in ("nut", "bolt", None, "screw")] == [12, 10, 16, 16]


def test_a_defect_is_what_lies_strictly_above_the_threshold() -> None:
    assert [is_defect(score, 1.0) for score in (0.9, 1.0, 1.1)] == [False, False, True]
    for score, threshold in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)):
        with pytest.raises(ValueError, match="decides nothing"):
            is_defect(score, threshold)


# A file and its description -------------------------------------------------------------------------------------------


def refused(path: Path, model: onnx.ModelProto, info: ModelInfo) -> str:
    """Why a file is neither read nor written."""
    with pytest.raises(ModelFileError) as written:
        save_model(model, info, path)
    copied = onnx.ModelProto.FromString(model.SerializeToString())
    del copied.metadata_props[:]
    copied.metadata_props.add(key=KEY, value=info.to_json())
    onnx.save(copied, str(path))
    with pytest.raises(ModelFileError) as read:
        read_info(path)
    assert str(read.value) == str(written.value)
    return str(read.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["head.half", "student/conv1.weight", "normalize.std"])
def test_a_value_that_is_not_finite_is_refused(value: float, name: str, tmp_path: Path) -> None:
    model = tiny()
    values = constants(model)[name].copy()
    values.reshape(-1)[-1] = value
    set_constant(model, name, values)
    assert f"a.onnx: {name} holds values that are not finite" in refused(tmp_path / "a.onnx", model, tiny_info())


@pytest.mark.parametrize("precision", ["int8", "mixed"])
def test_a_float_graph_is_not_int8(precision: str, tmp_path: Path) -> None:
    said = refused(tmp_path / "a.onnx", tiny(), tiny_info(precision=precision))
    assert f"says that it is {precision}, but has no Q/DQ nodes" in said


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_int8_graph_is_not_float(precision: str, tmp_path: Path) -> None:
    said = refused(tmp_path / "a.onnx", MODEL, tiny_info(precision=precision))
    assert f"says that it is {precision}, but has Q/DQ nodes" in said


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_a_scale_that_is_not_above_0_is_refused(value: float, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
    set_constant(model, "/normalize/Div_output_0_scale", np.array(value, np.float32))
    assert "/normalize/Div_output_0/Q has a scale that is not above 0" in refused(tmp_path / "a.onnx", model, FULL)


def test_another_size_than_that_of_the_graph_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path / "a.onnx", tiny(size=32), tiny_info(16))
    assert "image is (32, 32, 3) in the graph, (16, 16, 3) by its description" in said


def test_another_map_than_that_of_the_graph_is_refused(tmp_path: Path) -> None:
    model = tiny()
    for side in (1, 2):
        model.graph.output[1].type.tensor_type.shape.dim[side].dim_value = 4
    save_model(model, tiny_info(), tmp_path / "a.onnx")
    said = refused(tmp_path / "a.onnx", model, tiny_info(map_stride=8))
    assert "anomaly_map is (4, 4) in the graph, (2, 2) by its description" in said


def test_size_is_height_and_width() -> None:
    assert dataclasses.replace(FULL, height=16, width=32).size == (16, 32)


def test_threshold_of_a_known_class_is_its_own() -> None:
    assert FULL.threshold_of("bolt") == 0.25


@pytest.mark.parametrize("name", [None, "", "screw"])
def test_threshold_of_an_unknown_class_is_the_global_one(name: str | None) -> None:
    assert FULL.threshold_of(name) == 0.4


def test_file_round_trip_keeps_the_description_and_the_graph(tmp_path: Path) -> None:
    save_model(MODEL, FULL, tmp_path / "a.onnx")
    assert read_info(tmp_path / "a.onnx") == FULL
    loaded = load_model(tmp_path / "a.onnx")
    assert info_of(loaded, "a.onnx") == FULL
    assert loaded.graph == MODEL.graph


def test_saving_twice_leaves_one_description(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
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
        save_model(broken, tiny_info(), path)
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
