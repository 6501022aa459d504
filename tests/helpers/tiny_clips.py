"""Requests, runs and frames of clips of the tiny checkpoint of the goldens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from helpers.goldens import GOLDEN_2_5
from latent_ladder import Request
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.media.video_reader import read_frames
from latent_ladder.pipeline.events import Event
from latent_ladder.pipeline.run import Result, RunOptions, execute, prepare
from latent_ladder.storage.artifact_store import Store

GOLDEN = Path(__file__).parents[1] / "golden"


ENCODER_2_5 = "text_encoders/tiny-gemma4-with-proj-ltx-2.5.safetensors"
CHOICE = {"checkpoint": "tiny-ltx-2.3.safetensors"}


FIELDS: dict[str, Any] = {
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


def library_2_5(folder: Path) -> Library:
    """All files of the goldens of LTX-2.5 in ``folder``; the encoder has their context length."""
    for source in GOLDEN_2_5.glob("*/*.safetensors"):
        target = folder / source.relative_to(GOLDEN_2_5)
        target.parent.mkdir(exist_ok=True)
        if source != GOLDEN_2_5 / ENCODER_2_5:
            target.symlink_to(source)
    with safe_open(GOLDEN_2_5 / ENCODER_2_5, "pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in names}
    save_file(tensors, folder / ENCODER_2_5, {**metadata, "text_length": "256"})
    return scan([folder])


def request_with(**changes: Any) -> Request:
    return Request.from_dict({**FIELDS, **changes})


def refined_with(**changes: Any) -> Request:
    *others, refine = FIELDS["stages"]
    return request_with(stages=[*others, {**refine, **changes}])


def make(
    request: Request, library: Library, store: Store, output: Path, **options: Any
) -> tuple[Result, list[Event]]:
    events: list[Event] = []
    prepared = prepare(request, library, store)
    result = execute(prepared, output, RunOptions(on_event=events.append, **options))
    return result, events


def reused(result: Result) -> dict[str, bool]:
    return {s.stage: s.reused for s in result.stages}


def load_artefact(store: Store, key: str) -> dict[str, torch.Tensor]:
    """Tensors of the stored artefact ``key``."""
    artefact = store.get(key)
    assert artefact is not None, key
    return artefact.load()


def frames(path: Path) -> bytes:
    """All decoded frames of a file."""
    return b"".join(f.tobytes() for f in read_frames(path))
