"""Tables of docs/explanation/memory.md from simulated jobs (memory_simulation.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "memory.md"
BEGIN, END = "<!-- simulated -->", "<!-- end of simulated -->"
GIB = 2**30
LEAST_RATIO = 0.9
Row = dict[str, Any]


def write_page(rows: Sequence[Row]) -> None:
    """Replace the tables in the page."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{after}", "utf-8")


def tables(rows: Sequence[Row]) -> str:
    """A summary, the peaks of stages that hardly depend on the card, and a table per clip."""
    simulated = [row for row in rows if "stages" in row]
    parts = [summary(rows), other_stages(simulated)]
    keys = ("size", "frames", "inputs")
    ordered = sorted(
        rows, key=lambda r: (r["frames"], r["inputs"] != "text", int(r["size"].removesuffix("p")))
    )
    for (size, frames, inputs), group in itertools.groupby(
        ordered, lambda r: tuple(r[k] for k in keys)
    ):
        parts += [f"#### {size}, {frames} frames, {inputs}", clip_table(list(group))]
    return "\n\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """Sentences on how many jobs were simulated and how near their plans are."""
    simulated = [row for row in rows if "stages" in row]
    stages = [stage for row in simulated for stage in row["stages"].values()]
    ratios = sorted(stage["simulated"] / stage["planned"] for stage in stages)
    over = sum(not is_kept(row) for row in simulated)
    near = sum(ratio >= LEAST_RATIO for ratio in ratios)
    refused = len(rows) - len(simulated)
    return (
        f"{len(simulated)} jobs, {len(stages)} stages of them. Simulated by planned peak: "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}, {near} of {len(ratios)} at least {LEAST_RATIO}. "
        f"Jobs above their plan or budget in any stage or transition: {over}. "
        f"Jobs that the planner refuses: {refused}."
    )


def is_kept(row: Row) -> bool:
    """True if no stage is above its plan, nor plan or what a stage finds above the budget."""
    return all(
        stage["simulated"] <= stage["planned"] <= row["budget"]
        and stage["before"] <= stage["planned"]
        for stage in row["stages"].values()
    )


def other_stages(rows: Iterable[Row]) -> str:
    """Prompt, sound and decode: once for each combination of size, frames and plan."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for row in rows:
        for name in ("prompt", "sound", "decode"):
            stage = row["stages"][name]
            clip = {
                "prompt": ("", ""), "sound": ("", str(row["frames"])),
                "decode": (row["size"], str(row["frames"])),
            }[name]  # fmt: skip
            found[name, *clip, gib(stage["planned"])] = stage["simulated"], stage["planned"]
    lines = ["| stage | size | frames | simulated / planned |", "|---|---|---|---|"]
    for key in sorted(found):
        lines.append(f"| {' | '.join(key[:3])} | {pair(*found[key])} |")
    return "\n".join(lines)


def clip_table(rows: Sequence[Row]) -> str:
    """Cards by precisions: peaks of base, upsample and refine, and resident blocks."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = ["| card | " + " | ".join(precisions) + " |", "|---" * (len(precisions) + 1) + "|"]
    for card in sorted({row["card"] for row in rows}):
        cells = [
            next(
                (cell(r) for r in rows if (r["card"], r["precision"]) == (card, precision)),
                "not simulated",
            )
            for precision in precisions
        ]
        lines.append(f"| {card} GB | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: Row) -> str:
    """Simulated / planned peaks of the sampling part, and where the blocks are."""
    if "refused" in row:
        return "does not fit"
    stages = row["stages"]
    peaks = ", ".join(
        pair(stages[name]["simulated"], stages[name]["planned"])
        for name in ("base", "upsample", "refine")
    )
    base, refine = row["resident"]
    where = "resident" if base is refine is None else f"{_blocks(base)} / {_blocks(refine)} stay"
    return f"{peaks}; {where}; {gib(row['needed'])}"


def _blocks(resident: int | None) -> str:
    return "all" if resident is None else str(resident)


def pair(simulated: int, planned: int) -> str:
    """Two sizes in GiB."""
    return f"{gib(simulated)} / {gib(planned)}"


def gib(nbytes: int) -> str:
    """A size in GiB."""
    return f"{nbytes / GIB:.2f}"
