"""Decoding: latents become frames, and frames with sound a file, a few frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.families import decoder_kind
from latent_ladder.latents.shapes import PIXELS_PER_LATENT, duration
from latent_ladder.latents.tiling import TilePlan, Tiling, one_tile
from latent_ladder.media.hdr import EXR_SUFFIX, light_of_codes, signal_of_light
from latent_ladder.media.image_sequence import Waveform, is_audio_file
from latent_ladder.media.video_writer import Frames, VideoSpec, WrittenVideo
from latent_ladder.media.writers import bit_depth, preview_path, sdr_frames, write_clip_file
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
from latent_ladder.pipeline.stage_noise import earlier_noise
from latent_ladder.pipeline.stages.audio_decoding import SAMPLE_RATE_KEY
from latent_ladder.pipeline.temporal_rounds import latent_frames_of
from latent_ladder.pipeline.thumbnails import Thumbnails
from latent_ladder.request.files import clip_metadata
from latent_ladder.request.keyframes_first import is_keyframes_first
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.sampling.denoise import generator_after
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
    settings = request.encoder_settings
    waveform = None if sound is None else _fit_sound(sound, request)
    if settings.transfer != "sdr" and not is_audio_file(path):
        return _write_hdr(job, path, latents["video"], waveform, overwrite, on_frames, meter)
    frames = decode_frames(job, latents["video"], bit_depth(path, settings))
    if meter is not None:
        frames = meter.measure_chunks(frames)
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


def _write_hdr(
    job: DecodeJob,
    path: Path,
    latents: Tensor,
    waveform: Waveform | None,
    overwrite: bool,
    on_frames: Callable[[int], None],
    meter: RunMeter | None,
) -> WrittenVideo:
    """Write an HDR clip, then its SDR preview from what the file holds, which also checks it."""
    request, metadata = job.request, clip_metadata(job.request)
    settings = request.encoder_settings
    light = decode_light(job, latents)
    is_video = path.suffix.lower() != EXR_SUFFIX
    frames = (signal_of_light(c, settings.transfer) for c in light) if is_video else light
    chunks = cast(Iterator[Frames], frames)  # EXR frames are linear light
    length = duration(request.frames, request.fps)
    size = request.resolved.final_size
    written = write_clip_file(
        path,
        _count(chunks, on_frames),
        VideoSpec(size, request.fps, settings),
        audio=waveform,
        duration=length,
        metadata=metadata,
        overwrite=overwrite,
    )
    shown: Iterator[Frames] = sdr_frames(path, written.frames)
    if meter is not None:
        shown = meter.measure_chunks(shown)
    thumbnails = Thumbnails(path, request.output, request.frames, metadata)
    write_clip_file(
        preview_path(path),
        thumbnails.collect(shown),
        VideoSpec(size, request.fps),
        audio=waveform,
        duration=length,
        metadata=metadata,
        overwrite=overwrite,
    )
    thumbnails.write()
    if meter is not None:
        meter.set_audio(waveform)
    return written


def decode_light(job: DecodeJob, latents: Tensor) -> Iterator[NDArray[np.float32]]:
    """Frames (n, H, W, 3) of an HDR clip as linear light: decoded in float32, cropped, upscaled."""
    parts = (part.permute(0, 2, 3, 1).float() for part in _decode_pixels(job, latents))
    for codes in to_host(parts):
        yield light_of_codes(codes, job.request.hdr)


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
    latents = _of_clip(job, latents)
    upscale, crop = job.plan.upscale, job.request.resolved.crop
    job.runner.release()
    vae, tiles = _decoder(job, latents)
    rows = slice(crop.top, crop.top + crop.height)
    columns = slice(crop.left, crop.left + crop.width)
    if upscale is None and bits == 8:
        for chunk in decode_video(latents.to(vae.device), vae, tiles):
            yield chunk[:, rows, columns]
        return
    yield from integer_frames(_cropped_pixels(job, latents, vae, tiles), bits)


def _of_clip(job: DecodeJob, latents: Tensor) -> Tensor:
    """The latents of the clip, without the rest of the last segment of a keyframes-first one."""
    if not is_keyframes_first(job.request.stages):
        return latents
    return latents[:, :, : latent_frames_of(job.request.frames)]


def _decode_pixels(job: DecodeJob, latents: Tensor) -> Iterator[Tensor]:
    """Frames (n, 3, H, W) of the file, 0..1, of an HDR clip: the decoder runs in float32."""
    job.runner.release()
    latents = _of_clip(job, latents)
    vae, tiles = _decoder(job, latents, torch.float32)
    yield from _cropped_pixels(job, latents, vae, tiles)


def _cropped_pixels(
    job: DecodeJob, latents: Tensor, vae: VideoVae, tiles: TilePlan | Tiling
) -> Iterator[Tensor]:
    upscale, runtime, crop = job.plan.upscale, job.runner.runtime, job.request.resolved.crop
    rows = slice(crop.top, crop.top + crop.height)
    columns = slice(crop.left, crop.left + crop.width)
    decoded = decode_pixels(latents.to(vae.device), vae, tiles)
    pixels: Iterator[Tensor] = (part[..., rows, columns] for part in decoded)
    if upscale is not None:
        enlarge = load_upscaler(upscale, device=runtime.device, dtype=runtime.dtype)
        pixels = upscale_frames(pixels, upscale, enlarge)
    return pixels


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


def _decoder(
    job: DecodeJob, latents: Tensor, dtype: torch.dtype | None = None
) -> tuple[VideoVae, TilePlan | Tiling]:
    runtime, component = job.runner.runtime, job.plan.models.decoding_vae
    dtype = dtype or runtime.dtype
    vae = load_video_vae(component, device=runtime.device, dtype=dtype, parts=("decoder",))
    _, _, f, h, w = latents.shape
    if decoder_kind(component) == "diffusion":
        return replace(vae, diffusion=diffusion_options(job)), one_tile(f, h, w)
    return vae, job.decode.tiles((f, h, w))


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
    """The generator of the seed after the noise of all sampling stages, as in the official code."""
    return generator_after(job.request.seed, earlier_noise(job.plan))


def _fit_sound(sound: Mapping[str, Tensor], request: Request) -> tuple[NDArray[np.float32], int]:
    rate = int(sound[SAMPLE_RATE_KEY])
    return fit_length(sound["waveform"], request.frames, request.fps, rate).numpy(), rate


def _count(chunks: Iterator[Frames], on_frames: Callable[[int], None]) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_frames(done)
