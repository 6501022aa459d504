"""Decoding with the diffusion decoder: exact or in tiles, with the frames on the device or in RAM.

Decoding is exact unless tiles are asked for. Its memory grows with the size of a frame, hardly with
the length of the clip; where the device has too little, the frames between blocks are kept in RAM,
with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from latent_ladder.latents.tiling import PixelTileSize
from latent_ladder.models.diffusion_decoder_config import Size, held_values
from latent_ladder.models.video_vae.diffusion_decoder import (
    DecodeSettings,
    DiffusionDecoder,
    decode_whole,
)
from latent_ladder.models.video_vae.diffusion_tiles import (
    decode_in_tiles,
    plan_diffusion_tiles,
)
from latent_ladder.models.video_vae.frame_stream import StreamPlace
from latent_ladder.models.video_vae.pixel_noise import PixelNoise, PositionNoise

KeepFrames = Literal["auto", "device", "ram"]
FREE_SHARE = 0.8
"""Share of the free device memory that the frames between blocks may take."""


@dataclass(frozen=True)
class DiffusionOptions:
    """Options of a decode.

    ``tiles`` of ``None`` decodes exactly. ``steps`` of ``None`` is the decoder's own number.
    ``keep``: where frames between blocks are; "auto" is on the device if they fit.
    """

    noise: PixelNoise = field(default_factory=lambda: PositionNoise(0))
    tiles: PixelTileSize | None = None
    steps: int | None = None
    keep: KeepFrames = "auto"


@torch.no_grad()
def decode_diffusion(
    decoder: DiffusionDecoder,
    latents: Tensor,
    un_normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    options: DiffusionOptions,
) -> Iterator[Tensor]:
    """Normalised latents (1, C, F, H, W) -> frames (3, n, H', W') float32, about -1..1, in order.

    A band may be overwritten once the next one is requested.
    """
    grid: Size = (latents.shape[2], latents.shape[3], latents.shape[4])
    config = decoder.config
    place = StreamPlace(device, _keep_on(options.keep, decoder, grid, device))
    settings = DecodeSettings(place, options.steps or config.steps)
    scale, frames = config.spatial_scale, config.temporal_scale * (grid[0] - 1) + 1
    padded, (top, left) = decoder.pad(latents)
    size: Size = (padded.shape[2], padded.shape[3], padded.shape[4])
    tiling = None if options.tiles is None else plan_diffusion_tiles(config, size, options.tiles)
    if tiling is None or tiling.is_whole:
        canvas = (config.temporal_scale * (size[0] - 1) + 1, scale * size[1], scale * size[2])
        noise = options.noise.reader((0, 0, 0), canvas, canvas)
        for pixels in decode_whole(decoder, latents, un_normalise, noise, settings):
            yield pixels.transpose(0, 1).to(device)
        return
    rows, cols = (
        slice(at * scale, (at + n) * scale) for at, n in zip((top, left), grid[1:], strict=True)
    )
    done = 0
    for band in decode_in_tiles(decoder, un_normalise(padded), tiling, options.noise, settings):
        kept = band[:, : frames - done, rows, cols]
        done += band.shape[1]
        if kept.shape[1]:
            yield kept


def _keep_on(
    keep: KeepFrames, decoder: DiffusionDecoder, grid: Size, device: torch.device
) -> torch.device:
    cpu = torch.device("cpu")
    if keep == "ram" or device.type == "cpu":
        return cpu
    if keep == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        needed = held_values(decoder.config, grid) * decoder.conv_in.weight.element_size()
        return device if needed <= FREE_SHARE * free else cpu
    return device
