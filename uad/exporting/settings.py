"""What an export is asked for: which images calibrate, which layers stay in float, how a plan is built.

Each is a part of the options of `uad export`, and says which of its settings go together.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional

from engines import runtimes
from export.calibrate import PERCENTILE
from export.errors import ExportError
from uad.options import about, above_zero, at_least, check_fields, refuse_given

MIN_AGREEMENT = 0.998
TENSORRT_ENTROPY = "tensorrt-entropy"
WORKSPACE_MB = 1024  # an 8 GB Jetson shares its memory between CPU and GPU

Calibrator = Literal["entropy", "percentile", "minmax", "tensorrt-entropy"]
Device = Literal["gpu", "dla:0", "dla:1"]


@dataclass
class Calibration:
    """Which images calibrate, and how their values become ranges."""

    data: Optional[str] = field(
        default=None,
        metadata=about(
            "for int8 and auto: folder of good images, best the one that was trained on; for int8 also random-normal; "
            "for fp16, if given, to fit the read-out and thresholds again, as for int8 and auto",
            "calibration-data",
        ),
    )
    images: Optional[int] = field(
        default=None,
        metadata=about(
            "how many of them, spread over the classes; if not given 128, or all (for auto half of them)",
            "calibration-images",
        ),
    )
    classes: Optional[List[str]] = field(
        default=None,
        metadata=about("which classes of that folder, as [a,b]; all if not given", "calibration-classes"),
    )
    calibrator: Optional[Calibrator] = field(
        default=None,
        metadata=about(
            "for int8 and auto: what chooses the ranges; percentile if not given; tensorrt-entropy is TensorRT's own, "
            "of releases 8"
        ),
    )
    percentile: Optional[float] = field(
        default=None,
        metadata=about(f"for --calibrator percentile: percent of the values not clipped; {PERCENTILE} if not given"),
    )
    weight_bits: Optional[int] = field(
        default=None,
        metadata=about(
            "for int8: 7 keeps OpenVINO right on an x86 CPU without VNNI, which uad doctor names, on a coarser grid; "
            "8 if not given"
        ),
    )
    seed: int = field(default=0, metadata=about("seed of the draw of calibration images"))
    like: Optional[Path] = field(
        default=None,
        metadata=about(
            "for int8, after uad fit --add-class or --remove-class: int8 file of the model before, whose ranges and "
            "read-out the classes that stay keep; images are then needed of the new classes alone"
        ),
    )
    widen: bool = field(default=False, metadata=about("with --like: widen ranges that images of the new classes leave"))

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        if self.widen and self.like is None:
            raise ExportError("--widen is for --like")
        if self.like is not None:
            refuse_given(self, f"is not for --like {self.like}, which has its ranges", but=("data", "like", "widen"))
        if self.data is not None:
            self.data = str(Path(self.data).expanduser()) if self.data.startswith("~") else self.data
        above_zero(percentile=self.percentile)
        at_least(1, calibration_images=self.images)
        at_least(0, seed=self.seed)
        if self.percentile is not None and self.calibrator not in (None, "percentile"):
            raise ExportError(f"--percentile is for --calibrator percentile, not {self.calibrator}")
        if self.weight_bits not in (None, 7, 8):
            raise ExportError(f"--weight-bits {self.weight_bits}: give 7 or 8, with --precision int8")

    @property
    def rule(self) -> str:
        """The name of the calibrator."""
        return self.calibrator or "percentile"

    @property
    def percent(self) -> float:
        """What the calibrator percentile does not clip."""
        return self.percentile or PERCENTILE


@dataclass
class Choice:
    """Which layers stay in float, by what is measured of each."""

    min_agreement: Optional[float] = field(
        default=None,
        metadata=about(
            "for auto: least rank correlation of image scores with those of fp32, of the class where it is lowest, on "
            f"good images that did not calibrate; {MIN_AGREEMENT} if not given"
        ),
    )
    validation_data: Optional[Path] = field(
        default=None,
        metadata=about(
            "for auto: folder with labelled CLASS/test images, on which the mean image AUROC may fall by "
            "1 - --min-agreement too; layers are chosen on them, so report no accuracy on them"
        ),
    )
    explain: Optional[Path] = field(
        default=None,
        metadata=about("for int8 and auto: folder for layers.csv, .md and .png, which name the layers that hurt"),
    )
    runtime: Optional[str] = field(
        default=None,
        metadata=about(
            "what runs the models that auto and --explain compare; the fastest installed if not given",
            choices=lambda: [name for name, each in runtimes().items() if each.suffix == ".onnx"],
        ),
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        if self.min_agreement is not None and not -1 <= self.min_agreement <= 1:
            raise ExportError(f"--min-agreement {self.min_agreement}: give a rank correlation, at most 1")

    @property
    def least(self) -> float:
        """The agreement that is asked for."""
        return MIN_AGREEMENT if self.min_agreement is None else self.min_agreement


@dataclass
class Plan:
    """How TensorRT builds a plan."""

    batch: Optional[int] = field(
        default=None, metadata=about("for a plan: how many images it takes at once, always; 1 if not given")
    )
    max_batch: Optional[int] = field(
        default=None, metadata=about("for a plan: how many images it takes at most, in place of --batch")
    )
    workspace_mb: Optional[int] = field(
        default=None,
        metadata=about(f"for a plan: memory that TensorRT may take for one layer, MB; {WORKSPACE_MB} if not given"),
    )
    timing_cache: Optional[Path] = field(
        default=None,
        metadata=about("for a plan: where TensorRT keeps its timings for the next build; in ~/.cache/uad if not given"),
    )
    implicit: bool = field(
        default=False,
        metadata=about("for an int8 plan of TensorRT 8: a range for each tensor in place of Q/DQ, as a DLA needs it"),
    )
    int8_only: bool = field(
        default=False,
        metadata=about("for an int8 plan of TensorRT 8: what is not INT8 computes in float32, in place of float16"),
    )
    calibration_cache: Optional[Path] = field(
        default=None,
        metadata=about("with --implicit: file for these ranges in TensorRT's own form, from which it then reads them"),
    )
    device: Device = field(default="gpu", metadata=about("for a plan: what runs it, as far as it can"))
    gpu_fallback: bool = field(
        default=False, metadata=about("with --device dla:0 or dla:1: the GPU runs what the DLA cannot")
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        check_fields(self)
        at_least(1, batch=self.batch, max_batch=self.max_batch)
        at_least(16, workspace_mb=self.workspace_mb)
        if self.calibration_cache is not None and not self.implicit:
            raise ExportError("--calibration-cache is for --implicit: Q/DQ holds the ranges otherwise")
        if self.gpu_fallback and self.device == "gpu":
            raise ExportError("--gpu-fallback is for --device dla:0 or dla:1")
        if self.int8_only and self.device != "gpu":
            raise ExportError(f"--device {self.device} computes in int8 and fp16: leave out --int8-only")
        if self.max_batch is not None and self.device != "gpu":
            raise ExportError(f"--device {self.device} takes a fixed number of images: give --batch, not --max-batch")
        if self.batch is not None and self.max_batch is not None:
            raise ExportError("--batch is a fixed number of images, --max-batch the most: give one of them")

    def check(self, precision: str) -> None:
        """Refuse a precision that these settings do not go with.

        Raises:
            ExportError: --implicit or a DLA wants another.
        """
        if self.implicit and precision not in ("int8", "mixed"):
            raise ExportError(f"--implicit is for int8, and this would be {precision}: add --precision int8")
        if self.int8_only and precision not in ("int8", "mixed"):
            raise ExportError(f"--int8-only is for int8, and this would be {precision}: add --precision int8")
        if self.device != "gpu" and precision == "fp32":
            raise ExportError(f"--device {self.device} computes in int8 and fp16: add --precision int8 or fp16")
        if self.device != "gpu" and precision != "fp16" and not self.implicit:
            raise ExportError(f"--device {self.device} takes int8 without Q/DQ only: add --implicit")

    @property
    def dla_core(self) -> Optional[int]:
        """The DLA that runs it; None for the GPU."""
        return None if self.device == "gpu" else int(self.device[len("dla:") :])
