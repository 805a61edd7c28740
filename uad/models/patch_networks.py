"""Patch networks: plain convolutions whose every output describes one small patch of the image.

    pdn_s, pdn_m     EfficientAD, Batzner et al., WACV 2024, https://arxiv.org/abs/2303.14535, tables 6 and 7
    patch17, 33, 65  Uninformed Students, Bergmann et al., CVPR 2020, https://arxiv.org/abs/1911.02357, appendix

The papers' networks pad nothing, so that their map leaves out a border. Here the image is padded once, by what they
lose: an output is still exactly what the network says of its patch, and there is one for every `stride` pixels.

Uninformed Students describes the patch around every pixel. Here it is the patch around every `stride` pixels, which is
what the poolings leave where an image is shown to the network as a whole. For 256 by 256 pixels patch33 then takes 19
GMAC instead of 106. The paper's network for patches of 17 has no pooling; the one here has two. ReLU stands for the
paper's leaky ReLU, whose slope is 0.005.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from torch import Tensor, nn

from engines.errors import UserError
from uad.errors import CheckpointError
from uad.models.backbones import load_safely

POOL = (0, 0)  # in place of a convolution: 2 by 2 become 1


class PatchNetwork(NamedTuple):
    """What a network is made of."""

    pool: "type[nn.Module]"
    layers: Tuple[Tuple[int, int], ...]  # channels and kernel of each convolution, or `POOL`

    @property
    def channels(self) -> int:
        """Of the description."""
        return self.layers[-1][0]

    @property
    def stride(self) -> int:
        """Image pixels from one description to the next."""
        return int(2 ** self.layers.count(POOL))

    @property
    def patch(self) -> int:
        """Side of what a description sees, pixels: 32 and 60 of patch33 and patch65, whose poolings drop the rest."""
        side, step = 1, 1
        for layer in self.layers:
            side += step * (1 if layer == POOL else layer[1] - 1)
            step *= 2 if layer == POOL else 1
        return side

    @property
    def padding(self) -> int:
        """Of the image, pixels a side: an image of a multiple of `stride` then has H / stride descriptions a column."""
        return (self.patch - self.stride + 1) // 2

    @property
    def offset(self) -> float:
        """How far down and right of a place the pixel lies that has it in the middle of its patch, image pixels."""
        return (self.stride - 1) / 2 + self.padding - (self.patch - 1) / 2


MEAN, MAX = nn.AvgPool2d, nn.MaxPool2d
NETWORKS: Dict[str, PatchNetwork] = {
    "pdn_s": PatchNetwork(MEAN, ((128, 4), POOL, (256, 4), POOL, (256, 3), (384, 4))),
    "pdn_m": PatchNetwork(MEAN, ((256, 4), POOL, (512, 4), POOL, (512, 1), (512, 3), (384, 4), (384, 1))),
    "patch17": PatchNetwork(MAX, ((128, 4), POOL, (256, 4), POOL, (256, 1), (128, 2))),
    "patch33": PatchNetwork(MAX, ((128, 5), POOL, (256, 5), POOL, (256, 2), (128, 4))),
    "patch65": PatchNetwork(MAX, ((128, 5), POOL, (128, 5), POOL, (256, 5), POOL, (256, 4), (128, 1))),
}


def network_of(name: str) -> PatchNetwork:
    """What a network is made of.

    Raises:
        UserError: it is not in `NETWORKS`.
    """
    if name not in NETWORKS:
        raise UserError(f"unknown patch network '{name}': choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def patch_network(name: str, padded: bool = True) -> nn.Sequential:
    """(N, 3, H, W) normalised image -> (N, C, H/stride, W/stride), for sides that are multiples of the stride.

    Args:
        name: in `NETWORKS`.
        padded: or not: a patch is then described by one number a channel, (N, C, 1, 1).

    Raises:
        UserError: an unknown name.
    """
    network = network_of(name)
    layers: List[nn.Module] = []
    inputs = 3
    for outputs, kernel in network.layers:
        if (outputs, kernel) == POOL:
            layers.append(network.pool(2))
            continue
        padding = 0 if layers or not padded else network.padding
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])  # the description itself may be negative


def patch_teacher(network: str, weights: str) -> nn.Sequential:
    """A network that is not trained any more.

    Args:
        network: in `NETWORKS`.
        weights: a file that `uad distill` wrote, or none (random).

    Raises:
        CheckpointError: the file is missing, damaged, no teacher, or one of another network.
    """
    teacher = patch_network(network).requires_grad_(False).eval()
    if weights != "none":
        _load(teacher, network, Path(weights))
    return teacher


def pooled(description: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C) float32: the mean description, which tells of which class an image is."""
    return description.float().mean(dim=(2, 3))


def _load(teacher: nn.Module, network: str, path: Path) -> None:
    content = load_safely(path)
    if content.get("program") != "uad" or "distilled" not in content:
        raise CheckpointError(f"{path} is no teacher that uad distill wrote")
    if content.get("network") != network:
        raise CheckpointError(f"{path} is a {content.get('network')}: give --model.network {content.get('network')}")
    try:
        teacher.load_state_dict(content["state_dict"])
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights of a {network}") from error
