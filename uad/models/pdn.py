"""Patch description networks: plain convolutions whose every output describes a patch of 33 by 33 pixels.

Paper: EfficientAD, Batzner et al., WACV 2024, https://arxiv.org/abs/2303.14535, tables 6 and 7

The paper's networks pad nothing, so that their map leaves out a border. Here the image is padded once, by what they
lose: an output is still exactly what the network says of its patch, and there is one for every 4 by 4 pixels.
"""

from pathlib import Path
from typing import Dict, List, Tuple

from torch import nn

from engines.errors import UserError
from uad.errors import CheckpointError
from uad.models.backbones import load_safely

CHANNELS = 384  # of the description
STRIDE = 4  # image pixels from one description to the next
PATCH = 33  # side of what a description sees, pixels
POOL = (0, 0)  # in place of a convolution: the mean of 2 by 2
# Channels and kernel of each convolution.
NETWORKS: Dict[str, Tuple[Tuple[int, int], ...]] = {
    "pdn_s": ((128, 4), POOL, (256, 4), POOL, (256, 3), (CHANNELS, 4)),
    "pdn_m": ((256, 4), POOL, (512, 4), POOL, (512, 1), (512, 3), (CHANNELS, 4), (CHANNELS, 1)),
}


def patch_network(name: str) -> nn.Sequential:
    """(N, 3, H, W) normalised image -> (N, CHANNELS, H/4, W/4), for sides that are multiples of 4.

    Args:
        name: in `NETWORKS`.

    Raises:
        UserError: an unknown name.
    """
    if name not in NETWORKS:
        raise UserError(f"unknown patch network '{name}': choose one of {', '.join(NETWORKS)}")
    layers: List[nn.Module] = []
    inputs = 3
    for outputs, kernel in NETWORKS[name]:
        if (outputs, kernel) == POOL:
            layers.append(nn.AvgPool2d(2))
            continue
        padding = 0 if layers else PATCH // 2
        layers += [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])  # the description itself may be negative


def load_teacher(teacher: nn.Module, network: str, path: Path) -> None:
    """Take the weights of a teacher that `uad distill` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, no teacher, or one of another network.
    """
    content = load_safely(path)
    if content.get("program") != "uad" or "distilled" not in content:
        raise CheckpointError(f"{path} is no teacher that uad distill wrote")
    if content.get("network") != network:
        raise CheckpointError(f"{path} is a {content.get('network')}: give --model.network {content.get('network')}")
    try:
        teacher.load_state_dict(content["state_dict"])
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights of a {network}") from error
