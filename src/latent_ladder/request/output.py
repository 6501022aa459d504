"""The parts of a request that decide how decoded frames become a file: decoding and encoding."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool

from latent_ladder.latents.comfyui_tiling import split_evenly
from latent_ladder.latents.shapes import PIXELS_PER_LATENT
from latent_ladder.latents.tiling import Tiling, even_tile_size
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
"""What tiles of a grid share where nobody says otherwise, as the automatic tiles of the reference
implementation do."""
MAX_GRID_OVERLAP_PX = 256
"""As much as ``LTXVTiledVAEDecode`` takes."""
SIZES = ("tile_px", "tile_frames", "overlap_frames")
"""Fields that say another kind of tiles than a grid."""


class Decode(Table):
    """Tiles of the video decoder: their size and how much they share; ``"auto"`` fits memory.

    ``grid`` asks for so many tiles across and down instead, decoded side by side and blended as
    ``LTXVTiledVAEDecode`` does; each takes all frames.
    """

    tile_px: TilePx = "auto"
    overlap_px: OverlapPx = "auto"
    tile_frames: TileFrames = "auto"
    overlap_frames: OverlapFrames = "auto"
    grid: TileCounts = "auto"

    @property
    def grid_overlap_px(self) -> int:
        """What tiles of a grid share."""
        return GRID_OVERLAP_PX if self.overlap_px == "auto" else self.overlap_px

    def tiling(self, latents: tuple[int, int, int]) -> Tiling | None:
        """The tiles of ``grid`` over latents (frames, rows, columns).

        ``None``: no grid is asked for, or they are too few for it, as those of a draft may be.
        """
        if self.grid == "auto" or self._narrow(latents[1:]):
            return None
        across, down = self.grid
        return split_evenly(latents, down, across, self.grid_overlap_px // PIXELS_PER_LATENT)

    def problems(self, width: int, height: int) -> list[Found]:
        """Why a clip that is decoded at this size cannot be decoded in the tiles of ``grid``."""
        if self.grid == "auto":
            return []
        named = [f"decode.{name}" for name in SIZES if getattr(self, name) != "auto"]
        if named:
            hint = "use decode.grid=auto, or " + " and ".join(f"{name}=auto" for name in named)
            return [(f"decode.grid is given, and {' and '.join(named)}", hint)]
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
        """Count of tiles and latents of each of the sides (rows, columns) that ``grid`` splits
        into tiles smaller than what they share."""
        if self.grid == "auto":
            return []
        overlap = self.grid_overlap_px // PIXELS_PER_LATENT
        counts = zip(reversed(self.grid), sides, strict=True)
        return [(n, s) for n, s in counts if n > 1 and even_tile_size(s, n, overlap) < overlap]

    def fields(self) -> dict[str, Any]:
        """What decides the frames; without a grid as it always was."""
        unset = {"grid"} if self.grid == "auto" else set()
        return self.model_dump(mode="json", exclude=unset)


class Output(Table):
    """The clip's file. Its name decides what it is: ``.mp4``, ``.mov``, ``.mkv``, ``.webm``,
    ``.gif``, ``.webp``, ``.wav``, or single frames, ``frames/%05d.png``, ``.tif`` or ``.exr``.

    ``codec`` "auto" is H.264, AV1 in ``.webm``. ``crf`` is the constant rate factor (0 lossless;
    51 worst), ``preset`` trades speed for size in the codec's own words, ``pix_fmt`` is FFmpeg's
    name of the pixel format; unset, each codec has its own default.
    ``poster`` and ``sheet`` write a picture of the middle frame and a contact sheet beside it.
    """

    codec: Literal["auto", "h264", "h265", "av1", "prores"] = "auto"
    crf: Int | None = Field(default=None, ge=0, le=51)
    preset: Text | None = None
    pix_fmt: Text | None = None
    poster: StrictBool = False
    sheet: StrictBool = False

    @property
    def settings(self) -> EncoderSettings:
        """What the encoder is asked for."""
        return EncoderSettings(self.codec, self.crf, self.preset, self.pix_fmt)

    def fields(self) -> dict[str, Any]:
        """What decides the file; what is unset is as it always was."""
        named = self.model_dump(exclude_defaults=True, exclude={"poster", "sheet"})
        return {"codec": "h264", "crf": 19} | named
