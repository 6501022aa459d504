"""Run records and tiny clips in a store, as `ladder` leaves them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.run_records import DraftRecord, RunLog, RunRecord

FPS = Fraction(8)


def write_clip(path: Path, frames: int = 9, side: int = 64, shift: int = 3) -> Path:
    """A small H.264 clip of a moving square."""
    pictures = np.full((frames, side, side, 3), 40, np.uint8)
    for number, picture in enumerate(pictures):
        start = number * shift % (side - 16)
        picture[16:32, start : start + 16] = (220, 60, 30)
    write_video(path, [pictures], VideoSpec((side, side), FPS), overwrite=True)
    return path


def pocket_request(prompt: str = "a red ball", seed: int = 1, **fields: Any) -> dict[str, Any]:
    """The request of a clip of the pocket model."""
    return Request.from_preset("pocket", prompt=prompt, seed=seed, **fields).to_dict()


def add_run(store: Path, **fields: Any) -> RunRecord:
    """Add a finished run; ``fields`` replace those of its record."""
    log = RunLog(Store(store).root / "runs")
    started = log.start(str(fields.pop("command", "ladder make x")), pocket_request())
    return log.save(replace(started, **{"status": "done", **fields}))


def add_clip(store: Path, folder: Path, name: str = "ball.mp4", **fields: Any) -> RunRecord:
    """Add a run that wrote a clip into ``folder``."""
    return add_run(store, output=str(write_clip(folder / name)), **fields)


def add_drafts(store: Path, folder: Path, count: int = 2, **fields: Any) -> RunRecord:
    """Add a session of drafts with a clip of each; the last one has failed."""
    folder.mkdir(parents=True, exist_ok=True)
    drafts = []
    for number in range(1, count + 1):
        failed = number == count
        if not failed:
            write_clip(folder / f"draft-{number}.mp4")
        done = DraftRecord(number, "a red ball", number, status="done")
        metrics = {"flags": ["dark"], "motion": 1.0}
        broken = replace(done, status="failed", error="broke")
        drafts.append(broken if failed else replace(done, metrics=metrics))
    return add_run(store, kind="draft", output=str(folder), drafts=tuple(drafts), **fields)
