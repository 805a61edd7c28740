"""export.float16: the backbone in half precision, the normalisation and the head in single."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import FEATURES, Builder, node_of, random_images, runtime_outputs, set_constant, tiny
from onnx import TensorProto, helper

from engines.graph import constants, in_backbone
from export.float16 import beyond_float16, to_float16, vanishing_weights

IMAGES = random_images(4, size=32)
LARGEST = float(np.finfo(np.float16).max)  # 65504


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name -> element type, as ONNX infers it."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = {
        value.name: value.type.tensor_type.elem_type for value in [*inferred.graph.value_info, *model.graph.output]
    }
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    return types


def casts(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor that is cast -> the type that it is cast to; without the input's."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] != "image":
            assert node.input[0] not in found
            found[node.input[0]] = helper.get_attribute_value(node.attribute[0])
    return found


@pytest.mark.parametrize("backbone", FEATURES)
def test_backbone_is_float16_and_the_rest_float32(backbone: str) -> None:
    model = to_float16(tiny(backbone))
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    for node in model.graph.node:
        if node.op_type == "Cast":
            continue
        expected = TensorProto.FLOAT16 if in_backbone(node) else TensorProto.FLOAT
        for name in [*node.input, *node.output]:
            if name and types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16):
                assert types[name] == expected, f"{node.name}: {name}"
        assert types[node.output[0]] == expected, node.name


def test_outputs_stay_float32() -> None:
    model = to_float16(tiny())
    assert [value.type.tensor_type.elem_type for value in model.graph.output] == [TensorProto.FLOAT] * 2


def test_one_cast_where_the_backbone_begins_and_one_at_each_end() -> None:
    features = [
        f"/{net}/{layer}/relu2/Relu_output_0" for net in ("teacher", "student") for layer in ("layer1", "layer2")
    ]
    expected = {"/normalize/Div_output_0": TensorProto.FLOAT16, **dict.fromkeys(features, TensorProto.FLOAT)}
    assert casts(to_float16(tiny())) == expected


@pytest.mark.parametrize("backbone", FEATURES)
def test_score_is_that_of_float32(backbone: str) -> None:
    model = tiny(backbone, size=32)
    plain, half = (runtime_outputs(graph, IMAGES, ["score", "anomaly_map"]) for graph in (model, to_float16(model)))
    assert half[0].dtype == half[1].dtype == np.float32
    assert (half[0] != plain[0]).any()
    # float16 rounds each of ten layers by 2^-11, half a thousandth.
    np.testing.assert_allclose(half[0], plain[0], rtol=0.01)
    np.testing.assert_allclose(half[1], plain[1], rtol=0.01, atol=0.01 * float(plain[1].max()))


def test_squared_norms_beyond_float16_are_right() -> None:
    model = tiny(size=32)
    for net in ("teacher", "student"):
        # The distance head divides by the norm, so large features change no score.
        for name in ("conv1.weight", "conv1.bias"):
            set_constant(model, f"{net}/{name}", constants(model)[f"{net}/{name}"] * 300)
        for place in ("layer1/conv1", "layer1/conv2", "layer2/conv1", "layer2/conv2", "layer2/downsample"):
            set_constant(model, f"{net}/{place}.bias", constants(model)[f"{net}/{place}.bias"] * 300)
    names = ["score", "/head/fine/teacher/ReduceSum_output_0", "/teacher/layer1/relu2/Relu_output_0"]
    score, squares, features = runtime_outputs(model, IMAGES, names)
    assert np.abs(features).max() < LARGEST < np.median(squares)
    half = runtime_outputs(to_float16(model), IMAGES, ["score"])[0]
    np.testing.assert_allclose(half, score, rtol=0.01)


def test_bounds_beyond_float16_are_clipped() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/a", 2)
    model = b.tap(b.clip(x, "teacher/clip", low=-1e30, high=float(np.finfo(np.float32).max)))
    assert beyond_float16(model) == []
    values = constants(to_float16(model))
    assert values["teacher/clip.min_fp16"] == -LARGEST and values["teacher/clip.max_fp16"] == LARGEST
    assert np.isfinite(runtime_outputs(to_float16(model), random_images(1), ["feature0"])[0]).all()


def large(factor: float) -> onnx.ModelProto:
    """Two convolutions, of which the first multiplies by a factor and the second takes it back."""
    b = Builder()
    x = b.conv(b.relu(b.conv(b.normalize(), "teacher/a", 4), "teacher/relu"), "teacher/b", 4)
    model = b.tap(b.relu(x, "teacher/last"))
    for name, scale in (("teacher/a", factor), ("teacher/b", 1 / factor)):
        set_constant(model, f"{name}.weight", constants(model)[f"{name}.weight"] * np.float32(scale))
    set_constant(model, "teacher/a.bias", constants(model)["teacher/a.bias"] * np.float32(factor))
    return model


def test_weights_beyond_float16_stay_in_float32() -> None:
    model = large(1e6)
    kept = beyond_float16(model)
    assert kept == ["/teacher/a/Conv"]
    half = to_float16(model, kept)
    onnx.checker.check_model(half, full_check=True)
    assert constants(half)["teacher/a.weight"].dtype == np.float32


def test_activations_beyond_float16_stay_in_float32_with_who_reads_them() -> None:
    model, images = large(2e5), random_images(2)
    assert np.abs(constants(model)["teacher/a.weight"]).max() > LARGEST
    kept = beyond_float16(model, images)
    assert kept == ["/teacher/a/Conv", "/teacher/relu/Relu", "/teacher/b/Conv"]
    half = to_float16(model, kept)
    onnx.checker.check_model(half, full_check=True)
    plain, found = (runtime_outputs(graph, images, ["feature0"])[0] for graph in (model, half))
    np.testing.assert_allclose(found, plain, rtol=0.01, atol=0.01)
    free = runtime_outputs(to_float16(model), images, ["feature0"])[0]
    assert not np.allclose(free, plain, rtol=0.01, atol=0.01)  # what a clipped graph gives


@pytest.mark.parametrize(("greatest", "stay"), [(43_000, False), (44_500, True)])
def test_what_ends_near_the_end_of_float16_stays_in_float32(greatest: float, stay: bool) -> None:
    images = random_images(2)
    before = np.abs(runtime_outputs(large(1), images, ["/teacher/a/Conv_output_0"])[0]).max()
    kept = beyond_float16(large(greatest / float(before)), images)
    assert kept == (["/teacher/a/Conv", "/teacher/relu/Relu", "/teacher/b/Conv"] if stay else [])


def test_weights_that_become_zero_are_counted() -> None:
    model = tiny(size=32)
    assert vanishing_weights(model) == 0
    weight = constants(model)["teacher/conv1.weight"].copy()
    weight.flat[:3] = (1e-9, -1e-9, 0)
    set_constant(model, "teacher/conv1.weight", weight)
    assert vanishing_weights(model) == 2
    assert (constants(to_float16(model))["teacher/conv1.weight_fp16"].flat[:2] == 0).all()
    assert vanishing_weights(model, ["/teacher/conv1/Conv"]) == 0


def test_activations_are_looked_at_where_no_constant_tells() -> None:
    model, images = large(3e4), random_images(2)
    assert np.abs(constants(model)["teacher/a.weight"]).max() < LARGEST and beyond_float16(model) == []
    assert beyond_float16(model, images) == ["/teacher/a/Conv", "/teacher/relu/Relu", "/teacher/b/Conv"]


def test_nothing_is_kept_that_fits() -> None:
    assert beyond_float16(tiny(), random_images(2)) == []


def test_initializer_that_head_and_backbone_share_is_kept_in_both_types() -> None:
    b = Builder()
    factor = b.constant("factor", np.full((1, 4, 1, 1), 0.1, np.float32))
    x = b.node("Mul", [b.conv(b.normalize(), "teacher/a", 4), factor], "teacher")
    model = b.tap(b.node("Mul", [x, factor], "head"))
    half = to_float16(model)
    onnx.checker.check_model(half, full_check=True)
    values = constants(half)
    assert values["factor"].dtype == np.float32 and values["factor_fp16"].dtype == np.float16
    assert node_of(half, "/head/Mul").input[1] == "factor" and node_of(half, "/teacher/Mul").input[1] == "factor_fp16"


def test_initializer_that_two_convolutions_share_is_stored_once() -> None:
    model = tiny()
    node_of(model, "/student/conv1/Conv").input[1] = "teacher/conv1.weight"
    half = to_float16(model)
    names = [tensor.name for tensor in half.graph.initializer]
    assert names.count("teacher/conv1.weight_fp16") == 1
    assert "teacher/conv1.weight" not in names and "student/conv1.weight_fp16" not in names


def test_tensor_that_the_head_reads_twice_is_cast_once() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "teacher/a", 4)
    half = to_float16(b.tap(b.node("Mul", [x, x], "head"), b.node("Abs", [x], "head")))
    assert casts(half) == {"/normalize/Div_output_0": TensorProto.FLOAT16, x: TensorProto.FLOAT}


def test_scales_of_a_resize_in_the_backbone_stay_float32() -> None:
    b = Builder()
    x = b.upsample(b.conv(b.normalize(), "student/a", 4), "student/up")
    half = to_float16(b.tap(b.conv(x, "student/b", 4)))
    onnx.checker.check_model(half, full_check=True)
    assert constants(half)["student/up.scales"].dtype == np.float32
    assert types_of(half)["/student/up/Resize_output_0"] == TensorProto.FLOAT16
    assert runtime_outputs(half, random_images(1), ["feature0"])[0].shape == (1, 4, 32, 32)


def test_integers_in_the_backbone_stay_integers() -> None:
    b = Builder()
    x = b.conv(b.normalize(), "student/a", 4)
    flat = b.node("Reshape", [x, b.constant("shape", np.array([0, 4, 256, 1]))], "student")
    half = to_float16(b.tap(flat))
    onnx.checker.check_model(half, full_check=True)
    assert constants(half)["shape"].dtype == np.int64


def test_the_original_is_not_changed() -> None:
    model = tiny()
    before = model.SerializeToString(deterministic=True)
    to_float16(model)
    assert model.SerializeToString(deterministic=True) == before
