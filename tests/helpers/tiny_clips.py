"""Requests, runs and frames of clips of the tiny checkpoint of the goldens."""

from __future__ import annotations

from pathlib import Path

from latent_ladder import Request
from latent_ladder.media.video_reader import read_frames
from latent_ladder.pipeline.run import RunOptions, execute, prepare

GOLDEN = Path(__file__).parents[1] / "golden"


CHOICE = {"checkpoint": "tiny-ltx-2.3.safetensors"}


FIELDS = {
    "prompt": "a red ball rolls to the right",
    "seed": 7,
    "width": 64,
    "height": 64,
    "frames": 9,
    "fps": "24",
    "models": CHOICE,
    "stages": [
        {"kind": "base", "schedule": {"steps": 2}, "guidance": {"video": {"cfg": 3.0}}},
        {"kind": "upsample"},
        {
            "kind": "refine",
            "sigmas": [0.9, 0.5, 0.0],
            "loras": [{"role": "distilled", "strength": 1.0}],
        },
    ],
}


def request_with(**changes) -> Request:
    return Request.from_dict({**FIELDS, **changes})


def refined_with(**changes) -> Request:
    *others, refine = FIELDS["stages"]
    return request_with(stages=[*others, {**refine, **changes}])


def make(request, library, store, output, **options):
    events = []
    prepared = prepare(request, library, store)
    result = execute(prepared, output, RunOptions(on_event=events.append, **options))
    return result, events


def reused(result) -> dict[str, bool]:
    return {s.stage: s.reused for s in result.stages}


def frames(path: Path) -> bytes:
    """All decoded frames of a file."""
    return b"".join(f.tobytes() for f in read_frames(path))
