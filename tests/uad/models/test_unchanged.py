"""A checkpoint remade from a seed judges as it did in November 2026, before its code was moved into rooms.

before.npz was written by commit 95eca8c from the same numbers. The distance has since taken its roots before their
product, which moves a float32 score by less than 1e-5 of itself.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import quantize

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.graph import constants  # noqa: E402
from engines.images import RESIZE_RULE  # noqa: E402
from engines.metadata import ModelInfo  # noqa: E402
from export.calibrate import calibrator  # noqa: E402
from export.equalize import equalize  # noqa: E402
from export.onnx import export_network  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training.fold import fold  # noqa: E402

BEFORE = Path(__file__).with_name("before.npz")
SIZE = (64, 64)
SHAPES = {"centroids": (2, 96), "spread": (96,), "mean": (2, 3, 4, 4), "std": (2, 3, 4, 4), "border": (1, 1, 16, 16)}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a tensor of the network holds, whatever made the network."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    last = name.rpartition(".")[2]
    if name.startswith("head."):
        return np.abs(random.normal(0.5, 0.1, shape)) + (0.05 if last == "std" else 0.0)
    if len(shape) == 4:
        return random.normal(0.0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    return random.uniform(0.5, 1.5, shape) if last in ("weight", "running_var") else random.normal(0.0, 0.1, shape)


def network() -> Any:
    model = STFPM("mobilenet_v2", "none")
    state = model.network.state_dict()
    for name, value in state.items():
        before, last = name.replace("head.readout.", "head."), name.rpartition(".")[2]
        if name.startswith("normalize") or name.endswith(("blur", "num_batches_tracked")):
            continue
        if last == "move":  # no level was moved
            state[name] = torch.zeros_like(value)
            state[name][0, 0, value.shape[2] // 2, value.shape[3] // 2] = 1.0
            continue
        if ".levels." in name:  # the statistics of all the levels were one tensor
            level = int(name.split(".")[3])
            made = numbers(f"head.{last}", SHAPES[last])[:, level : level + 1]
        else:
            made = numbers(before, SHAPES[last] if name.startswith("head.readout.") else tuple(value.shape))
        state[name] = torch.from_numpy(made).float()
    model.network.load_state_dict(state)
    return model.network.eval()


def images() -> np.ndarray:
    """Twelve images of patches, as 8 smooth and 4 noisy ones."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (12, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    coarse[8:] = random.integers(0, 256, (4, *SIZE, 3))
    return coarse.astype(np.uint8)


def info() -> ModelInfo:
    place = {"height": SIZE[0], "width": SIZE[1], "resize": RESIZE_RULE, "map_stride": 4}
    colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return ModelInfo("stfpm", "mobilenet_v2", [], {}, 0.0, 0.05, {}, **place, **colours)


def test_scores_maps_and_scales_are_those_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.equalize.MARGIN", 1.0)  # there was none
    with np.load(BEFORE) as stored:
        before = dict(stored)
    made = network()
    with torch.no_grad():
        score, anomaly_map = (output.numpy() for output in made(torch.from_numpy(images()))[:2])
    np.testing.assert_allclose(score, before["score"], rtol=1e-5)
    np.testing.assert_allclose(anomaly_map, before["map"], rtol=0, atol=1e-5 * before["map"].max())
    model = equalize(export_network(fold(made), SIZE), list(images()))
    values = constants(quantize(model, info(), list(images()), calibrator("percentile"))[0])
    scales = {name: value.mean() for name, value in values.items() if name.endswith("_scale")}
    assert sorted(scales) == list(before["scale_names"])
    np.testing.assert_allclose([scales[name] for name in sorted(scales)], before["scales"], rtol=1e-4)
