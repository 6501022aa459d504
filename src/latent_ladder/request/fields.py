"""Field types of a request: numbers, seeds, tiles, file names."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StrictStr,
)

from latent_ladder.errors import RequestError
from latent_ladder.latents import shapes
from latent_ladder.request.problems import Problem
from latent_ladder.storage.read_file import is_text

MAX_SEED = 2**64 - 1
MAX_TILES = 6
"""Tiles of a grid each way, as many as ``LTXVTiledVAEDecode`` takes."""


class Table(BaseModel):
    """A frozen table that rejects unknown fields and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def is_int(value: Any) -> bool:
    """True for an integer; ``True`` and ``False`` are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _fps(value: Any) -> Any:
    try:
        return shapes.parse_fps(value)
    except RequestError as error:
        raise Problem("is not a possible frame rate", error.hint) from error


Fps = Annotated[Fraction, BeforeValidator(_fps), PlainSerializer(shapes.format_fps)]
"""Frames per second, exact."""


def check_seed(value: Any) -> int:
    """A seed as ComfyUI counts them, 0 to 2**64-1. Raises Problem."""
    if not is_int(value):
        raise Problem("is not an integer", f"use a whole number from 0 to {MAX_SEED}")
    seed: int = value
    if not 0 <= seed <= MAX_SEED:
        raise Problem(f"is not a seed from 0 to {MAX_SEED}", f"use {min(max(seed, 0), MAX_SEED)}")
    return seed


def _request_seed(value: Any) -> int:
    return -1 if is_int(value) and value == -1 else check_seed(value)


def _stage_seed(value: Any) -> Any:
    if value == "same":
        return value
    if not is_int(value) or value == -1:
        raise Problem(
            "is not a seed of a stage", 'use "same" (the seed of the request) or a number'
        )
    return check_seed(value)


def _auto(value: Any, what: str, multiple: int, low: int) -> Any:
    if value == "auto":
        return value
    if not is_int(value):
        raise Problem(f'is neither "auto" nor a number of {what}', 'use "auto"')
    if value < low or value % multiple:
        nearest = max(low, round(value / multiple) * multiple)
        raise Problem(f"is not a multiple of {multiple} from {low} up", f'use {nearest} or "auto"')
    return value


def _tile_px(value: Any) -> Any:
    return _auto(value, "pixels", 32, 64)


def _overlap_px(value: Any) -> Any:
    return _auto(value, "pixels", 32, 0)


def _tile_frames(value: Any) -> Any:
    return _auto(value, "frames", 8, 16)


def _overlap_frames(value: Any) -> Any:
    return _auto(value, "frames", 8, 0)


def _tile_counts(value: Any) -> Any:
    if value == "auto":
        return value
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_int, value)):
        text = 'is neither "auto" nor the numbers of tiles across and down'
        raise Problem(text, 'use for example [2, 2] or "auto"')
    near = [min(max(count, 1), MAX_TILES) for count in value]
    if list(value) != near:
        raise Problem(f"is not 1 to {MAX_TILES} tiles each way", f"use {near}")
    return tuple(value)


def _tokens(value: Any) -> Any:
    if value == "actual" or (is_int(value) and value >= 1):
        return value
    raise Problem("is not a token count", 'use "actual" (tokens of the stage) or 4096')


def _positive_zero(value: float) -> float:
    return value + 0.0  # -0.0 equals 0.0 but is written differently


def _writable(value: str) -> str:
    if not is_text(value):
        raise Problem(
            "is not text: it contains an incomplete character",
            "remove the broken characters; in an ASCII locale, set LC_ALL=C.UTF-8",
        )
    return value


Int = Annotated[int, Strict()]
Text = Annotated[StrictStr, AfterValidator(_writable)]
Real = Annotated[float, Strict(), AfterValidator(_positive_zero)]
RequestSeed = Annotated[int, BeforeValidator(_request_seed)]
StageSeed = Annotated[int | Literal["same"], BeforeValidator(_stage_seed)]
Tokens = Annotated[int | Literal["actual"], BeforeValidator(_tokens)]
TilePx = Annotated[int | Literal["auto"], BeforeValidator(_tile_px)]
OverlapPx = Annotated[int | Literal["auto"], BeforeValidator(_overlap_px)]
TileFrames = Annotated[int | Literal["auto"], BeforeValidator(_tile_frames)]
OverlapFrames = Annotated[int | Literal["auto"], BeforeValidator(_overlap_frames)]
TileCounts = Annotated[tuple[int, int] | Literal["auto"], BeforeValidator(_tile_counts)]
FileName = Annotated[StrictStr, Field(min_length=1), AfterValidator(_writable)]
