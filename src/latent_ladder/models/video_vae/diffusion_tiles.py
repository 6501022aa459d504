"""Tiles of the diffusion decoder as the official implementation has them.

The stages before the last deterministic one run once over the whole clip; that stage and the
diffusion run in each tile, and tiles are blended by ramps. A tile does not see beyond its overlap,
so the picture differs from the exact one near its borders. Source: LTX-2 ``diffusion_tiling.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latent_ladder.latents.tiling import (
    DecodedSpan,
    PixelTileSize,
    Span,
    Tiling,
    normalise_weights,
    ramp_weights,
    rising_ramp,
    spatial_spans,
    spatial_weights,
)
from latent_ladder.models.diffusion_decoder_config import DiffusionDecoderConfig, Size
from latent_ladder.models.video_vae.diffusion_decoder import DecodeSettings, DiffusionDecoder
from latent_ladder.models.video_vae.frame_stream import in_chunks
from latent_ladder.models.video_vae.pixel_noise import PixelNoise
from latent_ladder.models.video_vae.tiled_decode import blend_tiles


def plan_diffusion_tiles(
    config: DiffusionDecoderConfig, latents: Size, size: PixelTileSize
) -> Tiling:
    """Tiles of padded ``latents`` in positions of the last deterministic stage.

    A position is two frames and 8 x 8 pixels, the first one in time a single frame.
    """
    last = len(config.strides) - 1
    cells, stride = config.grid(latents, last), config.strides[last]
    scale = config.patch * stride[1]

    def spans(axis: int, tile: int | None, overlap: int, per_cell: int) -> tuple[Span, ...]:
        least = config.kernels[last][axis]
        wanted = cells[axis] if tile is None else max(tile // per_cell, least)
        return spatial_spans(cells[axis], wanted, overlap // per_cell)

    time = spans(0, size.frames, size.overlap_frames, stride[0])
    sides = [spans(1, size.rows, size.overlap, scale), spans(2, size.cols, size.overlap, scale)]
    rows, cols = (
        tuple(
            DecodedSpan(span.start, span.stop, span.start * scale, weights)
            for span, weights in zip(side, spatial_weights(side, scale), strict=True)
        )
        for side in sides
    )
    return Tiling(_frame_spans(time, stride[0]), rows, cols, "sequential")


def _frame_spans(spans: Sequence[Span], scale: int) -> tuple[DecodedSpan, ...]:
    """Spans in time with the frames they become; the clip's first position is one frame."""
    starts = [max(scale * span.start - (scale - 1), 0) for span in spans]
    stops = [scale * span.stop - (scale - 1) for span in spans]
    raw = [
        ramp_weights(stop - start, rising_ramp(span.left * scale), rising_ramp(span.right * scale))
        for span, start, stop in zip(spans, starts, stops, strict=True)
    ]
    return tuple(
        DecodedSpan(span.start, span.stop, start, weights)
        for span, start, weights in zip(spans, starts, normalise_weights(raw, starts), strict=True)
    )


@torch.no_grad()
def decode_in_tiles(
    decoder: DiffusionDecoder,
    latents: Tensor,
    tiling: Tiling,
    noise: PixelNoise,
    settings: DecodeSettings,
) -> Iterator[Tensor]:
    """Frames (3, n, H, W) float32 of padded, un-normalised latents, in bands of the padded canvas.

    A band may be overwritten once the next one is requested.
    """
    config, place = decoder.config, settings.place
    stream, size = decoder.early_stages(latents.to(decoder.conv_in.weight.dtype), place)
    features = torch.cat([frames.x for frames in stream])
    last = len(config.strides) - 1
    scale, stride = config.patch * config.strides[last][1], config.strides[last]
    clip = tiling.frames[-1].stop
    height, width = tiling.size
    canvas = (tiling.frames[-1].first + len(tiling.frames[-1].weights), height, width)

    def decode(time: DecodedSpan, row: DecodedSpan, col: DecodedSpan) -> Iterator[Tensor]:
        stop = size[0] if time.stop == clip else time.stop  # the last tile has the ghost frames
        part = features[time.start : stop, row.start : row.stop, col.start : col.stop]
        grid: Size = (part.shape[0], part.shape[1], part.shape[2])
        context = decoder.stage(last, in_chunks(part), grid, place, from_start=time.start == 0)
        frames = len(time.weights)
        pixels: Size = (frames, grid[1] * scale, grid[2] * scale)
        read = noise.reader((time.first, row.start * scale, col.start * scale), pixels, canvas)
        patches = (frames, grid[1] * stride[1], grid[2] * stride[2])
        for picture in decoder.denoise(context, patches, read, place, settings.steps):
            yield picture.transpose(0, 1).to(place.compute)

    yield from blend_tiles(tiling, decode, place.compute)
