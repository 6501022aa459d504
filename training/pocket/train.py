"""Train the pocket model from nothing, or go on from what is there: one command, every stage.

    python training/pocket/train.py                 # about three hours on two cores
    python training/pocket/train.py --dry-run       # every stage for seconds, in another folder
    python training/pocket/train.py --from dit      # later stages only
    python training/pocket/train.py --restore       # state from the shipped files first

Stages run in order, each in its own process; each is resumable from its state in runs/ and each can
be called alone (see the module of its name). `--hours` scales all durations.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MINUTES: dict[str, float] = {
    "text_fresh": 0.0,
    "text": 2.0,
    "audio_start": 0.0,
    "audio_vae": 5.0,
    "vocoder": 5.0,
    "vae_solve": 0.0,
    "vae": 30.0,
    "cache": 0.0,
    "cache_large": 0.0,
    "dit": 90.0,
    "upsampler": 0.0,
    "lora": 20.0,
    "export": 0.0,
}


def command(stage: str, seconds: float, dry: bool, threads: int) -> list[str]:
    """The command line of a stage."""
    few, many = ("64", "64") if dry else ("2304", "320")
    lines = {
        "text_fresh": ["text_train.py", "fresh"],
        "text": ["text_train.py", "train", "--seconds", str(seconds)],
        "audio_start": ["sound_train.py", "start"],
        "audio_vae": ["sound_train.py", "vae", "--seconds", str(seconds)],
        "vocoder": ["sound_train.py", "vocoder", "--seconds", str(seconds)],
        "vae_solve": ["vae_train.py", "solve"],
        "vae": ["vae_train.py", "train", "--seconds", str(seconds)],
        "cache": ["cache.py", "--size", "256", "--count", few],
        "cache_large": ["cache.py", "--size", "512", "--count", many],
        "dit": ["dit.py", "--seconds", str(seconds)],
        "upsampler": ["upsampler.py", "solve", *(["--count", "12"] if dry else [])],
        "lora": ["lora.py", "--seconds", str(seconds)],
        "export": ["export.py", *(["--folder", str(HERE / "runs" / "dry")] if dry else [])],
    }
    line = lines[stage]
    takes_threads = set(MINUTES) - {"text_fresh", "text", "export"}
    extra = ["--threads", str(threads)] if stage in takes_threads else []
    return [sys.executable, str(HERE / line[0]), *line[1:], *extra]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="first", choices=MINUTES, default="text_fresh")
    parser.add_argument("--to", dest="last", choices=MINUTES, default="export")
    parser.add_argument("--hours", type=float, default=sum(MINUTES.values()) / 60)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--restore", action="store_true", help="start from the shipped files")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.restore:
        subprocess.run([sys.executable, str(HERE / "restore.py")], check=True)
    names = list(MINUTES)
    scale = options.hours * 60 / sum(MINUTES.values())
    environment = dict(os.environ)
    if options.dry_run:
        environment["POCKET_RUNS"] = str(HERE / "runs" / "dry")
    for stage in names[names.index(options.first) : names.index(options.last) + 1]:
        seconds = 4.0 if options.dry_run else MINUTES[stage] * 60 * scale
        line = command(stage, seconds, options.dry_run, options.threads)
        subprocess.run(line, check=True, env=environment, cwd=HERE.parents[1])


if __name__ == "__main__":
    main()
