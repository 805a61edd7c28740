"""What the model says of a photograph, and the forms in which it is written: a line of JSON, a row of CSV."""

import dataclasses
import json
from pathlib import Path
from typing import Any, List, Optional, Tuple

from engines.errors import UserError
from engines.files import csv_line
from engines.metadata import UNKNOWN, ModelInfo

ROWS, TABLE = "predictions.jsonl", "predictions.csv"
UNREADABLE = "unreadable"  # a decision, beside those of `engines.metadata`


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of a photograph that lies above the threshold, in pixels of the photograph."""

    left: int
    top: int
    width: int
    height: int
    area: int


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the model says of one photograph; the columns of predictions.csv, where `regions` is their number."""

    image: str
    class_name: str  # "" where it is not known; then the global threshold serves
    score: Optional[float]  # None where the photograph could not be judged
    threshold: float
    decision: str  # "defect" where score > threshold, "good", "unknown" (see `ModelInfo.limits`), or "unreadable"
    overlay: str = ""  # path of the overlay; "" where none was asked for or it could not be written
    regions: Tuple[Region, ...] = ()  # regions of what is not good, the largest first
    error: str = ""  # why it could not be judged
    seconds: float = 0.0  # time from the file to the decision
    note: str = ""  # what else should be known of it
    moved_to: str = ""  # path that a watch moves it to
    seen_as: str = ""  # class that the model sees; "" where it does not tell
    class_distance: Optional[float] = None  # from that class, 1 for its farthest good image; None where it is not told

    @property
    def is_of_other_class(self) -> bool:
        """Whether the model knows the part, but as another class than the one that was given."""
        return self.decision != UNKNOWN and bool(self.class_name and self.seen_as) and self.class_name != self.seen_as


HEADER = ["class" if field.name == "class_name" else field.name for field in dataclasses.fields(Decision)]


def not_judged(path: Path, class_name: Optional[str], info: ModelInfo, error: str, seconds: float = 0.0) -> Decision:
    """The decision on a photograph that cannot be judged."""
    threshold = info.threshold_of(class_name)
    return Decision(str(path), class_name or "", None, threshold, UNREADABLE, error=error, seconds=seconds)


def json_line(decision: Decision) -> str:
    """A row of predictions.jsonl."""
    return json.dumps(dict(zip(HEADER, dataclasses.asdict(decision).values()))) + "\n"


def csv_row(decision: Decision) -> str:
    """A row of predictions.csv: the same, but for the regions, of which it has the number."""
    row = {**dataclasses.asdict(decision), "regions": len(decision.regions)}
    return csv_line(["" if value is None else value for value in row.values()])


def decision_of(line: str) -> Decision:
    """What `json_line` wrote.

    Raises:
        ValueError, KeyError, TypeError or AttributeError: it is something else.
    """
    content: Any = json.loads(line)
    content["regions"] = tuple(Region(**each) for each in content["regions"])
    return Decision(class_name=content.pop("class"), **content)


def read_predictions(path: Path) -> List[Decision]:
    """The rows of a predictions.jsonl; a last line that a kill cut short is passed over.

    Raises:
        UserError: it is damaged.
    """
    rows = []
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # behind the last end of a line there is half a line, or none
        try:
            rows.append(decision_of(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is no prediction ({error}): give another --out") from error
    return rows
