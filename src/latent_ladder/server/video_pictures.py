"""Pictures of a finished clip (its first frame, or frames from all of it), and of a preset."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from latent_ladder.media.contact_sheet import cell_size, load_font, resize_frames
from latent_ladder.request.presets import read_preset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHEET_COLUMNS, SHEET_ROWS = 5, 5
THUMBNAIL_PX, CELL_PX = 512, 256
QUALITY = 85
CARD_PX, CARD_COLUMNS, CARD_COLOUR = 400, 32, (30, 41, 56)


def make_thumbnail(path: Path) -> tuple[bytes, str]:
    """The first frame as WebP, and the suffix. Raises :class:`MediaError`."""
    from latent_ladder.media.video_reader import read_frames

    frames = read_frames(path)
    first = next(iter(frames))[None]
    return _encode(_shrink(first, THUMBNAIL_PX)[0], "WEBP"), ".webp"


def make_spritesheet(path: Path) -> tuple[bytes, str]:
    """Evenly spaced frames in rows as JPEG, and the suffix. Raises :class:`MediaError`."""
    import numpy as np

    from latent_ladder.media.video_reader import probe, read_frames

    count = max(probe(path).frames, 1)
    cells = min(SHEET_COLUMNS * SHEET_ROWS, count)
    wanted = {round(i * (count - 1) / max(cells - 1, 1)) for i in range(cells)}
    shown = [
        _shrink(frame[None], CELL_PX)[0]
        for index, frame in enumerate(read_frames(path))
        if index in wanted
    ]
    columns = min(SHEET_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    empty = [np.zeros_like(shown[0])] * (rows * columns - len(shown))
    grid = np.stack(shown + empty).reshape(rows, columns, *shown[0].shape)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in grid], axis=0)
    return _encode(sheet, "JPEG"), ".jpg"


def preset_card(name: str) -> bytes:
    """A JPEG with the name and the purpose of a preset, for the editor's list of templates."""
    from PIL import Image, ImageDraw

    card = Image.new("RGB", (CARD_PX, CARD_PX), CARD_COLOUR)
    draw = ImageDraw.Draw(card)
    draw.text((28, 28), name, font=load_font(30), fill="white")
    text = "\n".join(textwrap.wrap(read_preset(name).summary, CARD_COLUMNS))
    draw.multiline_text((28, 92), text, font=load_font(20), fill=(205, 214, 222), spacing=8)
    out = io.BytesIO()
    card.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _shrink(frames: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    height, width = frames.shape[1:3]
    if max(height, width) <= longest:
        return frames
    return resize_frames(frames, cell_size(width, height, longest))


def _encode(frame: NDArray[np.uint8], image_format: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, image_format, quality=QUALITY)
    return out.getvalue()
