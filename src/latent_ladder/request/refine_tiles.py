"""Tiles in which a refine stage is denoised where a side is too long for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo

from latent_ladder.latents.shapes import MAX_PX_OF_ROPE, PIXELS_PER_LATENT, Resolution
from latent_ladder.latents.tiling import Span, TilePlan, even_spans
from latent_ladder.request.fields import Table, is_int
from latent_ladder.request.problems import Problem
from latent_ladder.request.validation_errors import value_problems


def _refine_tile(value: Any) -> int:
    low, high = 2 * PIXELS_PER_LATENT, MAX_PX_OF_ROPE
    if not is_int(value) or not low <= value <= high or value % PIXELS_PER_LATENT:
        raise Problem(f"is not a multiple of 32 from {low} to {high}", "use 1536")
    return int(value)


def _refine_overlap(value: Any, info: ValidationInfo) -> int:
    if value is None:  # 256 of 1536
        sixth: int = info.data.get("px", MAX_PX_OF_ROPE) // 6
        return max(sixth // PIXELS_PER_LATENT, 1) * PIXELS_PER_LATENT
    if not is_int(value) or value < 0 or value % PIXELS_PER_LATENT:
        raise Problem("is not a multiple of 32 from 0 up", "use 256")
    most = info.data.get("px", MAX_PX_OF_ROPE) // 2 // PIXELS_PER_LATENT * PIXELS_PER_LATENT
    if value > most:
        raise Problem("is more than half of a tile", f"use {most}, or larger tiles")
    return int(value)


def _tiles(value: Any) -> Any:
    if isinstance(value, Mapping):
        try:
            return Tiles.model_validate(dict(value))
        except ValidationError as error:
            (text, hint), *_ = value_problems(error, Tiles, {}, ())
            raise Problem(f"tiles.{text}", hint, whole=True) from error
    if not isinstance(value, Tiles) and value not in ("auto", "off"):
        hint = 'use "auto", "off" or {px = 1536, overlap_px = 256}'
        raise Problem('is neither "auto", "off" nor a table of tiles', hint)
    return value


class Tiles(Table):
    """Tiles of a refine stage."""

    px: Annotated[int, BeforeValidator(_refine_tile)] = 1536
    """Longest side of a tile in pixels: a multiple of 32 from 64 to 2048; smaller tiles need less
    memory."""
    overlap_px: Annotated[int, BeforeValidator(_refine_overlap)] = Field(
        default=None, validate_default=True
    )
    """Overlap of neighbouring tiles in pixels: a multiple of 32, at most half a tile; unset, a
    sixth of it. Raise it where seams are visible."""

    def plan(self, resolution: Resolution) -> TilePlan | None:
        """Equal tiles over a canvas, each with all frames; ``None`` where one tile covers it."""
        size, overlap = self.px // PIXELS_PER_LATENT, self.overlap_px // PIXELS_PER_LATENT
        rows = even_spans(resolution.latent_height, size, overlap)
        cols = even_spans(resolution.latent_width, size, overlap)
        plan = TilePlan((Span(0, resolution.latent_frames),), rows, cols)
        return plan if plan.count > 1 else None


StageTiles = Annotated[Literal["auto", "off"] | Tiles, BeforeValidator(_tiles)]
