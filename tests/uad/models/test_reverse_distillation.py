"""Reverse Distillation's own: what its decoder sees, and its two losses."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.errors import UserError  # noqa: E402
from export.onnx import export_network  # noqa: E402
from uad.data.batches import Batch  # noqa: E402
from uad.models.backbones import BACKBONES  # noqa: E402
from uad.models.head import with_hard_gradient  # noqa: E402
from uad.models.reverse_distillation import MIRRORS, Decoder, ReverseDistillation  # noqa: E402
from uad.training.fold import fold  # noqa: E402


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))


def test_every_backbone_has_a_mirror() -> None:
    assert MIRRORS.keys() == BACKBONES.keys() - {"tiny"}  # of tests


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("backbone", sorted(MIRRORS.keys() - {"wide_resnet50_2"}))  # which has 145 million parameters
def test_a_decoder_restores_every_level_in_its_size(backbone: str, upsampling: Any) -> None:
    levels = [torch.randn(1, count, 64 // 2**k, 96 // 2**k) for k, count in enumerate(BACKBONES[backbone].channels)]
    restored = Decoder(backbone, upsampling).eval()(*levels)
    assert [level.shape for level in restored] == [level.shape for level in levels]
    assert all((level < 0).any() and (level > 0).any() for level in restored)  # as standardised features are


def test_the_decoder_sees_nothing_but_the_embedding(images: Any) -> None:
    model = ReverseDistillation("mobilenet_v2", "none").eval()
    _, free = model.network.features(images)
    assert all((level[0] - level[1]).abs().max() > 0 for level in free)
    model.network.student.embed.register_forward_hook(lambda module, given, found: torch.ones_like(found))
    _, fixed = model.network.features(images)
    assert all(torch.equal(level[0], level[1]) for level in fixed)


def test_dropout_changes_training_alone(images: Any) -> None:
    torch.manual_seed(0)
    model = ReverseDistillation("mobilenet_v2", "none", dropout=0.4)
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        model.eval()
        assert model.loss(batch) == model.loss(batch)
        model.network.student.noise.train()
        assert model.loss(batch) != model.loss(batch)
    names = [name for name, _ in fold(model.network).named_modules()]
    assert not [name for name in names if "noise" in name]  # nothing of it is exported or quantized
    assert model.config["dropout"] == 0.4


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_cannot_be(value: float) -> None:
    with pytest.raises(UserError, match=r"--model.dropout .*: give a part of the embedding"):
        ReverseDistillation("mobilenet_v2", "none", dropout=value)


@pytest.mark.parametrize(("part_done", "kept"), [(0.0, 64), (0.065, 40), (0.1, 8), (1.0, 8)])
def test_what_is_restored_already_gives_no_gradient(part_done: float, kept: int) -> None:
    # Of 64 positions 8 are 2 away, 32 are .11, and 24 are restored. The mean is .30, the deviation .65.
    target = torch.zeros(1, 2, 8, 8)
    target[:, 0] = 1.0
    student = target.clone()
    student[:, :, 0] *= -1.0
    student[:, 1, 1:5] = 0.5
    student.requires_grad_()
    hard = with_hard_gradient(target, student, part_done)
    assert torch.equal(hard, student)
    hard.sum().backward()
    assert student.grad is not None
    assert int((student.grad[:, 0] != 0).sum()) == kept
    assert bool((student.grad[:, :, 0] == 1).all())


def test_mining_leaves_the_value_of_the_loss(images: Any) -> None:
    torch.manual_seed(0)
    plain = ReverseDistillation("mobilenet_v2", "none", mining=False).eval()
    mined = ReverseDistillation("mobilenet_v2", "none").eval()
    mined.network.load_state_dict(plain.network.state_dict())
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    gradients = []
    for model in (plain, mined):
        loss = model.loss(batch)
        loss.backward()
        gradients.append((float(loss.detach()), float(model.network.student.last[0].weight.grad.abs().sum())))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert 0 < gradients[1][1] < 0.9 * gradients[0][1]


def test_resize_leaves_no_transposed_convolution(images: Any) -> None:
    found = {}
    for upsampling in ("transposed", "resize"):
        model = ReverseDistillation("mobilenet_v2", "none", upsampling=upsampling, readout="paper").eval()  # type: ignore[arg-type]
        graph = export_network(fold(model.network), (64, 96), beside=model.network).graph
        found[upsampling] = [node.op_type for node in graph.node if node.name.startswith("/student")]
    assert found["transposed"].count("ConvTranspose") == found["resize"].count("Resize") == 3
    assert "ConvTranspose" not in found["resize"] and "Resize" not in found["transposed"]


def test_the_losses_are_by_position_and_of_whole_levels(images: Any) -> None:
    model = ReverseDistillation("mobilenet_v2", "none").eval()
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    teacher, restored = model.network.features(images)
    cosine = torch.nn.functional.cosine_similarity
    by_position = sum((1 - cosine(t, s, dim=1)).mean() for t, s in zip(teacher, restored))
    flattened = sum((1 - cosine(t.flatten(1), s.flatten(1), dim=1)).mean() for t, s in zip(teacher, restored))
    torch.testing.assert_close(model.loss(batch), flattened, rtol=1e-4, atol=0)
    model.is_flattened = False
    torch.testing.assert_close(model.loss(batch), by_position, rtol=1e-4, atol=0)
    model.is_flattened = True
    assert (by_position - flattened).abs() > 1e-3
    kept = batch._replace(targets=[level.half() for level in model.targets(images)])
    torch.testing.assert_close(model.loss(kept), flattened, atol=1e-3, rtol=1e-3)
