"""export.dla: what a DLA of a Xavier NX would run, by NVIDIA's tables; each limit from both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, quantize, random_images, tiny, tiny_info, with_readout

from export.calibrate import calibrator
from export.dla import Layer, layers_on_dla

FLOAT32 = "normalisation and head compute in float32"


def reason_of(operator: str, shape: tuple[int, ...] = (), more: tuple[Any, ...] = (), **attributes: Any) -> str:
    """What keeps one node, which reads a weight of this shape or these constants, from a DLA."""
    builder = Builder()
    names = [builder.constant("weight", np.zeros(shape, np.float32))] if shape else []
    names += [
        builder.constant(f"c{i}", value) if isinstance(value, (np.ndarray, np.generic)) else ""
        for i, value in enumerate(more)
    ]
    builder.channels["x"] = shape[1] if shape else 4
    builder.node(operator, ["x", *names], "teacher/one", **attributes)
    nodes, values = builder.nodes, builder.constants
    graph = onnx.helper.make_graph(
        nodes,
        "one",
        [onnx.ValueInfoProto(name="x")],
        [],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    (layer,) = layers_on_dla(onnx.helper.make_model(graph), {})
    assert (layer.name, layer.operator) == (f"/teacher/one/{operator}", operator)
    return layer.reason


@pytest.mark.parametrize("backbone", ["residual", "inverted"])
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_backbone_runs_there_and_normalisation_and_head_do_not(backbone: str, is_int8: bool) -> None:
    model, scales = with_readout(backbone), {}
    names = [node.name for node in model.graph.node]
    if is_int8:
        model, info, _ = quantize(model, tiny_info(), random_images(2), calibrator("minmax"))
        scales = info.residual_scales
    layers = layers_on_dla(model, scales)
    assert sorted(layer.name for layer in layers) == sorted(names)
    for layer in layers:
        assert layer.reason == (FLOAT32 if layer.name.startswith(("/normalize/", "/head/")) else ""), layer


def test_a_layer_that_is_kept_in_float_does_not() -> None:
    layers = layers_on_dla(tiny(), {}, ["/teacher/conv1/Conv"])
    assert Layer("/teacher/conv1/Conv", "Conv", "it is kept in float32", "fp16") in layers


def test_a_layer_runs_in_int8_where_all_ranges_are_known() -> None:
    model = tiny()
    assert {layer.precision for layer in layers_on_dla(model, {}) if not layer.reason} == {"fp16"}
    quantized, info, _ = quantize(model, tiny_info(), random_images(2), calibrator("minmax"))
    precisions = {layer.name: layer.precision for layer in layers_on_dla(quantized, info.residual_scales)}
    assert precisions["/teacher/layer1/conv1/Conv"] == precisions["/teacher/maxpool/MaxPool"] == "int8"
    # The head alone reads what comes last, so nobody knows its range.
    assert precisions["/teacher/layer2/Add"] == precisions["/teacher/layer2/relu2/Relu"] == "fp16"


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "reason"),
    [
        ("Conv", (8, 4, 32, 32), {}, ""),
        ("Conv", (8, 4, 33, 3), {}, "kernel 33 x 3, not 1 to 32"),
        ("Conv", (8192, 4, 1, 1), {}, ""),
        ("Conv", (8193, 4, 1, 1), {}, "output channels 8193, not 1 to 8192"),
        ("Conv", (8, 1, 3, 3), {"group": 8, "strides": [8, 8], "dilations": [32, 32], "pads": [2] * 4}, ""),
        ("Conv", (8, 4, 3, 3), {"strides": [9, 1]}, "stride 9 x 1, not 1 to 8"),
        ("Conv", (8, 4, 3, 3), {"dilations": [33, 1]}, "dilation 33 x 1, not 1 to 32"),
        ("Conv", (8, 4, 3, 3), {"pads": [3, 0, 0, 0]}, "padding 3 x 0 x 0 x 0, not 0 to 2"),
        ("ConvTranspose", (8, 4, 2, 2), {"strides": [2, 2]}, ""),
        ("ConvTranspose", (8, 4, 4, 4), {"strides": [2, 2], "pads": [1] * 4}, "padding 1 x 1 x 1 x 1, not 0"),
        ("ConvTranspose", (8, 4, 2, 2), {"group": 2}, "groups 2, not 1"),
        ("ConvTranspose", (8, 4, 23, 2), {}, "kernel 23 x 2, not 1 to 22"),
        ("MaxPool", (), {"kernel_shape": [8, 8], "strides": [16, 16], "pads": [7] * 4}, ""),
        ("AveragePool", (), {"kernel_shape": [9, 8]}, "window 9 x 8, not 1 to 8"),
        ("MaxPool", (), {"kernel_shape": [2, 2], "strides": [17, 1]}, "stride 17 x 1, not 1 to 16"),
        ("Concat", (), {"axis": 1}, ""),
        ("Concat", (), {"axis": 2}, "axis 2, not 1"),
        ("Relu", (), {}, ""),
        ("GlobalAveragePool", (), {}, "a DLA has no GlobalAveragePool"),
        ("Div", (), {}, "a DLA has no Div"),
    ],
)
def test_each_limit(operator: str, shape: tuple[int, ...], attributes: dict[str, Any], reason: str) -> None:
    assert reason_of(operator, shape, **attributes) == reason


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [(0, 6, ""), (0, 127, ""), (0, 128, "it clips to [0, 128]"), (-1, 6, "it clips to [-1, 6]"), (0, 0.5, "it clips")],
)
def test_a_clip_is_a_clipped_relu(low: float, high: float, reason: str) -> None:
    assert reason_of("Clip", more=(np.float32(low), np.float32(high))).startswith(reason or "x") == bool(reason)


def test_a_clip_without_an_upper_bound_is_none() -> None:
    assert reason_of("Clip", more=(np.float32(0),)) == "its bounds are not two constants"


@pytest.mark.parametrize(
    ("mode", "scales", "transformation", "reason"),
    [
        ("nearest", (1, 1, 32, 2), "asymmetric", ""),
        ("nearest", (1, 1, 33, 2), "asymmetric", "its scales are 1, 1, 33, 2, not 1, 1, and whole numbers to 32"),
        ("linear", (1, 1, 4, 4), "half_pixel", ""),
        ("linear", (1, 1, 5, 4), "half_pixel", "its scales are 1, 1, 5, 4, not 1, 1, and whole numbers to 4"),
        ("linear", (1, 1, 1.5, 1.5), "half_pixel", "its scales are 1, 1, 1.5, 1.5, not 1, 1, and whole"),
        ("linear", (1, 1, 2, 2), "align_corners", "linear resizing by align_corners, not half_pixel"),
        ("nearest", (1, 2, 2, 2), "asymmetric", "its scales are 1, 2, 2, 2"),
        ("nearest", (2, 2), "asymmetric", "its scales are not four constants"),
    ],
)
def test_a_resize(mode: str, scales: tuple[float, ...], transformation: str, reason: str) -> None:
    attributes = dict(mode=mode, coordinate_transformation_mode=transformation)
    found = reason_of("Resize", more=("", np.array(scales, np.float32)), **attributes)
    assert found.startswith(reason) and bool(found) == bool(reason)
