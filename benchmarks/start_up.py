"""Start-up time of `ladder` commands that load no model, in new processes.

Measured with a models/ folder of real size (five 22B transformers of 46 to 12 GB, two text
encoders, upsamplers, LoRA, split parts: sparse files of 200 GB that take 3 MB) and with only the
embedded pocket model: wall time and processor time (user and system, with child processes), median
of the rounds. The first run of each command is not counted: it compiles Python's bytecode and
fills the header cache.

    python benchmarks/start_up.py [--rounds 5] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
RESULTS = Path(__file__).parent / "results" / "start_up.json"
PROMPT = "a cat walks through a garden"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder for the sparse files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "models"
        if not folder.is_dir():
            subprocess.run([sys.executable, TESTS / "helpers" / "true_size.py", folder], check=True)
        env = os.environ | {
            "LADDER_CACHE": f"{temporary}/cache",
            "LADDER_STORE": f"{temporary}/store",
            "PYTHONPYCACHEPREFIX": f"{temporary}/bytecode",
        }
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        rows = [measure(words, env, args.rounds) for words in commands(folder)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def commands(folder: Path) -> Sequence[Sequence[str]]:
    real = ("--models", str(folder))
    return (
        ("python", "-c", "pass"),
        ("ladder", "--help"),
        ("ladder", "plan", PROMPT),
        ("ladder", "plan", PROMPT, *real),
        ("ladder", "doctor", *real),
    )


def measure(words: Sequence[str], env: dict[str, str], rounds: int) -> dict[str, object]:
    """Measure one command, run ``rounds`` + 1 times."""
    start = [sys.executable] + (["-m", "latent_ladder"] if words[0] == "ladder" else [])
    command = [*start, *words[1:]]
    times = [time_command(command, env) for _ in range(rounds + 1)][1:]
    wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
    shown = " ".join(word if "/" not in word else "FOLDER" for word in words)
    print(f"{shown:60.60} {wall:6.2f} s  {processor:6.2f} s of processor time", flush=True)
    return {"command": shown, "wall_s": round(wall, 3), "processor_s": round(processor, 3)}


def time_command(command: Sequence[str], env: dict[str, str]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
