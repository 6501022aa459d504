"""The parts of a request that decide how decoded frames become a file: decoding and encoding."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool

from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.request_fields import (
    Int,
    OverlapFrames,
    OverlapPx,
    Table,
    Text,
    TileFrames,
    TilePx,
)


class Decode(Table):
    """Tiles of the video decoder: their size and how much they share; ``"auto"`` fits memory."""

    tile_px: TilePx = "auto"
    overlap_px: OverlapPx = "auto"
    tile_frames: TileFrames = "auto"
    overlap_frames: OverlapFrames = "auto"


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
