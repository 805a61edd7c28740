"""A bank of good patches: features of good images, beside which every place of an image is put.

PatchCore, Roth et al., 'Towards Total Recall in Industrial Anomaly Detection', CVPR 2022, https://arxiv.org/abs/2106.08265

A place of an image is described by the teacher's features there. A class keeps `size` of the places of its good images,
chosen so that no place lies far from all of them. How anomalous a place is, is told by its squared distance from the
nearest patch of the class. Squared, because what quantization adds to it does not depend on the distance itself.

The paper puts features beside each other as they are. Here they are first projected on their `DIMENSIONS` greatest
principal components, each divided by the root of its deviation: half way to the Mahalanobis distance of PaDiM (Defard
et al., 2021). What good images hardly vary in counts for more then, and a bank of MobileNetV2 is 3.5 times smaller.
"""

import itertools
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UserError
from uad.data.batches import GoodImages
from uad.models.backbones import Backbone
from uad.models.layers import fixed_shape, pixel_count
from uad.models.readout import Seen, take_shapes

CANDIDATES = 40_000  # places of a class among which patches are chosen
DIMENSIONS = 64  # D, of what describes a place
MOST_OF_TOPK = 3840  # values that TopK of TensorRT gives
# Images to other maps of them (N, 1, h, w), what describes their places (N, D, h, w), and their pooled features (N, C).
Look = Callable[[Tensor], List[Tensor]]


class Bank(nn.Module):
    """Levels of the teacher and the class of each image (N,) -> squared distances (N, 1, H/16, W/16), float32.

        weight, bias  (D, C, 1, 1) and (D,), of the projection
        patches       (classes, D, K); a class with fewer repeats some
        squares       (classes, 1, K) their squared norms
        farthest      (classes,) how far the farthest good image lies, see `class_distance`

    Args:
        source: the teacher's backbone, whose `bank_layers` give the levels.
    """

    weight: Tensor
    bias: Tensor
    patches: Tensor
    squares: Tensor
    farthest: Tensor
    image_of: Tensor

    def __init__(self, source: Backbone) -> None:
        super().__init__()
        self.strides = source.bank_strides
        channels = sum(source.bank_channels)
        self.register_buffer("weight", torch.eye(DIMENSIONS, channels)[..., None, None])
        self.register_buffer("bias", torch.zeros(DIMENSIONS))
        self.register_buffer("patches", torch.zeros(1, DIMENSIONS, 1))
        self.register_buffer("squares", torch.zeros(1, 1, 1))
        self.register_buffer("farthest", torch.ones(1))
        self.register_buffer("image_of", torch.zeros(1, 1, dtype=torch.int64), persistent=False)  # while it is made
        self.known: Optional[Tensor] = None  # (D, K) of images that are not at hand, to be chosen among as well

    def forward(self, levels: List[Tensor], label: Tensor) -> Tensor:
        """Look up the patches of the class."""
        return squared_distances(self.described(levels), self.patches[label], self.squares[label])

    def class_distance(self, distances: Tensor, label: Tensor) -> Tensor:
        """How far whole images lie from the bank of their class, (N,) float32; 1 is the farthest good image.

        The median of the distances of their places: a defect takes few of them, another part most.

        Args:
            distances: what this gives, (N, 1, h, w).
            label: (N,) the class that each was put beside.
        """
        return middle_distance(distances) / self.farthest[label]

    def averaged(self, levels: List[Tensor]) -> Tensor:
        """(N, C, h, w): the levels averaged over 3 by 3 places, as in the paper, on the grid of the coarsest."""
        near = [F.avg_pool2d(level.float(), 3, 1, 1) for level in levels]
        steps = [self.strides[-1] // stride for stride in self.strides]
        return torch.cat([F.avg_pool2d(each, step) if step > 1 else each for each, step in zip(near, steps)], dim=1)

    def described(self, levels: List[Tensor]) -> Tensor:
        """(N, D, h, w): what describes each place."""
        return F.conv2d(self.averaged(levels), self.weight, self.bias)

    @torch.no_grad()
    def fit_projection(self, batches: Iterable[List[Tensor]]) -> None:
        """Fit the projection to the levels of good images of every class."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for levels in batches:
            places = self.averaged(levels).transpose(0, 1).flatten(1).double()
            count += places.shape[1]
            total, products = total + places.sum(dim=1), products + places @ places.T
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        std = covariance.diagonal().clamp_min(0.0).sqrt().clamp_min(1e-3)  # a dead channel stays 0
        values, vectors = torch.linalg.eigh(covariance / torch.outer(std, std))  # in ascending order
        values, vectors = values[-DIMENSIONS:], vectors[:, -DIMENSIONS:]
        least = 1e-3 * values[-1].clamp_min(1e-3)  # few images may not vary in some component at all
        weight = (vectors * values.maximum(least) ** -0.25).T / std
        self.weight.copy_(weight[..., None, None])
        self.bias.copy_(-weight @ mean)

    @torch.no_grad()
    def choose(self, good: GoodImages, look: Look, size: int) -> None:
        """Take patches of the good images of each class, `size` at most.

        Raises:
            UserError: a class has one image: there is none beside which it could be put.
        """
        counts = torch.bincount(good.label, minlength=len(good.classes)).tolist()
        few = [name for name, count in zip(good.classes, counts) if count < 2]
        if few:
            raise UserError(
                f"a bank puts good images beside others of their class: give more of {', '.join(few)}, "
                "or, beside a student, --model.bank 0"
            )
        self.set_patches([choose_patches(features, size, self.known) for *_, features, _ in good.by_class(look)])

    @torch.no_grad()
    def beside_others(self, images: GoodImages, look: Look) -> Iterator[Seen]:
        """The maps of images that patches were chosen of, or of copies of them, in the same order of each class.

        An image is put beside the patches of others: of what it is itself made of, a bank says nothing of new images.
        The distances from the bank are the last map.
        """
        for index, (*maps, features, deepest) in enumerate(images.by_class(look)):
            distances = distances_of_others(features, self.patches[index], self.image_of[index])
            yield Seen([*maps, distances], deepest, torch.full((len(distances),), index, device=distances.device))

    @torch.no_grad()
    def fit_farthest(self, seen: Iterable[Seen]) -> None:
        """Learn how far good images of each class lie, of what `beside_others` gives."""
        distances, labels = zip(*((middle_distance(maps[-1]), label) for maps, _, label in seen))
        distance, label = torch.cat(distances), torch.cat(labels)
        greatest = [distance[label == index].amax() for index in range(len(self.patches))]
        self.farthest = torch.stack(greatest).clamp_min(1e-6)

    def set_patches(self, chosen: Sequence[Tuple[Tensor, Tensor]]) -> None:
        """Take the patches of each class (K, D), and the image that each is of (K,)."""
        most = max(len(patches) for patches, _ in chosen)
        places = [torch.arange(most, device=patches.device) % len(patches) for patches, _ in chosen]
        rows = torch.stack([patches[place] for (patches, _), place in zip(chosen, places)])
        self.patches = rows.transpose(1, 2).contiguous()
        self.squares = self.patches.square().sum(dim=1, keepdim=True)
        self.image_of = torch.stack([image_of[place] for (_, image_of), place in zip(chosen, places)])

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        take_shapes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def squared_distances(features: Tensor, patches: Tensor, squares: Tensor) -> Tensor:
    """Squared distances (N, 1, h, w) of each place from the nearest patch.

    |x - p|^2 = |x|^2 - 2 x p + |p|^2: one product of matrices, and one minimum over the patches. The factor is put to
    the places: they are fewer than the products.

    Args:
        features: (N, D, h, w).
        patches: (N, D, K), or (1, D, K) for all images.
        squares: (N, 1, K) or (1, 1, K), their squared norms.
    """
    dimensions, height, width = fixed_shape(features)
    places = features.reshape(-1, dimensions, height * width).transpose(1, 2)
    nearest = (torch.matmul(-2.0 * places, patches) + squares).amin(dim=2)
    distances = (places.square().sum(dim=2) + nearest).clamp_min(0.0)
    return distances.reshape(-1, 1, height, width)


def middle_distance(distances: Tensor) -> Tensor:
    """The median (N,) of distances whose squares are given, (N, 1, h, w); that of means over few places if it is large.

    It is the greatest of the lower half: TensorRT has TopK and no median. Its TopK gives `MOST_OF_TOPK` at most.
    """
    step = next(step for step in itertools.count(1) if pixel_count(distances) <= 2 * MOST_OF_TOPK * step**2)
    places = F.avg_pool2d(distances, step) if step > 1 else distances
    lower = torch.topk(places.flatten(1), (pixel_count(places) + 1) // 2, dim=1, largest=False).values
    return lower.amax(dim=1).sqrt()


@torch.no_grad()
def choose_patches(features: Tensor, size: int, known: Optional[Tensor] = None, seed: int = 0) -> Tuple[Tensor, Tensor]:
    """Choose patches of the good images of a class by greedy k-centre, among at most `CANDIDATES` places.

    Args:
        features: (N, D, h, w) float32 of N images.
        size: how many at most.
        known: (D, K) patches of other images, which are candidates, too.
        seed: of the candidates.

    Returns:
        The patches (K, D), and the image that each is of (K,) int64, -1 for one that was known.
    """
    random = torch.Generator().manual_seed(seed)
    places = features.flatten(2).transpose(1, 2).flatten(0, 1)
    images = torch.arange(len(features), device=features.device).repeat_interleave(len(places) // len(features))
    candidates = torch.randperm(len(places), generator=random)[:CANDIDATES].to(features.device)
    places, images = places[candidates], images[candidates]
    if known is not None:
        places = torch.cat([places, known.T])
        images = torch.cat([images, torch.full((known.shape[1],), -1, device=images.device)])
    chosen = k_centre(places, size)
    return places[chosen], images[chosen]


def k_centre(points: Tensor, count: int) -> Tensor:
    """(N, D) -> indices of `count` points, each the one that lies farthest from all before; fewer where N is less.

    Gonzalez, 'Clustering to minimize the maximum intercluster distance', 1985: twice the best radius at most.
    """
    squares = points.square().sum(dim=1)
    chosen = [0]
    distances = squares + squares[0] - 2.0 * (points @ points[0])
    for _ in range(min(count, len(points)) - 1):
        farthest = int(distances.argmax())
        chosen.append(farthest)
        torch.minimum(distances, squares + squares[farthest] - 2.0 * (points @ points[farthest]), out=distances)
    return torch.tensor(chosen, device=points.device)


def distances_of_others(features: Tensor, patches: Tensor, image_of: Tensor) -> Tensor:
    """Squared distances (N, 1, h, w) of images (N, D, h, w) from the nearest patch that is not of the image itself.

    Args:
        features: of the images.
        patches: (D, K).
        image_of: (K,) the image that each is of, its place among the images.

    Raises:
        UserError: all patches are of one image.
    """
    squares = patches.square().sum(dim=0, keepdim=True)
    maps = []
    for image in range(len(features)):
        others = image_of != image
        if not others.any():
            raise UserError("all patches of a class are of one image: give a greater --model.bank")
        maps.append(squared_distances(features[image : image + 1], patches[None, :, others], squares[None, :, others]))
    return torch.cat(maps)
