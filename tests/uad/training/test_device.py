"""Preparing, fitting and judging on a GPU. Fake tensors have a device, shapes and no values, so no GPU is needed.

PyTorch refuses an operation on fake tensors of two devices, as it would on real ones.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from export.readout import Statistics
from uad.data.batches import Batch, GoodImages
from uad.models.readout import RegionalReadOut
from uad.models.stfpm import STFPM

GPU = torch.device("cuda:0")
SIDE = 64


def test_every_step_of_stfpm_stays_on_the_gpu():
    statistics = Statistics(
        np.ones((2, 3, 4, 4), np.float32),
        np.ones((2, 3, 4, 4), np.float32),
        np.ones((2, 96), np.float32),
        np.ones(96, np.float32),
    )
    model = STFPM("mobilenet_v2", "none")
    with FakeTensorMode():
        _put_on(GPU, model)
        good = GoodImages(torch.zeros(20, SIDE, SIDE, 3, dtype=torch.uint8), torch.arange(20) % 2, ["a", "b"])
        model.prepare(good.on(GPU))
        image = good.image.to(GPU)
        targets = model.targets(image)
        losses = [model.loss(Batch(image, good.label)), model.loss(Batch(image, good.label, targets))]
        readout = model.network.head.readout
        assert isinstance(readout, RegionalReadOut)
        readout.set_statistics(statistics)
        found = [*targets, *losses, *model.network(image), model.early_score(image), readout.border]
        assert {each.device for each in found} == {GPU}
        with pytest.raises(RuntimeError, match="two devices"):
            model.prepare(good)


def _put_on(device: torch.device, model: torch.nn.Module) -> None:
    """What `Module.to` does, which cannot take fake tensors."""
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            new = torch.empty(old.shape, dtype=old.dtype, device=device)
            setattr(module, name, torch.nn.Parameter(new, old.requires_grad))
        for name, old in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(old.shape, dtype=old.dtype, device=device))


def test_batches_come_to_the_device_that_is_asked_for():
    good = GoodImages(torch.zeros(20, 4, 4, 3, dtype=torch.uint8), torch.arange(20), ["a"])
    there = list(good.on(torch.device("meta")))
    assert [each.device.type for batch in there for each in batch[:2]] == ["meta"] * 4
    assert good.image.device.type == "cpu" and all(batch.image.device.type == "cpu" for batch in good)
