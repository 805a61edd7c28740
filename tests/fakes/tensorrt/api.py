"""What each release has, and how whoever calls it is held to that."""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

from fakes.cuda import Gpu

API: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "api.json").read_text())
RELEASES = ("8.5.2", "8.6.1", "10.3.0", "10.16", "11.1")
BUILDS = {"8.5.2": "8.5.2.2", "8.6.1": "8.6.1.6", "10.3.0": "10.3.0.26"}  # as the module itself says
MAGIC = b"a plan of TensorRT "
ENUMS = (
    *("BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "DataType", "LayerType", "TensorIOMode"),
    *("ProfilingVerbosity", "TacticSource", "PreviewFeature", "QuantizationFlag", "DeviceType", "EngineCapability"),
    *("OnnxParserFlag", "Severity", "LayerInformationFormat"),
)


def number(release: str) -> tuple[int, ...]:
    """ "10.16" -> (10, 16)."""
    return tuple(int(part) for part in release.split("."))


def need(value: Any, kind: Any, what: str) -> None:
    """Raise TypeError for an argument of another kind, as pybind11 does."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise TypeError(f"{what}: incompatible argument {value!r}")


class Number(enum.Enum):
    """Values that convert to int, but are none, as those of pybind11."""

    def __int__(self) -> int:
        return int(self.value)


class Release:
    """One release on one GPU: its module, and the classes and enums in it, which know of it as `_release`."""

    def __init__(self, version: str, gpu: Gpu) -> None:
        self.version, self.gpu, self.major = version, gpu, number(version)[0]
        names = API[version].items()
        self.api = {name: members if isinstance(members, list) else members.split() for name, members in names}
        self.module: Any = types.ModuleType("tensorrt")
        self.module.__version__ = BUILDS.get(version, version)
        self.module._builds, self.module._failure = [], None
        self.module.init_libnvinfer_plugins = lambda logger, namespace: True
        self.kinds: dict[str, Any] = {}
        self.enums: dict[str, Any] = {}
        for name in (name for name in self.api if name in ENUMS):
            self.enums[name] = Number(name, {member: index for index, member in enumerate(self.api[name])})
            self._show(name, self.enums[name])
        self.DataType, self.LayerType = self.enums["DataType"], self.enums["LayerType"]
        self.Severity = self.enums["Severity"]

    def add(self, kind: type) -> None:
        """Make a class one of this release, and show it in the module if the release does."""
        self.kinds[kind.__name__] = made = type(kind.__name__, (kind,), {"_release": self})
        if issubclass(kind, ILogger):
            made.Severity = self.Severity  # type: ignore[attr-defined]
            for member in self.Severity:
                setattr(made, member.name, member)
        self._show(kind.__name__, made)

    def _show(self, name: str, value: Any) -> None:
        if name in self.api[""]:
            setattr(self.module, name, value)


class Guarded:
    """An object of which only what the release has can be seen or set."""

    _release: Release

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            _guard(type(self), name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _guard(type(self), name)
        object.__setattr__(self, name, value)


def _guard(kind: Any, name: str) -> None:
    if "_release" not in vars(kind):  # a subclass of the caller's, with members of its own
        return
    release = kind._release
    bases = [base.__name__ for base in kind.__mro__ if base.__name__ in release.api]
    if not any(name in release.api[base] for base in bases):
        raise AttributeError(f"{kind.__name__} has no '{name}' in TensorRT {release.version}")


class ILogger:
    def __init__(self) -> None:
        self._is_made = True


class Logger(ILogger):
    pass


def check_logger(logger: Any) -> None:
    need(logger, ILogger, "logger")
    if not getattr(logger, "_is_made", False):
        raise TypeError("ILogger.__init__ was not called")


def report_error(caller: Any, text: str) -> None:
    """Tell the logger of a builder or a runtime what it cannot do."""
    caller._logger.log(caller._release.Severity["ERROR"], text)


class IProgressMonitor:
    def __init__(self) -> None:
        self._is_made = True


class IInt8EntropyCalibrator2:
    def __init__(self) -> None:
        self._is_made = True


CLASSES = (ILogger, Logger, IProgressMonitor, IInt8EntropyCalibrator2)
