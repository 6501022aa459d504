"""Text of other people made harmless for a terminal: control characters shown as escapes.

Prompts, file names, tags of clips, node titles and ids of clients may contain characters that move
the cursor, recolour or clear the screen, rename the window, or reverse the direction of writing so
that a line reads otherwise than it is. Everything that is printed or logged goes through here once,
at the edge (:mod:`latent_ladder.cli.console`, :mod:`latent_ladder.cli.logging_setup`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters, those of eight bits too (CSI is 0x9b)
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ufff9-\ufffb"  # interlinear annotations
    "\ud800-\udfff"  # bytes of a name that are not UTF-8, as Python represents them
    "]"
)
_LINES = "\n\t"
_BYTE = 0xDC00


def printable(text: str, keep: str = _LINES) -> str:
    """``text`` with unsafe characters as escapes such as ``\\x1b`` and ``\\u202e``.

    ``keep`` are control characters that stay: line breaks and tabs, unless it says otherwise.
    """
    return _UNSAFE.sub(lambda found: _show(found[0], keep), text)


def printable_line(text: str) -> str:
    """``text`` in one line: as :func:`printable`, with line breaks as ``\\n`` too."""
    return printable(text, keep="")


def printable_json(text: str) -> str:
    """JSON or TOML with unsafe characters inside its strings as ``\\uXXXX``: the same values."""

    def escape(found: re.Match[str]) -> str:
        return found[0] if found[0] in _LINES else f"\\u{ord(found[0]):04x}"

    return _UNSAFE.sub(escape, text)


def shell_command(words: Sequence[str]) -> str:
    """A command line for a shell; words with unsafe characters are quoted as ``$'...'``."""
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    if not _UNSAFE.search(word):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_UNSAFE.sub(lambda found: _shell_escape(found[0]), escaped)}'"


def _shell_escape(character: str) -> str:
    """An escape of ``$'...'``, where ``\\x9b`` is a byte and not the character U+009B."""
    is_character = 0x80 <= ord(character) < _BYTE
    return f"\\u{ord(character):04x}" if is_character else _show(character, "")


def _show(character: str, keep: str) -> str:
    if character in keep:
        return character
    code = ord(character)
    if character in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[character]
    if _BYTE + 0x80 <= code <= _BYTE + 0xFF:
        code -= _BYTE
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"
