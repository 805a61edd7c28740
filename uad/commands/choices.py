"""What several commands offer alike. A test holds the names to the packages that know what they mean."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional

from uad.options import about, settle

Precision = Literal["fp32", "fp16", "int8", "auto"]
Calibrator = Literal["entropy", "percentile", "minmax", "tensorrt-entropy"]
Overlays = Literal["all", "defects", "none"]
Device = Literal["gpu", "dla:0", "dla:1"]
Runtime = Literal["openvino", "onnxruntime", "tensorrt"]
OnnxRuntime = Literal["openvino", "onnxruntime"]  # those of `Runtime` that run .onnx files
Target = Literal["cpu", "tensorrt", "jetson-xavier-nx"]
Checked = Literal["cpu", "tensorrt", "jetson-xavier-nx", "jetson-xavier-nx-dla"]  # `Target`, and its DLA

LARGEST_IMAGE = about("millions of pixels of the largest image that is read, which takes 8 to 11 bytes a pixel")


@dataclass
class DataOptions:
    """A folder of images in the layout of MVTec AD; see `uad.data.folder`."""

    root: Path = field(metadata=about("folder of classes, or of one class"))
    classes: Optional[List[str]] = field(default=None, metadata=about("which classes, as [a,b]; all if not given"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        settle(self)
