"""export.triton: the configuration is one by Triton's own schema, and fits the file."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import save_tiny, tiny_info, with_readout
from image_folders import noise
from PIL import Image

import engines
from engines.errors import UadWarning
from engines.images import read_resized, resize
from engines.metadata import OUTPUTS
from engines.plan_file import PlanInfo
from export.errors import ExportError
from export.triton import configuration, rewrite_thresholds, write_repository

ROOT = Path(__file__).resolve().parents[2]

PLAN = PlanInfo("8.5.2", "11.4", "Xavier", "7.2", [], 0, {"min": 1, "opt": 4, "max": 4}, 64, [], "uad export")


def parsed(text: str) -> Any:
    """A configuration, by the schema that NVIDIA publishes."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def test_a_repository_is_what_the_server_reads(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "parts.int8.onnx", with_readout())
    info = tiny_info(outputs=list(OUTPUTS), limits={"bolt": 1.05, "nut": 1.2})
    folder = write_repository(model, info, None, tmp_path / "models")
    assert folder == tmp_path / "models" / "parts.int8"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("parts.int8", "onnxruntime", 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    for name in ("thresholds", "limits", "classes"):
        assert json.loads(config.parameters[name].string_value) == getattr(info, name)


def test_names_types_and_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    model = onnx.load(save_tiny(tmp_path / "a.onnx", with_readout()))
    types = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}
    types["TYPE_INT32"] = onnx.TensorProto.INT32
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    config = parsed(configuration("a", tiny_info(outputs=list(OUTPUTS)), None, "openvino"))
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    told = {tensor.name: tensor for tensor in (*config.input, *config.output)}
    assert list(told) == list(values) == ["image", *OUTPUTS]
    for name, tensor in told.items():
        assert types[schema.DataType.Name(tensor.data_type)] == values[name].elem_type
        dims = [] if tensor.HasField("reshape") else list(tensor.dims)
        sides = [side.dim_value for side in values[name].shape.dim[1:]]
        assert len(dims) == len(sides) and all(side in (0, dim) for side, dim in zip(sides, dims))


@pytest.mark.parametrize(("most", "max_batch_size", "image"), [(4, 4, [16, 16, 3]), (1, 0, [1, 16, 16, 3])])
def test_a_plan_takes_what_it_was_built_for(most: int, max_batch_size: int, image: list[int]) -> None:
    plan = dataclasses.replace(PLAN, batch={"min": 1, "opt": most, "max": most})
    config = parsed(configuration("a", tiny_info(), plan, "tensorrt"))
    assert config.max_batch_size == max_batch_size and list(config.input[0].dims) == image
    assert config.HasField("dynamic_batching") == (max_batch_size > 0)
    assert config.default_model_filename == "model.plan" and config.instance_group[0].kind == 1  # KIND_GPU


def test_a_class_of_any_name_stays_text() -> None:
    name = 'a "b" } \n {ü'
    config = parsed(configuration("a", tiny_info(classes=[name], thresholds={name: 1.5}), None, "onnxruntime"))
    assert json.loads(config.parameters["thresholds"].string_value) == {name: 1.5}


def test_new_thresholds_are_written_where_the_server_reads_them(tmp_path: Path) -> None:
    info = tiny_info(precision="int8")
    folder = write_repository(save_tiny(tmp_path / "a.onnx"), info, None, tmp_path / "models")
    changed = dataclasses.replace(info, thresholds={"bolt": 7.0, "nut": 8.0}, threshold=9.0)
    rewrite_thresholds(folder / "1" / "model.onnx", changed)
    config = (folder / "config.pbtxt").read_text()
    assert config == configuration("a", changed, None, "onnxruntime")
    by_hand = config.replace("{ key", "{\n  key")
    (folder / "config.pbtxt").write_text(by_hand)
    with pytest.warns(UadWarning, match="config.pbtxt keeps its thresholds"):
        rewrite_thresholds(folder / "1" / "model.onnx", info)
    assert (folder / "config.pbtxt").read_text() == by_hand
    (tmp_path / "config.pbtxt").write_text("of another program")
    rewrite_thresholds(tmp_path / "models" / "model.onnx", info)  # in no folder of a version
    assert (tmp_path / "config.pbtxt").read_text() == "of another program"


@pytest.mark.parametrize(("limit", "decision"), [(1e6, "defect"), (0.0, "unknown")])
def test_the_client_of_the_page_judges_as_uad_does(
    limit: float, decision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is played by the file that it would run, for there is none here; all else is as on the page."""
    json_format = pytest.importorskip("google.protobuf.json_format", reason="protobuf is not installed")
    classes = ["gear", "plate"]
    changes: dict[str, Any] = {"classes": classes, "thresholds": dict.fromkeys(classes, -1.0), "held_out": {}}
    changes.update(limits=dict.fromkeys(classes, limit), outputs=list(OUTPUTS))
    info, file = tiny_info(**changes), save_tiny(tmp_path / "parts.onnx", with_readout(), **changes)
    folder = write_repository(file, info, None, tmp_path / "models")
    config = json_format.MessageToDict(parsed((folder / "config.pbtxt").read_text()), preserving_proto_field_name=True)
    photograph = Image.fromarray(noise(3, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(tmp_path / "photo.png", exif=exif)
    given: list[np.ndarray] = []

    class Client:
        def __init__(self, address: str) -> None:
            self.engine = engines.load(folder / "1" / "model.onnx", "onnxruntime")

        def get_model_config(self, name: str) -> Any:
            return config

        def infer(self, name: str, inputs: list[Any]) -> Any:
            given.append(inputs[0].pixels)
            prediction = self.engine.infer(inputs[0].pixels)
            return types.SimpleNamespace(as_numpy=lambda name: getattr(prediction, name))

    class Input:
        def __init__(self, name: str, shape: list[int], dtype: str) -> None:
            self.shape = shape

        def set_data_from_numpy(self, pixels: np.ndarray) -> None:
            assert list(pixels.shape) == self.shape and pixels.dtype == np.uint8
            self.pixels = pixels

    http = types.SimpleNamespace(InferenceServerClient=Client, InferInput=Input)
    monkeypatch.setitem(sys.modules, "tritonclient", types.SimpleNamespace(http=http))
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(code, {})
    (expected,) = read_resized(tmp_path / "photo.png", [info.size])
    assert np.array_equal(given[0][0], expected)
    assert not np.array_equal(expected, resize(np.asarray(photograph), info.size))  # it lay on its side
    assert capsys.readouterr().out.startswith((f"{decision} gear ", f"{decision} plate "))


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be a model's name"):
        write_repository(save_tiny(tmp_path / "a b.onnx"), tiny_info(), None, tmp_path / "models")
    with pytest.raises(ExportError, match="tensorrt does not run .onnx files"):
        write_repository(save_tiny(tmp_path / "a.onnx"), tiny_info(), None, tmp_path / "models", "tensorrt")
    assert not (tmp_path / "models").exists()
