"""DCAM's own: its losses, and that nothing of its gates is left."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from engines.errors import UserError  # noqa: E402
from export.onnx import export_network  # noqa: E402
from uad.data.batches import Batch, GoodImages  # noqa: E402
from uad.models.dcam import DCAM, channel_distance, spatial_divergence  # noqa: E402
from uad.models.stfpm import STFPM  # noqa: E402
from uad.training.fold import fold  # noqa: E402


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))


def test_the_exported_graph_is_stfpm_s_node_for_node() -> None:
    nodes = []
    for model in (DCAM, STFPM):
        torch.manual_seed(0)
        made = model("mobilenet_v2", "none", readout="paper").eval()
        assert made.state_to_save().keys() == made.network.state_dict().keys()
        graph = export_network(fold(made.network), (64, 64), beside=made.network).graph
        nodes.append([(node.name, node.op_type, *node.input, *node.output) for node in graph.node])
    assert nodes[0] == nodes[1] and len(nodes[0]) > 100


def test_with_weights_of_zero_the_loss_is_stfpm_s(images: Any) -> None:
    batch = Batch(images, torch.zeros(2, dtype=torch.int64))
    losses = []
    for build in (
        lambda: STFPM("mobilenet_v2", "none"),
        lambda: DCAM("mobilenet_v2", "none", channel_weight=0.0, spatial_weight=0.0),
        lambda: DCAM("mobilenet_v2", "none", spatial_weight=0.0),
        lambda: DCAM("mobilenet_v2", "none", channel_weight=0.0),
    ):
        torch.manual_seed(0)
        model = build().eval()
        model.prepare(GoodImages(images, batch.label, ["nut"]))
        losses.append(model.loss(batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] > losses[0] + 0.1 and losses[3] > losses[0] + 0.1


def test_channels_are_compared_by_the_cosine_of_their_maps() -> None:
    teacher = torch.randn(2, 3, 8, 8)
    factor = torch.tensor([0.1, 1.0, 7.0]).view(1, 3, 1, 1)
    assert channel_distance(teacher, factor * teacher) < 1e-6  # a gate alone changes nothing
    torch.testing.assert_close(channel_distance(teacher, -teacher), torch.tensor(2.0))
    swapped = teacher[:, [1, 0, 2]]
    assert channel_distance(teacher, swapped) > 0.3


def test_the_divergence_is_that_of_two_distributions_over_the_positions() -> None:
    teacher = torch.zeros(1, 1, 4, 4)
    teacher[..., :2] = np.log(3.0)  # three quarters of the probability lie in the left half
    found = spatial_divergence(teacher, torch.zeros(1, 1, 4, 4), 1.0)
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)  # at scales 1 and 2; at 4 there is one position
    torch.testing.assert_close(found, torch.tensor(2 * expected / 3, dtype=torch.float32))
    assert spatial_divergence(teacher, teacher + 5.0, 1.0) < 1e-6
    cooler = spatial_divergence(teacher / 2, teacher, 1.0)
    torch.testing.assert_close(spatial_divergence(teacher, 2 * teacher, 2.0), 4 * cooler)


@pytest.mark.parametrize("setting", ["channel_weight", "spatial_weight", "temperature"])
def test_a_number_out_of_range_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"--model.{setting} -1"):
        DCAM("mobilenet_v2", "none", **{setting: -1})  # type: ignore[arg-type]
    if setting == "temperature":
        with pytest.raises(UserError, match="--model.temperature 0: give a number above 0"):
            DCAM("mobilenet_v2", "none", temperature=0)
