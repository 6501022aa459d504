"""Measure the ratios of the last release again and compare.

    python benchmarks/check_history.py                     # compare; exit 1 where one got worse
    python benchmarks/check_history.py --only denoiser     # one benchmark
    python benchmarks/check_history.py --record 0.2.0      # write benchmarks/history/0.2.0.json

Every ratio is ours over a rival's (or over our own other way), measured side by side in one run,
and below 1 is better. Processor time and memory are compared, not wall time: they change little on
a busy machine. A ratio counts as worse when it exceeds the recorded one by more than ``TOLERANCE``.
Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HISTORY = HERE / "history"
TOLERANCE = 0.25
POCKET = HERE.parent / "src" / "latent_ladder" / "pocket" / "models"


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder, its arguments, and how its result file gives ratios by name."""

    arguments: tuple[str, ...]
    result: str
    ratios: Callable[[Any], Mapping[str, float]]


def denoiser_ratios(report: Any) -> dict[str, float]:
    """Ours over diffusers': processor time and peak memory of the tasks of the case ``pocket``."""
    case = report["cases"]["pocket"]
    tasks = {name: row for name, row in case["time"].items() if name != "roofline"}
    found = {f"{task} cpu": row["ratio_cpu_s"] for task, row in tasks.items()}
    return found | {f"{task} memory": row["memory_ratio"] for task, row in case["memory"].items()}


def two_stage_ratios(report: Any) -> dict[str, float]:
    """Ours over diffusers': the whole job, from interpreter start to the finished file."""
    return {"cpu": report["ratio"]["cpu_s"], "memory": report["ratio"]["peak_mib"]}


def draft_ratios(report: Any) -> dict[str, float]:
    """Eight drafts and two refined clips over eight whole clips."""
    shares = [row["share"]["cpu_s"] for row in report["rounds"]]
    return {"cpu": min(shares)}


def lora_ratios(report: Any) -> dict[str, float]:
    """A step with branches over a step with the LoRA merged into the weights."""
    return {name: row["branches_over_merged"] for name, row in report["steps"].items()}


BENCHMARKS: Mapping[str, Benchmark] = {
    "denoiser": Benchmark(
        ("denoiser.py", "--cases", "pocket", "--rounds", "5"), "denoiser.json", denoiser_ratios
    ),
    "two_stage": Benchmark(
        ("two_stage.py", "--models", str(POCKET), "--rounds", "3", "--guidance", "cfg",
         "--label", "check"),
        "two_stage-cfg-check.json",
        two_stage_ratios,
    ),
    "drafts": Benchmark(("drafts.py", "--save"), "drafts.json", draft_ratios),
    "lora_switch": Benchmark(
        ("lora_switch.py", "--cases", "pocket"), "lora_switch.json", lora_ratios
    ),
}  # fmt: skip


def main() -> int:
    """Measure, print a table, then compare or record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--record", metavar="VERSION", help="write the ratios of a release")
    asked = parser.parse_args()
    found = {name: measure(BENCHMARKS[name]) for name in asked.only}
    if asked.record:
        path = HISTORY / f"{asked.record}.json"
        path.write_text(json.dumps(about() | {"ratios": found}, indent=1) + "\n")
        print(f"wrote {path}")
        return 0
    path = newest(HISTORY)
    worse = compare(found, json.loads(path.read_text())["ratios"], TOLERANCE)
    print(f"compared with {path.name}: {len(worse)} worse by more than {TOLERANCE:.0%}")
    return 1 if worse else 0


def measure(benchmark: Benchmark) -> dict[str, float]:
    """The ratios of one benchmark, run in its own process. Raises where the script fails."""
    with tempfile.TemporaryDirectory() as store:
        environment = os.environ | {"LADDER_STORE": store}
        command = [sys.executable, str(HERE / benchmark.arguments[0]), *benchmark.arguments[1:]]
        subprocess.run(command, check=True, env=environment)
    report = json.loads((HERE / "results" / benchmark.result).read_text())
    return {name: round(value, 3) for name, value in benchmark.ratios(report).items()}


def newest(folder: Path) -> Path:
    """The file of the highest version in ``folder``. Raises :class:`SystemExit` if it is empty."""
    files = list(folder.glob("*.json"))
    if not files:
        raise SystemExit(f"{folder} has no release to compare with: use --record VERSION first")
    return max(files, key=lambda path: tuple(int(part) for part in path.stem.split(".")))


def compare(
    found: Mapping[str, Mapping[str, float]],
    recorded: Mapping[str, Mapping[str, float]],
    tolerance: float,
) -> list[str]:
    """Print every ratio beside the recorded one; the names of those that got worse."""
    worse = []
    for name, ratios in found.items():
        for what, value in ratios.items():
            before = recorded.get(name, {}).get(what)
            bad = before is not None and value > before * (1 + tolerance)
            worse += [f"{name} {what}"] if bad else []
            text = "new" if before is None else f"{before:.2f}"
            print(f"{name:12}{what:24}{value:6.2f}  recorded {text}{'  WORSE' if bad else ''}")
    return worse


def about() -> dict[str, str]:
    """When and on what the ratios were measured."""
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


if __name__ == "__main__":
    sys.exit(main())
