"""VAE nodes: decode latents to images and encode images; images are decoded when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.values import Images, Latent, Value, VideoVaeFile
from latent_ladder.latents.comfyui_tiling import (
    fade_spans,
    feather_tiles,
    split_evenly,
    whole_tiling,
)
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, pixel_frames
from latent_ladder.latents.tiling import Tiling, even_tile_size
from latent_ladder.models.host_frames import to_host
from latent_ladder.models.video_vae.diffusion_vae import DiffusionOptions
from latent_ladder.models.video_vae.pixel_noise import CanvasNoise
from latent_ladder.models.video_vae.vae import (
    FRAMES_PER_CHUNK,
    VideoVae,
    decode_bands,
    load_video_vae,
)

MakeTiling = Callable[[Sequence[int]], Tiling]
FALLBACK_PX = (512, 256, 128)
"""Tile sizes that are tried in turn after out-of-memory errors; ComfyUI falls back to 256."""


@dataclass(frozen=True)
class DecodedClip:
    """Video latents that are decoded each time their frames are read."""

    engine: Engine
    vae: VideoVaeFile
    latents: Tensor
    tiling: MakeTiling
    fallback_px: Sequence[int] = FALLBACK_PX
    drop_last: int = 0

    def images(self) -> Images:
        """Return the frames as a stream."""
        _, _, f, h, w = self.latents.shape
        side = PIXELS_PER_LATENT
        count = pixel_frames(f) - self.drop_last
        return Images(
            count, w * side, h * side, self._pixels, self._pixels_uint8, self._with_smaller_tiles
        )

    def _bands(self) -> Iterator[Tensor]:
        self.engine.release()  # the decoder needs the memory of the transformer
        runtime = self.engine.runtime
        vae = load_video_vae(
            self.vae.component, device=runtime.device, dtype=runtime.dtype, parts=("decoder",)
        )
        # ComfyUI decodes with the noise of seed 0, whatever the seed of the clip.
        noise = CanvasNoise(torch.Generator().manual_seed(0))
        vae = replace(vae, diffusion=DiffusionOptions(noise=noise))
        tiling = self.tiling(self.latents.shape[2:])
        remaining = pixel_frames(self.latents.shape[2]) - self.drop_last
        for band in decode_bands(self.latents.to(runtime.device), vae, tiling):
            if remaining > 0:
                yield band[:, :remaining]
            remaining -= band.shape[1]

    def _pixels(self) -> Iterator[Tensor]:
        for band in self._bands():
            for chunk in torch.split(band, FRAMES_PER_CHUNK, dim=1):
                yield chunk.add(1).mul_(0.5).clamp_(0, 1).transpose(0, 1)

    def _pixels_uint8(self) -> Iterator[NDArray[np.uint8]]:
        """Round as all clips of this package are rounded, see ``models.video_vae``."""
        return to_host(
            chunk.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
            for band in self._bands()
            for chunk in torch.split(band, FRAMES_PER_CHUNK, dim=1)
        )

    def _with_smaller_tiles(self) -> Images | None:
        if not self.fallback_px:
            return None
        tile, *others = self.fallback_px
        side = max(tile // PIXELS_PER_LATENT, 2)
        overlap = max(side // 4, 1)

        def tiling(grid: Sequence[int]) -> Tiling:
            return fade_spans(grid, feather_tiles(grid, (grid[0], side), (0, overlap)), 8, 1)

        return DecodedClip(
            self.engine, self.vae, self.latents, tiling, others, self.drop_last
        ).images()


def _decode(ctx: NodeContext, name: str, tiling: MakeTiling, fix_last: bool = False) -> list[Value]:
    latent = _video(ctx, name)
    drop = 0
    if fix_last:
        latent, drop = torch.cat([latent, latent[:, :, -1:]], dim=2), FRAMES_PER_LATENT
    vae = _video_vae(ctx)
    clip = DecodedClip(ctx.engine, vae, latent, tiling, drop_last=drop)
    return [clip.images()]


def _video_vae(ctx: NodeContext) -> VideoVaeFile:
    return ctx.get("vae", VideoVaeFile)


def _video(ctx: NodeContext, name: str) -> Tensor:
    """Return the video latents of an input, which may be an audio-video latent."""
    latent = ctx.get(name, Latent)
    if latent.video is None:
        raise ctx.error(
            f"{name} is an audio latent", "connect the video output of LTXVSeparateAVLatent"
        )
    channels = ctx.get("vae", VideoVaeFile).component.shape("per_channel_statistics.mean-of-means")
    if latent.video.shape[1] != channels[0]:
        raise ctx.error(
            f"{name} has {latent.video.shape[1]} channels, the VAE has {channels[0]}",
            "use the VAE that belongs to the checkpoint",
        )
    return latent.video


# --- decoding -----------------------------------------------------------------------------------


def decode(ctx: NodeContext) -> list[Value]:
    """``VAEDecode``: decoded without tiles, which is exact."""
    return _decode(ctx, "samples", whole_tiling)


def decode_tiled(ctx: NodeContext) -> list[Value]:
    """``VAEDecodeTiled``: tile sizes in pixels and frames, truncated to latents as in ComfyUI."""
    tile, overlap = ctx.integer("tile_size"), ctx.integer("overlap")
    length, shared = ctx.integer("temporal_size"), ctx.integer("temporal_overlap")
    if tile < overlap * 4:
        overlap = tile // 4
    if length < shared * 2:
        shared //= 2
    frames = max(2, length // FRAMES_PER_LATENT)
    frame_overlap = max(1, min(frames // 2, shared // FRAMES_PER_LATENT))
    side, side_overlap = tile // PIXELS_PER_LATENT, overlap // PIXELS_PER_LATENT

    def tiling(grid: Sequence[int]) -> Tiling:
        return feather_tiles(grid, (frames, side), (frame_overlap, side_overlap))

    return _decode(ctx, "samples", tiling)


def _ltx_tiling(ctx: NodeContext) -> MakeTiling:
    across, down = ctx.integer("horizontal_tiles"), ctx.integer("vertical_tiles")
    overlap = ctx.integer("overlap")
    return lambda grid: _even_tiling(ctx, grid, (down, across), overlap)


def _even_tiling(
    ctx: NodeContext, grid: Sequence[int], tiles: tuple[int, int], overlap: int
) -> Tiling:
    """Return the tiles of the pack's decoder.

    Raises :class:`WorkflowError` for tiles that are narrower than their overlap.
    """
    for side, count in zip(grid[1:], tiles, strict=True):
        size = even_tile_size(side, count, overlap)
        if count > 1 and size < overlap:
            raise ctx.error(
                f"{count} tiles over {side} latents are {size} wide: too narrow for an overlap "
                f"of {overlap}",
                "use fewer tiles or less overlap; a small clip needs no tiles",
            )
    return split_evenly(grid, *tiles, overlap)


def decode_ltx_tiled(ctx: NodeContext) -> list[Value]:
    """``LTXVTiledVAEDecode``: decoded in spatial tiles."""
    tiling = _ltx_tiling(ctx)
    return _decode(ctx, "latents", tiling, ctx.boolean("last_frame_fix"))


def decode_spatio_temporal(ctx: NodeContext) -> list[Value]:
    """``LTXVSpatioTemporalTiledVAEDecode``: decoded in tiles in space and time."""
    tiles, overlap = ctx.integer("spatial_tiles"), ctx.integer("spatial_overlap")
    length, shared = ctx.integer("temporal_tile_length"), ctx.integer("temporal_overlap")

    def tiling(grid: Sequence[int]) -> Tiling:
        return fade_spans(grid, _even_tiling(ctx, grid, (tiles, tiles), overlap), length, shared)

    return _decode(ctx, "latents", tiling, ctx.boolean("last_frame_fix"))


# --- encoding -----------------------------------------------------------------------------------


def encode_images(ctx: NodeContext, images: Images, vae: VideoVaeFile) -> Tensor:
    """Encode images as normalised latents (1, C, F, H, W) on the CPU.

    Sides are cropped to multiples of 32, and frames beyond 8k + 1 are left out. The images are read
    once with the memory of a few frames, so the encoder needs no tiles.
    """
    engine = ctx.engine
    side = PIXELS_PER_LATENT
    width, height = images.width // side * side, images.height // side * side
    if not width or not height:
        raise ctx.error(
            f"images of {images.width}x{images.height} are smaller than one latent, 32x32"
        )
    top, left = (images.height - height) // 2, (images.width - width) // 2

    def work() -> Tensor:
        runtime = engine.runtime
        loaded = load_video_vae(
            vae.component, device=runtime.device, dtype=runtime.dtype, parts=("encoder",)
        )
        count = (images.count - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
        pixels = (
            chunk[..., top : top + height, left : left + width]
            for chunk in images.first(count).pixels()
        )
        return _encode(loaded, pixels)

    return engine.runner.retry_without_transformer(work, ctx.warn)


@torch.inference_mode()
def _encode(vae: VideoVae, pixels: Iterator[Tensor]) -> Tensor:
    if vae.encoder is None:
        raise ValueError("this VAE was loaded without its encoder")
    chunks = ((chunk.to(vae.device, torch.float32) * 2 - 1).to(vae.dtype) for chunk in pixels)
    latents = torch.cat(list(vae.encoder.stream(chunks))).transpose(0, 1)[None]
    return vae.normalise(latents).float().cpu()


def encode(ctx: NodeContext) -> list[Value]:
    """``VAEEncode`` and ``VAEEncodeTiled``: encoded without tiles, which is exact."""
    return [Latent(video=encode_images(ctx, ctx.get("pixels", Images), _video_vae(ctx)))]


def decoder_noise(ctx: NodeContext) -> list[Value]:
    """``Set VAE Decoder Noise``: no effect, as LTX-2 decoders take no timestep."""
    ctx.warn("no_effect", "LTX-2 decoders take no timestep: the node has no effect")
    return [_video_vae(ctx)]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "VAEDecode": NodeFunction(decode),
        "VAEDecodeTiled": NodeFunction(decode_tiled),
        "LTXVTiledVAEDecode": NodeFunction(decode_ltx_tiled),
        "LTXVSpatioTemporalTiledVAEDecode": NodeFunction(decode_spatio_temporal),
        "Set VAE Decoder Noise": NodeFunction(decoder_noise),
        "VAEEncode": NodeFunction(encode, stored=True),
        "VAEEncodeTiled": NodeFunction(encode, stored=True),
    }
)
