"""uad.report.device_report: what is the same everywhere, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uad.report.device_report import IMAGES, drawn_images, without_paths


def test_the_drawn_images_are_the_same_each_time_and_differ_from_each_other() -> None:
    images = drawn_images((64, 96))
    assert images.shape == (IMAGES, 64, 96, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, drawn_images((64, 96)))
    assert len({image.tobytes() for image in images}) == IMAGES


def test_paths_are_left_out_and_layers_are_not() -> None:
    told = f"cannot read {Path.cwd()}/a.cache of /teacher/conv1/Conv, nor ~/b (1/2 of it)"
    assert without_paths([told]) == ["cannot read ... of /teacher/conv1/Conv, nor ... (1/2 of it)"]
