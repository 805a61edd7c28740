"""uad.exporting.doubts: calibration that cannot be right is told, and what is right is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import set_constant, tiny, tiny_info, with_readout
from image_folders import make_class, noise, save

from export.readout import Statistics, class_distances, fit, read_statistics, see, with_statistics
from uad.data.folder import train_samples
from uad.data.reading import load_images
from uad.exporting.doubts import calibration_doubts
from uad.exporting.images import RANDOM_NORMAL, calibration_images

SIZE = (16, 16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: bolts are twice as bright as nuts."""
    images = tmp_path_factory.mktemp("images")
    make_class(images, "nut", train=24)
    for index in range(24):
        save(np.clip(2.0 * noise(index), 0, 255).astype(np.uint8), images / "bolt" / "train" / "good" / f"{index}.png")
    return images


@pytest.fixture(scope="module")
def model(root: Path) -> onnx.ModelProto:
    """A model whose read-out is fitted to these classes."""
    graph, samples = with_readout(), train_samples(root)
    pixels = list(load_images(samples, SIZE))
    labels = [["bolt", "nut"].index(sample.class_name) for sample in samples]
    statistics: Statistics = fit([see(graph, pixels, labels)], 2)
    return with_statistics(graph, statistics)


def doubts(model: onnx.ModelProto, source: object, **settings: object) -> list[str]:
    return calibration_doubts(model, calibration_images(tiny_info(), str(source), **settings))  # type: ignore[arg-type]


def test_images_of_every_class_are_not_doubted(model: onnx.ModelProto, root: Path) -> None:
    assert doubts(model, root) == []
    assert doubts(model, RANDOM_NORMAL) == []


def test_few_images_are_told(model: onnx.ModelProto, root: Path) -> None:
    (said,) = doubts(model, root, count=4)
    assert said.startswith("calibration on 4 image(s)")


def test_a_class_that_is_missing_is_told(model: onnx.ModelProto, root: Path) -> None:
    (said,) = doubts(model, root, classes=["nut"])
    assert said == "no calibration image of bolt: what only they show is clipped"


def test_flat_images_are_told(model: onnx.ModelProto, tmp_path: Path) -> None:
    for index in range(10):
        save(np.full((16, 16, 3), 0 if index % 2 else 255, np.uint8), tmp_path / "nut" / f"{index}.png")
    said = doubts(model, tmp_path)
    assert any("10 of 10 calibration images looked at are flat" in line for line in said)


def test_images_unlike_every_class_are_told(model: onnx.ModelProto, root: Path) -> None:
    statistics = read_statistics(model)
    assert statistics is not None
    elsewhere = dataclasses.replace(statistics, centroids=statistics.centroids + np.float32(3))
    (said,) = doubts(with_statistics(model, elsewhere), root)
    assert "32 of 32 calibration images looked at are unlike every class of the model (bolt, nut)" in said


def test_distances_by_hand() -> None:
    model = with_readout()
    pooled = see(model, [np.full((16, 16, 3), 90, np.uint8)], [0]).pooled[0]
    statistics = read_statistics(model)
    assert statistics is not None
    centroids = np.stack([pooled / statistics.spread + 1, pooled / statistics.spread + 3]).astype(np.float32)
    set_constant(model, "head.readout.centroids", centroids)
    np.testing.assert_allclose(class_distances(model, [np.full((16, 16, 3), 90, np.uint8)]), [1.0], rtol=1e-4)
    assert class_distances(tiny(), [np.zeros((16, 16, 3), np.uint8)]).shape == (0,)
