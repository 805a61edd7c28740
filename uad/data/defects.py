"""Defects drawn on good images, where real ones must not be looked at.

After CutPaste (Li et al., CVPR 2021): a patch of another image. Here it is brighter or darker too.
"""

import numpy as np

STEPS = (-60.0, -30.0, 30.0, 60.0)  # grey levels


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
