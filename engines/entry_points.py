"""What other installed packages bring under a name: runtimes and models of their own."""

import sys
from importlib import metadata
from typing import Any, Dict, Iterable, Tuple


def entry_points(group: str) -> Dict[str, Tuple[str, str]]:
    """Name -> (module, attribute) of the entry points of a group; nothing is imported.

    https://packaging.python.org/en/latest/specifications/entry-points/
    """
    installed: Any = metadata.entry_points()
    selected: Iterable[Any] = installed.get(group, ()) if sys.version_info < (3, 10) else installed.select(group=group)
    values = {each.name: each.value.partition(":") for each in selected}
    return {name: (module.strip(), attribute.strip()) for name, (module, _, attribute) in values.items()}
