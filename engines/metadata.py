"""What a model file says of itself: everything a runtime needs to judge an image travels inside it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union, get_type_hints

from engines.errors import ModelFileError
from engines.images import DEPTHS

PRECISIONS = ("fp32", "fp16", "int8", "mixed")
SIMULATED = " simulated"  # behind the precision of a checkpoint that was trained under fake quantization
# 3 told how to draw the held-out images again, in place of which they were; 4 and before, no class.
FORMAT = 5
READ = (3, 4, FORMAT)
# What a graph gives, in this order: score and anomaly map, where it knows classes the index of the class that it sees,
# and where it can tell, how far the image is from that class.
OUTPUTS = ("score", "anomaly_map", "class_index", "class_distance")
DIGEST = 16  # hexadecimal digits of a digest of a file's content
# The greatest that a file may ask for, so that a small one cannot take all of the memory before its weights are seen.
MOST_PIXELS = 4096  # pixels of one side of the input
MOST_CLASSES = 10_000
LONGEST_TEXT = 10_000  # characters


DEFECT, GOOD, UNKNOWN = "defect", "good", "unknown"  # decisions


def is_defect(score: float, threshold: float) -> bool:
    """The one rule by which an image is called defective: its score lies strictly above its threshold.

    Raises:
        ValueError: one of the two is not finite. A comparison with it would call the image good.
    """
    if not (math.isfinite(score) and math.isfinite(threshold)):
        raise ValueError(f"a score of {score} at a threshold of {threshold} decides nothing")
    return score > threshold


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The description that travels in the ONNX file (and as `engine.plan.json` beside a plan)."""

    model: str  # the method, such as "stfpm"
    backbone: str
    classes: List[str]  # the kinds of parts the model was trained on
    thresholds: Dict[str, float]  # class -> an image of this class is defective where score > threshold
    threshold: float  # the same for an image whose class is not known
    false_positive_rate: float  # part of the held-out good images that may score above their threshold
    # Class -> digests of the good images that training held out; see `uad.data.content`. Empty where nothing is known.
    held_out: Dict[str, List[str]]
    height: int  # height of the input, pixels
    width: int
    resize: str  # the rule that makes a photograph height x width
    map_stride: int  # input pixels for each pixel of the anomaly map
    mean: List[float]  # mean of each colour by which the graph normalises, for pixels in [0, 1]
    std: List[float]
    # fp32, fp16, int8, or mixed (int8 but for `float_layers`): of everything but the distance head, which is float32.
    precision: str = "fp32"
    float_layers: List[str] = dataclasses.field(default_factory=list)  # layers that a mixed or fp16 model keeps in fp32
    # Class -> bits used in its 16-bit files, if it has any; of `engines.images.DEPTHS`.
    depths: Dict[str, int] = dataclasses.field(default_factory=dict)
    calibration: Optional[Dict[str, Any]] = None  # calibrator, images, seed; None for a float model
    # Of a graph that is not fp32: "images", class -> on how many the read-out was fitted again, and "thresholds", the
    # classes whose threshold was chosen again. None where both are those of the float model.
    refitted: Optional[Dict[str, Any]] = None
    # Output of a convolution before a residual Add -> its INT8 scale. The graph leaves these tensors in float, because
    # TensorRT and OpenVINO fuse the Add; ONNX Runtime cannot and quantizes them (engines/unsigned.py).
    residual_scales: Dict[str, float] = dataclasses.field(default_factory=dict)
    # Those that `uad threshold` replaced first: class -> threshold, and "" -> that of an unknown class.
    former_thresholds: Optional[Dict[str, float]] = None
    former_limits: Optional[Dict[str, float]] = None
    weight_bits: int = 8  # bits of INT8 weights: 7 leaves room in the 16-bit sums of x86 without VNNI (engines/cpu.py)
    outputs: List[str] = dataclasses.field(default_factory=lambda: list(OUTPUTS[:2]))  # of the graph, see `OUTPUTS`
    # Class -> class distance beyond which an image that is seen as this class is of none that is known. Empty where the
    # graph gives no class distance.
    limits: Dict[str, float] = dataclasses.field(default_factory=dict)
    checkpoint_sha256: str = ""
    # Of the checkpoint whose network it has, where classes were added, removed or given more images since.
    made_from: str = ""
    images: Dict[str, int] = dataclasses.field(default_factory=dict)  # class -> good images that its statistics rest on
    versions: Dict[str, str] = dataclasses.field(default_factory=dict)  # package -> version that wrote the file
    format: int = FORMAT

    @property
    def size(self) -> Tuple[int, int]:
        """(height, width) of the input, pixels."""
        return self.height, self.width

    def threshold_of(self, class_name: Optional[str], seen_as: Optional[str] = None) -> float:
        """The threshold of an image: that of its class, else of the class that it is seen as, else the global one.

        Args:
            class_name: what is said of it, such as by its folder; None, or a class that the model does not know.
            seen_as: what the model says; None where it tells no class.
        """
        known = [name for name in (class_name, seen_as) if name in self.thresholds]
        return self.thresholds[known[0]] if known else self.threshold

    def is_unknown(self, seen_as: Optional[str], class_distance: Optional[float]) -> bool:
        """Whether an image that is seen as this class, so far from it, is of no class that is known."""
        limit = self.limits.get(seen_as) if seen_as else None
        return limit is not None and class_distance is not None and class_distance > limit

    def decide(self, score: float, threshold: float, seen_as: Optional[str], class_distance: Optional[float]) -> str:
        """What an image is: `DEFECT`, `GOOD`, or `UNKNOWN`, whatever its score, where it is of no known class."""
        if self.is_unknown(seen_as, class_distance):
            return UNKNOWN
        return DEFECT if is_defect(score, threshold) else GOOD

    def depth_of(self, class_name: Optional[str]) -> int:
        """How many bits of a 16-bit file are used; where the class is not known, as many as in every class, or 16."""
        known = set(self.depths.values())
        only = known.pop() if len(known) == 1 else 16
        return self.depths.get(class_name, only) if class_name else only

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, path: Union[str, Path]) -> "ModelInfo":
        """Read what `to_json` wrote; `path` is named in errors.

        Raises:
            ModelFileError: the text is not the description of a model, or of a newer format.
        """
        try:
            values = json.loads(text)
            version = values["format"]
            if not isinstance(version, int):
                raise TypeError(f"its format is {version}")
            if version not in READ:
                mend = "update uad" if version > FORMAT else "export it again"
                raise ModelFileError(f"{path} has format {version}, this program reads {FORMAT}: {mend}")
            values.setdefault("held_out", {})  # as in format 3
            values["format"] = FORMAT
            known = {field.name for field in dataclasses.fields(cls)}
            info = cls(**{key: value for key, value in values.items() if key in known})
            _check(info)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"{path}: its description cannot be read ({error}): export it again") from error
        return info


def check_types(described: Any) -> None:
    """Check that each field of a dataclass holds what its annotation says.

    Raises:
        ValueError: one does not, or a text is longer than `LONGEST_TEXT`.
    """
    for name, hint in get_type_hints(type(described)).items():
        value = getattr(described, name)
        _require(_fits(value, hint), f"{name} is {str(value)[:80]}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from JSON is of a type such as `Dict[str, List[int]]`; an integer is a float, too."""
    origin: Any = getattr(hint, "__origin__", None)
    arguments: Any = getattr(hint, "__args__", ())
    if origin is Union:
        return any(_fits(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    if hint is float:
        return _is_finite(value)
    if hint is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    return hint is Any or type(value) is hint  # True is no int


def _check(info: ModelInfo) -> None:
    """Raise ValueError for a field that cannot be."""
    check_types(info)
    known = info.precision in PRECISIONS or info.precision.endswith(SIMULATED)
    _require(known, f"the precision is {info.precision}")
    names = info.classes
    _require(all(names), "a class has no name")
    _require(len(set(names)) == len(names), "a class comes twice")
    _require(len(names) <= MOST_CLASSES, f"it has {len(names)} classes, {MOST_CLASSES} are the most")
    _require(set(info.thresholds) == set(names), "thresholds must be of the classes")
    _require(set(info.former_thresholds or ()) <= {"", *names}, "former_thresholds must be of the classes")
    _require(0 <= info.false_positive_rate < 1, "false_positive_rate")
    for name in ("height", "width", "map_stride"):
        value = getattr(info, name)
        _require(0 < value <= MOST_PIXELS, f"{name} is {value}, {MOST_PIXELS} is the most")
    _require(set(info.held_out) <= set(names), "held_out must be of the classes")
    for name, digests in info.held_out.items():
        _require(all(map(_is_digest, digests)), f"the held-out images of {name} are no digests")
    refitted = info.refitted or {}
    _require(_fits(refitted.get("images", {}), Dict[str, int]), "refitted names no images")
    _require(_fits(refitted.get("thresholds", []), List[str]), "refitted names no thresholds")
    _require(len(info.mean) == len(info.std) == 3, "mean and std are of three colours")
    _require(all(value > 0 for value in info.std), "std must be above 0")
    for name, depth in info.depths.items():
        _require(name in names and depth in DEPTHS, f"the depth of {name} is {depth}")
    _require(info.weight_bits in (7, 8), f"weight_bits is {info.weight_bits}")
    known_outputs = [list(OUTPUTS[:count]) for count in range(2, len(OUTPUTS) + 1)]
    _require(info.outputs in known_outputs, f"its outputs are {', '.join(info.outputs)}")
    _require(set(info.limits) <= set(names), "limits must be of the classes")
    _require(set(info.images) <= set(names), "images must be of the classes")
    _require(set(info.former_limits or ()) <= set(names), "former_limits must be of the classes")
    for name, value in info.residual_scales.items():
        _require(value > 0, f"the scale of {name} is {value}")


def _is_digest(text: str) -> bool:
    return len(text) == DIGEST and set(text) <= set("0123456789abcdef")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
