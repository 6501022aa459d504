"""The clip itself: latents and sound in, a file out, without ever holding all of its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.library import ModelSet
from latent_ladder.media.write import VideoSpec, WrittenVideo, write_video
from latent_ladder.models.audio_vae import fit_length
from latent_ladder.models.runtime import Runtime
from latent_ladder.models.video_vae import decode_video, load_video_vae
from latent_ladder.planner import Holding
from latent_ladder.request import Decode, Request
from latent_ladder.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.tiling import TilePlan, official_size, one_tile, plan_tiles

SAMPLE_RATE_KEY = "sample_rate"

Frames = Iterator[NDArray[np.uint8]]
"""Chunks (n, H, W, 3) in order."""


@dataclass(frozen=True)
class Clip:
    """What a clip is written from besides its latents."""

    request: Request
    models: ModelSet
    runtime: Runtime
    holding: Holding


def write_clip(
    clip: Clip,
    path: Path,
    latents: Mapping[str, Tensor],
    sound: Mapping[str, Tensor] | None,
    *,
    metadata: Mapping[str, str],
    overwrite: bool,
    on_frames: Callable[[int], None],
) -> WrittenVideo:
    """Decode, crop, encode, frame by frame as they are ready."""
    request = clip.request
    return write_video(
        path,
        _counted(decoded(clip, latents["video"]), on_frames),
        VideoSpec((request.width, request.height), request.fps, request.output.crf),
        audio=None if sound is None else _fitted(sound, request),
        metadata=metadata,
        overwrite=overwrite,
    )


def decoded(clip: Clip, latents: Tensor) -> Frames:
    """The clip's frames from video latents (1, C, F, H, W), cropped to what was asked."""
    device = clip.runtime.device
    vae = load_video_vae(
        clip.models.video_vae, device=device, dtype=clip.runtime.dtype, parts=("decoder",)
    )
    _, _, f, h, w = latents.shape
    tiles = decode_tiles((f, h, w), clip.holding.decode(clip.request.decode))
    crop = clip.request.crop
    for chunk in decode_video(latents.to(device), vae, tiles):
        rows = slice(crop.top, crop.top + crop.height)
        yield chunk[:, rows, crop.left : crop.left + crop.width]


def _fitted(sound: Mapping[str, Tensor], request: Request) -> tuple[NDArray[np.float32], int]:
    rate = int(sound[SAMPLE_RATE_KEY])
    return fit_length(sound["waveform"], request.frames, request.fps, rate).numpy(), rate


def _counted(
    chunks: Iterator[NDArray[np.uint8]], on_frames: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_frames(done)


def decode_tiles(grid: tuple[int, int, int], asked: Decode) -> TilePlan:
    """The tiles of a latent video (frames, rows, columns).

    One tile where the request names none: decoding it is exact, and its memory does not grow with
    the clip. Where it names some of the sizes, the reference implementation's complete them.
    """
    named = {name: value for name, value in asked.model_dump().items() if value != "auto"}
    if not named:
        return one_tile(*grid)
    changes: dict[str, int] = {}
    for name, sizes, unit in (
        ("tile_px", ("rows", "cols"), PIXELS_PER_LATENT),
        ("overlap_px", ("overlap",), PIXELS_PER_LATENT),
        ("tile_frames", ("frames",), FRAMES_PER_LATENT),
        ("overlap_frames", ("overlap_frames",), FRAMES_PER_LATENT),
    ):
        if name in named:
            changes |= dict.fromkeys(sizes, named[name] // unit)
    return plan_tiles(*grid, replace(official_size(*grid[1:]), **changes))
