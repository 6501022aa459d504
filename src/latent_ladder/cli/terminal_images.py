"""Pictures in a terminal: the protocol it supports, and a PNG in the protocol's escape sequences.

The protocol is detected from environment variables. Asking the terminal would mean reading its
answer from the keyboard. Terminal multiplexers (tmux, screen) do not pass pictures on.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Protocol = Literal["kitty", "sixel"]

ROWS = 8
"""Height of a picture in lines of text."""
ROW_PX = 16
"""Height of a line in pixels, for terminals that do not scale a picture themselves."""
COLOURS = 255
BAND_PX = 6
KITTY_PROGRAMS = ("ghostty", "wezterm")
SIXEL_PROGRAMS = ("iterm.app", "mintty", "rlogin", "contour")
SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")


def detect_protocol(environment: Mapping[str, str]) -> Protocol | None:
    """The picture protocol of the terminal; ``None`` if it shows no pictures."""
    if environment.get("TMUX") or environment.get("STY"):
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "").lower()
    if program in KITTY_PROGRAMS or "kitty" in term:
        return "kitty"
    by_term = any(term.startswith(name) for name in SIXEL_TERMS) or "sixel" in term
    has_sixel = program in SIXEL_PROGRAMS or by_term or environment.get("WT_SESSION")
    return "sixel" if has_sixel else None


def encode_image(png: bytes, protocol: Protocol, rows: int = ROWS) -> str:
    """Escape sequences that show a PNG at the cursor, ``rows`` lines high."""
    return encode_kitty(png, rows) if protocol == "kitty" else encode_sixel(png, rows)


def encode_kitty(png: bytes, rows: int) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/: base64 in chunks of at most 4096."""
    text = base64.standard_b64encode(png).decode()
    chunks = [text[i : i + 4096] for i in range(0, len(text), 4096)] or [""]
    keys = [f"a=T,f=100,q=2,r={rows},", *[""] * (len(chunks) - 1)]
    more = [1] * (len(chunks) - 1) + [0]
    parts = zip(keys, more, chunks, strict=True)
    return "".join(f"\x1b_G{key}m={m};{chunk}\x1b\\" for key, m, chunk in parts)


def encode_sixel(png: bytes, rows: int) -> str:
    """DEC's sixels (VT330/VT340 manual, chapter 14): bands of six pixel rows, colour by colour.

    A character from ``?`` on stands for six pixels of a column; ``!n`` repeats the next character
    ``n`` times, ``$`` returns to the start of the band, ``-`` starts the next band.
    """
    import numpy as np

    from latent_ladder.media.image_files import open_image

    with open_image(Path("poster.png"), io.BytesIO(png)) as opened:
        height = rows * ROW_PX
        width = max(round(opened.width * height / opened.height), 1)
        small = opened.convert("RGB").resize((width, height)).quantize(COLOURS)
    palette = np.array(small.getpalette() or [], np.int64).reshape(-1, 3)
    index = np.asarray(small)
    used = np.unique(index)
    percent = (palette[used] * 100 + 127) // 255
    colours = "".join(f"#{n};2;{r};{g};{b}" for n, (r, g, b) in zip(used, percent, strict=True))
    bands = "-".join(_encode_band(index[top : top + BAND_PX]) for top in range(0, height, BAND_PX))
    return f'\x1bPq"1;1;{width};{height}{colours}{bands}\x1b\\'


def _encode_band(index: NDArray[np.uint8]) -> str:
    """One band from up to six rows of colour numbers."""
    import numpy as np

    bits = 1 << np.arange(len(index))
    columns = {n: ((index == n) * bits[:, None]).sum(0) for n in np.unique(index)}
    return "$".join(f"#{n}{''.join(_encode_runs(column))}" for n, column in columns.items())


def _encode_runs(column: NDArray[np.int64]) -> Iterator[str]:
    """The characters of one colour, run-length encoded."""
    import numpy as np

    edges = [0, *(np.flatnonzero(np.diff(column)) + 1), len(column)]
    for start, stop in pairwise(edges):
        letter = chr(ord("?") + int(column[start]))
        count = int(stop - start)
        yield f"!{count}{letter}" if count > 3 else letter * count
