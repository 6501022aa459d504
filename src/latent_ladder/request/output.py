"""Decoding and encoding options of a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, StrictBool

from latent_ladder.latents.comfyui_tiling import split_evenly
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.latents.tiling import (
    PixelTileSize,
    TilePlan,
    Tiling,
    even_tile_size,
    official_size,
    one_tile,
    plan_tiles,
)
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.request.fields import (
    Int,
    OverlapFrames,
    OverlapPx,
    Table,
    Text,
    TileCounts,
    TileFrames,
    TilePx,
)
from latent_ladder.request.problems import Found

GRID_OVERLAP_PX = 64
"""Default overlap of a grid's tiles, as in the reference implementation's automatic tiles."""
MAX_GRID_OVERLAP_PX = 256
"""Largest overlap of ``LTXVTiledVAEDecode``."""
SIZES = ("tile_px", "tile_frames", "overlap_frames")
"""Fields that ask for another kind of tiles than a grid."""


class Decode(Table):
    """The video decoder and its tiles: their size and overlap; ``"auto"`` fits memory.

    The diffusion decoder is exact without tiles whatever the memory; tiles make it faster on small
    cards and are blended as in the official implementation.
    ``grid`` is a number of tiles across and down instead, decoded together and blended as
    ``LTXVTiledVAEDecode`` does; each covers all frames.
    """

    tile_px: TilePx = "auto"
    """Side of a tile in pixels, a multiple of 32 from 64; ``auto`` decodes the whole picture if it
    fits into memory, and is 768 where another size of tiles is set."""
    overlap_px: OverlapPx = "auto"
    """Overlap of neighbouring tiles in pixels, a multiple of 32; ``auto`` is 64. Raise it where
    seams are visible."""
    tile_frames: TileFrames = "auto"
    """Frames of a tile, a multiple of 8 from 16; ``auto`` decodes all frames in one tile if they
    fit into memory, and is 80 where another size of tiles is set."""
    overlap_frames: OverlapFrames = "auto"
    """Frames that neighbouring tiles share, a multiple of 8; ``auto`` is 24, or 8 in tiles that
    only memory requires."""
    decoder: Literal["auto", "conv", "diffusion"] = "auto"
    """Video decoder where the model folder has both kinds of LTX-2.5: ``conv`` is fast and small,
    ``diffusion`` sharper; ``auto`` is ``diffusion`` for LTX-2.5 on a GPU with 24 GB or more."""
    noise: Literal["position", "comfyui", "ltx"] = "position"
    """Noise of the diffusion decoder: ``position`` depends on the seed and the place in the clip,
    so that tiles, a resumed run and the device do not change the picture; ``comfyui`` has a fixed
    seed, ``ltx`` continues the random numbers of the official pipelines, with a draw per tile."""
    steps: Int | None = Field(default=None, ge=1, le=50)
    """Denoising steps of the diffusion decoder; unset, those of the file: one."""
    grid: TileCounts = "auto"
    """Numbers of tiles across and down, 1 to 6 each, instead of their size, blended as ComfyUI's
    ``LTXVTiledVAEDecode`` does; ``auto`` uses none."""

    @property
    def grid_overlap_px(self) -> int:
        """Overlap of the tiles of a grid."""
        return GRID_OVERLAP_PX if self.overlap_px == "auto" else self.overlap_px

    def tiling(self, latents: tuple[int, int, int]) -> Tiling | None:
        """The tiles of ``grid`` over latents (frames, rows, columns).

        ``None`` without a grid, and for latents too small for it, such as those of a draft.
        """
        if self.grid == "auto" or self._narrow(latents[1:]):
            return None
        across, down = self.grid
        return split_evenly(latents, down, across, self.grid_overlap_px // PIXELS_PER_LATENT)

    def tiles(self, latents: tuple[int, int, int]) -> TilePlan | Tiling:
        """The tiles of latents (frames, rows, columns).

        One tile if no sizes are named: decoding it is exact, and its memory does not grow with the
        clip. If some are named, the others are those of the reference implementation.
        """
        if self.grid != "auto":
            return self.tiling(latents) or one_tile(*latents)
        changes: dict[str, int] = {}
        for size, names, unit in (
            (self.tile_px, ("rows", "cols"), PIXELS_PER_LATENT),
            (self.overlap_px, ("overlap",), PIXELS_PER_LATENT),
            (self.tile_frames, ("frames",), FRAMES_PER_LATENT),
            (self.overlap_frames, ("overlap_frames",), FRAMES_PER_LATENT),
        ):
            if size != "auto":
                changes |= dict.fromkeys(names, size // unit)
        if not changes:
            return one_tile(*latents)
        return plan_tiles(*latents, replace(official_size(*latents[1:]), **changes))

    @property
    def diffusion_tiles(self) -> PixelTileSize | None:
        """The tiles of a diffusion decoder, ``None`` to decode exactly."""
        if self.tile_px == self.tile_frames == "auto":
            return None
        side = None if self.tile_px == "auto" else self.tile_px
        frames = None if self.tile_frames == "auto" else self.tile_frames
        named = {"overlap_frames": self.overlap_frames, "overlap": self.overlap_px}
        overlaps = {name: value for name, value in named.items() if value != "auto"}
        return PixelTileSize(frames, side, side, **overlaps)

    def problems(self, width: int, height: int) -> list[Found]:
        """Problems of the tiles of ``grid`` for a clip that is decoded at this size."""
        if self.grid == "auto":
            return []
        named = [f"decode.{name}" for name in SIZES if getattr(self, name) != "auto"]
        if named:
            hint = "use decode.grid=auto, or " + " and ".join(f"{name}=auto" for name in named)
            return [(f"decode.grid cannot be combined with {' and '.join(named)}", hint)]
        shared, least, most = self.grid_overlap_px, PIXELS_PER_LATENT, MAX_GRID_OVERLAP_PX
        if not least <= shared <= most:
            text = f"decode.overlap_px={shared}: tiles of a grid share {least} to {most} px"
            return [(text, f"use decode.overlap_px={min(max(shared, least), most)}")]
        narrow = self._narrow((height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT))
        if not narrow:
            return []
        count, side = narrow[0]
        fits = min(side for _, side in narrow) * PIXELS_PER_LATENT
        return [
            (
                f"decode.grid: {count} tiles of {side * PIXELS_PER_LATENT} px cannot share "
                f"{shared} px",
                f"use decode.grid=[1,1], the whole picture, or decode.overlap_px={fits}",
            )
        ]

    def _narrow(self, sides: tuple[int, int]) -> list[tuple[int, int]]:
        """(tiles, latents) of each side (rows, columns) with tiles smaller than their overlap."""
        if self.grid == "auto":
            return []
        overlap = self.grid_overlap_px // PIXELS_PER_LATENT
        counts = zip(reversed(self.grid), sides, strict=True)
        return [(n, s) for n, s in counts if n > 1 and even_tile_size(s, n, overlap) < overlap]

    def fields(self) -> dict[str, Any]:
        """The values that decide the frames; unset newer ones are left out, as in older keys.

        The kind of decoder is left out as well: its file has an id.
        """
        unset = {"decoder"} | ({"grid"} if self.grid == "auto" else set())
        unset |= {"noise"} if self.noise == "position" else set()
        unset |= {"steps"} if self.steps is None else set()
        return self.model_dump(mode="json", exclude=unset)


class Output(Table):
    """The clip's file. Its name decides the format: ``.mp4``, ``.mov``, ``.mkv``, ``.webm``,
    ``.gif``, ``.webp``, ``.wav``, or single frames, ``frames/%05d.png``, ``.tif`` or ``.exr``.

    ``codec`` "auto" is H.264, AV1 in ``.webm``. ``crf`` is the constant rate factor (0 lossless,
    51 lowest quality), ``preset`` the codec's own name of a trade of speed for size, ``pix_fmt``
    FFmpeg's name of the pixel format; unset, each codec has its own default.
    ``poster`` and ``sheet`` write a picture of the middle frame and a contact sheet next to it.
    """

    codec: Literal["auto", "h264", "h265", "av1", "prores", "h264_nvenc", "h265_nvenc"] = "auto"
    """Video codec; ``auto`` is that of the file's format: AV1 in ``.webm``, H.264 in ``.mp4``,
    ``.mov`` and ``.mkv``. ``h264_nvenc`` and ``h265_nvenc`` use an NVIDIA GPU's encoder."""
    crf: Int | None = Field(default=None, ge=0, le=51)
    """Constant rate factor: 0 gives the best quality and the largest file, 51 the worst; unset, 19
    for H.264, 21 for H.265, 30 for AV1."""
    preset: Text | None = None
    """Speed of the encoder in the codec's own words; unset, ``veryfast`` (H.264, H.265), ``8``
    (AV1) or ``hq`` (ProRes). ``slow`` makes smaller files."""
    pix_fmt: Text | None = None
    """Pixel format in FFmpeg's words, such as ``yuv444p10le`` for full colour resolution at 10 bit;
    unset, the codec's usual one."""
    transfer: Literal["hlg", "pq"] = "hlg"
    """Signal of an HDR video (field ``hdr``): ``hlg`` is shown well by all screens, ``pq`` holds
    brighter light."""
    poster: StrictBool = False
    """Writes a picture of the middle frame next to the clip, ``NAME.poster.png``."""
    sheet: StrictBool = False
    """Writes a contact sheet of twelve frames next to the clip, ``NAME.sheet.png``."""

    @property
    def settings(self) -> EncoderSettings:
        """The options of the encoder."""
        return EncoderSettings(self.codec, self.crf, self.preset, self.pix_fmt)

    def fields(self) -> dict[str, Any]:
        """The values that decide the file; unset newer fields are left out, as in older keys."""
        named = self.model_dump(exclude_defaults=True, exclude={"poster", "sheet"})
        return {"codec": "h264", "crf": 19} | named
