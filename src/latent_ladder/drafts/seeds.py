"""Choices of drafts: seeds as a count, a list or ranges; prompts from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.prompt_files import read_prompt_rows

MANY = 64
"""More drafts than this need ``--yes``."""
MOST = 10_000
"""Largest file of prompts."""
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


class DraftChoice(NamedTuple):
    """Prompt and seed of one draft."""

    prompt: str
    seed: int


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """The seeds of ``"8"`` (a count from ``first`` on), ``"3,17,99"`` or ``"10-17"``.

    Lists and ranges mix: ``"3,10-17"``; a repeated seed counts once. Raises
    :class:`RequestError`.
    """
    text = text.strip()
    if text.isdecimal():
        return tuple(_check_count(range(first, first + int(text)), text))
    seeds: dict[int, None] = {}
    for part in text.split(","):
        seeds |= dict.fromkeys(_check_count(_part(part.strip(), text), text))
    return tuple(seeds)


def _part(part: str, text: str) -> range:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise RequestError(
            f"seeds={text} holds {part!r}, expected a count, a list or a range",
            "use --seeds 8, --seeds 3,17,99 or --seeds 10-17",
        )
    start, stop = int(match[1]), int(match[2] or match[1])
    if stop < start:
        raise RequestError(
            f"seeds={text}: the range {part} is backwards", f"use --seeds {stop}-{start}"
        )
    return range(start, stop + 1)


def _check_count(seeds: range, text: str) -> range:
    # not len(), which overflows for very long ranges
    count = seeds.stop - seeds.start
    if not 0 < count <= MOST:
        raise RequestError(f"seeds={text} are {count} drafts, expected 1 to {MOST}", "use fewer")
    return seeds


def read_prompts(path: Path) -> tuple[str, ...]:
    """The different prompts of a text, CSV or JSON Lines file, see ``request.prompt_files``.

    Raises :class:`RequestError` for a file that cannot be read, holds none, or has other columns.
    """
    rows = read_prompt_rows(path)
    other = next((row for row in rows if not row.is_plain), None)
    if other is not None:
        raise RequestError(
            f"prompts {path}, row {other.number} has fields besides the prompt, which drafts share",
            "use `ladder make --prompts` for fields per row, or options for all drafts",
        )
    return tuple(dict.fromkeys(row.prompt for row in rows))


def all_drafts(
    prompts: Sequence[str], seeds: Sequence[int], agreed: bool
) -> tuple[DraftChoice, ...]:
    """Every prompt with every seed, prompt by prompt. Raises :class:`RequestError` for too many."""
    count = len(prompts) * len(seeds)
    if count > MANY and not agreed:
        raise RequestError(
            f"this makes {count} drafts, more than {MANY}", "add --yes to make them all"
        )
    return tuple(DraftChoice(prompt, seed) for prompt, seed in product(prompts, seeds))


def draft_request(request: Request, choice: DraftChoice) -> Request:
    """The request of one draft. Raises :class:`RequestError` for an impossible seed or prompt."""
    return Request.from_dict(request.to_dict() | {"prompt": choice.prompt, "seed": choice.seed})
