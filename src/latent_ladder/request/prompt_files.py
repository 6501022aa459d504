"""Files with many prompts: one per line, or a table (CSV) or JSON Lines with fields per row.

A column is ``prompt``, one of :data:`COLUMNS`, or a field as ``--set`` takes it, such as
``refine.denoise``. An empty cell leaves the field as the command has it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_ladder.errors import RequestError, did_you_mean
from latent_ladder.storage.read_file import read_small_text

COLUMNS: Mapping[str, str] = {
    "seed": "whole number",
    "negative": "what should not be seen or heard",
    "preset": "name of a preset",
    "size": "such as 1280x720",
    "frames": "number of frames",
    "duration": "length in seconds",
    "fps": "frames per second",
    "audio": "refine, keep or none",
    "image": "picture file, as --image takes it; in JSON also a list",
    "audio_in": "sound file",
    "video": "video file",
    "output": "name of the clip's file",
}
"""Columns besides ``prompt``, and what their cells hold. Files are relative to the prompt file."""

MOST_ROWS = 10_000
MAX_BYTES = 4 * 2**20
"""Largest file of prompts."""
HINT = "write one prompt per line, or a .csv or .jsonl file with a column prompt"


@dataclass(frozen=True)
class PromptRow:
    """One row: its number in the file from 1, the prompt, and its fields as text.

    ``images`` are pictures, ``sets`` are ``FIELD=VALUE`` texts.
    """

    number: int
    prompt: str
    fields: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """True for a prompt without fields of its own."""
        return not (self.fields or self.images or self.sets)


def read_prompt_rows(path: Path) -> tuple[PromptRow, ...]:
    """The rows of a .csv or .jsonl file, or the lines of a text file.

    Blank lines and lines of a text file that start with # are skipped. Raises
    :class:`RequestError` for a file that cannot be read, holds no prompt, or has unknown columns.
    """
    text = read_small_text(path, MAX_BYTES, RequestError, "prompts file")
    if "\0" in text:
        raise RequestError(f"prompts file {path} is a binary file, expected text", HINT)
    read = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    rows = tuple(read.get(path.suffix.lower(), _lines)(path, text))
    if not rows:
        raise RequestError(f"prompts {path} holds no prompt", HINT)
    if len(rows) > MOST_ROWS:
        raise RequestError(f"prompts {path} has {len(rows)} rows", f"use at most {MOST_ROWS}")
    return rows


def _lines(_: Path, text: str) -> Iterator[PromptRow]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield PromptRow(number, line.strip())


def _csv_rows(path: Path, text: str) -> Iterator[PromptRow]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    try:
        names = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        for number, cells in enumerate(reader, 1):
            if None in cells:
                raise RequestError(
                    f"prompts {path}, row {number} has more cells than the first row has columns",
                    'put a text with commas in quotes: "a red ball, rolling"',
                )
            filled = {k: v.strip() for k, v in cells.items() if v is not None and v.strip()}
            if filled:
                yield _row(path, number, filled)
    except csv.Error as error:
        raise RequestError(f"prompts {path} is not CSV: {error}", HINT) from error


def _json_rows(path: Path, text: str) -> Iterator[PromptRow]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            table = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"prompts {path}, line {number} is not JSON: {error}") from error
        if not isinstance(table, dict):
            hint = 'write {"prompt": "a red ball rolls", "seed": 3}'
            raise RequestError(f"prompts {path}, line {number} is not a JSON object", hint)
        yield _row(path, number, {k: v for k, v in table.items() if v is not None})


def _row(path: Path, number: int, cells: Mapping[str, Any]) -> PromptRow:
    where = f"prompts {path}, row {number}"
    prompt = cells.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError(f"{where} has no prompt", "add a column prompt")
    fields: dict[str, str] = {}
    images: tuple[str, ...] = ()
    sets: list[str] = []
    for name, value in cells.items():
        if name == "image":
            several = value if isinstance(value, list) else [value]
            images = tuple(_beside(path, str(one)) for one in several)
        elif name in ("audio_in", "video"):
            fields[name] = _beside(path, str(value))
        elif name in COLUMNS:
            fields[name] = _text(value)
        elif "." in name or "[" in name:
            sets.append(f"{name}={_text(value)}")
        elif name != "prompt":
            known = ("prompt", *COLUMNS)
            raise RequestError(f"{where}: {name} is not a column", did_you_mean(name, known))
    return PromptRow(number, prompt, fields, images, tuple(sets))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _beside(path: Path, name: str) -> str:
    """A file name relative to the folder of the prompt file; ``:FRAME`` at its end stays."""
    return name if Path(name).is_absolute() else str(path.parent / name)
