"""Errors that reach a user as one line and exit code 2.

UserError                   whatever the user can put right; the other packages derive from it too
├── ImageFileError          a file is not an image that can be read
├── ModelFileError          a file is not a model of this project, or is damaged
├── RuntimeNotInstalled     a runtime was asked for that is not installed here
└── OutputError             an output cannot be written
"""


class UserError(Exception):
    """Bad input or a missing piece; the message says what is wrong, where, and what to do."""


class ImageFileError(UserError):
    """A file is not an image that can be read."""


class ModelFileError(UserError):
    """A file is not a model of this project, or is damaged."""


class RuntimeNotInstalled(UserError):
    """A runtime was asked for that is not installed here."""


class OutputError(UserError):
    """An output cannot be written."""
