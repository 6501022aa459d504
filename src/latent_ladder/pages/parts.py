"""Parts that all HTML pages share: base style and script, controls, files as data, writing.

Pages load nothing from servers. They follow the colours of the system, or those chosen in them.
"""

from __future__ import annotations

import base64
from pathlib import Path

from latent_ladder.errors import MediaError
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

HERE = Path(__file__).parent
BASE_CSS, BASE_JS = HERE / "base.css", HERE / "base.js"


def data_uri(path: Path, kind: str) -> str:
    """A file as a ``data:`` address with the media type ``kind``."""
    return bytes_uri(path.read_bytes(), kind)


def bytes_uri(data: bytes, kind: str) -> str:
    """Bytes as a ``data:`` address with the media type ``kind``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def size_and_theme(width_px: int) -> str:
    """The controls for the width of cards and for the colours."""
    return (
        '<label>Size <input id="width" type="range" min="160" max="900" '
        f'value="{width_px}"></label>'
        '<label>Theme <select id="theme"><option value="">as the system</option>'
        '<option value="light">light</option><option value="dark">dark</option></select></label>'
    )


def write_html(path: Path, text: str) -> Path:
    """Write a page atomically. Raises :class:`MediaError`."""
    data = text.encode("utf-8", "replace")
    with convert_write_errors(MediaError, path.name, path.parent, len(data)):
        write_atomically(path, data)
    return path
