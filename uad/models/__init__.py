"""The models of the project, one file each; `uad.models.base` says what a model is."""

import functools
import importlib
from typing import TYPE_CHECKING, Dict, Type

from engines.entry_points import entry_points
from engines.errors import UserError

if TYPE_CHECKING:
    from uad.models.base import Model

MODELS: Dict[str, str] = {
    "stfpm": "uad.models.stfpm:STFPM",
    "dcam": "uad.models.dcam:DCAM",
    "reverse_distillation": "uad.models.reverse_distillation:ReverseDistillation",
    "patchcore": "uad.models.patchcore:PatchCore",
    "efficient_ad": "uad.models.efficient_ad:EfficientAD",
    "uninformed_students": "uad.models.uninformed_students:UninformedStudents",
}


@functools.lru_cache(maxsize=None)
def models() -> Dict[str, str]:
    """Name -> "module:Class": `MODELS`, then those of other packages, entry points of the group `uad.models`."""
    known = dict(MODELS)
    for name, (module, attribute) in entry_points("uad.models").items():
        known.setdefault(name, f"{module}:{attribute}")
    return known


def model_class(name: str) -> "Type[Model]":
    """The class of a name in `models()`.

    Raises:
        UserError: an unknown name.
    """
    if name not in models():
        raise UserError(f"unknown model '{name}': choose one of {', '.join(models())}")
    module, _, class_name = models()[name].partition(":")
    kind: Type[Model] = getattr(importlib.import_module(module), class_name)
    return kind
