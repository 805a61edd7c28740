"""What the processor can do, as far as Linux tells."""

import os
from typing import Dict, Optional, Set


def cpu_count() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_fields() -> Dict[str, str]:
    """What /proc/cpuinfo says of the last CPU, by name; nothing where there is no such file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, value in lines.items()}


def cpu_flags() -> Set[str]:
    """The instruction sets, as Linux names them: `flags` on x86, `Features` on ARM."""
    fields = cpu_fields()
    return set(fields.get("flags", fields.get("Features", "")).split())


def saturates(machine: str, flags: Set[str]) -> Optional[bool]:
    """Whether products of uint8 and int8 are added in 16 bits, as x86 without VNNI does: 255 * 127 * 2 is too much.

    Args:
        machine: what `platform.machine()` says.
        flags: see `cpu_flags`; Windows and macOS tell none.

    Returns:
        None where it is not known.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return False
    return not flags & {"avx512_vnni", "avx_vnni"} if flags else None
