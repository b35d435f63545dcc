"""The README's figures come from the report: what stands between two markers is written anew.

python -m benchmarks.speed.readme docs/benchmarks/speed.json README.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.speed.report import summary

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def rewritten(text: str, block: str) -> str:
    """``text`` with ``block`` between its markers, each on a line of its own. Raises ValueError without exactly one
    pair in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one {BEGIN} and one {END} after it")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block.strip()}\n{END}{after}"


def main() -> None:
    """Rewrites the second file from the first."""
    results, readme = Path(sys.argv[1]), Path(sys.argv[2])
    block = summary(json.loads(results.read_text(encoding="utf-8")))
    readme.write_text(rewritten(readme.read_text(encoding="utf-8"), block), encoding="utf-8")


if __name__ == "__main__":
    main()
