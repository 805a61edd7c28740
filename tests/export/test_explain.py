"""export.explain: figures equal to brute force, layers named, and a picture that is one."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import random_images, runtime_outputs, set_constant, tiny
from PIL import Image

from engines.errors import RuntimeNotInstalled
from engines.graph import constants
from export.calibrate import CALIBRATORS, Histogram, calibrator
from export.explain import (
    MOST_BARS,
    LayerReport,
    activation_sqnr_db,
    clipped_percent,
    layer_reports,
    observed_tensors,
    plot,
    require_matplotlib,
    write_reports,
)
from export.placement import place
from export.quantize import collect_histograms
from export.sensitivity import sqnr_db

IMAGES = random_images(8, seed=3)
RANDOM = np.random.default_rng(0)
VALUES = {
    "normal": RANDOM.standard_normal(200_000),
    "after a ReLU": np.maximum(RANDOM.standard_normal(200_000), 0),
    "after a ReLU6": np.clip(3 * RANDOM.standard_normal(200_000) + 2, 0, 6),
    "heavy tails": RANDOM.standard_t(3, 200_000),
    "sparse, with outliers": np.maximum(RANDOM.normal(-1, 1, 200_000), 40.0 * (RANDOM.random(200_000) < 0.001)),
}


def quantize_dequantize(values: np.ndarray, amax: float) -> np.ndarray:
    scale = np.float32(amax / 127)
    return np.clip(np.rint(values / scale), -127, 127) * scale


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in np.split(values.astype(np.float32), 10):
        histogram.update(part)
    return histogram


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("kind", VALUES)
def test_clipping_and_noise_are_those_of_brute_force(kind: str, name: str) -> None:
    values = VALUES[kind]
    histogram = histogram_of(values)
    amax = calibrator(name, percentile=99.5)(histogram)
    clipped = 100 * (np.abs(values) > amax * (1 + 1e-6)).mean()
    assert clipped_percent(histogram, amax) == pytest.approx(clipped, abs=0.002)
    expected = sqnr_db(values, quantize_dequantize(values, amax))
    assert activation_sqnr_db(histogram, amax) == pytest.approx(expected, abs=0.1)


def test_clipping_inside_a_bin_takes_its_part() -> None:
    histogram = histogram_of(np.linspace(0, 1, 100_000))
    assert clipped_percent(histogram, 0.250061) == pytest.approx(75.0, abs=0.01)


def test_tensor_that_never_leaves_zero_has_neither_clipping_nor_noise() -> None:
    histogram = histogram_of(np.zeros(100))
    assert clipped_percent(histogram, 0.0) == 0.0
    assert activation_sqnr_db(histogram, 0.0) > 140


def reports_of(model: onnx.ModelProto, damage: dict[str, float], *float_layers: str) -> list[LayerReport]:
    histograms = collect_histograms(model, observed_tensors(place(model)), IMAGES)
    amax = {name: calibrator("percentile", percentile=99.0)(histograms[name]) for name in place(model).ranged()}
    return layer_reports(model, place(model), histograms, amax, damage, float_layers)


@pytest.mark.parametrize("backbone", ["residual", "inverted"])
def test_figures_of_the_activations_are_those_of_the_graph(backbone: str) -> None:
    model = tiny(backbone)
    reports = reports_of(model, {})
    for report in reports:
        values = runtime_outputs(model, IMAGES, [report.tensor])[0]
        assert report.largest == pytest.approx(np.abs(values).max(), rel=1e-6)
        assert report.clipped_percent == pytest.approx(100 * (np.abs(values) > report.amax * 1.000001).mean(), abs=0.06)
        expected = sqnr_db(values, quantize_dequantize(values, report.amax))
        assert report.activation_sqnr_db == pytest.approx(expected, abs=0.2)
    assert any(report.clipped_percent > 0.5 for report in reports)


def test_every_reader_of_a_pair_has_a_row_and_the_worst_is_first() -> None:
    model = tiny()
    layers = place(model).layers
    damage = {layer: 30.0 + index for index, layer in enumerate(reversed(layers))}
    reports = reports_of(model, damage, layers[2])
    readers = [reader for tensor in place(model).activations for reader in tensor.readers]
    assert sorted(report.layer for report in reports) == sorted(readers)
    assert [report.layer for report in reports[: len(layers)]] == list(damage)
    assert {report.layer.split("/")[-1] for report in reports[len(layers) :]} == {"Add", "MaxPool"}
    assert all(report.weight_sqnr_db is None and report.map_sqnr_db is None for report in reports[len(layers) :])
    assert [report.layer for report in reports if report.precision == "fp32"] == [layers[2]]
    assert {report.part for report in reports} == {"teacher", "student"}


def test_weights_have_noise_by_channel_and_dead_channels_are_counted() -> None:
    model = tiny()
    weight = constants(model)["teacher/layer1/conv1.weight"].copy()
    weight[[0, 2]] = 0
    weight[1] *= 100  # one scale a tensor would lose channel 3
    set_constant(model, "teacher/layer1/conv1.weight", weight)
    report = next(report for report in reports_of(model, {}) if report.layer == "/teacher/layer1/conv1/Conv")
    rounded = np.stack([quantize_dequantize(c, np.abs(c).max()) if c.any() else c for c in weight])
    assert report.dead_channels == 2
    assert report.weight_sqnr_db == pytest.approx(sqnr_db(weight, rounded), abs=0.01)


def test_csv_has_every_field(tmp_path: Path) -> None:
    reports = reports_of(tiny(), {"/student/conv1/Conv": 12.5})
    write_reports(tmp_path / "layers.csv", reports)
    with open(tmp_path / "layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(reports)
    assert list(rows[0]) == [field.name for field in dataclasses.fields(LayerReport)]
    assert rows[0]["layer"] == "/student/conv1/Conv" and float(rows[0]["map_sqnr_db"]) == 12.5
    assert rows[-1]["map_sqnr_db"] == ""


@pytest.mark.parametrize("count", [1, 200])
def test_picture_is_a_png_of_readable_size(count: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    row = next(report for report in reports_of(tiny(), {}) if report.weight_sqnr_db is not None)
    reports = [
        dataclasses.replace(row, layer=f"/{part}/layer{index}/Conv", map_sqnr_db=index - 2.5)
        for index, part in zip(range(count), itertools.cycle(("teacher", "student")))
    ]
    plot(tmp_path / "layers.png", reports)
    with Image.open(tmp_path / "layers.png") as image:
        assert image.format == "PNG"
        width, height = image.size
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert 800 <= width <= 2000 and 15 * min(count, MOST_BARS) < height < 1600
    assert (pixels == (0x00, 0x72, 0xB2)).all(axis=1).any()  # a part's colour
    assert [path.name for path in tmp_path.iterdir()] == ["layers.png"]


def test_missing_matplotlib_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeNotInstalled, match="--explain needs matplotlib .*pip install"):
        require_matplotlib()
