"""Train the pocket model: run all training stages in order, or resume at one of them.

    python training/pocket/train.py                 # about four hours on two cores
    python training/pocket/train.py --dry-run       # every stage for seconds, in another folder
    python training/pocket/train.py --from dit      # later stages only
    python training/pocket/train.py --restore       # first restore the state from the shipped files

Each stage runs in its own process and resumes from its state in runs/; each can also be run alone
(see `COMMANDS`). `--hours` scales all durations. A dry run empties runs/dry (or POCKET_RUNS), works
there and exports there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MINUTES: dict[str, float] = {  # durations of the stages, in order; 0: not limited by time
    "text_fresh": 0.0,
    "text": 2.0,
    "audio_start": 0.0,
    "audio_vae": 5.0,
    "vocoder": 5.0,
    "vae_solve": 0.0,
    "vae": 30.0,
    "cache": 0.0,
    "cache_large": 0.0,
    "dit": 130.0,
    "upsampler_solve": 0.0,
    "upsampler": 8.0,
    "lora": 30.0,
    "export": 0.0,
    "upscale_pairs": 0.0,
    "upscale": 10.0,
    "evaluate": 0.0,
}
DRY_SECONDS = 3.0
GLIBC_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_ARENA_MAX": "1",
}  # fmt: skip
"""Environment for glibc: keep large memory blocks instead of returning them to the system."""
COMMANDS: dict[str, list[str]] = {
    "text_fresh": ["text_train.py", "fresh"],
    "text": ["text_train.py", "train", "--seconds", "{seconds}"],
    "audio_start": ["sound_train.py", "start", "--threads", "{cores}"],
    "audio_vae": ["sound_train.py", "vae", "--seconds", "{seconds}", "--threads", "{cores}"],
    "vocoder": ["sound_train.py", "vocoder", "--seconds", "{seconds}", "--threads", "{cores}"],
    "vae_solve": ["vae_train.py", "solve", "--threads", "{cores}"],
    "vae": ["vae_train.py", "train", "--seconds", "{seconds}", "--threads", "{cores}"],
    "cache": ["cache.py", "--size", "256", "--count", "3072", "--threads", "{cores}"],
    "cache_large": ["cache.py", "--size", "512", "--count", "896", "--threads", "{cores}"],
    "dit": ["dit.py", "--seconds", "{seconds}", "--large", "0.25", "--lengths", "3,4,4,4,5",
            "--processes", "{cores}"],
    "upsampler_solve": ["upsampler.py", "solve", "--threads", "{cores}"],
    "upsampler": ["upsampler.py", "train", "--seconds", "{seconds}", "--processes", "{cores}"],
    "lora": ["lora.py", "--seconds", "{seconds}", "--processes", "{cores}"],
    "export": ["export.py"],
    "upscale_pairs": ["upscaler.py", "pairs", "--threads", "{cores}"],
    "upscale": ["upscaler.py", "train", "--seconds", "{seconds}", "--threads", "{cores}"],
    "evaluate": ["evaluate.py", "--threads", "{cores}"],
}  # fmt: skip
DRY_EXTRA: dict[str, list[str]] = {  # a later option overrides an earlier one
    "text_fresh": ["--lines", "2000"],
    "audio_start": ["--clips", "24"],
    "audio_vae": ["--clips", "24"],
    "vocoder": ["--clips", "24"],
    "vae_solve": ["--small", "10", "--large", "4", "--score", "1"],
    "vae": ["--batch", "2", "--score", "1"],
    "cache": ["--count", "16", "--shard", "16"],
    "cache_large": ["--count", "16", "--shard", "16"],
    "dit": ["--batch", "8", "--large", "0.5"],
    "upsampler_solve": ["--count", "12"],
    "upsampler": ["--batch", "4"],
    "lora": ["--drafts", "16"],
    "upscale_pairs": ["--count", "4"],
    "evaluate": ["--parts", "draft,image", "--prompts", "2"],
}


def command(stage: str, seconds: float, cores: int, extra: list[str]) -> list[str]:
    """The command line of a stage."""
    values = {"seconds": str(seconds), "cores": str(cores)}
    script, *words = [word.format(**values) for word in COMMANDS[stage]]
    return [sys.executable, str(HERE / script), *words, *extra]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="first", choices=MINUTES, default="text_fresh")
    parser.add_argument("--to", dest="last", choices=MINUTES, default="evaluate")
    parser.add_argument("--hours", type=float, default=sum(MINUTES.values()) / 60)
    parser.add_argument("--cores", dest="threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument(
        "--restore", action="store_true", help="restore from the shipped files first"
    )
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.restore:
        subprocess.run([sys.executable, str(HERE / "restore.py")], check=True)
    names = list(MINUTES)
    names = names[names.index(options.first) : names.index(options.last) + 1]
    scale = options.hours * 60 / sum(MINUTES.values())
    environment, extra = GLIBC_SETTINGS | os.environ, {}
    if options.dry_run:
        dry = Path(os.environ.get("POCKET_RUNS", HERE / "runs" / "dry"))
        shutil.rmtree(dry, ignore_errors=True)
        environment["POCKET_RUNS"] = str(dry)
        folder = ["--folder", str(dry / "models")]
        extra = DRY_EXTRA | {"export": folder, "upscale": folder}
    for stage in names:
        seconds = DRY_SECONDS if options.dry_run else MINUTES[stage] * 60 * scale
        line = command(stage, seconds, options.threads, extra.get(stage, []))
        start = time.time()
        subprocess.run(line, check=True, env=environment, cwd=HERE.parents[1])
        print(f"{stage}: {time.time() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
