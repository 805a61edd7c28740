"""EfficientAD's own: dense patches, what each part learns, and its two read-outs."""

from typing import Any

import numpy as np
import pytest
from image_folders import noise, save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from uad import cli  # noqa: E402
from uad.data.batches import Batch, GoodImages  # noqa: E402
from uad.models import efficient_ad  # noqa: E402
from uad.models.efficient_ad import EfficientAD, Student, quantiles  # noqa: E402
from uad.models.patch_networks import NETWORKS, patch_network  # noqa: E402
from uad.models.readout import ScaledReadOut, Seen  # noqa: E402

SIZE = (64, 96)
CHANNELS, STRIDE = NETWORKS["pdn_s"].channels, NETWORKS["pdn_s"].stride


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8))


@pytest.fixture
def model(images: Any) -> Any:
    torch.manual_seed(0)
    found = EfficientAD("none")
    found.take_size(*SIZE)
    found.prepare(GoodImages(images, torch.zeros(2, dtype=torch.int64), ["nut"]))
    return found.eval()


def test_the_students_halves_share_all_but_their_last_convolution() -> None:
    alone, both = (sum(each.numel() for each in net.parameters()) for net in (patch_network("pdn_s"), Student("pdn_s")))
    assert both - alone == 256 * CHANNELS * 4 * 4 + CHANNELS


def test_the_loss_is_the_sum_of_the_hardest_errors_the_penalty_and_what_the_autoencoder_says(
    model: Any, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficient_ad, "HARD", 0.01)
    teacher, (of_teacher, of_autoencoder), restored = model.network.features(images)
    wanted = model.network.head.standardize(teacher)
    errors = (wanted - of_teacher).square().flatten().sort().values
    hardest = errors[-round(0.01 * len(errors)) :].mean()
    restoring = (restored - wanted).square().mean()
    following = (of_autoencoder - restored).square().mean()
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(model.loss(batch), hardest + restoring + following)
    model.other_images = images[:1]
    penalty = of_teacher[0].square().mean()
    torch.testing.assert_close(model.loss(batch), hardest + restoring + following + penalty)
    kept = batch._replace(targets=[level.half() for level in model.targets(images)])
    torch.testing.assert_close(model.loss(kept), model.loss(batch), rtol=1e-3, atol=1e-3)


def test_the_student_and_the_autoencoder_see_a_changed_image_while_they_train(model: Any, images: Any) -> None:
    seen: list[Any] = []
    model.network.autoencoder.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    model.loss(batch)
    model.network.autoencoder.train()
    model.train()
    model.loss(batch)
    pixels = model.network.normalize(images)
    assert torch.equal(seen[0], pixels) and not torch.equal(seen[1], pixels)
    assert (seen[1] - pixels).abs().mean() < 1.0  # of a standard deviation: brighter, not another image


def test_the_code_of_the_autoencoder_is_64_numbers_of_the_whole_image(model: Any, images: Any) -> None:
    pixels, found = model.network.normalize(images), []
    model.network.autoencoder.bottleneck.register_forward_hook(lambda module, given, made: found.append(made))
    with torch.no_grad():
        restored = model.network.autoencoder(pixels)
        pixels[:, :, -8:, -8:] = 0.0  # a corner
        model.network.autoencoder(pixels)
    assert found[0].shape == (2, 64, 1, 1) and (found[0] != found[1]).any()
    assert restored.shape == (2, CHANNELS, SIZE[0] // STRIDE, SIZE[1] // STRIDE)


@pytest.mark.filterwarnings("always::engines.errors.UadWarning")
def test_the_penalty_reads_its_folder_and_its_absence_is_said(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(4):
        save(noise(index), tmp_path / "images" / f"{index}.png")
        save(noise(50 + index), tmp_path / "others" / f"{index}.png")
    used: list[Any] = []
    loss = EfficientAD.loss

    def seen(self: Any, batch: Any) -> Any:
        used.append(self.other_images)
        return loss(self, batch)

    monkeypatch.setattr(EfficientAD, "loss", seen)
    fit = ["fit", "--model", "efficient_ad", "--model.weights", "none", "--model.penalty", str(tmp_path / "others")]
    fit += ["--data.root", str(tmp_path / "images"), "--data.image_size", "64", "--trainer.max_epochs", "1"]
    assert cli.main([*fit, "--out", str(tmp_path / "run")]) == 0
    assert used and all(len(each) == 4 for each in used)
    assert "--model.penalty" not in capsys.readouterr().err
    assert {int(each.float().sum()) for each in used[0]} == {int(noise(50 + i).sum()) for i in range(4)}
    del fit[5:7]
    assert cli.main([*fit, "--out", str(tmp_path / "without")]) == 0
    assert "no --model.penalty folder" in capsys.readouterr().err


def test_quantiles_of_good_pixels_become_0_and_a_tenth_class_by_class() -> None:
    random = np.random.default_rng(0)
    maps = torch.from_numpy(random.random((4, 2, 100, 100)).astype(np.float32))
    maps[2:] = 10 * maps[2:] + 5
    pooled, label = torch.tensor([[0.0], [0.1], [9.0], [9.1]]), torch.tensor([0, 0, 1, 1])
    readout = ScaledReadOut(2, 1, quantiles)
    readout.fit([Seen(list(maps[:, :, None].unbind(1)), pooled, label)], 2)
    flat = torch.full((2, 1, 3, 3), 0.9)
    _, joined = readout([flat, flat], readout.class_of(torch.tensor([[0.0], [0.0]])))
    torch.testing.assert_close(joined, torch.zeros_like(joined), atol=5e-3, rtol=0)
    high = torch.full((1, 1, 3, 3), 5 + 10 * 0.995)
    score, _ = readout([high, high], readout.class_of(torch.tensor([[9.0]])))
    torch.testing.assert_close(score, torch.tensor([0.1]), atol=5e-3, rtol=0)
