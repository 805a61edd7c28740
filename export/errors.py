"""Errors of making a model file; each reaches a user as one line and exit code 2.

engines.errors.UserError
└── ExportError             a model cannot be exported as asked
    └── CalibrationError    the calibration data cannot serve
"""

from engines.errors import UserError


class ExportError(UserError):
    """A model cannot be exported as asked."""


class CalibrationError(ExportError):
    """The calibration data cannot serve."""
