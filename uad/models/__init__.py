"""The models of the project, one file each; `uad.models.base` says what a model is."""

import importlib
from typing import TYPE_CHECKING, Dict, Type

from engines.errors import UserError

if TYPE_CHECKING:
    from uad.models.base import Model

MODELS: Dict[str, str] = {
    "stfpm": "uad.models.stfpm:STFPM",
    "dcam": "uad.models.dcam:DCAM",
    "reverse_distillation": "uad.models.reverse_distillation:ReverseDistillation",
    "efficient_ad": "uad.models.efficient_ad:EfficientAD",
    "uninformed_students": "uad.models.uninformed_students:UninformedStudents",
}


def model_class(name: str) -> "Type[Model]":
    """The class of a name in `MODELS`.

    Raises:
        UserError: an unknown name.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}': choose one of {', '.join(MODELS)}")
    module, _, class_name = MODELS[name].partition(":")
    found: Type[Model] = getattr(importlib.import_module(module), class_name)
    return found
