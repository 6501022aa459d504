"""Contact sheet of drafts as PNG bytes, and a grid video in which all drafts play at once."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

FRAMES_SHOWN = 4
ROWS_A_COLUMN = 12
GAP_PX = 8
FONT_PX = 15
BACKGROUND, TEXT, DIM, WARNING = (24, 24, 26), (235, 235, 235), (160, 160, 165), (255, 170, 60)
EMPTY = (48, 48, 52)


@dataclass(frozen=True)
class Cell:
    """One draft of a contact sheet or grid video.

    ``frames`` is (n, h, w, 3) uint8 in the cell size, with n = 0 for a draft that failed.
    ``warning`` is written after the seed, in another colour.
    """

    number: int
    seed: int
    prompt: str
    frames: NDArray[np.uint8]
    warning: str = ""


def cell_size(width: int, height: int, longest: int = 224) -> tuple[int, int]:
    """An even (width, height) with the aspect ratio of the canvas and sides up to ``longest``."""
    scale = longest / max(width, height)
    return max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2)


def resize_frames(frames: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize frames (n, H, W, 3) to (n, h, w, 3); ``size`` is (w, h).

    Box filter to make them smaller, bicubic to enlarge them.
    """
    from PIL import Image

    down = frames.shape[2] > size[0]
    resampling = Image.Resampling.BOX if down else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(f).resize(size, resampling)) for f in frames])


def contact_sheet(cells: Sequence[Cell], size: tuple[int, int]) -> bytes:
    """A PNG with one row per draft: four of its frames, and below them number, seed and prompt.

    More than twelve drafts are set in two or more columns.
    """
    from PIL import Image, ImageDraw

    columns = math.ceil(len(cells) / ROWS_A_COLUMN)
    rows = math.ceil(len(cells) / columns)
    width = FRAMES_SHOWN * (size[0] + GAP_PX) + GAP_PX
    height = size[1] + 2 * FONT_PX + 3 * GAP_PX
    sheet = Image.new("RGB", (columns * width, rows * height + GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        place = (i // rows * width + GAP_PX, i % rows * height + GAP_PX)
        _draw_thumbnails(sheet, draw, cell, size, place)
        _draw_caption(draw, cell, (place[0], place[1] + size[1] + 4), width - 2 * GAP_PX)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _draw_thumbnails(
    sheet: Image, draw: ImageDraw, cell: Cell, size: tuple[int, int], place: tuple[int, int]
) -> None:
    from PIL import Image

    shown = _evenly_spaced(len(cell.frames), FRAMES_SHOWN)
    for i in range(FRAMES_SHOWN):
        x, y = place[0] + i * (size[0] + GAP_PX), place[1]
        if i < len(shown):
            sheet.paste(Image.fromarray(cell.frames[shown[i]]), (x, y))
        else:
            draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=EMPTY)


def _draw_caption(draw: ImageDraw, cell: Cell, place: tuple[int, int], width: int) -> None:
    x, y = place
    head = f"{cell.number}   seed {cell.seed}"
    draw.text((x, y), head, TEXT, load_font(FONT_PX))
    after = x + draw.textlength(f"{head}   ", load_font(FONT_PX))
    warning = _shorten_text(draw, cell.warning, x + width - after)
    draw.text((after, y), warning, WARNING, load_font(FONT_PX))
    prompt = _shorten_text(draw, " ".join(cell.prompt.split()), width)
    draw.text((x, y + FONT_PX + 4), prompt, DIM, load_font(FONT_PX - 2))


def _shorten_text(draw: ImageDraw, text: str, width: float) -> str:
    """The text, shortened with an ellipsis to ``width`` pixels."""
    if draw.textlength(text, load_font(FONT_PX)) <= width:
        return text
    while text and draw.textlength(f"{text}…", load_font(FONT_PX)) > width:
        text = text[: -max(len(text) // 20, 1)]
    return f"{text}…" if text else ""


def grid_size(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels of the frames of :func:`grid_frames`, for ``count`` drafts."""
    columns = math.ceil(math.sqrt(count))
    return columns * size[0], math.ceil(count / columns) * size[1]


def grid_frames(cells: Sequence[Cell], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Frames (1, H, W, 3) uint8 in which all drafts play at once, each with its number."""
    width, height = grid_size(len(cells), size)
    columns = width // size[0]
    places = [((i % columns) * size[0], i // columns * size[1]) for i in range(len(cells))]
    labels = [label_picture(str(cell.number)) for cell in cells]
    for t in range(max((len(cell.frames) for cell in cells), default=0)):
        frame = np.full((height, width, 3), EMPTY, np.uint8)
        for cell, label, (x, y) in zip(cells, labels, places, strict=True):
            if t < len(cell.frames):
                frame[y : y + size[1], x : x + size[0]] = cell.frames[t]
            rows, cols = min(label.shape[0], size[1]), min(label.shape[1], size[0])
            frame[y : y + rows, x : x + cols] = label[:rows, :cols]
        yield frame[None]


def label_picture(text: str) -> NDArray[np.uint8]:
    """A short text on a dark box: (h, w, 3) uint8."""
    from PIL import Image, ImageDraw

    width = int(load_font(FONT_PX).getlength(text)) + 8
    box = Image.new("RGB", (width, FONT_PX + 6), BACKGROUND)
    ImageDraw.Draw(box).text((4, 1), text, TEXT, load_font(FONT_PX))
    return np.asarray(box)


def _evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` evenly spaced indices below ``count``, with the first and the last."""
    if count <= 1:
        return list(range(count))
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


@lru_cache(maxsize=8)
def load_font(size: int) -> FreeTypeFont | ImageFont:
    """DejaVu Sans if the system has it (it supports more scripts), else Pillow's own font."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
