"""What makes calibration images doubtful: too few, flat, without a class, or unlike what the model was trained on."""

from typing import List

import numpy as np
import onnx

from export.readout import class_distances
from uad.data.folder import draw
from uad.data.reading import load_images
from uad.exporting.images import CalibrationImages

FEWEST = 8  # images: fewer do not show where the values of a channel end
FLAT = 1.0  # grey levels of standard deviation, at most, of an image that shows nothing
# Mean squared deviations from the nearest class. Looked at once, 16 good images each, two models of four classes: those
# of known classes reached 0.6 and 1.1, of unknown ones none was below 1.1. They touch, so more than half must pass.
UNLIKE = 1.0
LOOKED_AT = 32  # images


def calibration_doubts(model: onnx.ModelProto, images: CalibrationImages) -> List[str]:
    """What was found, a line each; empty where nothing speaks against the images, and for random-normal ones.

    Args:
        model: the float32 graph.
        images: which are to calibrate it.
    """
    if not images.samples:
        return []
    doubts = []
    if images.count < FEWEST:
        doubts.append(
            f"calibration on {images.count} image(s): ranges may end too early, give at least {FEWEST} of a class"
        )
    known = images.info.classes
    given = {sample.class_name for sample in images.samples}
    missing = [name for name in known if name not in given]
    if missing and given & set(known):
        doubts.append(f"no calibration image of {', '.join(missing)}: what only they show is clipped")
    some = load_images(draw(images.samples, LOOKED_AT, images.seed), images.info.size)
    flat = int((some.std(axis=(1, 2, 3)) < FLAT).sum())
    if flat:
        doubts.append(f"{flat} of {len(some)} calibration images looked at are flat: they show nothing of the parts")
    far = class_distances(model, list(some))
    unlike = int((far > UNLIKE).sum())
    if 2 * unlike > len(far):
        doubts.append(
            f"{unlike} of {len(far)} calibration images looked at are unlike every class of the model "
            f"({', '.join(known)}): {np.median(far):.1f} squared deviations from the nearest, "
            f"where less than {UNLIKE:g} is usual"
        )
    return doubts
