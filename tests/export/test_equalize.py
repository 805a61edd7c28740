"""export.equalize: channels of one range, from a graph that computes the same."""

from __future__ import annotations

from typing import Callable

import numpy as np
import onnx
import pytest
from graphs import Builder, node_of, quantize, random_images, reference_outputs, set_constant, tiny, tiny_info

from engines.graph import constants
from export.calibrate import calibrator
from export.equalize import LIMIT, MARGIN, equalizable, equalize
from export.errors import CalibrationError

IMAGES = random_images(4)
CHANNELS = 8
EXPAND, DEPTHWISE, PROJECT = (f"student/{name}" for name in ("expand", "depthwise", "project"))
Activation = Callable[[Builder, str], str]
ACTIVATIONS: dict[str, Activation] = {
    "relu6": lambda b, x: b.clip(x, "student/clip"),
    "relu": lambda b, x: b.relu(x, "student/relu"),
    "linear": lambda b, x: x,
}


def block(b: Builder, spread: float = 1000.0, activation: Activation = ACTIVATIONS["relu6"]) -> tuple[str, str]:
    """Expand, depthwise, project: channel 0 has the widest range, the last one `spread` times less.

    The depthwise convolution makes up for the difference, so that every channel counts in the output.

    Returns:
        The tensor that the depthwise convolution reads, and the output.
    """
    factor = np.geomspace(1.0, 1.0 / spread, CHANNELS, dtype=np.float32)
    x = b.conv(b.normalize(), EXPAND, CHANNELS, kernel=1)
    for part in ("weight", "bias"):
        values = b.constants[f"{EXPAND}.{part}"]
        b.constant(f"{EXPAND}.{part}", values * factor.reshape(-1, *[1] * (values.ndim - 1)))
    x = activation(b, x)
    y = b.conv(x, DEPTHWISE, CHANNELS, group=CHANNELS)
    b.constant(f"{DEPTHWISE}.weight", b.constants[f"{DEPTHWISE}.weight"] / factor.reshape(-1, 1, 1, 1))
    return x, b.conv(y, PROJECT, 4, kernel=1)


def graph(spread: float = 1000.0, activation: str = "relu6") -> tuple[onnx.ModelProto, str]:
    """The block alone, and the tensor that the depthwise convolution reads."""
    b = Builder()
    x, y = block(b, spread, ACTIVATIONS[activation])
    return b.tap(y), x


def output(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    return reference_outputs(model, images, ["feature0"])[0]


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """Equal but for the rounding of float32, some 1e-6 of the greatest value."""
    assert np.abs(one).max() > 0
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


def ranges(model: onnx.ModelProto, name: str) -> np.ndarray:
    return np.asarray(np.abs(reference_outputs(model, IMAGES, [name])[0]).max(axis=(0, 2, 3)))


def factors(model: onnx.ModelProto, equalized: onnx.ModelProto) -> np.ndarray:
    """What the filters of the expanding convolution were multiplied by."""
    before, after = (constants(each)[node_of(each, f"/{EXPAND}/Conv").input[1]] for each in (model, equalized))
    return np.asarray(np.abs(after).max(axis=(1, 2, 3)) / np.abs(before).max(axis=(1, 2, 3)))


def signal_to_noise(model: onnx.ModelProto, expected: np.ndarray) -> float:
    """Of the output of the INT8 version of a graph, dB."""
    quantized = quantize(model, tiny_info(), IMAGES, calibrator("minmax"))[0]
    return float(10 * np.log10(np.square(expected).sum() / np.square(output(quantized) - expected).sum()))


# What it does ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equalized_graph_computes_the_same_on_its_images(activation: str) -> None:
    model, name = graph(activation=activation)
    equalized = equalize(model, IMAGES)
    onnx.checker.check_model(equalized, full_check=True)
    assert factors(model, equalized).max() > 10  # it did something
    assert_same(output(model), output(equalized))


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_equalized_graph_computes_the_same_on_other_images_where_nothing_is_cut_off(activation: str) -> None:
    model, _ = graph(activation=activation)
    others = random_images(4, seed=1)
    assert_same(output(model, others), output(equalize(model, IMAGES[:1]), others))


def test_live_channels_have_one_range() -> None:
    model, name = graph(spread=LIMIT / 2)
    before, after = ranges(model, name), ranges(equalize(model, IMAGES), name)
    assert before.max() / before.min() > 10
    np.testing.assert_allclose(after, np.maximum(before, before.max() / MARGIN), rtol=1e-4)
    assert 1.4 * np.median(after) < before.max()  # a defect that is as much brighter stays in the range of INT8


def test_a_defect_goes_further_than_good_images_without_being_cut_off() -> None:
    # The filters of a channel are those of another image, 1.4 times as strong: so is what the channel shows.
    model, _ = graph(spread=LIMIT / 2)
    equalized = equalize(model, IMAGES)
    louder = []
    for each in (model, equalized):
        changed = onnx.ModelProto.FromString(each.SerializeToString())
        for index in (1, 2):
            name = node_of(changed, f"/{EXPAND}/Conv").input[index]
            values = constants(changed)[name].copy()
            values[-1] *= 1.4
            set_constant(changed, name, values)
        louder.append(changed)
    assert_same(output(louder[0]), output(louder[1]))
    assert not np.allclose(output(louder[0]), output(model), rtol=1e-3)


def test_int8_output_is_more_exact_after_it() -> None:
    model, _ = graph()
    expected = output(model)
    assert signal_to_noise(equalize(model, IMAGES), expected) >= signal_to_noise(model, expected) + 6.0


def test_range_of_every_image_counts() -> None:
    model, name = graph(spread=LIMIT / 2)
    whole = factors(model, equalize(model, IMAGES))
    np.testing.assert_array_equal(factors(model, equalize(model, IMAGES[::-1])), whole)
    assert (factors(model, equalize(model, IMAGES[:1])) != whole).any()


def test_factor_has_a_limit_and_is_never_below_1() -> None:
    model, _ = graph(spread=1000.0)
    found = factors(model, equalize(model, IMAGES))
    assert found[-1] == pytest.approx(LIMIT) and found.max() <= LIMIT * 1.0001
    assert found.min() == pytest.approx(1.0)


def test_dead_channel_keeps_the_factor_1() -> None:
    model, _ = graph()
    bias = constants(model)[f"{EXPAND}.bias"].copy()
    bias[3] = -1e4
    set_constant(model, f"{EXPAND}.bias", bias)
    equalized = equalize(model, IMAGES)
    found = factors(model, equalized)
    assert found[3] == 1.0 and found[2] > 1.0 and found[4] > 1.0
    weights = [constants(each)[node_of(each, f"/{DEPTHWISE}/Conv").input[1]] for each in (model, equalized)]
    np.testing.assert_array_equal(weights[0][3], weights[1][3])
    assert_same(output(model), output(equalized))


def test_tensor_that_never_leaves_zero_changes_nothing() -> None:
    model, _ = graph()
    set_constant(model, f"{EXPAND}.bias", np.full(CHANNELS, -1e4, np.float32))
    np.testing.assert_array_equal(factors(model, equalize(model, IMAGES)), 1.0)


def test_convolution_without_a_bias_works() -> None:
    model, _ = graph()
    del node_of(model, f"/{EXPAND}/Conv").input[2]
    assert_same(output(model), output(equalize(model, IMAGES)))


def test_depthwise_convolution_in_front_of_another_is_scaled_on_both_sides() -> None:
    b = Builder()
    x = b.clip(b.conv(b.normalize(), EXPAND, CHANNELS, kernel=1), "student/clip")
    y = b.clip(b.conv(x, DEPTHWISE, CHANNELS, group=CHANNELS), "student/clip2")
    model = b.tap(b.conv(y, "student/second", CHANNELS, group=CHANNELS))
    scale = np.geomspace(1, 0.05, CHANNELS, dtype=np.float32).reshape(-1, 1, 1, 1)
    for name in (EXPAND, DEPTHWISE):
        set_constant(model, f"{name}.weight", constants(model)[f"{name}.weight"] * scale)
    assert list(equalizable(model)) == [x, y]
    equalized = equalize(model, IMAGES)
    for name in (x, y):
        before, after = ranges(model, name), ranges(equalized, name)
        within = before * LIMIT > before.max()
        assert within.sum() > 3 and before[within].max() / before[within].min() > 2
        np.testing.assert_allclose(after[within], np.maximum(before, before.max() / MARGIN)[within], rtol=1e-4)
    assert_same(output(model), output(equalized))


def test_two_depthwise_convolutions_may_read_one_tensor() -> None:
    b = Builder()
    x, y = block(b, spread=LIMIT / 2)
    model = b.tap(y, b.conv(x, "student/second", CHANNELS, group=CHANNELS))
    equalized = equalize(model, IMAGES)
    assert factors(model, equalized).max() > 5
    for one, other in zip(*(reference_outputs(each, IMAGES, ["feature0", "feature1"]) for each in (model, equalized))):
        assert_same(one, other)


def test_whole_inverted_network_computes_the_same() -> None:
    model = tiny("inverted")
    equalized = equalize(model, IMAGES)
    assert len(equalizable(model)) == 8  # four blocks of two networks
    for name in equalizable(model):
        after = ranges(equalized, name)
        assert np.ptp(after[after > 0]) <= np.ptp(ranges(model, name)[after > 0])
    for one, other in zip(*(reference_outputs(each, IMAGES, ["score", "anomaly_map"]) for each in (model, equalized))):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


# What it leaves alone -------------------------------------------------------------------------------------------------


def read_by_the_head(b: Builder) -> onnx.ModelProto:
    x, y = block(b)
    return b.tap(y, x)


def read_by_a_dense_convolution(b: Builder) -> onnx.ModelProto:
    x, y = block(b)
    return b.tap(y, b.conv(x, "student/dense", 4))


def read_by_an_add(b: Builder) -> onnx.ModelProto:
    x, y = block(b)
    return b.tap(y, b.add(x, x, "student"))


def read_before_its_activation(b: Builder) -> onnx.ModelProto:
    _, y = block(b)
    return b.tap(y, f"/{EXPAND}/Conv_output_0")


def clipped_not_from_0(b: Builder) -> onnx.ModelProto:
    return b.tap(block(b, activation=lambda b, x: b.clip(x, "student/clip", low=-1.0))[1])


def clipped_with_no_lower_end(b: Builder) -> onnx.ModelProto:
    model = b.tap(block(b)[1])
    node_of(model, "/student/clip/Clip").input[1] = ""
    return model


def behind_another_activation(b: Builder) -> onnx.ModelProto:
    return b.tap(block(b, activation=lambda b, x: b.node("Sigmoid", [x], "student/sigmoid"))[1])


def straight_from_the_input(b: Builder) -> onnx.ModelProto:
    return b.tap(b.conv(b.normalize(), "student/depthwise", 3, group=3))


def grouped_but_not_depthwise(b: Builder) -> onnx.ModelProto:
    x = b.relu(b.conv(b.normalize(), EXPAND, CHANNELS), "student/relu")
    return b.tap(b.conv(x, DEPTHWISE, CHANNELS, group=CHANNELS // 2))


def no_depthwise_at_all(b: Builder) -> onnx.ModelProto:
    return tiny("residual")


@pytest.mark.parametrize(
    "build",
    [
        read_by_the_head,
        read_by_a_dense_convolution,
        read_by_an_add,
        read_before_its_activation,
        clipped_not_from_0,
        clipped_with_no_lower_end,
        behind_another_activation,
        straight_from_the_input,
        grouped_but_not_depthwise,
        no_depthwise_at_all,
    ],
    ids=lambda build: build.__name__,
)
def test_left_alone(build: Callable[[Builder], onnx.ModelProto]) -> None:
    model = build(Builder())
    assert equalizable(model) == {}
    assert equalize(model, IMAGES).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("shared", [EXPAND, DEPTHWISE])
def test_weight_is_not_changed_for_another_convolution_that_shares_it(shared: str) -> None:
    b = Builder()
    x, y = block(b)
    if shared == EXPAND:
        other = b.conv("/normalize/Div_output_0", "student/other", CHANNELS, kernel=1)
    else:  # of a convolution that reads an input which is not equalised
        z = b.node("Sigmoid", [b.conv("/normalize/Div_output_0", "student/z", CHANNELS)], "student/sigmoid")
        other = b.conv(z, "student/other", CHANNELS, group=CHANNELS)
    model = b.tap(y, other)
    node_of(model, "/student/other/Conv").input[1] = f"{shared}.weight"
    node_of(model, "/student/other/Conv").input[2] = f"{shared}.bias"
    equalized = equalize(model, IMAGES)
    assert factors(model, equalized).max() > 10
    for one, other in zip(*(reference_outputs(each, IMAGES, ["feature0", "feature1"]) for each in (model, equalized))):
        assert_same(one, other)
    np.testing.assert_array_equal(constants(equalized)[f"{shared}.weight"], constants(model)[f"{shared}.weight"])


def test_the_given_model_is_not_changed() -> None:
    model, _ = graph()
    before = model.SerializeToString(deterministic=True)
    equalize(model, IMAGES)
    assert model.SerializeToString(deterministic=True) == before


def test_nodes_keep_their_names_and_old_weights_are_gone() -> None:
    model, _ = graph()
    equalized = equalize(model, IMAGES)
    assert [node.name for node in equalized.graph.node] == [node.name for node in model.graph.node]
    assert len(equalized.graph.initializer) == len(model.graph.initializer)
    assert f"{EXPAND}.weight" not in constants(equalized)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_no_image_is_a_calibration_error() -> None:
    with pytest.raises(CalibrationError, match="no calibration images"):
        equalize(graph()[0], [])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activation_that_is_not_finite_is_named(bad: float) -> None:
    model, _ = graph(activation="relu")
    bias = constants(model)[f"{EXPAND}.bias"].copy()
    bias[2] = bad
    set_constant(model, f"{EXPAND}.bias", bias)
    with pytest.raises(CalibrationError, match="/student/relu/Relu_output_0 is not finite"):
        equalize(model, IMAGES)
