"""What a student learns of each image, computed once: without augmentation it is the same in every epoch.

FOLDER/0.bin ...    the tensors of each level, one image after the other, float16; memory-mapped when read
FOLDER/key.json     their shapes, and what they are of; written last, so that what was cut short is made again
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Sequence

import numpy as np
import torch
from torch import Tensor

from engines.errors import UadWarning
from engines.files import make_folder, write_json
from uad.data.batches import BATCH
from uad.progress import progress

KEY = "key.json"


def kept_targets(
    targets: Callable[[Tensor], Sequence[Tensor]], images: Tensor, folder: Path, key: Dict[str, Any]
) -> List[Tensor]:
    """The targets of every image, read from a folder if they lie there, and otherwise computed and written to it.

    Memory: that of a batch; the files are mapped, and the system keeps in memory what it has room for.

    Args:
        targets: (N, H, W, 3) uint8 -> (N, C, h, w) of each level.
        images: (N, H, W, 3) uint8.
        folder: to read from and to write to.
        key: what the targets depend on, plain values: files of another key are made anew.

    Returns:
        (N, C, h, w) float16 of each level; none where the disk has no room or float16 cannot hold them, which is said.
    """
    known = _read_key(folder, len(images))
    if known is None or known["of"] != key:
        try:
            shapes = _write(targets, images, folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return _none(folder, f"the disk of {folder} has no room for them")
        except OverflowError:
            return _none(folder, "float16 cannot hold them")
        known = {"of": key, "shapes": shapes}
        write_json(folder / KEY, known)
    return [
        torch.from_numpy(np.memmap(folder / f"{level}.bin", np.float16, "c", shape=(len(images), *shape)))
        for level, shape in enumerate(known["shapes"])
    ]


def key_of(images: Dict[str, List[Any]], size: Sequence[int], tensors: Dict[str, Tensor]) -> Dict[str, Any]:
    """What targets depend on.

    Args:
        images: as `uad.training.run.Record` lists them, with the hash of each content.
        size: (height, width) that they are brought to, pixels.
        tensors: the frozen weights that compute the targets.
    """
    weights = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    listed = hashlib.sha256(json.dumps(images, sort_keys=True).encode())
    return {"images": listed.hexdigest(), "size": list(size), "weights": weights.hexdigest()}


def _read_key(folder: Path, count: int) -> Any:
    """What lies in a folder, or None where it is not whole."""
    try:
        known = json.loads((folder / KEY).read_text(encoding="utf-8"))
        sizes = [2 * count * math.prod(shape) for shape in known["shapes"]]
        whole = all((folder / f"{level}.bin").stat().st_size == size for level, size in enumerate(sizes))
        return known if whole and sizes and "of" in known else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(targets: Callable[[Tensor], Sequence[Tensor]], images: Tensor, folder: Path) -> List[List[int]]:
    """Write the files of every level, and return the shape (C, h, w) of each.

    Raises:
        OSError: there is no room.
        OverflowError: a value is beyond float16.
    """
    shutil.rmtree(str(folder), ignore_errors=True)
    make_folder(folder)
    files: List[BinaryIO] = []
    with contextlib.ExitStack() as closing, torch.no_grad():
        step = closing.enter_context(progress("Computing what is to be learned", len(images)))
        for batch in torch.split(images, BATCH):
            levels = [level.half().cpu() for level in targets(batch)]
            if not all(level.isfinite().all() for level in levels):
                raise OverflowError
            if not files:
                shapes = [list(level.shape[1:]) for level in levels]
                _check_room(folder, 2 * len(images) * sum(math.prod(shape) for shape in shapes))
                names = [f"{index}.bin" for index in range(len(levels))]
                files = [closing.enter_context(open(folder / name, "wb")) for name in names]
            for file, level in zip(files, levels):
                file.write(level.contiguous().numpy().tobytes())
            for _ in batch:
                step()
        for file in files:  # the key, which is written next, must not outlive them
            file.flush()
            os.fsync(file.fileno())
    return shapes


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _none(folder: Path, reason: str) -> List[Tensor]:
    shutil.rmtree(str(folder), ignore_errors=True)
    warnings.warn(
        f"the teacher's features are computed in every epoch, which is slower: {reason}", UadWarning, stacklevel=3
    )
    return []
