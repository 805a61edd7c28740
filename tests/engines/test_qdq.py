"""engines.qdq: the form for TensorRT and the form for a CPU mean the same, whichever a file has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    FEATURES,
    Builder,
    node_of,
    quantize,
    random_images,
    reference_outputs,
    runtime_outputs,
    set_constant,
    tiny,
    tiny_info,
)

import engines
from engines.graph import constants, consumers
from engines.model_file import save_model
from engines.qdq import for_cpu, for_tensorrt, integer_weights
from export.calibrate import calibrator

IMAGES = random_images(3)
OUTPUTS = ["score", "anomaly_map"]


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(model, tiny_info(), IMAGES, calibrator("minmax"))[0]


def of_type(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


@pytest.mark.parametrize("backbone", FEATURES)
def test_both_forms_are_bit_identical(backbone: str) -> None:
    small = quantized(tiny(backbone))
    large = for_tensorrt(small)
    onnx.checker.check_model(large)
    for outputs in (reference_outputs, runtime_outputs):
        for one, other in zip(outputs(small, IMAGES, OUTPUTS), outputs(large, IMAGES, OUTPUTS)):
            assert np.ptp(one) > 0
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backbone", FEATURES)
def test_form_for_tensorrt_holds_no_integer_weight(backbone: str) -> None:
    small = quantized(tiny(backbone))
    weights = len(integer_weights(small))
    assert weights > 10
    large = for_tensorrt(small)
    assert integer_weights(large) == []
    kinds = {tensor.name: tensor.data_type for tensor in large.graph.initializer}
    behind = [node for node in of_type(large, "QuantizeLinear") if node.input[0] in kinds]
    assert len(behind) == weights
    assert {kinds[node.input[0]] for node in behind} == {onnx.TensorProto.FLOAT}


def test_each_reader_has_a_dequantizer_of_its_own() -> None:
    small = quantized(tiny())
    shared = [node for node in of_type(small, "DequantizeLinear") if len(consumers(small)[node.output[0]]) > 1]
    assert shared  # the normalised image, which teacher and student read
    large = for_tensorrt(small)
    readers = consumers(large)
    assert all(len(readers[node.output[0]]) == 1 for node in of_type(large, "DequantizeLinear"))
    activations = [node for node in of_type(large, "QuantizeLinear") if node.input[0] not in constants(large)]
    assert len(activations) == len(of_type(small, "QuantizeLinear"))  # each is rounded once
    names = [node.name for node in large.graph.node]
    assert len(names) == len(set(names))


def test_a_weight_that_two_convolutions_share_is_stored_once() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu")
    model = b.tap(b.conv(b.conv(x, "teacher/b", 4), "teacher/c", 4))
    node_of(model, "/teacher/c/Conv").input[1] = node_of(model, "/teacher/b/Conv").input[1]
    large = for_tensorrt(quantized(model))
    readers = [node_of(large, f"/teacher/{name}/Conv").input[1] for name in "bc"]
    assert readers[0] != readers[1]
    assert sum(node.name == "teacher/b.weight/Q" for node in large.graph.node) == 1
    assert_equal(for_cpu(large), quantized(model))


@pytest.mark.parametrize("backbone", FEATURES)
def test_there_and_back_gives_the_same_file(backbone: str) -> None:
    small = quantized(tiny(backbone))
    assert_equal(for_cpu(for_tensorrt(small)), small)
    assert_equal(for_cpu(small), small)
    large = for_tensorrt(small)
    assert_equal(for_tensorrt(large), large)


def test_every_integer_is_reproduced_from_its_float() -> None:
    # Scales of any size, and a channel that is all zero.
    model = quantized(tiny())
    name = "teacher/layer1/conv2.weight"
    random = np.random.default_rng(0)
    integers = random.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
    integers[1] = 0
    set_constant(model, f"{name}_int8", integers)
    for exponent in (-30, -3.3, 0, 7.7, 30):
        set_constant(model, f"{name}_scale", (10.0**exponent * random.uniform(1, 10, 4)).astype(np.float32))
        np.testing.assert_array_equal(constants(for_cpu(for_tensorrt(model)))[f"{name}_int8"], integers)


def test_a_float_graph_stays_as_it_is() -> None:
    assert_equal(for_tensorrt(tiny()), tiny())
    assert_equal(for_cpu(tiny()), tiny())


def test_the_graph_given_is_not_changed() -> None:
    small = quantized(tiny())
    large = for_tensorrt(small)
    before = [model.SerializeToString(deterministic=True) for model in (small, large)]
    for_tensorrt(small), for_cpu(large)
    assert [model.SerializeToString(deterministic=True) for model in (small, large)] == before


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("backbone", FEATURES)
def test_a_runtime_gives_the_same_scores_for_both(runtime: str, backbone: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model, info, _ = quantize(tiny(backbone), tiny_info(), IMAGES, calibrator("minmax"))
    found = []
    for form in (for_cpu, for_tensorrt):
        save_model(form(model), info, tmp_path / "a.onnx")
        with engines.load(tmp_path / "a.onnx", runtime) as engine:
            found.append(engine.infer(IMAGES))
    np.testing.assert_array_equal(found[0].score, found[1].score)
    np.testing.assert_array_equal(found[0].anomaly_map, found[1].anomaly_map)


def test_onnxruntime_loads_the_small_form_on_every_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import onnxruntime

    monkeypatch.setattr(onnxruntime.platform, "machine", lambda: "aarch64")
    model, info, _ = quantize(tiny(), tiny_info(), IMAGES, calibrator("minmax"))
    save_model(for_tensorrt(model), info, tmp_path / "a.onnx")
    loaded = onnx.load_from_string(onnxruntime._model_for_here(str(tmp_path / "a.onnx"), info))
    assert integer_weights(loaded) and not any(node.name.endswith("weight/Q") for node in loaded.graph.node)


def assert_equal(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """The same nodes and the same constants, in any order."""
    key = lambda each: each.name  # noqa: E731
    for part in ("node", "input", "output"):
        assert sorted(getattr(one.graph, part), key=key) == sorted(getattr(other.graph, part), key=key)
    values, expected = constants(one), constants(other)
    assert values.keys() == expected.keys()
    for name in values:
        assert values[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(values[name], expected[name], err_msg=name)
