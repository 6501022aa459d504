"""Simulated memory of whole jobs of LTX-2.3 on common GPUs, next to the plan.

    python benchmarks/memory_simulation.py                    # all jobs, an hour on two cores
    python benchmarks/memory_simulation.py --precision fp8 --card 16 --size 1080p
    python benchmarks/memory_simulation.py --write      # writes docs/explanation/memory.md

The product's own code runs on tensors that say ``cuda`` and have no data (tests/pretended), with
files of the published names, shapes and dtypes. All 48 blocks are loaded, placed and streamed as
planned; three of them compute in each of two forwards per stage, which has the same peak as all of
them (tests/pretended/test_real_size.py). Results are added to memory_simulation.json. Not
simulated: memory that cuDNN takes for itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from pretended.allocator import peak_expandable  # noqa: E402
from pretended.real_job import JobResult, RealJob, simulate  # noqa: E402

PAGE = ROOT / "docs" / "explanation" / "memory.md"
RESULTS = Path(__file__).with_name("memory_simulation.json")
BEGIN, END = "<!-- simulated -->", "<!-- end of simulated -->"
PRECISIONS = ("bf16", "fp8", "nvfp4", "q8_0", "q4_k_m")
CARDS = (8, 12, 16, 24, 32, 48, 80)
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080), "1440p": (2560, 1440)}
FRAMES = (121, 241)
INPUTS = {"text": (False, False), "LoRA+image": (True, True)}
GIB = 2**30
Rows = dict[str, dict[str, Any]]


def jobs(
    layers: int = 48, skip: frozenset[str] = frozenset()
) -> Iterator[tuple[str, RealJob, int]]:
    """Name, job and card of every job; stages of the kinds in ``skip`` are left out."""
    axes = itertools.product(PRECISIONS, SIZES, FRAMES, INPUTS, CARDS)
    for precision, size, frames, inputs, card in axes:
        lora, image = INPUTS[inputs]
        job = RealJob(precision, layers, SIZES[size], frames, lora=lora, image=image, skip=skip)
        yield (
            f"{precision}, {size}, {frames} frames, {inputs}, {layers} blocks, {card} GB",
            job,
            card,
        )


def row(result: JobResult) -> dict[str, Any]:
    """Results of a job as plain data, in bytes."""
    return {
        "budget": result.budget,
        "needed": peak_expandable(result.log.trace).needed,
        "stages": {
            stage.name: {"simulated": stage.peak, "planned": stage.planned}
            for stage in result.stages
        },
    }


def table(rows: Rows) -> str:
    """The results in Markdown, one line per job: simulated / planned GiB of each stage."""
    names = ("prompt", "base", "upsample", "refine", "decode")
    head = ("job", *names, "with fragmentation", "budget")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in rows.items():
        stages = found["stages"]
        cells = [
            f"{stages[n]['simulated'] / GIB:.2f} / {stages[n]['planned'] / GIB:.2f}"
            if n in stages
            else ""
            for n in names
        ]
        totals = [f"{found[key] / GIB:.2f}" for key in ("needed", "budget")]
        lines.append("| " + " | ".join([name, *cells, *totals]) + " |")
    return "\n".join(lines)


def replace_table(page: str, body: str) -> str:
    """Replace the table in the text of the page."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def read_results() -> Rows:
    """The stored results by the name of the job."""
    found: Rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for axis in ("precision", "size", "inputs"):
        parser.add_argument(f"--{axis}", action="append")
    for axis in ("card", "frames"):
        parser.add_argument(f"--{axis}", action="append", type=int)
    parser.add_argument("--blocks", type=int, default=48, help="a smaller model, for a quick look")
    parser.add_argument(
        "--skip", action="append", default=[], help="a kind of stage, such as decode"
    )
    parser.add_argument("--write", action="store_true", help="write the page and simulate nothing")
    asked = parser.parse_args()
    rows = read_results()
    if asked.write:
        PAGE.write_text(replace_table(PAGE.read_text("utf-8"), table(rows)), "utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, job, card in jobs(asked.blocks, frozenset(asked.skip)):
            precision, size, frames, inputs, *_ = name.split(", ")
            values = {
                "precision": precision, "size": size, "inputs": inputs, "card": card,
                "frames": int(frames.split()[0]),
            }  # fmt: skip
            if all(getattr(asked, k) is None or v in getattr(asked, k) for k, v in values.items()):
                (result,) = simulate(job, [card], Path(folder))
                rows[name] = row(result)
                RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n", "utf-8")
                print(table({name: rows[name]}).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
