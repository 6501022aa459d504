"""Time of eight drafts with two of them refined, compared with eight whole clips.

    python benchmarks/drafts.py                                   # 8 drafts, 2 refined; goal 0.5
    python benchmarks/drafts.py --drafts 2 --chosen 1 --size 128x128 --frames 9     # tiny

Both sides run the commands of a user, each in a separate process with a separate store: ``ladder
draft`` and one ``ladder refine`` of all chosen drafts, compared with one ``ladder make`` per clip.
With ``--one-process`` the whole clips are made in one process, which loads the models once. The
clips of both sides are checked to be bit-identical.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latent_ladder.media.video_reader import read_frames

RESULTS = Path(__file__).parent / "results" / "drafts.json"
GOAL = 0.5
PROMPT = "a red ball rolls to the right over a striped floor"
LOOP = """
import sys
from pathlib import Path
from latent_ladder import Request, run
from latent_ladder.storage.artifact_store import Store
prompt, (width, height), frames, seeds, folder = eval(sys.argv[1])
for seed in seeds:
    request = Request.from_preset(
        "pocket", prompt=prompt, width=width, height=height, frames=frames, seed=seed
    )
    run(request, Path(folder) / f"{seed}.mp4", store=Store(Path(folder) / "store"))
"""


def main() -> None:
    """Run both sides alternately and print the share of time; ``--save`` writes it."""
    args = _arguments()
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="drafts-") as name:
            folder = Path(name)
            sides = [("drafts", _drafts), ("whole", _whole)]
            times = {
                side: work(args, folder / side)
                for side, work in (sides if number % 2 == 0 else reversed(sides))
            }
            same = all(
                _clips_equal(folder / "drafts" / "chosen", folder / "whole", seed)
                for seed in _seeds(args)[: args.chosen]
            )
        share = {kind: times["drafts"][kind] / times["whole"][kind] for kind in ("wall_s", "cpu_s")}
        rounds.append({**times, "share": share, "same_bits": same})
        print(json.dumps(rounds[-1]), flush=True)
    best = min(r["share"]["wall_s"] for r in rounds)
    print(f"share of the time {best:.2f}, goal {GOAL}")
    if args.save:
        environment = {"machine": platform.machine(), "cpus": os.cpu_count(), **vars(args)}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"about": environment, "rounds": rounds}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drafts", type=int, default=8)
    parser.add_argument("--chosen", type=int, default=2)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one-process", action="store_true", help="all whole clips in one process")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    return parser.parse_args()


def _seeds(args: argparse.Namespace) -> range:
    return range(10, 10 + args.drafts)


def _drafts(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Make drafts of all seeds, then refine the first ones."""
    folder.mkdir()
    shared = ["--store", str(folder / "store"), "-q"]
    seeds = ",".join(map(str, _seeds(args)))
    draft = ["draft", *_clip(args), "--seeds", seeds, "-o", str(folder / "drafts"), *shared]
    names = [f"last:{n}" for n in range(1, args.chosen + 1)]
    refine = ["refine", *names, "-o", str(folder / "chosen"), *shared]
    return _time_commands([_ladder(draft), _ladder(refine)])


def _whole(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Make a whole clip of every seed."""
    folder.mkdir()
    if args.one_process:
        width, height = map(int, args.size.split("x"))
        job = (PROMPT, (width, height), args.frames, tuple(_seeds(args)), str(folder))
        return _time_commands([[sys.executable, "-c", LOOP, repr(job)]])
    return _time_commands(
        _ladder(
            ["make", *_clip(args), "--seed", str(seed), "-o", str(folder / f"{seed}.mp4"),
             "--store", str(folder / "store"), "-q"]
        )
        for seed in _seeds(args)
    )  # fmt: skip


def _clip(args: argparse.Namespace) -> list[str]:
    return [PROMPT, "--preset", "pocket", "--size", args.size, "--frames", str(args.frames)]


def _ladder(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "latent_ladder", *words]


def _time_commands(commands: Iterator[list[str]] | list[list[str]]) -> dict[str, float]:
    """Run commands one after the other; returns their wall and processor time."""
    began, before = time.monotonic(), _cpu_s()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"wall_s": round(time.monotonic() - began, 2), "cpu_s": round(_cpu_s() - before, 2)}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _clips_equal(chosen: Path, whole: Path, seed: int) -> bool:
    """Return True if the refined draft of a seed equals the clip made directly."""
    [refined] = chosen.glob(f"*-seed{seed}.mp4")
    pairs: Any = zip(read_frames(refined), read_frames(whole / f"{seed}.mp4"), strict=True)
    return all((a == b).all() for a, b in pairs)


if __name__ == "__main__":
    main()
