"""Train the second edition of the pocket model, in calls of a few minutes on a GPU.

    python training/pocket/scenery_train.py rehearse --device cuda             # all stages, seconds
    python training/pocket/scenery_train.py train --device cuda --minutes 9.5  # repeat
    python training/pocket/scenery_train.py evaluate --device cuda --minutes 5

`train` runs the stages of `STAGES` in order, each in its own process and for its share of `--total`
minutes, and stops after `--minutes`. The next call resumes from runs/scenery-train.json and the
state of each stage. Without a GPU, use `train --total 720 --minutes 1200`. `rehearse` empties
runs/dry and works there. The model folder is runs/models; the package is not changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MARGIN_S = 12.0  # time for a process to start and to save its state
DRY_SECONDS = 4.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A script with its options. One with a share of the time also gets `--seconds`."""

    name: str
    command: str
    share: float = 0.0
    cuda: str = ""  # more options on a GPU
    cpu: str = ""
    dry: str = ""


STAGES = (
    Stage("text_fresh", "text_train.py fresh", dry="--lines 2000"),
    Stage("text", "text_train.py train", 0.04),
    Stage("audio_start", "sound_train.py start", dry="--clips 24"),
    Stage("audio_vae", "sound_train.py vae", 0.04, dry="--clips 24"),
    Stage("vocoder", "sound_train.py vocoder", 0.04, dry="--clips 24"),
    Stage("vae_solve", "scenery_vae.py solve", dry="--windows 80"),
    Stage("vae", "scenery_vae.py train --bf16", 0.30, "--batch 32 --fresh 8 --pool 1500",
          "--freeze --threads {cores}", "--batch 2 --pool 8 --fresh 1"),
    Stage("cache", "scenery_cache.py --size 256", 0.0, "--count 8000", "--count 8000",
          "--count 32 --shard 2"),
    Stage("cache_large", "scenery_cache.py --size 512", 0.0, "--count 1600", "--count 1200",
          "--count 8 --shard 2"),
    Stage("dit", "dit.py --large 0.25 --lengths 2,3,4,4,16", 0.40, "--batch 128 --processes 1",
          "--batch 16 --processes {cores}", "--batch 4 --large 0.5 --processes 1"),
    Stage("upsampler_solve", "upsampler.py solve", dry="--count 3"),
    Stage("upsampler", "upsampler.py train", 0.05, "--batch 64 --processes 1",
          "--processes {cores}", "--batch 2 --processes 1"),
    Stage("preview", "scenery_preview.py --folder {models}", 0.03,
          "--batch 24 --fresh 6 --pool 800", "--threads {cores}", "--batch 1 --pool 2"),
    Stage("lora", "lora.py", 0.10, "--batch 16 --processes 1", "--processes {cores}",
          "--drafts 16 --batch 2 --processes 1"),
    Stage("export", "export.py --folder {models}"),
)  # fmt: skip
EVALUATE = Stage("evaluate", "scenery_evaluate.py", dry="--prompts 2 --parts vae,draft")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Folder, device and cores of a run; `dry` adds the options of a rehearsal."""

    runs: Path
    device: str
    cores: int
    dry: bool

    def command_line(self, stage: Stage, seconds: float) -> list[str]:
        """The command line of a stage."""
        extra = stage.cuda if self.device != "cpu" else stage.cpu
        words = f"{stage.command} {extra} {stage.dry if self.dry else ''}".split()
        values = {"cores": self.cores, "models": self.runs / "models"}
        script, *options = [word.format(**values) for word in words]
        if stage.share:
            options += ["--seconds", f"{seconds:.1f}"]
        return [sys.executable, str(HERE / script), *options]

    def run(self, stage: Stage, seconds: float, limit: float | None = None) -> bool:
        """Run a stage; returns False if it was stopped after `limit` seconds."""
        environment = os.environ | {
            "POCKET_WORLD": "second", "POCKET_RUNS": str(self.runs), "POCKET_DEVICE": self.device,
        }  # fmt: skip
        root = HERE.parents[1]
        paths = [str(root / "src"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        line, start = self.command_line(stage, seconds), time.time()
        try:
            subprocess.run(line, check=True, env=environment, cwd=root, timeout=limit)
        except subprocess.TimeoutExpired:
            print(f"{stage.name}: stopped after {time.time() - start:.0f} s", flush=True)
            return False
        print(f"{stage.name}: {time.time() - start:.1f} s", flush=True)
        return True


def rehearse(setting: Setting) -> None:
    """Run every stage for a few seconds, in an emptied folder."""
    shutil.rmtree(setting.runs, ignore_errors=True)
    for stage in (*STAGES, EVALUATE):
        setting.run(stage, DRY_SECONDS)


def train(setting: Setting, total: float, minutes: float) -> bool:
    """Train for `minutes`, from the last stage; returns True when all stages are done."""
    path, deadline = setting.runs / "scenery-train.json", time.time() + 60 * minutes
    setting.runs.mkdir(parents=True, exist_ok=True)
    done: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for stage in STAGES:
        needed, spent = 60 * total * stage.share, done.get(stage.name, 0.0)
        if stage.name in done and spent >= needed - 1:
            continue
        left = deadline - time.time() - MARGIN_S
        if left < 2 * DRY_SECONDS:
            return False
        seconds = min(needed - spent, left)
        if not setting.run(stage, seconds, left + MARGIN_S if not stage.share else None):
            return False
        done[stage.name] = spent + seconds if stage.share else 0.0
        path.write_text(json.dumps(done))
        if stage.share and done[stage.name] < needed - 1:
            return False
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("rehearse", "train", "evaluate"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--total", type=float, default=10.0, help="minutes of all timed stages")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call")
    options = parser.parse_args()
    dry = options.command == "rehearse"
    runs = Path(os.environ.get("POCKET_RUNS", HERE / "runs"))
    setting = Setting(runs / "dry" if dry else runs, options.device, options.cores, dry)
    if dry:
        rehearse(setting)
    elif options.command == "train":
        finished = train(setting, options.total, options.minutes)
        print("all stages are trained" if finished else "call `train` again to continue")
    else:
        setting.run(EVALUATE, 0.0, 60 * options.minutes)


if __name__ == "__main__":
    main()
