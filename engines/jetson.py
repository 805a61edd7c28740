"""What a Jetson says of itself while models are measured on it: power mode, clocks, heat, power, memory, throttling.

A latency on a Jetson means nothing without its power mode and its clocks, and it is another one when the module is hot
or draws more current than it may. All is read from files, which any user may read, and from `nvpmodel -q`:

    /proc/meminfo                                        MemAvailable, of the memory that CPU and GPU share
    /sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*          power of each rail: kernel.org/doc/html/latest/hwmon/ina3221
    /sys/class/thermal/thermal_zone*, cooling_device*    heat, and what is slowed down for it
    /sys/class/devfreq/*gv11b, *gpu                      clock of the GPU
    /sys/class/hwmon/hwmon*/oc*_event_cnt                how often the current passed a limit, since it was switched on

See 'Jetson Xavier NX Series and Jetson AGX Xavier Series' in NVIDIA's Jetson Linux Developer Guide, release 35. What a
release does not have is None. Not yet run on hardware.
"""

import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, Tuple, Type

ROOT = Path("/")
EVERY = 1.0  # seconds between two samples
SETTLED = 60.0  # seconds of measuring below which the module is not as hot as it will be
RELEASE = "etc/nv_tegra_release"
RAILS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
GPU_CLOCKS = ("sys/class/devfreq/*gv11b", "sys/class/devfreq/*gpu")
GPU_LOADS = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is one."""
    return (root / RELEASE).exists()


def settings(root: Path = ROOT) -> Dict[str, Any]:
    """What does not change while it is measured, or should not.

    Returns:
        `module`, `release` (of Jetson Linux), `power_mode`, `gpu_mhz_range` and `cpu_mhz_range` (lowest and highest
        that the power mode and jetson_clocks leave), `over_current` (events by counter since it was switched on),
        `cooling` (steps by cooling device, 0 where nothing is slowed down).
    """
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    release = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / RELEASE) or "")
    return {
        "module": (_text(root / "proc/device-tree/model") or "").strip("\0") or None,
        "release": f"R{release[1]}.{release[2]}" if release else None,
        "power_mode": power_mode(_nvpmodel()),
        "gpu_mhz_range": _range(_first(root, GPU_CLOCKS), "min_freq", "max_freq", 1e6),
        "cpu_mhz_range": _range(cpu, "scaling_min_freq", "scaling_max_freq", 1e3),
        "over_current": _numbers(root, "sys/class/hwmon/hwmon*/oc*_event_cnt", "{0.stem}"),
        "cooling": _by_label(root, "sys/class/thermal/cooling_device*", "type", "cur_state", 1),
    }


def sample(root: Path = ROOT) -> Dict[str, Any]:
    """What changes: `power_mw` by rail, `celsius` by zone, `gpu_mhz`, `gpu_load_percent`, `memory_available_mb`."""
    power: Dict[str, float] = {}
    for folder in sorted(root.glob(RAILS)):
        for label in sorted(folder.glob("in[123]_label")):
            channel, name = label.name[2], (_text(label) or "").strip()
            volts, amperes = (_number(folder / f"{what}{channel}_input") for what in ("in", "curr"))  # mV, mA
            if name and volts is not None and amperes is not None:
                power[name] = volts * amperes / 1e3
    clock, load = _first(root, GPU_CLOCKS), _first(root, GPU_LOADS)
    hertz = _number(clock / "cur_freq") if clock else None
    tenths = _number(load) if load else None
    return {
        "power_mw": power,
        "celsius": _by_label(root, "sys/class/thermal/thermal_zone*", "type", "temp", 1e3),
        "gpu_mhz": None if hertz is None else hertz / 1e6,
        "gpu_load_percent": None if tenths is None else tenths / 10,
        "memory_available_mb": memory_available_mb(root),
    }


def memory_available_mb(root: Path = ROOT) -> Optional[float]:
    """Memory that could be had without swapping, in units of 10^6 bytes; a GPU's allocations are taken from it."""
    line = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(line[1]) * 1024 / 1e6 if line else None


def power_mode(answer: str) -> Optional[str]:
    """The mode in what `nvpmodel -q` answers."""
    line = re.search(r"^NV Power Mode: *(\S+)", answer, re.MULTILINE)
    return line[1] if line else None


class Watch:
    """Samples a Jetson while models are measured. Use as a context manager, then ask for the `report`."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._samples: List[Dict[str, Any]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._before = settings(self._root)
        self._thread.start()
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: object, trace: Optional[TracebackType]) -> None:
        self._done.set()
        self._thread.join()
        self._after = settings(self._root)

    def report(self, seconds: float) -> Dict[str, Any]:
        """The settings, what was seen, and `doubts`: lines that must stand beside a latency.

        Args:
            seconds: for which each model was measured.
        """
        available = [each["memory_available_mb"] for each in self._samples]
        return {
            **self._before,
            "power_mw": _summary([each["power_mw"] for each in self._samples]),
            "celsius": _summary([each["celsius"] for each in self._samples]),
            **_summary([{key: each[key] for key in ("gpu_mhz", "gpu_load_percent")} for each in self._samples]),
            "memory_available_mb": min((mb for mb in available if mb is not None), default=None),
            "doubts": doubts(self._before, self._after, seconds),
        }

    def _run(self) -> None:
        while True:
            self._samples.append(sample(self._root))
            if self._done.wait(EVERY):
                return


def doubts(before: Dict[str, Any], after: Dict[str, Any], seconds: float) -> List[str]:
    """Why latencies that were taken between two `settings` are not those of a module left alone."""
    reasons = []
    for key in ("power_mode", "gpu_mhz_range", "cpu_mhz_range"):
        if before[key] != after[key]:
            reasons.append(f"{key} changed from {before[key]} to {after[key]} while it was measured")
    for name, count in after["over_current"].items():
        more = count - before["over_current"].get(name, 0)
        if more > 0:
            reasons.append(f"the current passed a limit {more:.0f} times ({name}), and the clocks were lowered for it")
    for name, step in after["cooling"].items():
        if step > before["cooling"].get(name, 0) and "fan" not in name:
            reasons.append(f"{name} was slowed down for its heat")
    low, high = after["gpu_mhz_range"] or (0.0, 0.0)
    if low != high:
        reasons.append(f"the GPU's clock is free between {low:.0f} and {high:.0f} MHz: sudo jetson_clocks holds it")
    if seconds < SETTLED:
        reasons.append(f"measured for {seconds:g} s, before the heat settles: --seconds {SETTLED:g} or more")
    return reasons


def _nvpmodel() -> str:
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    try:
        return subprocess.run([program, "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _number(path: Path) -> Optional[float]:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _first(root: Path, patterns: Tuple[str, ...]) -> Optional[Path]:
    return next((path for pattern in patterns for path in sorted(root.glob(pattern))), None)


def _range(folder: Optional[Path], low: str, high: str, unit: float) -> Optional[List[float]]:
    values = [_number(folder / name) for name in (low, high)] if folder else []
    return [value / unit for value in values if value is not None] if values and None not in values else None


def _numbers(root: Path, pattern: str, name: str) -> Dict[str, float]:
    readings = {name.format(path): _number(path) for path in sorted(root.glob(pattern))}
    return {key: value for key, value in readings.items() if value is not None}


def _by_label(root: Path, pattern: str, label: str, value: str, unit: float) -> Dict[str, float]:
    """Values in the folders of a pattern by what their label says; of equal labels the greatest."""
    hottest: Dict[str, float] = {}
    for folder in sorted(root.glob(pattern)):
        name, number = (_text(folder / label) or "").strip(), _number(folder / value)
        if name and number is not None:
            hottest[name] = max(hottest.get(name, number / unit), number / unit)
    return hottest


def _summary(samples: "List[Dict[str, Any]]") -> Dict[str, Any]:
    """Mean and maximum of each key over the samples that have it."""
    keys = dict.fromkeys(key for each in samples for key in each)
    values = {key: [each[key] for each in samples if each.get(key) is not None] for key in keys}
    return {key: {"mean": sum(had) / len(had), "max": max(had)} for key, had in values.items() if had}
