"""Errors of data and training; each reaches a user as one line and exit code 2.

engines.errors.UserError
├── DataError           the image folder cannot serve
├── CheckpointError     a checkpoint is damaged, unsafe or of another program
└── TrainingError       training cannot go on
"""

from engines.errors import UserError


class DataError(UserError):
    """The image folder cannot serve."""


class CheckpointError(UserError):
    """A checkpoint is damaged, unsafe or of another program."""


class TrainingError(UserError):
    """Training cannot go on."""
