"""uad.evaluation.evaluate: every figure of `uad test` by hand, on an engine that answers what it is told."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import tiny_info
from image_folders import save

from engines import Engine, Prediction
from engines.errors import UadWarning, UserError
from uad.data import reading
from uad.data.folder import Sample
from uad.errors import DataError
from uad.evaluation.evaluate import evaluate, write_scores
from uad.tables import accuracy_table, class_lines

SIZE, GRID = 16, 4


class Told(Engine):
    """Gives an image whose grey value is v the v-th of some scores, and a map of that score."""

    runtime, arithmetic, batch = "told", "f32", 2

    def __init__(self, scores: list[float], bolt: float = 1.0, nut: float = 1.0, size: int = SIZE) -> None:
        self.info = tiny_info(size, thresholds={"bolt": bolt, "nut": nut})
        self.scores = scores

    def run(self, images: np.ndarray) -> Prediction:
        score = np.array([self.scores[image[0, 0, 0]] for image in images], np.float32)
        anomaly_map = np.zeros((len(images), GRID, GRID), np.float32)
        anomaly_map[:, 0, 0] = score
        return Prediction(score, anomaly_map)

    def close(self) -> None:
        """Nothing is held."""


def samples(folder: Path, *kinds: str, class_name: str = "nut", first: int = 0) -> list[Sample]:
    """An image of each kind; the first has the grey value `first`, the next one more."""
    made = []
    for number, kind in enumerate(kinds, start=first):
        image = np.full((SIZE, SIZE, 3), number, np.uint8)
        made.append(Sample(save(image, folder / f"{number}.png"), class_name, kind))
    return made


def test_image_figures_by_hand(tmp_path: Path) -> None:
    images = samples(tmp_path, "good", "good", "spot", "spot")
    report = evaluate(Told([0.1, 0.5, 0.4, 0.9]), images).report
    (nut,) = report["classes"].values()
    assert nut["image_auroc"] == pytest.approx(3 / 4)  # of the four pairs, 0.4 lies below 0.5
    assert nut["image_f1"] == pytest.approx(0.8)  # 0.4 and above: 2 of 3 called are right, and both are found
    assert (nut["n_good"], nut["n_bad"], nut["n_masks"]) == (2, 2, 0)
    assert nut["pixel_auroc"] is None and "agreement" not in nut and "agreement" not in report


def test_figures_over_all_are_means_over_the_classes(tmp_path: Path) -> None:
    nuts = samples(tmp_path, "good", "spot")
    bolts = samples(tmp_path, "good", "good", "spot", class_name="bolt", first=2)
    report = evaluate(Told([0.1, 0.9, 0.2, 0.6, 0.4]), [*nuts, *bolts]).report
    assert list(report["classes"]) == ["bolt", "nut"]
    assert [report["classes"][name]["image_auroc"] for name in ("bolt", "nut")] == [0.5, 1.0]
    assert report["image_auroc"] == 0.75


def test_flipped_is_where_the_two_decide_otherwise_each_at_its_own_threshold(tmp_path: Path) -> None:
    images = samples(tmp_path, "good", "good", "spot", "spot")
    model, reference = Told([1.0, 2.0, 3.0, 4.0], nut=2.5), Told([10.0, 30.0, 40.0, 20.0], nut=25.0)
    report = evaluate(model, images, reference).report
    agreement = report["agreement"]
    # The model calls the last two defective, the reference the second and third.
    assert agreement["flipped"] == report["classes"]["nut"]["agreement"]["flipped"] == 0.5
    # At the reference's 25 the model would call none.
    assert agreement["flipped_before"] == 0.5
    assert agreement["max_abs_map_diff"] == 37.0
    assert agreement["spearman"] == pytest.approx(0.4)  # ranks 1 2 3 4 beside 1 3 4 2: 1 - 6 * 6 / 60


def test_flipped_before_differs_where_thresholds_were_chosen_again(tmp_path: Path) -> None:
    images = samples(tmp_path, "good", "good", "spot", "spot")
    doubled = evaluate(Told([2.0, 4.0, 6.0, 8.0], nut=5.0), images, Told([1.0, 2.0, 3.0, 4.0], nut=2.5)).report
    assert doubled["agreement"]["flipped"] == 0.0
    assert doubled["agreement"]["flipped_before"] == 0.25  # 4.0 lies above 2.5, 2.0 does not


def test_a_score_at_the_threshold_is_no_defect(tmp_path: Path) -> None:
    images = samples(tmp_path, "good", "good")
    report = evaluate(Told([1.0, 1.5], nut=1.0), images, Told([0.5, 1.5], nut=1.0)).report
    assert report["agreement"]["flipped"] == 0.0


def test_each_class_is_decided_by_its_own_threshold(tmp_path: Path) -> None:
    images = [*samples(tmp_path, "spot"), *samples(tmp_path, "spot", class_name="bolt", first=1)]
    evaluation = evaluate(Told([1.0, 1.0], nut=0.5, bolt=2.0), images)
    assert {image.sample.class_name: image.threshold for image in evaluation.images} == {"bolt": 2.0, "nut": 0.5}
    write_scores(tmp_path / "scores.csv", evaluation.images)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert {name: row["decision"] for name, row in rows.items()} == {"bolt": "good", "nut": "defect"}
    assert rows["nut"]["score"] == "1.0" and rows["nut"]["reference_score"] == "" and rows["nut"]["kind"] == "spot"


def test_correlation_over_all_is_the_mean_and_the_lowest_class_is_named(tmp_path: Path) -> None:
    nuts = samples(tmp_path, "good", "good", "good")
    bolts = samples(tmp_path, "good", "good", "good", class_name="bolt", first=3)
    model, reference = Told([1.0, 2.0, 3.0, 7.0, 8.0, 9.0]), Told([1.0, 2.0, 3.0, 9.0, 8.0, 7.0])
    agreement = evaluate(model, [*nuts, *bolts], reference).report["agreement"]
    assert agreement["spearman"] == pytest.approx(0.0) and agreement["lowest"] == "bolt"


def test_pixel_figures_by_hand(tmp_path: Path) -> None:
    (spot,) = samples(tmp_path, "spot")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:2, :2] = 255  # where the map has its only value above 0
    path = save(mask, tmp_path / "mask.png")
    (good,) = samples(tmp_path, "good", first=1)
    found = evaluate(Told([1.0, 0.0]), [Sample(spot.path, "nut", "spot", (path,)), good]).report["classes"]["nut"]
    assert found["pixel_auroc"] == pytest.approx(1.0) and found["n_masks"] == 1 and found["n_merged_regions"] == 0
    mask[:] = 0
    mask[-2:, -2:] = 255  # at the other end
    save(mask, path)
    missed = evaluate(Told([1.0, 0.0]), [Sample(spot.path, "nut", "spot", (path,)), good]).report["classes"]["nut"]
    assert missed["pixel_auroc"] < 0.5


def test_regions_that_merge_as_a_mask_shrinks_are_counted(tmp_path: Path) -> None:
    mask = np.zeros((4 * SIZE, 4 * SIZE), np.uint8)
    mask[0, 0] = mask[0, 2] = mask[40, 40] = 255  # the first two end in one pixel
    path, (spot,) = save(mask, tmp_path / "mask.png"), samples(tmp_path, "spot")
    image = Sample(save(np.zeros((4 * SIZE, 4 * SIZE, 3), np.uint8), tmp_path / "large.png"), "nut", "spot", (path,))
    report = evaluate(Told([1.0]), [image, spot]).report["classes"]["nut"]
    assert report["n_merged_regions"] == 1 and report["n_masks"] == 1


def test_a_class_that_the_model_does_not_know_stands_apart_and_in_no_mean(tmp_path: Path) -> None:
    images = samples(tmp_path, "good", "good", "spot", "spot")
    images += samples(tmp_path, "good", "spot", class_name="gear", first=4)
    with pytest.warns(UadWarning, match="does not know gear: judged as what it is seen as, and in no mean"):
        report = evaluate(Told([0.1, 0.2, 0.4, 0.9, 0.7, 0.6]), images, Told([0.1, 0.2, 0.4, 0.9, 0.0, 5.0])).report
    assert report["image_auroc"] == 1.0 and list(report["classes"]) == ["nut"]
    assert report["unknown_classes"]["gear"]["image_auroc"] == 0.0
    assert report["agreement"]["spearman"] == pytest.approx(1.0) and report["agreement"]["flipped"] == 0.0
    table = accuracy_table(report).splitlines()
    assert table[-2].startswith("| mean ") and table[-1].startswith("| gear, not known ")
    (only,) = [evaluate(Told([0.0] * 6), images[4:]).report]
    assert only["image_auroc"] is None and "agreement" not in only


def test_a_reference_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes images of \(32, 32\), the model of \(16, 16\)"):
        evaluate(Told([1.0]), samples(tmp_path, "good"), Told([1.0], size=32))


def test_a_reference_that_reads_other_pixels_is_refused_and_one_of_another_network_told(tmp_path: Path) -> None:
    images, reference = samples(tmp_path, "good", "spot"), Told([1.0, 2.0])
    info = reference.info
    reference.info = dataclasses.replace(info, depths={"nut": 12})
    with pytest.raises(UserError, match="reads 16-bit files of {'nut': 12} bits, .* of 16"):
        evaluate(Told([1.0, 2.0]), images, reference)
    reference.info = dataclasses.replace(info, classes=["gear"], thresholds={"gear": 1.0})
    with pytest.warns(UadWarning, match="it has other classes$"):
        evaluate(Told([1.0, 2.0]), images, reference)
    reference.info = dataclasses.replace(info, std=[0.5] * 3)
    with pytest.warns(UadWarning, match="it has other normalisation$"):
        evaluate(Told([1.0, 2.0]), images, reference)
    reference.info = info
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(Told([1.0, 2.0]), images, reference)


def test_every_file_that_cannot_be_read_is_named_and_each_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = reading.read_resized, []

    def noted(path: Path, *given: Any) -> Any:
        decoded.append(path)
        return read(path, *given)

    monkeypatch.setattr(reading, "read_resized", noted)
    images = samples(tmp_path, *["good"] * 20, "spot", "spot")
    evaluate(Told([float(index) for index in range(22)]), images, Told([1.0] * 22))
    assert sorted(decoded) == sorted(sample.path for sample in images)
    for sample in (images[3], images[-1]):
        sample.path.write_bytes(b"no image")
    with pytest.raises(DataError, match="2 files cannot be used") as caught:
        evaluate(Told([1.0] * 22), images)
    assert all(sample.path.name in str(caught.value) for sample in (images[3], images[-1]))


class Telling(Told):
    """Sees an image whose grey value is even as a bolt, as far from it as its score."""

    def run(self, images: np.ndarray) -> Prediction:
        told = super().run(images)
        index = np.array([image[0, 0, 0] % 2 for image in images], np.int32)
        return dataclasses.replace(told, class_index=index, class_distance=told.score)


def test_classes_that_are_seen_are_counted_by_hand(tmp_path: Path) -> None:
    bolts = samples(
        tmp_path, "good", "good", "good", "spot", class_name="bolt"
    )  # the second and the last look like nuts
    cogs = samples(tmp_path, "good", "spot", class_name="cog", first=4)
    engine = Telling([0.1, 0.2, 3.0, 0.9, 0.4, 5.0], bolt=1.0, nut=0.3)
    engine.info = dataclasses.replace(engine.info, limits={"bolt": 2.0, "nut": 4.0})
    with pytest.warns(UadWarning, match="does not know cog"):
        found = evaluate(engine, [*bolts, *cogs])
    bolt, cog = found.report["classes"]["bolt"], found.report["unknown_classes"]["cog"]
    assert (bolt["n_of_other_class"], bolt["n_good_unknown"], bolt["n_bad_unknown"]) == (2, 1, 0)
    assert (cog["n_good_unknown"], cog["n_bad_unknown"]) == (0, 1)
    assert [image.threshold for image in found.images] == [1.0] * 4 + [1.0, 0.3]  # of no known class: as it is seen
    assert class_lines(found.report) == [
        "seen as another class than their folder's: 2 of 4 images",
        "of known classes, called unknown: 1 of 3 good images, 0 of 1 defects",
        "of cog, called unknown: 0 of 1 good images, 1 of 1 defects",
    ]
    write_scores(tmp_path / "scores.csv", found.images)
    with (tmp_path / "scores.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["decision"] for row in rows] == ["good", "good", "unknown", "good", "good", "unknown"]
    assert [row["seen_as"] for row in rows] == ["bolt", "nut"] * 3 and float(rows[2]["class_distance"]) == 3.0


def test_of_a_model_that_tells_no_class_nothing_is_counted(tmp_path: Path) -> None:
    report = evaluate(Told([0.1, 0.9]), samples(tmp_path, "good", "spot")).report
    assert report["classes"]["nut"]["n_of_other_class"] is None and class_lines(report) == []
