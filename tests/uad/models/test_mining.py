"""Hard mining, in every model that has it."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from uad.data.batches import Batch  # noqa: E402
from uad.models.dcam import DCAM  # noqa: E402
from uad.models.head import with_hard_gradient  # noqa: E402
from uad.models.reverse_distillation import ReverseDistillation  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402


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


@pytest.mark.parametrize("kind", [ReverseDistillation, STFPM, DCAM])
def test_mining_leaves_the_value_of_the_loss_and_takes_some_of_its_gradient(kind: Any) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))
    torch.manual_seed(0)
    plain, mined = (kind("mobilenet_v2", "none", mining=mining).eval() for mining in (False, True))
    mined.load_state_dict(plain.state_dict())
    losses, gradients = [], []
    for model in (plain, mined):
        loss = model.loss(Batch(images, torch.zeros(2, dtype=torch.int64)))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(sum(float(each.grad.abs().sum()) for each in model.network.student.parameters()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert 0 < gradients[1] < 0.9 * gradients[0]
