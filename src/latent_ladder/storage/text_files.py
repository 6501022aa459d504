"""Reading of small text files that users name: prompts, presets, requests.

Devices, pipes, binary and very large files are refused in words before they are read.
"""

from __future__ import annotations

import stat
from pathlib import Path

from latent_ladder.errors import RequestError

MAX_BYTES = 2_000_000
"""Largest file; prompts and requests are a few thousand bytes."""


def read_text_file(path: Path, what: str, hint: str = "check the path") -> str:
    """The text of a UTF-8 file, without a byte order mark.

    ``what`` names it in messages. Raises :class:`RequestError` with ``hint`` for a file that does
    not exist or cannot be read, is no regular file, is larger than :data:`MAX_BYTES` or is binary.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "folder" if stat.S_ISDIR(found.st_mode) else "device or pipe"
            raise RequestError(f"{what} {path} is a {kind}, expected a text file", hint)
        if found.st_size > MAX_BYTES:
            raise RequestError(
                f"{what} {path} has {found.st_size:,} bytes, expected at most {MAX_BYTES:,}",
                "split it into smaller files, or name the right one",
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{what} {path} cannot be read: {reason}", hint) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} {path} is not UTF-8 text: {error.reason}", hint) from error
    if "\0" in text:
        raise RequestError(f"{what} {path} is a binary file, expected text", hint)
    return text
