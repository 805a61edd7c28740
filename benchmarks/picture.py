"""The README's picture: four decisions of `uad demo`, the first of their kind, whatever they are.

make demo
python benchmarks/picture.py --demo demo --out docs/demo.png
"""

import argparse
from pathlib import Path

from uad.commands.demo import first_of_each
from uad.judging.predictions import ROWS, read_predictions
from uad.judging.sheet import contact_sheet

SHOWN = (("gear", True), ("gear", False), ("board", False), ("fabric", False))  # class, whether the part is good


def main() -> None:
    """Take the first photograph of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="folder that uad demo wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = first_of_each(read_predictions(options.demo / "predictions" / ROWS))
    contact_sheet([found[each] for each in SHOWN], options.out, columns=len(SHOWN))


if __name__ == "__main__":
    main()
