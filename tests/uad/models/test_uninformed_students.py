"""Uninformed Students' own: the two maps, what each student learns, and the read-out of the paper."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from uad.data.batches import Batch, GoodImages  # noqa: E402
from uad.models.patch_networks import NETWORKS  # noqa: E402
from uad.models.readout import ScaledReadOut, Seen  # noqa: E402
from uad.models.uninformed_students import STUDENTS, UninformedStudents, standardization  # noqa: E402

SIZE = (64, 96)


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8))


@pytest.fixture
def model(images: Any) -> Any:
    torch.manual_seed(0)
    found = UninformedStudents("none")
    found.prepare(GoodImages(images, torch.zeros(2, dtype=torch.int64), ["nut"]))
    return found.eval()


def test_one_map_is_of_the_mean_from_the_teacher_the_other_of_the_variance(model: Any, images: Any) -> None:
    teacher, students = model.network.features(images)
    error, variance = model.network.head.distances(teacher, students)
    said = torch.stack(students)
    wanted = (teacher - model.network.head.standardize.mean) / model.network.head.standardize.std
    torch.testing.assert_close(error[:, 0], (said.mean(dim=0) - wanted).square().mean(dim=1))
    torch.testing.assert_close(variance[:, 0], said.var(dim=0, correction=0).mean(dim=1))
    same = model.network.head.distances(teacher, [students[0]] * STUDENTS)[1]
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_each_student_learns_from_the_teacher_alone(model: Any, images: Any) -> None:
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    assert len(model.network.students) == STUDENTS == 3
    begun = [next(student.parameters()) for student in model.network.students]
    assert not torch.equal(begun[0], begun[1]) and not torch.equal(begun[1], begun[2])
    (target,) = model.targets(images)
    alone = [(student(model.network.normalize(images)) - target).square().mean() for student in model.network.students]
    torch.testing.assert_close(model.loss(batch), sum(alone))
    kept = batch._replace(targets=[target.half()])
    torch.testing.assert_close(model.loss(kept), model.loss(batch), rtol=1e-3, atol=1e-3)


def test_the_papers_read_out_adds_up_both_maps_standardised_class_by_class() -> None:
    random = np.random.default_rng(0)
    maps = torch.from_numpy(random.normal(3.0, 0.5, (4, 2, 100, 100)).astype(np.float32))
    maps[2:] = 10 * maps[2:]
    pooled, label = torch.tensor([[0.0], [0.1], [9.0], [9.1]]), torch.tensor([0, 0, 1, 1])
    readout = ScaledReadOut(2, 1, standardization)
    readout.fit([Seen(list(maps[:, :, None].unbind(1)), pooled, label)], 2)
    for centre, factor in ((0.0, 1), (9.0, 10)):
        two_above = torch.full((1, 1, 3, 3), factor * 4.0)
        one_above = torch.full((1, 1, 3, 3), factor * 3.5)
        score, joined = readout([two_above, one_above], readout.class_of(torch.tensor([[centre]])))
        torch.testing.assert_close(score, torch.tensor([3.0]), atol=0.05, rtol=0)
        torch.testing.assert_close(joined, torch.full((1, 3, 3), 3.0), atol=0.05, rtol=0)
    assert readout([torch.zeros(1, 1, 3, 3)] * 2, torch.tensor([0]))[1].max() == 0.0


@pytest.mark.parametrize("network", [name for name in NETWORKS if name.startswith("patch")])
def test_every_patch_size_of_the_paper_makes_a_model(network: Any, images: Any) -> None:
    model = UninformedStudents("none", network=network)
    score, anomaly_map = model.network(images)[:2]
    stride = NETWORKS[network].stride
    assert score.shape == (2,) and anomaly_map.shape == (2, SIZE[0] // stride, SIZE[1] // stride)
