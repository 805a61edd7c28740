"""Errors that reach a user as one line and exit code 2, and warnings that reach one as a line.

UserError                   whatever the user can put right; the other packages derive from it too
├── ImageFileError          a file is not an image that can be read
│   └── CutShortError       its end is missing
├── ModelFileError          a file is not a model of this project, or is damaged
│   └── NotFiniteError      it gives an image a value that is not finite
├── RuntimeNotInstalled     a runtime was asked for that is not installed here
└── OutputError             an output cannot be written
"""

import contextlib
import sys
import warnings
from typing import Any, Iterator


def printable(text: str) -> str:
    r"""Text that cannot move the cursor of a terminal, nor colour it; a file may have any name. A line break is \n."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


class UadWarning(UserWarning):
    """What a user should know of a result that is given all the same, in one line."""


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each `UadWarning` as a line on stderr, without the place in the code; other warnings as ever."""
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if issubclass(category, UadWarning):
                print(f"uad: warning: {printable(str(message))}", file=sys.stderr)
            else:
                before(message, category, *place, **more)

        warnings.showwarning = show
        yield


class UserError(Exception):
    """Bad input or a missing piece; the message says what is wrong, where, and what to do."""


class ImageFileError(UserError):
    """A file is not an image that can be read."""


class CutShortError(ImageFileError):
    """The end of an image file is missing."""


class ModelFileError(UserError):
    """A file is not a model of this project, or is damaged."""


class NotFiniteError(ModelFileError):
    """A model gives an image a value that is not finite."""


class RuntimeNotInstalled(UserError):
    """A runtime was asked for that is not installed here."""


class OutputError(UserError):
    """An output cannot be written."""
