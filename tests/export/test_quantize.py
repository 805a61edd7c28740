"""export.quantize: the Q/DQ graph says what fake quantization in numpy says, and reports what it did."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from graphs import (
    MEAN,
    STD,
    Builder,
    node_of,
    quantize,
    random_images,
    reference_outputs,
    set_constant,
    tiny,
    tiny_info,
)

from engines.graph import constants, in_backbone, producers
from engines.qdq import for_tensorrt
from export.calibrate import CALIBRATORS, Histogram, amax_minmax, calibrator
from export.check import check_model
from export.errors import CalibrationError, ExportError
from export.quantize import collect_histograms, random_normal_images, ranges, with_seven_bits

IMAGES = random_images(4)
NETS = ("teacher", "student")


def quantized(model: onnx.ModelProto, name: str = "minmax") -> onnx.ModelProto:
    graph = quantize(model, tiny_info(), IMAGES, calibrator(name))[0]
    onnx.checker.check_model(graph, full_check=True)
    return graph


def qdq_names(model: onnx.ModelProto) -> list[str]:
    return sorted(node.name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def both(name: str) -> list[str]:
    return [f"{name}_output_0/Q", f"{name}_output_0/DQ"]


def test_a_weight_is_not_quantized_for_a_convolution_that_stays_in_float() -> None:
    model = tiny()
    first, second = "/teacher/layer1/conv1/Conv", "/teacher/layer1/conv2/Conv"
    weight = node_of(model, first).input[1]
    node_of(model, second).input[1] = weight  # shared
    for kept, other in ((first, second), (second, first)):
        mixed = quantize(model, tiny_info(), IMAGES, calibrator("minmax"), [kept])[0]
        onnx.checker.check_model(mixed, full_check=True)
        assert node_of(mixed, kept).input[1] == weight
        assert node_of(mixed, other).input[1] == f"{weight}_dq"


# Golden lists of Q/DQ -------------------------------------------------------------------------------------------------


def test_qdq_nodes_of_the_residual_network() -> None:
    expected = both("/normalize/Div")
    for net in NETS:
        expected += both(f"/{net}/relu/Relu")  # in front of the MaxPool
        expected += both(f"/{net}/maxpool/MaxPool")  # layer1, and its skip branch
        expected += both(f"/{net}/layer1/relu1/Relu")
        expected += both(f"/{net}/layer1/relu2/Relu")  # layer2, and its downsampling
        expected += both(f"/{net}/layer2/relu1/Relu")
        expected += both(f"/{net}/layer2/downsample/Conv")  # the skip branch
        for place in ("conv1", "layer1/conv1", "layer1/conv2", "layer2/conv1", "layer2/conv2", "layer2/downsample"):
            expected.append(f"{net}/{place}.weight/DQ")
    model, _, report = quantize(tiny("residual"), tiny_info(), IMAGES, calibrator("minmax"))
    assert qdq_names(model) == sorted(expected)
    assert (report.tensors, report.weights) == (13, 12)
    assert report.float_nodes == [] and report.dead == []


def test_qdq_nodes_of_the_inverted_network() -> None:
    expected = both("/normalize/Div")
    for net in NETS:
        expected += both(f"/{net}/stem/clip/Clip")
        expected += both(f"/{net}/block1/project/Conv")  # linear: block2, and its skip branch
        expected += both(f"/{net}/block2/Add")  # block3, and its skip branch
        expected += both(f"/{net}/block3/Add")
        expected += [f"{net}/stem.weight/DQ"]
        for block in ("block1", "block2", "block3", "block4"):
            expected += both(f"/{net}/{block}/clip1/Clip") + both(f"/{net}/{block}/clip2/Clip")
            expected += [f"{net}/{block}/{place}.weight/DQ" for place in ("expand", "depthwise", "project")]
    model, _, report = quantize(tiny("inverted"), tiny_info(), IMAGES, calibrator("minmax"))
    assert qdq_names(model) == sorted(expected)
    assert (report.tensors, report.weights) == (25, 26)


def test_nodes_of_the_float_graph_are_all_there() -> None:
    model = tiny()
    names = {node.name for node in quantized(model).graph.node}
    assert names >= {node.name for node in model.graph.node}


def test_float_weights_are_gone() -> None:
    values = constants(quantized(tiny()))
    assert not any(name.endswith(".weight") for name in values)


# Against numpy, by hand -----------------------------------------------------------------------------------------------


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """(N, C, H, W) with (D, C, k, k) -> (N, D, H / stride, W / stride), in float64."""
    pad = weight.shape[2] // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    out = np.einsum("nchwij,dcij->ndhw", windows[:, :, ::stride, ::stride], weight)
    return np.asarray(out + bias.reshape(1, -1, 1, 1))


def pool(x: np.ndarray) -> np.ndarray:
    """3x3, stride 2; the input is not negative, so zeros may pad it."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((4, 5)))


class HandWritten:
    """The tiny residual network in numpy; `amax` of each quantized place is taken from its float pass."""

    def __init__(self, values: dict[str, np.ndarray], net: str) -> None:
        self.values, self.net = values, net
        self.amax: dict[str, float] = {}

    def features(self, images: np.ndarray, fake: bool) -> list[np.ndarray]:
        def relu(x: np.ndarray) -> np.ndarray:
            return np.maximum(x, 0)

        def q(x: np.ndarray, place: str) -> np.ndarray:
            """Round to a grid of 127 steps on each side."""
            if not fake:
                self.amax[place] = float(np.abs(x).max())
                return x
            scale = self.amax[place] / 127
            return np.asarray(np.clip(np.rint(x / scale), -127, 127) * scale)

        def conv(x: np.ndarray, place: str, stride: int = 1) -> np.ndarray:
            weight, bias = (self.values[f"{self.net}/{place}.{part}"] for part in ("weight", "bias"))
            if fake:
                scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
                weight = np.rint(weight / scale) * scale
            return convolve(x, weight, bias, stride)

        x = q((images.transpose(0, 3, 1, 2) - MEAN) / STD, "image")
        x = q(pool(relu(conv(x, "conv1", 2))), "pool")
        y = q(relu(conv(x, "layer1/conv1")), "layer1")
        fine = relu(conv(y, "layer1/conv2") + x)
        x = q(fine, "fine")
        y = q(relu(conv(x, "layer2/conv1", 2)), "layer2")
        coarse = relu(conv(y, "layer2/conv2") + q(conv(x, "layer2/downsample", 2), "skip"))
        q(coarse, "coarse")
        return [fine, coarse]


@pytest.mark.parametrize("net", NETS)
def test_quantized_graph_computes_fake_quantization(net: str) -> None:
    model = tiny()
    by_hand = HandWritten(constants(model), net)
    plain = by_hand.features(IMAGES, fake=False)
    expected = by_hand.features(IMAGES, fake=True)
    names = [f"/{net}/layer1/relu2/Relu_output_0", f"/{net}/layer2/relu2/Relu_output_0"]
    found = reference_outputs(quantized(model), IMAGES, names)
    for index, place in enumerate(("fine", "coarse")):
        step = by_hand.amax[place] / 127
        difference = np.abs(found[index] - expected[index]) / step
        # float32 against float64: a value that lies on the border of two grid points may round the other way, which is
        # one step of one input of the next convolution, and so within a step of its output. Most values do not.
        assert difference.max() <= 1.0
        assert np.quantile(difference, 0.9) < 1e-3
        assert np.abs(expected[index] - plain[index]).max() > 0.1 * step  # quantization did something


def test_score_is_close_to_that_of_the_float_graph() -> None:
    model = tiny()
    plain, coarse = (reference_outputs(graph, IMAGES, ["score"])[0] for graph in (model, quantized(model)))
    assert (plain != coarse).any()
    np.testing.assert_allclose(coarse, plain, rtol=0.05)


# What is in the file --------------------------------------------------------------------------------------------------


def test_weights_are_int8_with_one_scale_for_each_output_channel() -> None:
    model = tiny()
    before, graph = constants(model), quantized(model)
    after = constants(graph)
    for name in (name for name in before if name.endswith(".weight")):
        node = node_of(graph, f"{name}/DQ")
        integers, scale, zero = (after[part] for part in node.input)
        assert integers.dtype == np.int8 and integers.shape == before[name].shape
        assert scale.dtype == np.float32 and scale.shape == zero.shape == before[name].shape[:1]
        assert zero.dtype == np.int8 and not zero.any()
        assert [attribute.i for attribute in node.attribute if attribute.name == "axis"] == [0]
        steps = before[name] / scale.reshape(-1, 1, 1, 1)
        assert np.abs(integers - steps).max() <= 0.5001
        # Each channel uses its whole range, and the range is symmetric.
        np.testing.assert_array_equal(np.abs(integers.astype(int)).max(axis=(1, 2, 3)), 127)


def test_weights_of_a_transposed_convolution_have_one_scale() -> None:
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "student/a", 4), "student/relu")
    weight = b.random.standard_normal((4, 5, 2, 2)).astype(np.float32) * np.arange(1, 6).reshape(1, 5, 1, 1)
    b.constant("student/up.weight", weight.astype(np.float32))
    y = b.node("ConvTranspose", [x, "student/up.weight"], "student/up", kernel_shape=[2, 2], strides=[2, 2])
    model = b.tap(y)
    graph = quantized(model)
    scale = constants(graph)["student/up.weight_scale"]
    assert scale.shape == constants(graph)["student/up.weight_zero_point"].shape == ()
    np.testing.assert_allclose(scale, np.abs(weight).max() / 127, rtol=1e-6)
    plain, coarse = (reference_outputs(each, IMAGES, ["feature0"])[0] for each in (model, graph))
    # A relative error of 1/254 at most for each factor of a product, far less for their sum.
    np.testing.assert_allclose(coarse, plain, atol=0.02 * np.abs(plain).max())


def test_biases_stay_as_they_are() -> None:
    model = tiny()
    before, after = constants(model), constants(quantized(model))
    for name in (name for name in before if name.endswith(".bias")):
        np.testing.assert_array_equal(after[name], before[name])


def test_activations_have_one_scale_and_the_zero_point_0() -> None:
    graph = quantized(tiny())
    values = constants(graph)
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = values[node.input[1]], values[node.input[2]]
            assert scale.dtype == np.float32 and scale.shape == () and scale > 0
            assert zero.dtype == np.int8 and zero.shape == () and zero == 0


def test_scale_of_an_activation_is_that_of_its_range_over_all_images() -> None:
    model = tiny()
    name = "/teacher/layer1/relu1/Relu_output_0"
    amax = reference_outputs(model, IMAGES, [name])[0].max()
    assert constants(quantized(model))[f"{name}_scale"] == pytest.approx(amax / 127, rel=1e-5)


def test_head_reads_the_features_before_they_are_quantized() -> None:
    for backbone in ("residual", "inverted"):
        graph = quantized(tiny(backbone))
        made_by = producers(graph)
        sources = {made_by[name].op_type for node in graph.graph.node if not in_backbone(node) for name in node.input
                   if name in made_by and node.op_type not in ("QuantizeLinear", "DequantizeLinear")}  # fmt: skip
        assert "DequantizeLinear" not in sources


def test_convolution_of_the_head_stays_in_float_though_it_shares_a_weight() -> None:
    b = Builder()
    x = b.normalize()
    model = b.tap(b.conv(b.conv(x, "teacher/a", 3), "head/smooth", 3))
    node_of(model, "/head/smooth/Conv").input[1] = "teacher/a.weight"
    graph = quantized(model)
    assert node_of(graph, "/head/smooth/Conv").input[1] == "teacher/a.weight"
    assert node_of(graph, "/teacher/a/Conv").input[1] == "teacher/a.weight_dq"


def test_weight_that_two_convolutions_share_is_stored_once() -> None:
    model = tiny()
    node_of(model, "/student/conv1/Conv").input[1] = "teacher/conv1.weight"
    graph = quantized(model)
    dequantized = {node_of(graph, f"/{net}/conv1/Conv").input[1] for net in NETS}
    assert dequantized == {"teacher/conv1.weight_dq"}
    assert "student/conv1.weight_int8" not in constants(graph)


def test_description_says_int8_and_the_scales_of_the_residuals() -> None:
    model = tiny()
    info = quantize(model, tiny_info(threshold=0.3), IMAGES, calibrator("minmax"))[1]
    assert info.precision == "int8" and info.threshold == 0.3
    names = [f"/{net}/layer1/conv2/Conv_output_0" for net in NETS]
    expected = [np.abs(values).max() / 127 for values in reference_outputs(model, IMAGES, names)]
    assert list(info.residual_scales) == names
    assert list(info.residual_scales.values()) == pytest.approx(expected, rel=1e-5)


def test_the_float_graph_is_not_changed() -> None:
    model = tiny("inverted")
    before = model.SerializeToString(deterministic=True)
    quantized(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_gives_a_graph_that_works(name: str) -> None:
    model = tiny()
    plain, coarse = (reference_outputs(graph, IMAGES, ["score"])[0] for graph in (model, quantized(model, name)))
    np.testing.assert_allclose(coarse, plain, rtol=0.2)


def test_calibrator_decides_the_scales() -> None:
    # Grey noise with one white pixel, which minmax alone keeps.
    images = (120 + 8 * np.random.default_rng(0).standard_normal((20, 16, 16, 3))).astype(np.uint8)
    images[0, 3, 5] = 255
    scales = {}
    for name in CALIBRATORS:
        graph = quantize(tiny(), tiny_info(), images, calibrator(name))[0]
        scales[name] = float(constants(graph)["/normalize/Div_output_0_scale"])
    white = ((255 - MEAN) / STD).max()
    assert scales["minmax"] == pytest.approx(white / 127, rel=1e-5)
    assert scales["percentile"] < 0.99 * scales["minmax"]
    assert scales["entropy"] < 0.9 * scales["minmax"]


# Dead channels, left in float -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["residual", "inverted"])
def test_seven_bit_weights_lie_on_a_grid_twice_as_coarse(backbone: str) -> None:
    model = tiny(backbone)
    graph = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))[0]
    seven = with_seven_bits(model, graph)
    before, after, floats = constants(graph), constants(seven), constants(model)
    names = [name[: -len("_int8")] for name in before if name.endswith("weight_int8")]
    assert len(names) > 10
    for name in names:
        assert np.abs(after[f"{name}_int8"]).max() == 63 and np.abs(before[f"{name}_int8"]).max() == 127
        scale = after[f"{name}_scale"]
        np.testing.assert_allclose(scale, before[f"{name}_scale"] * 127 / 63, rtol=1e-6)
        restored = after[f"{name}_int8"] * scale.reshape(-1, 1, 1, 1)
        assert (np.abs(restored - floats[name]) <= 0.5001 * scale.reshape(-1, 1, 1, 1)).all()
    others = [name for name in before if not name.endswith(("weight_int8", "weight_scale"))]
    assert all(np.array_equal(before[name], after[name]) for name in others)


def test_dead_channel_has_the_scale_1_and_is_reported() -> None:
    model = tiny()
    weight = constants(model)["teacher/layer1/conv1.weight"].copy()
    weight[2] = 0
    set_constant(model, "teacher/layer1/conv1.weight", weight)
    graph, _, report = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))
    scale = constants(graph)["teacher/layer1/conv1.weight_scale"]
    assert scale[2] == 1.0 and (scale[[0, 1, 3]] < 0.1).all()
    assert not constants(graph)["teacher/layer1/conv1.weight_int8"][2].any()
    assert report.dead == ["teacher/layer1/conv1.weight"]
    assert check_model(for_tensorrt(graph), "tensorrt") == []


@pytest.mark.parametrize("name", CALIBRATORS)
def test_tensor_that_never_leaves_zero_has_the_scale_1_and_is_reported(name: str) -> None:
    model = tiny()
    set_constant(model, "teacher/layer1/conv1.bias", np.full(4, -1e6, np.float32))
    graph, _, report = quantize(model, tiny_info(), IMAGES, calibrator(name))
    name = "/teacher/layer1/relu1/Relu_output_0"
    assert constants(graph)[f"{name}_scale"] == 1.0
    assert report.dead == [name]
    assert check_model(for_tensorrt(graph), "tensorrt") == []


@pytest.mark.parametrize("bias", [0.0, 0.5, -200.0])
def test_scale_of_a_weight_leaves_its_bias_within_int32(bias: float) -> None:
    # A channel that is dead but for a rest, as EfficientNet-Lite0 has them.
    model = tiny()
    name = "teacher/layer1/conv1"
    weight, biases = (np.copy(constants(model)[f"{name}.{part}"]) for part in ("weight", "bias"))
    weight[1] = 1e-12
    biases[1] = bias
    set_constant(model, f"{name}.weight", weight)
    set_constant(model, f"{name}.bias", biases)
    graph, _, report = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))
    assert report.dead == [] and check_model(for_tensorrt(graph), "tensorrt") == []
    values = constants(graph)
    own = 1e-12 / 127
    input_scale = values[node_of(graph, node_of(graph, f"/{name}/Conv").input[0].replace("_dq", "/DQ")).input[1]]
    wanted = max(own, abs(bias) / (float(input_scale) * 2**30))
    np.testing.assert_allclose(values[f"{name}.weight_scale"][1], wanted, rtol=1e-5)
    others = [0, 2, 3]
    amax = np.abs(weight[others]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(values[f"{name}.weight_scale"][others], amax / 127, rtol=1e-6)


def left_in_float() -> onnx.ModelProto:
    """A grouped ConvTranspose, of which nobody knows whether TensorRT has INT8 kernels for it."""
    b = Builder()
    x = b.relu(b.conv(b.normalize(), "student/a", 4), "student/relu")
    b.constant("student/up.weight", b.random.standard_normal((4, 2, 2, 2)).astype(np.float32))
    y = b.node("ConvTranspose", [x, "student/up.weight"], "student/up", kernel_shape=[2, 2], strides=[2, 2], group=2)
    return b.tap(y)


def test_convolution_left_in_float_is_reported() -> None:
    graph, _, report = quantize(left_in_float(), tiny_info(), IMAGES, calibrator("minmax"))
    assert report.float_nodes == ["/student/up/ConvTranspose"]
    assert report.weights == 1
    assert "student/up.weight" in constants(graph)


def test_convolution_left_in_float_is_accepted_by_tensorrt() -> None:
    assert check_model(for_tensorrt(quantized(left_in_float())), "tensorrt") == []


# Bad input ------------------------------------------------------------------------------------------------------------


def test_no_image_is_a_calibration_error() -> None:
    with pytest.raises(CalibrationError, match="no calibration images"):
        quantize(tiny(), tiny_info(), [], calibrator("minmax"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activation_that_is_not_finite_is_named(bad: float) -> None:
    model = tiny()
    set_constant(model, "teacher/layer1/conv1.bias", np.array([0, 0, bad, 0], np.float32))
    with pytest.raises(CalibrationError, match="/teacher/layer.* is not finite"):
        quantize(model, tiny_info(), IMAGES, calibrator("minmax"))


def test_unknown_calibrator_lists_the_known() -> None:
    with pytest.raises(ExportError, match="unknown calibrator 'mse': choose one of entropy, percentile, minmax"):
        quantize(tiny(), tiny_info(), IMAGES, calibrator("mse"))


# Memory, images -------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_images() -> None:
    size, names = 128, ["/normalize/Div_output_0", "/teacher/relu/Relu_output_0"]
    model = tiny(size=size)

    def peak(count: int) -> int:
        """Of what Python and numpy allocate, which the tensors of each image are part of, bytes."""
        images = (random_images(1, size, seed)[0] for seed in range(count))
        tracemalloc.start()
        try:
            histograms = collect_histograms(model, names, images)
            assert histograms[names[0]].counts.sum() == count * 3 * size * size
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    image = 4 * 3 * size * size  # the smaller of the tensors that are looked at
    assert image < peak(2) and peak(30) < peak(2) + image


def test_histograms_count_every_value_of_every_image() -> None:
    model = tiny()
    name = "/teacher/layer1/relu1/Relu_output_0"
    histogram = collect_histograms(model, [name], IMAGES)[name]
    values = reference_outputs(model, IMAGES, [name])[0]
    assert histogram.counts.sum() == values.size
    assert histogram.amax == pytest.approx(values.max(), rel=1e-6)


def test_random_normal_images_depend_on_the_seed_alone() -> None:
    first, again, other = (list(random_normal_images(tiny_info(), 3, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).any()
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(list(random_normal_images(tiny_info(), 2, 0)), first[:2])


def test_random_normal_images_are_uint8_of_the_model_size() -> None:
    images = list(random_normal_images(tiny_info(height=8, width=12), 5, 0))
    assert len(images) == 5
    assert {(image.shape, image.dtype) for image in images} == {((8, 12, 3), np.dtype(np.uint8))}


def test_random_normal_images_have_the_mean_and_deviation_of_imagenet() -> None:
    images = np.concatenate(list(random_normal_images(tiny_info(height=64, width=64), 8, 0))).reshape(-1, 3)
    # Clipping to [0, 255] cuts what lies beyond 2 deviations: it moves the mean a little, and narrows.
    np.testing.assert_allclose(images.mean(0), MEAN.ravel(), atol=2.0)
    np.testing.assert_allclose(images.std(0), STD.ravel(), rtol=0.05)
    assert images.min() == 0 and images.max() == 255


def test_random_normal_images_have_the_mean_and_deviation_that_the_backbone_wants() -> None:
    info = tiny_info(height=64, width=64, mean=[0.5, 0.5, 0.2], std=[0.1, 0.1, 0.02])
    pixels = np.concatenate(list(random_normal_images(info, 8, 0))).reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(0), [127.5, 127.5, 51.0], atol=0.5)
    np.testing.assert_allclose(pixels.std(0), [25.5, 25.5, 5.1], rtol=0.02)


def test_a_tensor_gets_the_widest_range_that_any_class_asks_for() -> None:
    def counted(largest: float) -> Histogram:
        histogram = Histogram()
        histogram.update(np.array([0.1, largest], np.float32))
        return histogram

    dim, bright = {"a": counted(1.0), "b": counted(3.0)}, {"a": counted(2.0), "b": counted(0.5)}
    assert ranges([dim, bright], ["a", "b"], amax_minmax) == {"a": 2.0, "b": 3.0}
