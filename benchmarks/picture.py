"""The README's picture: four decisions of `uad demo`, the first of their kind, whatever they are.

make demo
python benchmarks/picture.py --demo demo --out docs/demo.png
"""

import argparse
import json
from pathlib import Path

from uad.data.synthetic import GOOD
from uad.evaluation.decisions import Decision
from uad.evaluation.sheet import contact_sheet

SHOWN = (("gear", True), ("gear", False), ("board", False), ("fabric", False))  # class, whether the part is good


def main() -> None:
    """Take the first photograph of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="folder that uad demo wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[tuple[str, bool], Decision] = {}
    for entry in json.loads((options.demo / "predictions" / "predictions.json").read_text(encoding="utf-8")):
        decision = Decision(class_name=entry.pop("class"), **entry)
        found.setdefault((decision.class_name, Path(decision.image).parent.name == GOOD), decision)
    contact_sheet([found[each] for each in SHOWN], options.out, columns=len(SHOWN))


if __name__ == "__main__":
    main()
