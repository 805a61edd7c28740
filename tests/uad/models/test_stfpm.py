"""The contract of a model, and STFPM's own mathematics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.errors import UserError  # noqa: E402
from uad.errors import CheckpointError  # noqa: E402
from uad.models.backbones import BACKBONES, FeaturePyramid  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))


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
    source = BACKBONES["mobilenet_v2"].build(weights=None)
    torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "half.pth")
    pyramid = FeaturePyramid("mobilenet_v2", str(tmp_path / "half.pth"))
    loaded = pyramid.state_dict()["body.features.0.0.weight"]
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, source.features[0][0].weight.half().float())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(BACKBONES["resnet18"].build(weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="does not hold torchvision weights of mobilenet_v2"):
        FeaturePyramid("mobilenet_v2", str(tmp_path / "resnet.pth"))
    with pytest.raises(CheckpointError, match="no such file"):
        FeaturePyramid("mobilenet_v2", str(tmp_path / "absent.pth"))


def test_gradients_reach_all_of_the_student_and_none_of_the_teacher(images: Any) -> None:
    model = STFPM("resnet18", "none")
    model.train()
    model.loss(images).backward()
    assert all(parameter.grad is None for parameter in model.network.teacher.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.network.student.parameters())


def test_the_teacher_never_changes_not_even_its_batch_statistics(images: Any) -> None:
    model = STFPM("resnet18", "none")
    before = {name: value.clone() for name, value in model.network.teacher.state_dict().items()}
    model.train()
    model.loss(images)
    assert all(torch.equal(value, before[name]) for name, value in model.network.teacher.state_dict().items())


def test_a_student_equal_to_its_teacher_sees_no_anomaly(images: Any) -> None:
    model = STFPM("resnet18", "none").eval()
    model.network.student.load_state_dict(model.network.teacher.state_dict())
    assert float(model.loss(images)) == pytest.approx(0.0, abs=1e-5)
