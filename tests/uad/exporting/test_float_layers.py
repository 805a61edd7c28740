"""uad.exporting.float_layers: the search finds few layers, and agreement is what it says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import reference_outputs, set_constant, tiny, tiny_info, with_blind_weights
from image_folders import bolts_and_nuts

from engines.graph import constants
from export.calibrate import calibrator
from export.errors import CalibrationError
from export.placement import place
from export.quantize import collect_histograms, with_ranges
from uad.data import folder, reading
from uad.data.defects import with_defects
from uad.evaluation.metrics import image_auroc, spearman
from uad.exporting.float_layers import (
    FEWEST_IMAGES,
    MOST_IMAGES,
    MOST_TRIALS_BACK,
    Agreement,
    Comparison,
    check_labelled,
    choose_float_layers,
    fewest_float_layers,
    good_for_agreement,
    most_trials,
)

LAYERS = [f"layer{index}" for index in range(50)]


class Accepts:
    """Accepts what holds all the layers it needs; counts how often it is asked."""

    def __init__(self, needed: Collection[str]) -> None:
        self.needed = set(needed)
        self.asked = 0

    def __call__(self, float_layers: Sequence[str]) -> bool:
        self.asked += 1
        return self.needed <= set(float_layers)


@pytest.mark.parametrize("needed", [[], [0], [49], [0, 1, 2], [3, 40], [7, 8, 30], range(50)], ids=str)
def test_search_finds_an_accepted_set_within_its_trials(needed: Sequence[int]) -> None:
    accepts = Accepts([LAYERS[index] for index in needed])
    found = fewest_float_layers(LAYERS, accepts)
    assert accepts.needed <= set(found)
    assert found == sorted(found, key=LAYERS.index)
    assert accepts.asked <= most_trials(50) == 1 + 6 + MOST_TRIALS_BACK


@pytest.mark.parametrize("needed", [[], [0], [5], [0, 1, 2], [0, 15], range(16)], ids=str)
def test_search_finds_the_fewest_of_few(needed: Sequence[int]) -> None:
    names = [LAYERS[index] for index in needed]
    assert fewest_float_layers(LAYERS[:16], Accepts(names), most_trials_back=100) == names


def test_search_gives_back_most_of_a_long_prefix() -> None:
    found = fewest_float_layers(LAYERS, Accepts([LAYERS[0], LAYERS[45]]))
    assert {LAYERS[0], LAYERS[45]} <= set(found) and len(found) <= 8


def test_search_that_may_not_give_back_returns_the_shortest_prefix() -> None:
    assert fewest_float_layers(LAYERS, Accepts([LAYERS[3], LAYERS[11]]), most_trials_back=0) == LAYERS[:12]


def test_an_agreement_bounds_correlation_and_auroc() -> None:
    assert Agreement(0.998).holds(0.998) and not Agreement(0.9979).holds(0.998)
    assert Agreement(1.0, 0.002).holds(0.998) and not Agreement(1.0, 0.0021).holds(0.998)
    assert Agreement(1.0, -0.5).holds(1.0) and Agreement(1.0 - 1e-12).holds(1.0)


def samples_of(**counts: int) -> list[folder.Sample]:
    return [folder.Sample(Path(f"{name}{index}.png"), name, "good") for name in counts for index in range(counts[name])]


def test_so_many_images_of_each_class_are_compared() -> None:
    chosen = good_for_agreement(samples_of(bolt=MOST_IMAGES + 5, nut=FEWEST_IMAGES))
    assert [s.class_name for s in chosen] == ["bolt"] * MOST_IMAGES + ["nut"] * FEWEST_IMAGES


def test_class_with_few_images_left_is_named() -> None:
    with pytest.raises(CalibrationError, match=f"at least {FEWEST_IMAGES} good images .* here 7 of nut: add images"):
        good_for_agreement(samples_of(bolt=20, nut=7))


def test_labels_count_where_a_class_has_both_kinds() -> None:
    defects = [folder.Sample(Path("x.png"), name, "scratch") for name in ("nut", "gear")]
    kept = check_labelled([*samples_of(bolt=1, nut=2), *defects], "DIR")
    assert {sample.class_name for sample in kept} == {"nut"} and len(kept) == 3
    with pytest.raises(CalibrationError, match="--validation-data DIR holds no class with good images and defects"):
        check_labelled([*samples_of(bolt=1), *defects], "DIR")


# With a model ---------------------------------------------------------------------------------------------------------

BAD = "/student/layer1/conv2/Conv"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bolts_and_nuts(tmp_path_factory.mktemp("images"))


def spoiled() -> onnx.ModelProto:
    return with_blind_weights(tiny(), BAD.strip("/").rpartition("/")[0])


def ranges(model: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    histograms = collect_histograms(model, place(model).ranged(), images)
    return {name: calibrator("minmax")(histogram) for name, histogram in histograms.items()}


def test_agreement_is_that_of_the_scores(root: Path) -> None:
    model, good, labelled = spoiled(), folder.train_samples(root), folder.test_samples(root)
    amax = ranges(model, reading.load_images(good, (16, 16)))
    quantized, info, _ = with_ranges(model, tiny_info(), amax, place(model))
    comparison = Comparison(model, tiny_info(), good, labelled, "onnxruntime")
    found = comparison.agreement(quantized, info)

    same = comparison.agreement(model, tiny_info())
    assert same.spearman == pytest.approx(1.0) and same.auroc_drop == pytest.approx(0.0)
    assert found.spearman < 0.99 and found.auroc_drop is not None

    from export.sensitivity import infer_model

    figures, areas = [], []
    for name in ("bolt", "nut"):
        of = [index for index, s in enumerate(good) if s.class_name == name]
        pixels = reading.load_images(good, (16, 16))
        both = []
        for mine in (pixels[of], with_defects(pixels)[of]):
            float_scores = reference_outputs(model, mine, ["score"])[0]
            both.append(spearman(float_scores, infer_model(quantized, info, mine, "onnxruntime").score) or 0.0)
        figures.append(min(both))
        tests = [s for s in labelled if s.class_name == name]
        images, truth = reading.load_images(tests, (16, 16)), [s.is_defect for s in tests]
        quantized_scores = infer_model(quantized, info, images, "onnxruntime").score
        areas.append(
            image_auroc(reference_outputs(model, images, ["score"])[0], truth) - image_auroc(quantized_scores, truth)
        )
    assert found.spearman == pytest.approx(min(figures), abs=1e-6) and min(figures) < max(figures)
    assert found.auroc_drop == pytest.approx(np.mean(areas), abs=1e-6)


def test_the_bad_layer_is_left_in_float(root: Path) -> None:
    model, good = spoiled(), folder.train_samples(root)
    amax = ranges(model, reading.load_images(good, (16, 16)))
    comparison = Comparison(model, tiny_info(), good, runtime="onnxruntime")
    order = sorted(place(model).layers, key=lambda name: name != BAD)  # the bad one first
    only_bad = comparison.agreement(*with_ranges(model, tiny_info(), amax, place(model, [BAD]))[:2])
    plain = comparison.agreement(*with_ranges(model, tiny_info(), amax, place(model))[:2])
    assert plain.spearman < only_bad.spearman
    least = (plain.spearman + only_bad.spearman) / 2  # between the two
    as_written = lambda names: with_ranges(model, tiny_info(), amax, place(model, names))[:2]  # noqa: E731
    choice = choose_float_layers(as_written, order, comparison, least)
    assert choice.names == [BAD]
    assert choice.agreement == only_bad and choice.int8 == plain
    loose = choose_float_layers(as_written, order, comparison, -1.0)
    assert loose.names == [] and loose.agreement == loose.int8


def test_scores_that_are_all_equal_are_refused(root: Path) -> None:
    model = tiny()
    weight = constants(model)["head.half"]
    set_constant(model, "head.half", np.zeros_like(weight))
    with pytest.raises(CalibrationError, match="every good image of bolt, nut the same score"):
        Comparison(model, tiny_info(), folder.train_samples(root), runtime="onnxruntime")


def test_every_layer_in_float_is_the_fp32_model(root: Path) -> None:
    good = folder.train_samples(root)
    comparison = Comparison(tiny(seed=5), tiny_info(), good, runtime="onnxruntime")
    model = tiny(seed=6)  # quantized, it never judges as the first does
    amax = ranges(model, reading.load_images(good, (16, 16)))
    layers = place(model).layers
    as_written = lambda names: with_ranges(model, tiny_info(), amax, place(model, names))[:2]  # noqa: E731
    choice = choose_float_layers(as_written, layers, comparison, 0.998)
    assert choice.names == layers
    assert choice.agreement == Agreement(1.0) and choice.int8.spearman < 0.9
