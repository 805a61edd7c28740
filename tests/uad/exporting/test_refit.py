"""uad.exporting.refit: on which images the read-out and the thresholds of a deployed graph rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import quantize, tiny, tiny_info, with_readout
from image_folders import bolts_and_nuts, held_out_digests, make_class, noise, save

from engines.graph import constants
from engines.metadata import OUTPUTS, ModelInfo
from export.calibrate import amax_percentile
from export.quantize import observe
from export.readout import read_statistics, see
from uad.data.folder import hold_out, train_samples
from uad.data.reading import each_image, load_images
from uad.evaluation.thresholds import paired_threshold
from uad.exporting.images import calibration_images
from uad.exporting.refit import Refit, choose_thresholds, share_above

SIZE = (16, 16)
HELD_OUT = {name: held_out_digests(name, 24, 0.25, 3) for name in ("bolt", "nut")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bolts_and_nuts(tmp_path_factory.mktemp("images"), good=2, defects=2)


def info(**changes: object) -> ModelInfo:
    return tiny_info(**{"held_out": HELD_OUT, **changes})


def deployed(model: onnx.ModelProto, root: Path) -> onnx.ModelProto:
    return quantize(model, info(), list(load_images(train_samples(root), SIZE)), amax_percentile)[0]


def test_the_read_out_is_that_of_the_quantized_graph(root: Path) -> None:
    model = with_readout()
    images = calibration_images(info(), str(root))
    refit = Refit(model, images)
    quantized = deployed(model, root)
    assert refit.counts == {"bolt": 18, "nut": 18} and refit.passes == 2 * 36
    fitted = refit.readout(quantized)
    assert refit.passes == 36
    before, after = read_statistics(model), read_statistics(fitted)
    assert before is not None and after is not None
    pixels = list(load_images(images.readout, SIZE))
    labels = [["bolt", "nut"].index(sample.class_name) for sample in images.readout]
    one, other = see(model, pixels, labels), see(quantized, pixels, labels)
    for index in (0, 1):
        moved = (other.maps[1] - one.maps[1])[one.label == index].mean()
        assert (after.mean - before.mean)[index, 1].mean() == pytest.approx(moved, rel=0.05)
    assert not np.array_equal(after.centroids, before.centroids)
    # Nothing else of the graph is touched.
    old, new = constants(quantized), constants(fitted)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed and all(name.startswith("head.readout.") for name in changed)


def test_no_image_that_was_held_out_is_used(root: Path) -> None:
    images = calibration_images(info(), str(root))
    training, held_out = hold_out(train_samples(root), 0.25, 3)
    assert sorted(images.held_out, key=str) == sorted(held_out, key=str) and len(held_out) == 12
    assert set(images.readout) | set(images.samples) <= set(training)


def test_thresholds_decide_on_the_held_out_images_as_before(root: Path) -> None:
    model, quantized = with_readout(), deployed(with_readout(), root)
    held_out = calibration_images(info(), str(root)).held_out
    scores, expected = (
        np.array([values["score"][0] for values in observe(graph, ["score"], load_images(held_out, SIZE))])
        for graph in (quantized, model)
    )
    names = np.array([sample.class_name for sample in held_out])
    middle = {name: float(np.median(expected[names == name])) for name in ("bolt", "nut")}
    before = info(thresholds=middle, threshold=float(np.median(expected)))
    changed, chosen = choose_thresholds(quantized, before, model, held_out)
    assert chosen == ["bolt", "nut"]
    for name in chosen:
        of = names == name
        assert changed.thresholds[name] == paired_threshold(scores[of], expected[of], middle[name]) != middle[name]
    assert changed.threshold == paired_threshold(scores, expected, before.threshold)


def test_held_out_images_are_known_again_in_a_folder_that_grew_moved_and_lost_one(tmp_path: Path) -> None:
    root = bolts_and_nuts(tmp_path / "elsewhere")
    before = calibration_images(info(), str(root)).held_out
    exchanged = next(sample.path for sample in before if sample.class_name == "nut")
    save(noise(7), exchanged)  # the class has as many images as before
    for index in range(5):
        save(noise(70 + index), root / "bolt" / "train" / "good" / f"0new{index}.png")
    other = before[0].path.rename(before[0].path.with_name("zzz.png"))
    images = calibration_images(info(), str(root))
    expected = {sample.path for sample in before} - {exchanged, before[0].path} | {other}
    assert {sample.path for sample in images.held_out} == expected and len(expected) == 11
    assert exchanged in {sample.path for sample in images.readout}


def test_a_class_without_held_out_images_keeps_its_threshold(root: Path) -> None:
    forgetful = info(held_out={"bolt": HELD_OUT["bolt"], "nut": ["0" * 16]})
    quantized = deployed(with_readout(), root)
    images = calibration_images(forgetful, str(root))
    assert len(images.readout) == 18 + 24
    changed, chosen = choose_thresholds(quantized, forgetful, with_readout(), images.held_out)
    assert chosen == ["bolt"]
    assert changed.thresholds["nut"] == forgetful.thresholds["nut"] and changed.threshold == forgetful.threshold
    assert changed.thresholds["bolt"] != forgetful.thresholds["bolt"]


def test_limits_are_those_of_the_deployed_graph(root: Path) -> None:
    told = info(outputs=list(OUTPUTS), limits={"bolt": 9.0, "nut": 9.0}, held_out={**HELD_OUT, "nut": ["0" * 16]})
    quantized = deployed(with_readout(), root)
    images = calibration_images(told, str(root))
    changed, _ = choose_thresholds(quantized, told, with_readout(), images.held_out)
    seen = list(observe(quantized, ["class_index", "class_distance"], each_image(images.held_out, told.size)))
    far = [float(values["class_distance"][0]) for values in seen if values["class_index"][0] == 0]
    assert changed.limits == {"bolt": pytest.approx(1.05 * max(1.0, *far)), "nut": 9.0}


def test_noise_widens_and_moves_nothing(root: Path) -> None:
    model = with_readout()
    refit = Refit(model, calibration_images(info(), "random-normal", 6))
    assert refit.counts == {} and refit.passes == 12
    before, after = read_statistics(model), read_statistics(refit.readout(deployed(model, root)))
    assert before is not None and after is not None
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.centroids, before.centroids)
    assert (after.std >= before.std).all()


def test_a_folder_of_other_parts_is_as_noise(root: Path) -> None:
    strangers = dataclasses.replace(info(), classes=["bolt_a", "nut_a"])
    images = calibration_images(strangers, str(root), 10)
    assert images.readout == images.held_out == []
    refit = Refit(with_readout(), images)
    assert refit.counts == {} and refit.passes == 20


def test_a_read_out_without_statistics_stays(root: Path) -> None:
    refit = Refit(tiny(), calibration_images(info(), str(root)))
    quantized = deployed(tiny(), root)
    assert refit.passes == 0 and refit.readout(quantized) is quantized


def test_too_few_images_of_a_class_correct_nothing(tmp_path: Path) -> None:
    make_class(tmp_path, "bolt", train=24)
    make_class(tmp_path, "nut", train=6)
    images = calibration_images(info(), str(tmp_path))
    assert Refit(with_readout(), images).counts == {"bolt": 18}


def test_the_share_above_is_counted_by_hand(root: Path) -> None:
    model, good = with_readout(), train_samples(root)
    scores = {
        name: [
            float(values["score"][0])
            for values in observe(model, ["score"], load_images([s for s in good if s.class_name == name], SIZE))
        ]
        for name in ("bolt", "nut")
    }
    thresholds = {"bolt": sorted(scores["bolt"])[-4], "nut": max(scores["nut"])}
    assert share_above(model, info(thresholds=thresholds), good) == {"bolt": 3 / 24, "nut": 0.0}
    assert share_above(model, info(), []) == {}
