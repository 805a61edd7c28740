"""Outputs that are whole or absent: written beside their place, then renamed."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterator, Union

from engines.errors import OutputError


def make_folder(path: Union[str, Path], flag: str = "--out") -> Path:
    """Create a folder (and its parents) that can be written to; `flag` is named in errors.

    Raises:
        OutputError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to the folder {folder} ({reason}): choose another with {flag}") from error
    return folder


@contextlib.contextmanager
def replacing(path: Union[str, Path]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on an error it is removed.

    Raises:
        OutputError: the folder cannot be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder: name a file")
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(str(temporary), str(target))
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_json(path: Union[str, Path], content: Any) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
