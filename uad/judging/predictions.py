"""predictions.csv and predictions.jsonl, a line for each photograph as it is judged, so that a stop loses nothing.

predictions.jsonl is what a later call goes on from; predictions.csv says the same but for the regions, of which it has
the number. predictions.model holds the hash of the model, so that one folder never holds what two models said.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, TextIO, Tuple, Type

from engines.errors import OutputError, UserError
from engines.files import csv_line, make_folder, write_text
from engines.plan_file import SUFFIX, description_path

ROWS, TABLE, MODEL = "predictions.jsonl", "predictions.csv", "predictions.model"
END = 1 << 16  # bytes at the end of a file, which hold more lines than one call has under way
DEFECT, GOOD, UNREADABLE = "defect", "good", "unreadable"


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
    score: Optional[float]  # None where the photograph could not be read
    threshold: float
    decision: str  # "defect" where score > threshold, "good", or "unreadable"
    overlay: str = ""  # path of the overlay; "" where none was asked for or it could not be written
    regions: Tuple[Region, ...] = ()  # regions of a defect, the largest first
    error: str = ""  # why it could not be read
    seconds: float = 0.0  # time from the file to the decision


HEADER = ["class" if field.name == "class_name" else field.name for field in dataclasses.fields(Decision)]


class Predictions:
    """The two files of a folder, open to be appended to. Use as a context manager."""

    def __init__(self, out: Path, model: Path, resume: bool, reading: bool = True) -> None:
        """Begin anew, or go on with what is there.

        Args:
            out: the folder, made if needed.
            model: the model file.
            resume: whether to go on. `self.before` then has what is there by the path of the photograph, but for what
                could not be read, which goes to be judged again.
            reading: whether all of it is read; else `self.before` has its last lines alone, and nothing goes.

        Raises:
            OutputError: the files cannot be written.
            UserError: what is there is of another model, or no `predictions.jsonl`.
        """
        make_folder(out)
        digest = digest_of(model)
        self.before: Dict[str, Decision] = {}
        goes_on = resume and (out / ROWS).exists()
        if goes_on and (not (out / MODEL).exists() or (out / MODEL).read_text(encoding="utf-8").strip() != digest):
            raise UserError(f"{out} holds what another model said: give another --out, or begin anew")
        if goes_on and reading:
            self.before = {each.image: each for each in read_predictions(out / ROWS) if not each.error}
        if goes_on and not reading:
            self.before = {each.image: each for each in _mended(out)}
        else:
            write_text(out / MODEL, digest + "\n")
            kept = list(self.before.values())
            write_text(out / ROWS, "".join(json_line(each) for each in kept))
            write_text(out / TABLE, csv_line(HEADER) + "".join(csv_line(_cells(each)) for each in kept))
        self._files: List[TextIO] = []
        try:
            for name in (ROWS, TABLE):
                file = open(out / name, "a", encoding="utf-8", errors="surrogateescape", newline="")  # noqa: SIM115
                self._files.append(file)
        except OSError as error:
            raise OutputError(f"cannot write to {out} ({error.strerror})") from error

    def append(self, decision: Decision) -> None:
        """Write a line to each file.

        Raises:
            OutputError: the disk is full, or the file is gone.
        """
        try:
            for file, line in zip(self._files, (json_line(decision), csv_line(_cells(decision)))):
                file.write(line)
                file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._files[0].name} ({error.strerror})") from error

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for file in self._files:
            file.close()


def digest_of(model: Path) -> str:
    """SHA-256 of the files of a model, in hexadecimal digits: a plan's thresholds lie in the file beside it."""
    digest = hashlib.sha256(model.read_bytes())
    if model.suffix == SUFFIX:
        digest.update(description_path(model).read_bytes())
    return digest.hexdigest()


def read_predictions(path: Path) -> List[Decision]:
    """The rows of a predictions.jsonl; a last line that a kill cut short is passed over.

    Raises:
        UserError: it is damaged.
    """
    return _rows(path.read_text(encoding="utf-8", errors="surrogateescape"), path)


def _mended(out: Path) -> List[Decision]:
    """The last rows of a folder, whose files are cut behind their last whole line, and given equally many of them."""
    ends = []
    for name in (ROWS, TABLE):
        with open(out / name, "rb+") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - END))
            end = file.read()
            whole = end[: end.rfind(b"\n") + 1]
            file.truncate(size - len(end) + len(whole))
            ends.append(whole.decode("utf-8", "surrogateescape"))
    rows, table = ends
    if len(rows) == END:
        rows = rows.partition("\n")[2]
    last = _rows(rows, out / ROWS)
    if last and not table.endswith(csv_line(_cells(last[-1]))):  # killed between the two lines
        with open(out / TABLE, "a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(csv_line(_cells(last[-1])))
    return last


def _rows(text: str, path: Path) -> List[Decision]:
    rows = []
    for number, line in enumerate(
        text.split("\n")[:-1], 1
    ):  # behind the last end of a line there is half a line, or none
        try:
            content = json.loads(line)
            content["regions"] = tuple(Region(**each) for each in content["regions"])
            rows.append(Decision(class_name=content.pop("class"), **content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is no prediction ({error}): leave out --resume") from error
    return rows


def json_line(decision: Decision) -> str:
    """A row of predictions.jsonl."""
    row = dataclasses.asdict(decision)
    return json.dumps(dict(zip(HEADER, row.values()))) + "\n"


def _cells(decision: Decision) -> List[Any]:
    row = {**dataclasses.asdict(decision), "regions": len(decision.regions)}
    return ["" if value is None else value for value in row.values()]
