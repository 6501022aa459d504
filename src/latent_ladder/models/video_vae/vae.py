"""Frames <-> video latents: the video VAE, decoded as a stream of tiles.

Decoding yields finished frames while later ones are still latents. Without tiles, which is exact,
its memory depends on the size of a frame and not on the number of frames
(``models.video_vae.networks``); tiles need less memory per frame. Where tiles overlap, they are
blended by the ramps of ``latents.tiling`` in float32, in bands: 12 bytes per pixel of each
frame of a span. Knows nothing of prompts, stages or video files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.latents.tiling import (
    DecodedSpan,
    Span,
    TilePlan,
    Tiling,
    one_tile,
    spatial_weights,
    temporal_weights,
)
from latent_ladder.models.diffusion_decoder_config import (
    DiffusionDecoderConfig,
    has_diffusion_decoder,
)
from latent_ladder.models.host_frames import to_host
from latent_ladder.models.network_configs import VideoVaeConfig
from latent_ladder.models.vae_loading import LatentStatistics, read_latent_statistics
from latent_ladder.models.video_vae.diffusion_decoder import (
    DiffusionDecoder,
    load_diffusion_decoder,
)
from latent_ladder.models.video_vae.diffusion_vae import DiffusionOptions, decode_diffusion
from latent_ladder.models.video_vae.networks import (
    VideoDecoder,
    VideoEncoder,
    load_video_decoder,
    load_video_encoder,
)
from latent_ladder.models.video_vae.tiled_decode import blend_tiles, part_of

FRAMES_PER_CHUNK = 8
"""Largest number of frames converted and yielded at a time."""


@dataclass(frozen=True)
class VideoVae:
    """Loaded video VAE; ``encoder`` or ``decoder`` is None if it was not loaded.

    ``diffusion`` has the options of a diffusion decoder.
    """

    encoder: VideoEncoder | None
    decoder: VideoDecoder | DiffusionDecoder | None
    config: VideoVaeConfig | DiffusionDecoderConfig
    statistics: LatentStatistics
    device: torch.device
    dtype: torch.dtype
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)

    @property
    def latent_channels(self) -> int:
        """Number of latent channels."""
        return self.config.latent_channels

    def normalise(self, latents: Tensor) -> Tensor:
        """Normalise latents of the encoder for the transformer, (B, C, F, H, W) float32."""
        return (latents.float() - _per_channel(self.statistics.mean, latents)) / _per_channel(
            self.statistics.std, latents
        )

    def un_normalise(self, latents: Tensor) -> Tensor:
        """Convert latents of the transformer for the decoder, the inverse of :meth:`normalise`."""
        return latents.float() * _per_channel(self.statistics.std, latents) + _per_channel(
            self.statistics.mean, latents
        )

    def encode(self, frames: np.ndarray, tiles: TilePlan | None = None) -> Tensor:
        """Encode frames (F, H, W, 3) to normalised latents (1, C, F', H', W'), float32.

        Frames are uint8, or float32 from 0 to 255.

        Frames after the last full group (F = 8k + 1) are ignored; one frame is an image. Without
        ``tiles`` the frames are encoded whole, which is exact and needs memory in proportion to
        the frame size. The result is the mean of the distribution, on the VAE's device.
        Raises :class:`MediaError` if sides are not multiples of 32, and :class:`RequestError` if
        ``tiles`` do not match the frames.
        """
        return _encode(frames, self, tiles)

    @torch.no_grad()
    def encode_stream(self, frames: Iterable[np.ndarray]) -> Tensor:
        """Encode frames (H, W, 3) from an iterator, which are not stored; as :meth:`encode`.

        The latents are on the CPU. Raises :class:`MediaError`.
        """
        if self.encoder is None:
            raise ValueError("this VAE was loaded without its encoder")
        found = [z.cpu() for z in self.encoder.stream(_chunks(frames, self))]
        numbers = LatentStatistics(self.statistics.mean.cpu(), self.statistics.std.cpu())
        return replace(self, statistics=numbers).normalise(torch.cat(found).transpose(0, 1)[None])


def load_video_vae(
    component: Component,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    parts: Collection[str] = ("encoder", "decoder"),
) -> VideoVae:
    """Load the ``parts`` of a video VAE; raises :class:`UnknownLayout` for an unsupported one."""
    encoder: VideoEncoder | None = None
    decoder: VideoDecoder | DiffusionDecoder | None = None
    if "encoder" in parts:
        encoder = load_video_encoder(component, device=device, dtype=dtype)
    if "decoder" in parts:
        is_diffusion = has_diffusion_decoder(component.shapes())
        load = load_diffusion_decoder if is_diffusion else load_video_decoder
        decoder = load(component, device=device, dtype=dtype)
    loaded = decoder or encoder
    if loaded is None:
        raise ValueError(f"parts {parts!r} name neither encoder nor decoder")
    numbers = read_latent_statistics(component, device)
    return VideoVae(encoder, decoder, loaded.config, numbers, torch.device(device), dtype)


# --- decoding -----------------------------------------------------------------------------------


def decode_video(
    latents: Tensor, vae: VideoVae, tiles: TilePlan | Tiling | None = None
) -> Iterator[np.ndarray]:
    """Normalised latents (1, C, F, H, W) -> chunks of frames (n, H, W, 3) uint8, in order.

    Chunks come as soon as no later tile touches them; together they are 8 (F - 1) + 1 frames.
    Without ``tiles`` everything is decoded at once, which is exact. Tiled frames differ from that
    near seams, because a tile does not see beyond its overlap. The tiles of a plan are decoded one
    after the other, those of a ``Tiling`` in its own order. A diffusion decoder needs no such tiles
    and ignores them, see ``VideoVae.diffusion``.
    Raises :class:`RequestError` when latents, VAE and plan do not fit each other.
    """
    bands = decode_bands(latents, vae, tiles)
    return to_host(chunk for band in bands for chunk in _as_bytes(band))


def decode_pixels(
    latents: Tensor, vae: VideoVae, tiles: TilePlan | Tiling | None = None
) -> Iterator[Tensor]:
    """As :func:`decode_video`, but chunks (n, 3, H, W) float32, 0..1, on the VAE's device.

    For outputs of more than 8 bits, and for changes of the frames before they are written.
    """
    for band in decode_bands(latents, vae, tiles):
        for first in range(0, band.shape[1], FRAMES_PER_CHUNK):
            chunk = band[:, first : first + FRAMES_PER_CHUNK]
            yield chunk.add(1).mul_(0.5).clamp_(0, 1).transpose(0, 1)


def decode_bands(
    latents: Tensor, vae: VideoVae, tiles: TilePlan | Tiling | None = None
) -> Iterator[Tensor]:
    """As :func:`decode_video`, but (3, n, H, W) float32 on the VAE's device, about -1..1.

    A band may be overwritten once the next one is requested.
    """
    plan = tiles or one_tile(*latents.shape[2:])
    if latents.shape[:2] != (1, vae.latent_channels) or tuple(latents.shape[2:]) != plan.grid:
        raise RequestError(
            f"latents {list(latents.shape)} do not fit a VAE of {vae.latent_channels} channels "
            f"and tiles for {list(plan.grid)}"
        )
    if isinstance(vae.decoder, DiffusionDecoder):
        return decode_diffusion(vae.decoder, latents, vae.un_normalise, vae.device, vae.diffusion)
    if isinstance(plan, TilePlan):
        plan = plan.tiling(vae.config.spatial_scale, vae.config.temporal_scale)
    return _decode(latents, vae, plan)


@torch.no_grad()
def _decode(latents: Tensor, vae: VideoVae, tiling: Tiling) -> Iterator[Tensor]:
    def decode(span: DecodedSpan, row: DecodedSpan, col: DecodedSpan) -> Iterator[Tensor]:
        return _decode_tile(part_of(latents, span, row, col), vae)

    if tiling.is_whole:
        yield from _decode_tile(latents, vae)
    else:
        yield from blend_tiles(tiling, decode, vae.device)


def _decode_tile(latents: Tensor, vae: VideoVae) -> Iterator[Tensor]:
    """Frames (3, n, H, W) float32 of one tile, in chunks."""
    if not isinstance(vae.decoder, VideoDecoder):
        raise ValueError("this VAE was loaded without its convolutional decoder")
    z = vae.un_normalise(latents.to(vae.device)).to(vae.dtype)
    for frames in vae.decoder.stream(z):
        yield frames.transpose(0, 1).float()


def _ramps(spans: Sequence[Span], scale: int, vae: VideoVae) -> list[Tensor]:
    return [
        torch.tensor(weights, dtype=torch.float32, device=vae.device)
        for weights in spatial_weights(spans, scale)
    ]


def _as_bytes(frames: Tensor) -> Iterator[Tensor]:
    """(3, n, H, W) about -1..1, overwritten -> chunks (m, H, W, 3) uint8."""
    for first in range(0, frames.shape[1], FRAMES_PER_CHUNK):
        chunk = frames[:, first : first + FRAMES_PER_CHUNK]
        pixels = chunk.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        yield pixels.permute(1, 2, 3, 0).contiguous()


# --- encoding -----------------------------------------------------------------------------------


@torch.no_grad()
def _encode(frames: np.ndarray, vae: VideoVae, tiles: TilePlan | None) -> Tensor:
    scale, stride = vae.config.spatial_scale, vae.config.temporal_scale
    count, height, width = _check_frames(frames, scale)
    grid = (1 + (count - 1) // stride, height // scale, width // scale)
    plan = tiles or one_tile(*grid)
    if plan.grid != grid:
        raise RequestError(f"tiles for {list(plan.grid)} do not fit latents {list(grid)}")
    latents = torch.zeros((1, vae.latent_channels, *grid), device=vae.device)
    # Latents are weighted like the frames of a tiled decode, at scale 1. The first latent of a
    # later span encodes a single frame, so it is dropped (its weight is 0).
    for span, ramp in zip(plan.frames, temporal_weights(plan.frames, 1), strict=True):
        for row, row_ramp in zip(plan.rows, _ramps(plan.rows, 1, vae), strict=True):
            for col, col_ramp in zip(plan.cols, _ramps(plan.cols, 1, vae), strict=True):
                part = frames[
                    span.start * stride : (span.stop - 1) * stride + 1,
                    row.start * scale : row.stop * scale,
                    col.start * scale : col.stop * scale,
                ]
                z = vae.normalise(_encode_tile(part, vae))
                z *= torch.tensor(ramp, dtype=torch.float32, device=vae.device)[:, None, None]
                z *= row_ramp[:, None] * col_ramp
                latents[
                    ..., span.start : span.stop, row.start : row.stop, col.start : col.stop
                ] += z
    return latents


def _encode_tile(frames: np.ndarray, vae: VideoVae) -> Tensor:
    if vae.encoder is None:
        raise ValueError("this VAE was loaded without its encoder")
    latents = list(vae.encoder.stream(_as_pixels(frames, vae)))
    return torch.cat(latents).transpose(0, 1)[None]


def _chunks(frames: Iterable[np.ndarray], vae: VideoVae) -> Iterator[Tensor]:
    """Convert frames (H, W, 3) uint8 from an iterator; yields chunks (n, 3, H, W) in -1..1."""
    waiting = iter(frames)
    while chunk := list(islice(waiting, FRAMES_PER_CHUNK)):
        stacked = np.stack(chunk)
        _check_frames(stacked, vae.config.spatial_scale)
        yield from _as_pixels(stacked, vae)


def _as_pixels(frames: np.ndarray, vae: VideoVae) -> Iterator[Tensor]:
    """Convert frames (F, H, W, 3) uint8; yields chunks (n, 3, H, W) in -1..1."""
    for first in range(0, len(frames), FRAMES_PER_CHUNK):
        chunk = np.ascontiguousarray(frames[first : first + FRAMES_PER_CHUNK])
        pixels = torch.from_numpy(chunk).to(vae.device).permute(0, 3, 1, 2)
        yield (pixels.to(torch.float32) / 127.5 - 1).to(vae.dtype)


def _check_frames(frames: np.ndarray, scale: int) -> tuple[int, int, int]:
    if (
        frames.dtype not in (np.uint8, np.float32)
        or frames.ndim != 4
        or frames.shape[3] != 3
        or not len(frames)
    ):
        raise MediaError(
            f"frames have shape {list(frames.shape)} {frames.dtype}, expected (F, H, W, 3) uint8 "
            "or float32"
        )
    count, height, width, _ = frames.shape
    if height % scale or width % scale:
        nearest = "x".join(str(max(round(n / scale), 1) * scale) for n in (width, height))
        raise MediaError(
            f"frames of {width}x{height} cannot be encoded, sides must be multiples of {scale}",
            f"resize them to {nearest}",
        )
    return count, height, width


def _per_channel(values: Tensor, latents: Tensor) -> Tensor:
    return values.to(latents.device)[:, None, None, None]
