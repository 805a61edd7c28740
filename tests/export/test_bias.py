"""export.bias: the mean of every channel of a quantized graph is that of the float graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import FEATURES, tiny

from engines.graph import constants
from export.bias import BiasCorrection, by_depth
from export.calibrate import amax_percentile
from export.placement import place
from export.quantize import collect_histograms, insert_qdq, observe

IMAGES = list(np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8))
OTHERS = list(np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3), np.uint8))


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    placement = place(model)
    histograms = collect_histograms(model, placement.ranged(), IMAGES)
    return insert_qdq(model, {name: 0.7 * amax_percentile(found) for name, found in histograms.items()}, placement)[0]


def shift(model: onnx.ModelProto, other: onnx.ModelProto, images: list[np.ndarray]) -> float:
    """The greatest difference of a channel's mean, over all the convolutions."""
    names = [tensor for group in by_depth(model) for tensor in group.values()]
    one, two = (
        [
            np.mean([values[name].mean(axis=(0, 2, 3)) for values in list(observe(graph, names, images))], axis=0)
            for name in names
        ]
        for graph in (model, other)
    )
    return max(float(np.abs(a - b).max()) for a, b in zip(one, two))


@pytest.mark.parametrize("backbone", FEATURES)
def test_means_become_those_of_the_float_graph(backbone: str) -> None:
    model = tiny(backbone)
    rounded = quantized(model)
    corrected = BiasCorrection(model, IMAGES).correct(rounded)
    assert shift(model, rounded, IMAGES) > 0.01
    assert shift(model, corrected, IMAGES) < 1e-4  # the last layer's own correction undoes all before it
    assert shift(model, corrected, OTHERS) < 0.5 * shift(model, rounded, OTHERS)


def test_biases_alone_are_changed() -> None:
    model = tiny()
    rounded = quantized(model)
    before = rounded.SerializeToString()
    corrected = BiasCorrection(model, IMAGES).correct(rounded)
    assert rounded.SerializeToString() == before
    assert [node.op_type for node in corrected.graph.node] == [node.op_type for node in rounded.graph.node]
    old, new = constants(rounded), constants(corrected)
    biases = {f"{name}/corrected_bias" for group in by_depth(model) for name in group}
    assert biases <= set(new)
    for name in set(new) - biases:
        np.testing.assert_array_equal(new[name], old[name])


def test_layers_of_one_depth_come_together_and_in_order() -> None:
    groups = by_depth(tiny("inverted"))
    assert set(groups[0]) == {"/teacher/stem/Conv", "/student/stem/Conv"}
    order = [name for group in groups for name in group if name.startswith("/teacher")]
    nodes = [node.name for node in tiny("inverted").graph.node if node.name in order]
    assert order == nodes and all(len(group) == 2 for group in groups)


def test_progress_is_told_for_each_depth() -> None:
    model, steps = tiny(), []
    BiasCorrection(model, IMAGES[:2]).correct(quantized(model), lambda: steps.append(1))
    assert len(steps) == len(by_depth(model)) > 3
