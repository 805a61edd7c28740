"""Write the results into README.md: each block between `<!-- NAME.md -->` and `<!-- end -->` becomes results/NAME.md.

python benchmarks/readme.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- (\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block filled from benchmarks/results; headings go one level down."""

    def fill(match: "re.Match[str]") -> str:
        content = (ROOT / "benchmarks" / "results" / match.group(2)).read_text(encoding="utf-8").strip()
        return f"{match.group(1)}{re.sub('^#', '##', content, flags=re.MULTILINE)}\n{match.group(3)}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
