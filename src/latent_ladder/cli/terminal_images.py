"""Pictures in a terminal: which protocol it speaks, and a PNG as that protocol's sequences.

Terminals are known by what they say of themselves in the environment; none is asked, because an
answer would have to be read from the keyboard. A multiplexer passes no pictures on.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Protocol = Literal["kitty", "sixel"]

ROWS = 8
"""Lines of text that a picture is high."""
ROW_PX = 16
"""Pixels of such a line, where the terminal does not scale by itself."""
COLOURS = 255
BAND_PX = 6
KITTY = ("ghostty", "wezterm")
SIXEL = ("iterm.app", "mintty", "rlogin", "contour")
SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")


def protocol(environment: Mapping[str, str]) -> Protocol | None:
    """What the terminal shows pictures with; ``None`` where it has to be a file's path."""
    if environment.get("TMUX") or environment.get("STY"):
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "").lower()
    if program in KITTY or "kitty" in term:
        return "kitty"
    by_term = any(term.startswith(name) for name in SIXEL_TERMS) or "sixel" in term
    return "sixel" if program in SIXEL or by_term or environment.get("WT_SESSION") else None


def picture(png: bytes, speaks: Protocol, rows: int = ROWS) -> str:
    """The escape sequences that show a PNG at the cursor, ``rows`` lines high."""
    return kitty(png, rows) if speaks == "kitty" else sixel(png, rows)


def kitty(png: bytes, rows: int) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/: base64 in chunks of at most 4096."""
    text = base64.standard_b64encode(png).decode()
    chunks = [text[i : i + 4096] for i in range(0, len(text), 4096)] or [""]
    keys = [f"a=T,f=100,q=2,r={rows},", *[""] * (len(chunks) - 1)]
    more = [1] * (len(chunks) - 1) + [0]
    parts = zip(keys, more, chunks, strict=True)
    return "".join(f"\x1b_G{key}m={m};{chunk}\x1b\\" for key, m, chunk in parts)


def sixel(png: bytes, rows: int) -> str:
    """DEC's sixels (VT330/VT340 manual, chapter 14): bands of six rows, one colour after another.

    A character from ``?`` on holds six pixels of a column; ``!n`` repeats it, ``$`` goes back to
    the band's beginning, ``-`` to the next one.
    """
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        height = rows * ROW_PX
        width = max(round(opened.width * height / opened.height), 1)
        small = opened.convert("RGB").resize((width, height)).quantize(COLOURS)
    palette = np.array(small.getpalette() or [], np.int64).reshape(-1, 3)
    index = np.asarray(small)
    used = np.unique(index)
    shares = (palette[used] * 100 + 127) // 255
    named = "".join(f"#{n};2;{r};{g};{b}" for n, (r, g, b) in zip(used, shares, strict=True))
    bands = "-".join(_band(index[top : top + BAND_PX]) for top in range(0, height, BAND_PX))
    return f'\x1bPq"1;1;{width};{height}{named}{bands}\x1b\\'


def _band(index: NDArray[np.uint8]) -> str:
    """Up to six rows of colour numbers as one band."""
    import numpy as np

    bits = 1 << np.arange(len(index))
    columns = {n: ((index == n) * bits[:, None]).sum(0) for n in np.unique(index)}
    return "$".join(f"#{n}{''.join(_runs(column))}" for n, column in columns.items())


def _runs(column: NDArray[np.int64]) -> Iterator[str]:
    """The characters of one colour, repeated ones counted."""
    import numpy as np

    edges = [0, *(np.flatnonzero(np.diff(column)) + 1), len(column)]
    for start, stop in pairwise(edges):
        letter = chr(ord("?") + int(column[start]))
        count = int(stop - start)
        yield f"!{count}{letter}" if count > 3 else letter * count
