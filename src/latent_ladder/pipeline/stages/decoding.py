"""Decoding: latents become frames, and frames with sound a file, a few frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.families import decoder_kind
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, duration
from latent_ladder.latents.tiling import TilePlan, Tiling, official_size, one_tile, plan_tiles
from latent_ladder.media.video_writer import Frames, VideoSpec, WrittenVideo
from latent_ladder.media.writers import bit_depth, write_clip_file
from latent_ladder.memory.planner import StageMemory
from latent_ladder.metrics.measure import RunMeter
from latent_ladder.models.audio_vae.vae import fit_length
from latent_ladder.models.device import Runtime
from latent_ladder.models.host_frames import to_host
from latent_ladder.models.video_vae.diffusion_vae import DiffusionOptions
from latent_ladder.models.video_vae.pixel_noise import (
    CanvasNoise,
    PixelNoise,
    PositionNoise,
    TileNoise,
)
from latent_ladder.models.video_vae.vae import (
    VideoVae,
    decode_pixels,
    decode_video,
    load_video_vae,
)
from latent_ladder.pipeline.model_runner import ModelRunner
from latent_ladder.pipeline.plan import RunPlan
from latent_ladder.pipeline.stages.audio_decoding import SAMPLE_RATE_KEY
from latent_ladder.pipeline.thumbnails import Thumbnails
from latent_ladder.request.files import clip_metadata
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.request.stages import BaseStage, SamplingStage
from latent_ladder.upscale.stream import load_upscaler, upscale_frames
from latent_ladder.upscale.upscale_plan import UpscalePlan


@dataclass(frozen=True)
class DecodeJob:
    """Decoding of one clip: its plan, the models, and how the decoder fits into memory."""

    plan: RunPlan
    runner: ModelRunner
    memory: StageMemory

    @property
    def request(self) -> Request:
        """The request of the clip."""
        return self.plan.request

    @property
    def decode(self) -> Decode:
        """The decoder's tiles: as requested, or smaller to fit into memory."""
        return self.memory.offload_plan.decode(self.request.decode)


def write_clip(
    job: DecodeJob,
    path: Path,
    latents: Mapping[str, Tensor],
    sound: Mapping[str, Tensor] | None,
    *,
    overwrite: bool,
    on_frames: Callable[[int], None],
    meter: RunMeter | None = None,
) -> WrittenVideo:
    """Decode, crop, upscale and encode a clip, a few frames at a time.

    ``latents`` hold ``video`` (1, C, F, H, W), ``sound`` a waveform and its rate. ``on_frames``
    receives the number of frames written so far, ``meter`` every frame and the sound. Raises
    :class:`MediaError`, and an out-of-memory error of the decoder.
    """
    request, metadata = job.request, clip_metadata(job.request)
    settings = request.output.settings
    frames = decode_frames(job, latents["video"], bit_depth(path, settings))
    if meter is not None:
        frames = meter.measure_chunks(frames)
    waveform = None if sound is None else _fit_sound(sound, request)
    thumbnails = Thumbnails(path, request.output, request.frames, metadata)
    written = write_clip_file(
        path,
        _count(thumbnails.collect(frames), on_frames),
        VideoSpec(request.resolved.final_size, request.fps, settings),
        audio=waveform,
        duration=duration(request.frames, request.fps),
        metadata=metadata,
        overwrite=overwrite,
    )
    thumbnails.write()
    if meter is not None:
        meter.set_audio(waveform)
    return written


def check_upscaler(plan: UpscalePlan | None, runtime: Runtime) -> None:
    """Load the upscaler and drop it again, so that a bad file is found before any stage runs.

    Raises the errors of :func:`latent_ladder.upscale.stream.load_upscaler`.
    """
    if plan is not None:
        load_upscaler(plan, device=runtime.device, dtype=runtime.dtype)


def decode_frames(job: DecodeJob, latents: Tensor, bits: int = 8) -> Iterator[Frames]:
    """Frames (n, H, W, 3) of the file: decoded, cropped, upscaled. uint16 for more than 8 bits.

    ``latents`` are (1, C, F, H, W). The transformer is unloaded first.
    """
    upscale, runtime, crop = job.plan.upscale, job.runner.runtime, job.request.resolved.crop
    job.runner.release()
    vae, tiles = _decoder(job, latents)
    rows = slice(crop.top, crop.top + crop.height)
    columns = slice(crop.left, crop.left + crop.width)
    if upscale is None and bits == 8:
        for chunk in decode_video(latents.to(vae.device), vae, tiles):
            yield chunk[:, rows, columns]
        return
    decoded = decode_pixels(latents.to(vae.device), vae, tiles)
    pixels: Iterator[Tensor] = (part[..., rows, columns] for part in decoded)
    if upscale is not None:
        enlarge = load_upscaler(upscale, device=runtime.device, dtype=runtime.dtype)
        pixels = upscale_frames(pixels, upscale, enlarge)
    yield from integer_frames(pixels, bits)


def decode_draft_frames(job: DecodeJob, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Frames (n, H, W, 3) of latents of any resolution, cropped as the clip is, not upscaled.

    The transformer is unloaded first.
    """
    job.runner.release()
    vae, tiles = _decoder(job, latents)
    crop, last = job.request.resolved.crop, job.request.resolutions[-1]
    height, width = (PIXELS_PER_LATENT * n for n in latents.shape[-2:])
    top, bottom = (n * height // last.height for n in (crop.top, crop.top + crop.height))
    left, right = (n * width // last.width for n in (crop.left, crop.left + crop.width))
    for chunk in decode_video(latents.to(vae.device), vae, tiles):
        yield chunk[:, top:bottom, left:right]


def integer_frames(chunks: Iterable[Tensor], bits: int) -> Iterator[Frames]:
    """Chunks (n, 3, H, W) 0..1 -> (n, H, W, 3) uint8, or uint16 for more than 8 bits."""
    if bits == 8:
        return to_host(_rounded(chunk, 255).to(torch.uint8) for chunk in chunks)
    whole = to_host(_rounded(chunk, 65535).to(torch.int32) for chunk in chunks)
    return (array.astype(np.uint16) for array in whole)


def _rounded(frames: Tensor, most: int) -> Tensor:
    return frames.permute(0, 2, 3, 1).mul(most).round_()


def _decoder(job: DecodeJob, latents: Tensor) -> tuple[VideoVae, TilePlan | Tiling]:
    runtime, component = job.runner.runtime, job.plan.models.decoding_vae
    vae = load_video_vae(component, device=runtime.device, dtype=runtime.dtype, parts=("decoder",))
    _, _, f, h, w = latents.shape
    if decoder_kind(component) == "diffusion":
        return replace(vae, diffusion=diffusion_options(job)), one_tile(f, h, w)
    return vae, decode_tiles((f, h, w), job.decode)


def diffusion_options(job: DecodeJob) -> DiffusionOptions:
    """Options of the diffusion decoder: tiles and noise as requested, frames where they fit."""
    decode = job.decode
    return DiffusionOptions(
        noise=_pixel_noise(job),
        tiles=decode.diffusion_tiles,
        steps=decode.steps,
        keep="ram" if job.memory.offload_plan.frames_in_ram else "device",
    )


def _pixel_noise(job: DecodeJob) -> PixelNoise:
    request, decode = job.request, job.decode
    if decode.noise == "position":
        return PositionNoise(request.seed)
    if decode.noise == "comfyui":
        return CanvasNoise(torch.Generator().manual_seed(0))
    generator = official_generator(job)
    one_step = (decode.steps or 1) == 1
    return TileNoise(generator) if one_step else CanvasNoise(generator)


def official_generator(job: DecodeJob) -> torch.Generator:
    """The generator of the seed after the noise of all sampling stages, as in the official code.

    Generated keyframes and images are counted, a reference video is not.
    """
    request = job.request
    generator = torch.Generator().manual_seed(request.seed)
    video_width = job.plan.models.transformer.shape("patchify_proj.weight")[1]
    audio_width = job.plan.models.transformer.shape("audio_patchify_proj.weight")[1]
    guides = sum(image.index(request.frames) > 0 for image in request.active_images)
    for stage, resolved in zip(request.stages, request.resolved.stages, strict=True):
        if not isinstance(stage, SamplingStage):
            continue
        resolution = resolved.resolution
        slots = stage.generated_keyframes if isinstance(stage, BaseStage) else 0
        extra = (slots + guides) * resolution.latent_height * resolution.latent_width
        torch.randn(1, resolution.video_tokens + extra, video_width, generator=generator)
        if request.resolved.has_sound:
            torch.randn(1, resolution.audio_latents, audio_width, generator=generator)
    return generator


def _fit_sound(sound: Mapping[str, Tensor], request: Request) -> tuple[NDArray[np.float32], int]:
    rate = int(sound[SAMPLE_RATE_KEY])
    return fit_length(sound["waveform"], request.frames, request.fps, rate).numpy(), rate


def _count(chunks: Iterator[Frames], on_frames: Callable[[int], None]) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_frames(done)


def decode_tiles(grid: tuple[int, int, int], requested: Decode) -> TilePlan | Tiling:
    """Tiles of a latent video (frames, rows, columns).

    One tile if the request names no sizes: decoding it is exact, and its memory does not grow with
    the clip. If it names some sizes, the others are those of the reference implementation.
    """
    if requested.grid != "auto":
        return requested.tiling(grid) or one_tile(*grid)
    named = {name: value for name, value in requested.model_dump().items() if value != "auto"}
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
