"""Makes the shared builders importable: `import graphs` from any test.

The root goes in front, because an editable install is found only after sys.path, where the folder `tests/engines`
would pass for the package `engines`.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent

sys.path[:0] = [str(TESTS.parent), str(TESTS)]
