"""Defects drawn on good images, where real ones must not be looked at.

After CutPaste (Li et al., CVPR 2021): a patch of another image. Here it is brighter or darker too.
"""

from typing import Sequence, Tuple

import numpy as np

STEPS = (-60.0, -30.0, 30.0, 60.0)  # grey levels
FAINT_STEPS = (-25.0, -12.0, 0.0, 12.0, 25.0)
COARSE = 4  # every so many pixels are looked at where a part is only to be found
PART_DIFFERS = 30.0  # from the edge of the image, sum over the colours, grey levels


def with_defects(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Copies of images, each with a patch whose sides are 1/16 to 1/5 of the image's.

    Args:
        images: (N, H, W, 3) uint8.
        seed: of place, size and brightness.

    Returns:
        The same shape and type.
    """
    random, changed = np.random.default_rng(seed), images.copy()
    sides = images.shape[1:3]
    for image in changed:
        height, width = (int(random.integers(max(side // 16, 1), side // 5 + 1)) for side in sides)
        y, v = random.integers(0, sides[0] - height + 1, 2)
        x, u = random.integers(0, sides[1] - width + 1, 2)
        patch = images[random.integers(len(images)), v : v + height, u : u + width] + random.choice(STEPS)
        image[y : y + height, x : x + width] = np.clip(patch, 0, 255).astype(np.uint8)
    return changed


def with_faint_defects(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Copies of images, each with a half transparent patch or scar on the part: harder to see than `with_defects`.

    A patch has sides of 1/32 to 1/8 of the image's, a scar 1/85 to 1/32 by 1/16 to 1/4. The part is where pixels differ
    from the median of the image's edge.

    Args:
        images: (N, H, W, 3) uint8.
        seed: of place, size, form and brightness.

    Returns:
        The same shape and type.
    """
    random, changed = np.random.default_rng(seed), images.copy()
    for image in changed:
        height, width = _faint_size(random, image.shape[:2])
        place = random.choice(np.argwhere(_is_part(image)))
        y, x = (
            int(np.clip(at - side // 2, 0, whole - side))
            for at, side, whole in zip(place, (height, width), image.shape[:2])
        )
        v, u = (int(random.integers(0, whole - side + 1)) for side, whole in zip((height, width), image.shape[:2]))
        patch = images[random.integers(len(images)), v : v + height, u : u + width].astype(float)
        under = image[y : y + height, x : x + width]
        mixed = 0.5 * patch + 0.5 * under + random.choice(FAINT_STEPS)
        image[y : y + height, x : x + width] = np.clip(mixed, 0, 255).astype(np.uint8)
    return changed


def with_warps(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Copies of images, each with one spot on the part bent aside: nothing is added that was not there.

    The spot is a Gaussian whose standard deviation is 1/48 to 1/16 of the image's height; its middle moves by 1/64 to
    1/24, in any direction.

    Args:
        images: (N, H, W, 3) uint8.
        seed: of place, size and direction.

    Returns:
        The same shape and type.
    """
    random, changed = np.random.default_rng(seed), images.copy()
    height, width = images.shape[1:3]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    for image in changed:
        y, x = random.choice(np.argwhere(_is_part(image)))
        sigma, way = random.uniform(height / 48, height / 16), random.uniform(height / 64, height / 24)
        angle = random.uniform(0, 2 * np.pi)
        moved = way * np.exp(-(np.square(rows - y) + np.square(columns - x)) / (2 * sigma**2))
        image[:] = _sampled(image, rows + moved * np.sin(angle), columns + moved * np.cos(angle))
    return changed


def _sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The image at places (H, W) between its pixels, bilinear; beyond its edge lies the edge."""
    places = [np.clip(at, 0, side - 1) for at, side in zip((rows, columns), image.shape)]
    (y, v), (x, u) = ((at.astype(np.int64), (at % 1)[..., None]) for at in places)
    below, right = (np.minimum(at + 1, side - 1) for at, side in zip((y, x), image.shape))
    upper = (1 - u) * image[y, x] + u * image[y, right]
    lower = (1 - u) * image[below, x] + u * image[below, right]
    between: np.ndarray = np.rint((1 - v) * upper + v * lower).astype(np.uint8)
    return between


def with_defects_to_restore(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Copies of images, each with one defect: as `with_defects` draws it, or an ellipse of one colour on the part.

    The ellipse has half axes of 1/64 to 1/20 of the image's sides, and the colour of a pixel near it: what is there is
    gone, as a hole or a break in a line is.

    Args:
        images: (N, H, W, 3) uint8.
        seed: of kind, place, size and colour.

    Returns:
        The same shape and type.
    """
    random = np.random.default_rng(seed)
    changed = with_defects(images, seed)
    for place in np.flatnonzero(random.random(len(images)) < 0.5):
        changed[place] = _with_ellipse(images[place], random)
    return changed


def _with_ellipse(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    sides, changed = np.array(image.shape[:2]), image.copy()
    coarse = image[::COARSE, ::COARSE]  # enough to find the part, and much faster
    centre = COARSE * random.choice(np.argwhere(_is_part(coarse)))
    half = random.uniform(sides / 64, sides / 20)
    near = np.clip(centre + random.integers(-(sides // 16), sides // 16 + 1), 0, sides - 1)
    rows, columns = (np.square((np.arange(side) - at) / axis) for side, at, axis in zip(sides, centre, half))
    changed[rows[:, None] + columns <= 1] = image[tuple(near)]
    return changed


def _faint_size(random: np.random.Generator, sides: Sequence[int]) -> Tuple[int, int]:
    """(height, width) of a patch or of a scar, pixels."""
    least, most = ([1 / 32, 1 / 32], [1 / 8, 1 / 8]) if random.random() < 0.5 else ([1 / 85, 1 / 16], [1 / 32, 1 / 4])
    order = random.permutation(2)
    height, width = (
        int(random.integers(max(1, int(least[k] * side)), max(1, int(most[k] * side)) + 1))
        for k, side in zip(order, sides)
    )
    return height, width


def _is_part(image: np.ndarray) -> np.ndarray:
    """(H, W) bool; all of the image where next to nothing differs from the edge."""
    rows, columns = (max(1, side // 32) for side in image.shape[:2])
    edge = [image[:rows], image[-rows:], image[:, :columns], image[:, -columns:]]
    median = np.median(np.concatenate([part.reshape(-1, 3) for part in edge]), axis=0)
    differs = np.abs(image - median).sum(axis=2) > PART_DIFFERS
    return differs if differs.mean() > 0.003 else np.ones_like(differs)
