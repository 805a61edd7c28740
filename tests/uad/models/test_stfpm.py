"""STFPM's own mathematics, and its backbones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.errors import UserError  # noqa: E402
from uad.data.batches import Batch, GoodImages  # noqa: E402
from uad.errors import CheckpointError  # noqa: E402
from uad.models.backbones import BACKBONES, FeaturePyramid  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))


def batch(images: Any) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_pyramid_has_levels_at_a_quarter_an_eighth_and_a_sixteenth(backbone: str) -> None:
    features = FeaturePyramid(backbone, "none").eval()(torch.zeros(1, 3, 64, 96))
    channels = BACKBONES[backbone].channels
    assert [tuple(level.shape[1:]) for level in features] == [
        (channels[0], 16, 24),
        (channels[1], 8, 12),
        (channels[2], 4, 6),
    ]


def test_weights_come_from_a_file_of_any_float_type(tmp_path: Path) -> None:
    source = BACKBONES["mobilenet_v2"].build()
    torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "half.pth")
    pyramid = FeaturePyramid("mobilenet_v2", str(tmp_path / "half.pth"))
    loaded = pyramid.state_dict()["body.features.0.0.weight"]
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, source.features[0][0].weight.half().float())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(BACKBONES["resnet18"].build().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="does not hold the published weights of mobilenet_v2"):
        FeaturePyramid("mobilenet_v2", str(tmp_path / "resnet.pth"))
    with pytest.raises(CheckpointError, match="no such file"):
        FeaturePyramid("mobilenet_v2", str(tmp_path / "absent.pth"))


def test_the_student_sees_the_drawn_images_and_learns_what_the_teacher_makes_of_the_good_ones(images: Any) -> None:
    model = STFPM("resnet18", "none").eval()
    drawn = images.clone()
    drawn[:, 10:30, 20:40] = 255
    student = model.network.student(model.network.normalize(drawn))
    wanted = sum((s - t).square().mean() for s, t in zip(student, model.targets(images)))
    torch.testing.assert_close(model.loss(batch(images)._replace(drawn=drawn)), wanted)
    assert (model.loss(batch(images)) - wanted).abs() > 1e-4


def test_gradients_reach_all_of_the_student_and_none_of_the_teacher(images: Any) -> None:
    model = STFPM("resnet18", "none")
    model.train()
    model.loss(batch(images)).backward()
    assert all(parameter.grad is None for parameter in model.network.teacher.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.network.student.parameters())


def test_the_teacher_never_changes_not_even_its_batch_statistics(images: Any) -> None:
    model = STFPM("resnet18", "none")
    before = {name: value.clone() for name, value in model.network.teacher.state_dict().items()}
    model.train()
    model.loss(batch(images))
    assert all(torch.equal(value, before[name]) for name, value in model.network.teacher.state_dict().items())


def test_a_student_equal_to_its_teacher_sees_no_anomaly(images: Any) -> None:
    model = STFPM("resnet18", "none").eval()
    model.network.student.load_state_dict(model.network.teacher.state_dict())
    assert float(model.loss(batch(images)).detach()) == pytest.approx(0.0, abs=1e-5)


@pytest.fixture(scope="module")
def fitted() -> Any:
    """A model fitted to dark images (class 0) and bright ones (class 1), and those images."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    dark = random.integers(0, 60, (6, 64, 64, 3), np.uint8)
    bright = random.integers(190, 256, (6, 64, 64, 3), np.uint8)
    images = torch.from_numpy(np.concatenate([dark, bright]))
    labels = torch.tensor([0] * 6 + [1] * 6)
    model = STFPM("resnet18", "none").eval()
    good = GoodImages(images, labels, ["dark", "bright"])
    model.prepare(good)
    model.fit_readout(good, good)
    return model, images, labels


def test_the_targets_of_the_student_have_mean_0_and_deviation_1(fitted: Any) -> None:
    model, images, _ = fitted
    network = model.network
    with torch.no_grad():
        for level in network.head.targets(network.teacher(network.normalize(images))):
            alive = level.std(dim=(0, 2, 3)) > 0
            assert alive.any()
            torch.testing.assert_close(level.mean(dim=(0, 2, 3)), torch.zeros(level.shape[1]), atol=1e-3, rtol=0)
            deviation = level[:, alive].std(dim=(0, 2, 3), correction=0)
            torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=1e-2, rtol=0)


def test_each_class_is_judged_on_its_own_scale(fitted: Any) -> None:
    model, images, labels = fitted
    network, head = model.network, model.network.head
    levels = head.readout.levels
    for level in levels:
        assert level.mean.shape == level.std.shape == (2, 1, 4, 4) and not torch.equal(level.mean[0], level.mean[1])
    with torch.no_grad():
        teacher, student = network.features(images)
        distances = head.distances(teacher, student)
    for index in range(2):
        for level, values in enumerate(distances):
            expected = values[labels == index].mean()
            torch.testing.assert_close(levels[level].mean[index].mean(), expected, rtol=0.05, atol=0)
    # Were the classes mixed up, one of them would stand out.
    with torch.no_grad():
        right = network(images)[0]
        for level in levels:
            level.mean, level.std = level.mean.flip(0), level.std.flip(0)
        wrong = network(images)[0]
        for level in levels:
            level.mean, level.std = level.mean.flip(0), level.std.flip(0)
    assert wrong.max() > 2 * right.max()


def test_smoothing_keeps_a_constant_map_up_to_the_border(fitted: Any) -> None:
    head = fitted[0].network.head.readout
    ones = torch.ones(1, 1, 16, 16)
    smooth = torch.nn.functional.conv2d(ones, head.blur, padding=head.blur.shape[-1] // 2) * head.border
    torch.testing.assert_close(smooth, ones)


def test_a_fitted_head_is_loaded_into_a_new_model(fitted: Any) -> None:
    model, images, _ = fitted
    other = STFPM("resnet18", "none").eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other.network(images)[0], model.network(images)[0])
