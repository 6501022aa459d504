"""The clip itself: latents and sound in, a file out, without ever holding all of its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, duration
from latent_ladder.latents.tiling import TilePlan, Tiling, official_size, one_tile, plan_tiles
from latent_ladder.media.video_writer import Frames, VideoSpec, WrittenVideo
from latent_ladder.media.writers import bits_kept, write_clip_file
from latent_ladder.memory.planner import OffloadPlan
from latent_ladder.metrics.measure import RunMeter
from latent_ladder.models.audio_vae.vae import fit_length
from latent_ladder.models.device import Runtime
from latent_ladder.models.video_vae.vae import (
    VideoVae,
    decode_pixels,
    decode_video,
    load_video_vae,
)
from latent_ladder.pipeline.thumbnails import Beside
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.upscale.plan import UpscalePlan
from latent_ladder.upscale.stream import load_upscaler, upscaled

SAMPLE_RATE_KEY = "sample_rate"


@dataclass(frozen=True)
class Clip:
    """What a clip is written from besides its latents."""

    request: Request
    models: ModelSet
    runtime: Runtime
    offload_plan: OffloadPlan
    upscale: UpscalePlan | None = None
    meter: RunMeter | None = None


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
    """Decode, crop, upscale, encode, frame by frame as they are ready; the meter looks on."""
    request = clip.request
    settings = request.output.settings
    frames = finished(clip, latents["video"], bits_kept(path, settings))
    meter = clip.meter
    if meter is not None:
        frames = meter.watching(frames)
    waveform = None if sound is None else _fitted(sound, request)
    beside = Beside(path, request.output, request.frames, metadata)
    written = write_clip_file(
        path,
        _counted(beside.watching(frames), on_frames),
        VideoSpec(request.final_size, request.fps, settings),
        audio=waveform,
        duration=duration(request.frames, request.fps),
        metadata=metadata,
        overwrite=overwrite,
    )
    beside.write()
    if meter is not None:
        meter.hear(waveform)
    return written


def check_upscaler(plan: UpscalePlan | None, runtime: Runtime) -> None:
    """Load the upscaler and let go of it: what is wrong with it shows before anything is made.

    Raises what :func:`latent_ladder.upscale.stream.load_upscaler` raises.
    """
    if plan is not None:
        load_upscaler(plan, device=runtime.device, dtype=runtime.dtype)


def finished(clip: Clip, latents: Tensor, bits: int = 8) -> Iterator[Frames]:
    """The frames of the file: decoded, cropped, upscaled; uint16 where it keeps over 8 ``bits``."""
    if clip.upscale is None and bits == 8:
        yield from decoded(clip, latents)
        return
    pixels = decoded_pixels(clip, latents)
    if clip.upscale is not None:
        device, dtype = clip.runtime.device, clip.runtime.dtype
        enlarge = load_upscaler(clip.upscale, device=device, dtype=dtype)
        pixels = upscaled(pixels, clip.upscale, enlarge)
    for chunk in pixels:
        yield as_integers(chunk, bits)


def as_integers(frames: Tensor, bits: int) -> Frames:
    """(n, 3, H, W) 0..1 -> (n, H, W, 3) uint8, or uint16 for more than 8 bits."""
    most, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    whole = frames.permute(0, 2, 3, 1).mul(most).round_().to(torch.int32)
    integers: Any = whole.cpu().numpy().astype(kind)
    return cast(Frames, integers)


def decoded_pixels(clip: Clip, latents: Tensor) -> Iterator[Tensor]:
    """The clip's frames as (n, 3, H, W) float32, 0..1, cropped to what was asked."""
    vae, tiles = _decoder(clip, latents)
    crop = clip.request.crop
    for chunk in decode_pixels(latents.to(vae.device), vae, tiles):
        yield chunk[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def _decoder(clip: Clip, latents: Tensor) -> tuple[VideoVae, TilePlan | Tiling]:
    device, dtype = clip.runtime.device, clip.runtime.dtype
    vae = load_video_vae(clip.models.video_vae, device=device, dtype=dtype, parts=("decoder",))
    _, _, f, h, w = latents.shape
    return vae, decode_tiles((f, h, w), clip.offload_plan.decode(clip.request.decode))


def decoded(clip: Clip, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
    """The clip's frames from video latents (1, C, F, H, W), cropped to what was asked."""
    vae, tiles = _decoder(clip, latents)
    crop = clip.request.crop
    for chunk in decode_video(latents.to(vae.device), vae, tiles):
        rows = slice(crop.top, crop.top + crop.height)
        yield chunk[:, rows, crop.left : crop.left + crop.width]


def drafted(clip: Clip, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Frames of the latents of any rung: the clip's window of them, at their own size."""
    vae, tiles = _decoder(clip, latents)
    crop, last = clip.request.crop, clip.request.resolutions[-1]
    height, width = (PIXELS_PER_LATENT * n for n in latents.shape[-2:])
    top, bottom = (n * height // last.height for n in (crop.top, crop.top + crop.height))
    left, right = (n * width // last.width for n in (crop.left, crop.left + crop.width))
    for chunk in decode_video(latents.to(vae.device), vae, tiles):
        yield chunk[:, top:bottom, left:right]


def _fitted(sound: Mapping[str, Tensor], request: Request) -> tuple[NDArray[np.float32], int]:
    rate = int(sound[SAMPLE_RATE_KEY])
    return fit_length(sound["waveform"], request.frames, request.fps, rate).numpy(), rate


def _counted(chunks: Iterator[Frames], on_frames: Callable[[int], None]) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_frames(done)


def decode_tiles(grid: tuple[int, int, int], asked: Decode) -> TilePlan | Tiling:
    """The tiles of a latent video (frames, rows, columns).

    One tile where the request names none: decoding it is exact, and its memory does not grow with
    the clip. Where it names some of the sizes, the reference implementation's complete them.
    """
    if asked.grid != "auto":
        return asked.tiling(grid) or one_tile(*grid)
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
