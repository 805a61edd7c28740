"""How much a layer's quantization hurts a model: the anomaly map with only that layer in INT8, beside the float map.

A layer is a convolution of the backbone, under the name of its ONNX node. With it goes what `export.placement` ties to
it: its input, its weights, and the skip branch of the residual Add that it fuses with.
"""

import tempfile
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

import numpy as np
import onnx

import engines
from engines.metadata import ModelInfo
from engines.model_file import save_model
from export.placement import place
from export.quantize import with_ranges

FLOAT32_BITS = 24  # of a float32's significand: noise below that cannot be seen


def sensitivity(
    model: onnx.ModelProto,
    info: ModelInfo,
    amax: Dict[str, float],
    layers: Sequence[str],
    images: np.ndarray,
    classes: Optional[Sequence[str]] = None,
    runtime: Optional[str] = None,
    progress: Callable[[], object] = lambda: None,
    as_written: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda quantized: quantized,
) -> Dict[str, float]:
    """Signal-to-quantization-noise ratio of the anomaly map with one layer quantized at a time.

    Args:
        model: the float32 graph.
        info: its description.
        amax: tensor name -> range, of all that `Placement.ranged` names.
        layers: every layer that may be quantized, of `Placement.layers`.
        images: (N, height, width, 3) uint8, best ones that calibration did not use.
        classes: the class of each image, if known: the ratio is then the mean of the classes' ratios, so that a class
            with faint maps counts as much as one with strong maps.
        runtime: a name in `engines.RUNTIMES`; None takes the fastest installed. The runtimes do not round alike: ONNX
            Runtime also quantizes a convolution in front of a residual Add that is quantized later.
        progress: called after each layer.
        as_written: gives a quantized graph the biases and the read-out that its file would have.

    Returns:
        Layer -> dB, the layer that hurts most (the lowest ratio) first.

    Raises:
        UserError: all that `engines.load` raises.
    """
    reference = infer_model(model, info, images, runtime).anomaly_map
    ratios = {}
    for layer in layers:
        alone = place(model, keep_float=[name for name in layers if name != layer])
        quantized, described, _ = with_ranges(model, info, amax, alone)
        noisy = infer_model(as_written(quantized), described, images, runtime).anomaly_map
        ratios[layer] = class_mean_sqnr_db(reference, noisy, classes)
        progress()
    return dict(sorted(ratios.items(), key=lambda item: item[1]))


def infer_model(
    model: onnx.ModelProto, info: ModelInfo, images: np.ndarray, runtime: Optional[str] = None
) -> engines.Prediction:
    """Judge images by a graph that is in memory, in a runtime of `engines`, through a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, info, path)
        with engines.load(path, runtime) as engine:
            return engine.infer(images)


def class_mean_sqnr_db(reference: np.ndarray, noisy: np.ndarray, classes: Optional[Sequence[str]] = None) -> float:
    """`sqnr_db` of the images of each class, averaged over the classes; of all images where no class is known.

    Args:
        reference: (N, ...) float.
        noisy: the same shape.
        classes: the class of each of the N.
    """
    if classes is None:
        return sqnr_db(reference, noisy)
    names = np.asarray(classes)
    return float(np.mean([sqnr_db(reference[names == name], noisy[names == name]) for name in sorted(set(classes))]))


def sqnr_db(reference: np.ndarray, noisy: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio, 10 log10(sum reference^2 / sum (reference - noisy)^2).

    Noise of a hundredth of the signal's power is 20 dB; each bit of precision is worth 6 dB.
    """
    reference = np.asarray(reference, np.float64)
    return power_ratio_db(float(np.square(reference).sum()), float(np.square(reference - noisy).sum()))


def power_ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most the 144.5 dB that float32 can hold; no signal under some noise is -inf."""
    least = signal * 4.0**-FLOAT32_BITS
    if noise <= least:
        return float(20 * FLOAT32_BITS * np.log10(2.0))
    return float(10 * np.log10(signal / noise)) if signal > 0 else -np.inf
