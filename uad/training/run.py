"""The folder of a run: what lies in it, who may have it, and what a run that was stopped needs to go on.

RUN/config.yaml    every setting, as resolved
RUN/run.json       what the run is of: its settings, its images, and whether it is finished; see `Record`
RUN/train.csv      losses of each epoch
RUN/last.ckpt      Lightning's own, after each epoch: what `uad fit --resume RUN` goes on from
RUN/best.ckpt      the same, of the epoch with the least loss on held-out good images
RUN/model.ckpt     the trained model: from the best epoch, with thresholds
RUN/targets/       while it trains, or with --keep-cache: see `uad.data.cache`
RUN/metrics.json   its accuracy on the test images; null where there are none
RUN/new/           with --overwrite: the run that takes the place of this one once it is finished
"""

import dataclasses
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import yaml

from engines.errors import UserError
from engines.files import make_folder, write_json, write_text
from uad.data.files import count, listing
from uad.data.folder import Sample
from uad.data.module import AnomalyData
from uad.data.reading import DECODERS
from uad.progress import progress

CONFIG, RECORD, LAST, BEST, MODEL = "config.yaml", "run.json", "last.ckpt", "best.ckpt", "model.ckpt"
FILES = (CONFIG, RECORD, "train.csv", LAST, BEST, "metrics.json", MODEL)
TARGETS = "targets"
NEW = "new"
MAY_CHANGE = ("trainer.max_epochs", "data.root")  # when a run goes on


@dataclasses.dataclass
class Record:
    """What a run is of; a resumed run is held to it."""

    settings: Dict[str, Any]  # as in config.yaml
    # path below the root -> [class, "training" or "held out", bytes, SHA-256 of the content]; good images only
    images: Dict[str, List[Any]]
    finished: bool = False

    def write(self, folder: Path) -> None:
        """Write run.json and, for people, config.yaml."""
        write_json(folder / RECORD, dataclasses.asdict(self))
        write_text(folder / CONFIG, yaml.safe_dump(self.settings, sort_keys=False))

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read run.json.

        Raises:
            UserError: it is not that of a run, or config.yaml says something else.
        """
        for name in (CONFIG, RECORD):
            if not (folder / name).is_file():
                raise UserError(f"{folder} has no {name}: --resume needs the folder of a run")
        try:
            record = cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
            settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
            before, now = _flat(record.settings), _flat(settings)
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise UserError(f"{folder}: {CONFIG} and {RECORD} are not those of a run ({error}): start again") from error
        keys = sorted({*before, *now} - set(MAY_CHANGE))
        changed = [key for key in keys if before.get(key) != now.get(key)]
        if changed:
            raise UserError(f"{folder / CONFIG} was changed ({', '.join(changed)}): put it back, or start a new run")
        return record


def place_for(out: Path, overwrite: bool) -> Path:
    """The folder to train a new run in: `out`, or one inside it, so that the run that is there stays until the end.

    Raises:
        UserError: a run lies there and may not be replaced, or other things do.
    """
    inside = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    begun = (out / RECORD).is_file() or (out / CONFIG).is_file()
    if begun and ((out / LAST).exists() or (out / MODEL).exists()):
        if overwrite:
            return out / NEW
        raise UserError(f"--out {out} holds a run: give another folder, or --overwrite, or --resume {out} to go on")
    others = [name for name in inside if not (begun and name in (*FILES, TARGETS))]
    if others:
        raise UserError(f"--out {out} holds other things ({listing(others, 3)}): give a new or an empty folder")
    return out


def place_of(run: Path) -> Path:
    """The folder in which a run goes on: that of the run that replaces this one, where there is such."""
    return run / NEW if (run / NEW / RECORD).is_file() else run


def begin(folder: Path, record: Record) -> None:
    """Start a run in a folder that `place_for` gave; what an earlier attempt left there goes."""
    if folder.name == NEW and folder.is_dir():
        shutil.rmtree(str(folder))
    make_folder(folder)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(str(folder / TARGETS), ignore_errors=True)
    record.write(folder)


def deliver(folder: Path, out: Path, record: Record, keep_cache: bool = False) -> None:
    """Note that a run is finished, take away what only training needed, and put the run in its place.

    One that was trained inside `out` takes the place of the one that is there; what is not of a run stays. A move that
    is cut short is ended by `uad fit --resume`: every file is whole meanwhile.
    """
    if not keep_cache:
        shutil.rmtree(str(folder / TARGETS), ignore_errors=True)
    record = dataclasses.replace(record, finished=True)
    record.write(folder)
    if folder == out:
        return
    made = [path.name for path in folder.iterdir() if path.name not in (CONFIG, RECORD)]
    if MODEL in made:  # else a move was cut short, and what is gone here is there
        for name in set(FILES) - {*made, CONFIG, RECORD}:
            (out / name).unlink(missing_ok=True)
    for name in sorted(made, key=lambda name: name != MODEL):
        if (out / name).is_dir():  # of a logger, or what was kept
            shutil.rmtree(str(out / name))
        os.replace(str(folder / name), str(out / name))
    record.write(out)
    (folder / RECORD).unlink()  # from here on `folder` is no run
    shutil.rmtree(str(folder))


def images_of(data: AnomalyData) -> Dict[str, List[Any]]:
    """The good images as `Record` holds them."""
    parts = [("training", data.training_samples), ("held out", data.held_out_samples)]
    samples = [(part, sample) for part, members in parts for sample in members]

    def look(item: Tuple[str, Sample]) -> Tuple[str, List[Any]]:
        part, sample = item
        content = sample.path.read_bytes()
        step()
        name = sample.path.relative_to(data.root).as_posix()
        return name, [sample.class_name, part, len(content), hashlib.sha256(content).hexdigest()]

    with progress("Listing images", len(samples)) as step, ThreadPoolExecutor(DECODERS) as pool:
        return dict(sorted(pool.map(look, samples)))


def check_images(run: Path, before: Dict[str, List[Any]], now: Dict[str, List[Any]]) -> None:
    """Hold the images of a resumed run to those it began with.

    Raises:
        UserError: names the differences.
    """
    both = [name for name in now if name in before]
    differences: List[Tuple[str, Sequence[str]]] = [
        ("added", [name for name in now if name not in before]),
        ("gone", [name for name in before if name not in now]),
        ("changed", [name for name in both if now[name][2:] != before[name][2:]]),
        ("in another part of the split", [name for name in both if now[name][:2] != before[name][:2]]),
    ]
    changes = [f"{count(names, 'image')} {what} ({listing(names, 3)})" for what, names in differences if names]
    if changes:
        raise UserError(f"{run} began with other images: {'; '.join(changes)}: give those, or start a new run")


def _flat(settings: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    """`{"data": {"seed": 0}}` -> `{"data.seed": 0}`."""
    flat: Dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
