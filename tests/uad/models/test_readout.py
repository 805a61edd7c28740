"""uad.models.readout: any number of maps at any scale, and what each read-out makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from uad.models.backbones import backbone_of  # noqa: E402
from uad.models.layers import back_by  # noqa: E402
from uad.models.readout import (  # noqa: E402
    TRUSTS,
    JoinedReadOut,
    ProductReadOut,
    RegionalReadOut,
    Seen,
    read_off,
)

SIDE = 64  # of the image
CLASSES = 2


def seen(strides: tuple[int, ...], count: int = 12, seed: int = 0) -> Seen:
    """Distances of good images; those of the second class are ten times as large."""
    torch.manual_seed(seed)
    label = torch.arange(count) % CLASSES
    scale = torch.tensor([0.01, 0.1])[label].view(-1, 1, 1, 1)
    maps = [(1 + 0.1 * torch.randn(count, 1, SIDE // stride, SIDE // stride)) * scale for stride in strides]
    return Seen(maps, torch.stack([label.float(), torch.ones(count)], dim=1) + 0.01 * torch.randn(count, 2), label)


@pytest.mark.parametrize("strides", [(8,), (4, 16), (4, 8, 16), (2, 4, 8, 32), (8, 8)])
def test_maps_of_any_number_and_scale_are_read(strides: tuple[int, ...]) -> None:
    good = seen(strides)
    readout = RegionalReadOut(strides, 2, [0.0] * len(strides))
    readout.fit([good, seen(strides, seed=1)], CLASSES)
    score, anomaly_map = read_off(readout, good.maps, good.pooled)[:2]
    assert anomaly_map.shape == (12, SIDE // strides[0], SIDE // strides[0]) and score.shape == (12,)
    assert anomaly_map.min() >= 0 and (score <= anomaly_map.amax(dim=(1, 2))).all()
    by_class = [score[good.label == index].mean() for index in range(CLASSES)]
    assert 0.5 < by_class[0] / by_class[1] < 2  # each class on its own scale


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("offset", [0.0, 8.0, 14.0])
def test_a_defect_at_any_level_stands_out_where_it_is(level: int, offset: float) -> None:
    """A level that sees it too far down and right, by so many pixels of the image, is moved back."""
    strides, offsets = (4, 8, 16), [0.0, 0.0, 0.0]
    offsets[level] = offset
    good = seen(strides)
    readout = RegionalReadOut(strides, 2, offsets)
    readout.fit([good], CLASSES)
    bad = [values.clone() for values in good.maps]
    side = SIDE // strides[level]
    bad[level][0, 0, side // 2, 3 * side // 4] *= 5
    score, anomaly_map = read_off(readout, bad, good.pooled)[:2]
    assert score[0] > 3 * score[2:].max()
    row, column = np.unravel_index(int(anomaly_map[0].argmax()), anomaly_map[0].shape)
    expected = [(place + 0.5) * strides[level] - offset for place in (side // 2, 3 * side // 4)]
    assert [(row + 0.5) * 4, (column + 0.5) * 4] == pytest.approx(expected, abs=6.0)


def test_a_map_moves_back_by_parts_of_a_pixel() -> None:
    maps = torch.zeros(1, 1, 5, 5)
    maps[0, 0, 3, 4] = 1.0
    kernel = back_by(1.25)
    moved = F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2)[0, 0]
    expected = torch.zeros(5, 5)
    expected[1:3, 2:4] = torch.outer(torch.tensor([0.25, 0.75]), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(moved, expected)


def test_fitted_buffers_are_loaded_whatever_the_classes_and_the_size() -> None:
    good = seen((4, 8))
    readout, other = RegionalReadOut((4, 8), 2, (0.0, 0.0)), RegionalReadOut((4, 8), 2, (0.0, 0.0))
    readout.fit([good], CLASSES)
    other.load_state_dict(readout.state_dict())
    for one, same in zip(*(read_off(each, good.maps, good.pooled) for each in (readout, other))):
        assert torch.equal(one, same)


def test_the_product_is_that_of_the_paper() -> None:
    fine = torch.tensor([[[[0.5, 0.1], [0.2, 0.4]]]])
    coarse = torch.tensor([[[[0.5]]]])
    score, anomaly_map = read_off(ProductReadOut((4, 8)), [fine, coarse], torch.zeros(1, 2))
    torch.testing.assert_close(anomaly_map, 0.5 * fine[:, 0])
    assert float(score) == 0.25


@pytest.mark.parametrize("place", [0, 1])
def test_what_rounding_put_below_0_makes_no_product_negative(place: int) -> None:
    maps: list[Any] = [torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)]
    maps[place] = torch.full((1, 1, 2, 2), -1e-8)
    score, anomaly_map = read_off(ProductReadOut((4, 4)), maps, torch.zeros(1, 2))
    assert float(score) == 0 and anomaly_map.min() == 0


def test_a_distance_below_the_mean_of_good_images_is_no_anomaly() -> None:
    good = seen((4, 8))
    readout = RegionalReadOut((4, 8), 2, (0.0, 0.0))
    readout.fit([good], CLASSES)
    score, anomaly_map = read_off(readout, [0.0 * values for values in good.maps], good.pooled)[:2]
    assert anomaly_map.max() == 0 and score.max() == 0


def joined_and_seen(count: int) -> tuple[JoinedReadOut, Seen]:
    """A read-out of four levels, fitted to good images; the last level is that of a bank."""
    good = seen((4, 8, 16, 16), count)
    readout = JoinedReadOut(backbone_of("mobilenet_v2"))
    readout.fit([good], CLASSES)
    return readout, good


def defective(good: Seen, student: float, bank: float, of_class: int) -> Seen:
    """The maps of one class, times these in one spot."""
    maps = [values.clone() for values in good.maps]
    for values, factor in zip(maps, (student, student, student, bank)):
        values[good.label == of_class, :, : values.shape[2] // 4, : values.shape[3] // 4] *= factor
    return Seen(maps, good.pooled, good.label)


def test_a_joined_map_is_a_weighted_sum_of_logarithms() -> None:
    readout, good = joined_and_seen(12)
    readout.trust = torch.tensor([0.8, 0.0]).view(-1, 1, 1, 1)
    bad = defective(good, 3.0, 2.0, 0)
    excesses = [level(values, bad.label).numpy() for level, values in zip(readout.levels, bad.maps)]
    student, bank = np.log1p(sum(excesses[:3])), np.log1p(excesses[3])
    trust = np.array([0.8, 0.0])[bad.label][:, None, None, None]
    expected = torch.from_numpy((1 - trust) * student + trust * bank).float()
    expected = F.conv2d(expected, readout.blur, padding=readout.blur.shape[-1] // 2) * readout.border
    torch.testing.assert_close(readout(bad.maps, bad.label)[1], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_the_bank_is_trusted_less_where_the_student_is_clearly_better() -> None:
    readout, good = joined_and_seen(80)
    kinds = [defective(good, 1.15, 1.0, 1), defective(good, 1.2, 1.0, 1)]  # what the bank does not see, in one class
    kinds = [defective(kind, 1.0, 1.3, 0) for kind in kinds]  # and what the student does not, in the other
    readout.fit_trust([good], *([kind] for kind in kinds))
    assert [round(each, 3) for each in readout.trust.flatten().tolist()] == [TRUSTS[0], 0.0]


def test_few_images_do_not_shake_the_trust() -> None:
    readout, good = joined_and_seen(4)  # two of each class: 0.5 / sqrt(2) = .35
    readout.fit_trust([good], [defective(good, 1.15, 1.0, 1)])
    assert readout.trust.flatten().tolist() == pytest.approx([TRUSTS[0]] * 2)
