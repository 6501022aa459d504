"""Page docs/laboratory/gpu.md from the JSON files of the three scripts.

python benchmarks/gpu/docs_page.py            # after the scripts have run on a GPU
python benchmarks/gpu/docs_page.py --check    # fails if the page is not up to date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORED = ROOT / "benchmarks" / "gpu" / "measured"
"""JSON files of a campaign on a card, copied here from ``benchmarks/results``."""
PAGE = ROOT / "docs" / "laboratory" / "gpu.md"
TEMPLATE = ROOT / "benchmarks" / "gpu" / "page.md"
SCRIPTS = ("correctness", "speed", "end_to_end")


def table(report: dict[str, Any]) -> str:
    """Heading and table of one script."""
    marks = {True: "yes", False: "**no**", None: ""}
    lines = [
        f"## {report['script'].replace('_', ' ').capitalize()}",
        "",
        f"{report['device']}, torch {report['torch']}, {report['seconds']:.0f} s.",
        "",
        "| check | result | goal | met |",
        "|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(f"| {row['name']} | {row['value']} | {row['goal']} | {marks[row['ok']]} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page. A rehearsal is never shown as a measurement."""
    parts = []
    for name in SCRIPTS:
        file = STORED / f"gpu_{name}.json"
        report = json.loads(file.read_text()) if file.exists() else None
        if report is not None and not report["rehearsal"]:
            parts.append(table(report))
    found = "\n\n".join(parts) or "No GPU was available yet: **nothing here has been measured.**"
    return TEMPLATE.read_text().replace("{tables}", found)


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        same = PAGE.exists() and PAGE.read_text() == text
        print("up to date" if same else f"run python {Path(__file__).name}")
        return 0 if same else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
