"""The models of the project, one file each.

A model is a `uad.learner.Learner`, which is a LightningModule, with
    `network`       (N, H, W, 3) uint8 RGB -> score (N,), anomaly map (N, h, w), float32: exactly what is exported,
                    with submodules `normalize` and `head` that stay in float32; the others make up the backbone,
                    can be traced by torch.fx, and are quantized (`uad.quantization`), of which a model knows nothing
    `config`        the arguments of its constructor
    `description`   what `engines.ModelInfo` says of it
    `images_of_each_class`  how many good images the next two are given
    `prepare`       fits, before training, what it must know of good images
    `calibrate`     fits, after training, what the head must know of good images of each class
"""

from typing import Dict, Type

from uad.models.stfpm import STFPM

MODELS: Dict[str, Type[STFPM]] = {"stfpm": STFPM}
