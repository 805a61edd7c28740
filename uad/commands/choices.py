"""What several commands offer alike. A test holds the names to the packages that know what they mean."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional

from engines import Engine, load, runtime_for, runtimes
from engines.benchmark import worker_command
from engines.images import MEGAPIXELS, limit_megapixels
from uad.options import about, above_zero, at_least, check_fields

Overlays = Literal["all", "defects", "none"]
Target = Literal["cpu", "tensorrt", "jetson-xavier-nx"]
Checked = Literal["cpu", "tensorrt", "jetson-xavier-nx", "jetson-xavier-nx-dla"]  # `Target`, and its DLA


@dataclass
class DataOptions:
    """A folder of images in the layout of MVTec AD; see `uad.data.folder`."""

    root: Path = field(metadata=about("folder of classes, or of one class"))
    classes: Optional[List[str]] = field(default=None, metadata=about("which classes, as [a,b]; all if not given"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)


@dataclass
class Running:
    """What runs models."""

    runtime: Optional[str] = field(
        default=None,
        metadata=about(
            "what runs .onnx files; the fastest that is installed if not given", choices=lambda: list(runtimes())
        ),
    )
    threads: Optional[int] = field(
        default=None, metadata=about("how many CPU threads run a model; as many as the runtime likes if not given")
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        at_least(1, threads=self.threads)

    def load(self, path: Path, batch: Optional[int] = None, lanes: int = 1) -> Engine:
        """Load a model file; see `engines.load`."""
        return load(path, runtime_for(path, self.runtime), batch=batch, threads=self.threads, lanes=lanes)

    def worker_command(self, path: Path, batch: Optional[int] = None) -> List[str]:
        """The command of a process that measures a model file; see `engines.benchmark`."""
        return worker_command(path, runtime_for(path, self.runtime), batch, self.threads)


@dataclass
class Reading:
    """How photographs are read."""

    max_megapixels: float = field(
        default=MEGAPIXELS,
        metadata=about("millions of pixels of the largest image that is read, which takes 8 to 11 bytes a pixel"),
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        above_zero(max_megapixels=self.max_megapixels)

    def begin(self) -> None:
        """Let images of this size be read."""
        limit_megapixels(self.max_megapixels)
