"""Seeded damage to the bytes of small real files, and to JSON documents."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (0, 1, 7, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1,
           1 << 63, (1 << 64) - 1)  # fmt: skip

Mutation = Callable[[random.Random, bytearray, int], None]
"""A function that changes the bytes in place; the number is the size of the header."""


def flip(rng: random.Random, data: bytearray, header: int) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(header)] ^= 1 << rng.randrange(8)


def replace(rng: random.Random, data: bytearray, header: int) -> None:
    at = rng.randrange(header)
    data[at : at + 16] = rng.randbytes(rng.randrange(1, 17))


def truncate(rng: random.Random, data: bytearray, header: int) -> None:
    del data[rng.randrange(rng.choice((header, len(data)))) :]


def remove(rng: random.Random, data: bytearray, header: int) -> None:
    at = rng.randrange(header)
    del data[at : at + rng.randrange(1, 40)]


def repeat(rng: random.Random, data: bytearray, header: int) -> None:
    at, count = rng.randrange(header), rng.randrange(1, 200)
    data[at:at] = data[at : at + count] * rng.randrange(1, 4)


def number(rng: random.Random, data: bytearray, header: int) -> None:
    width = rng.choice((4, 8))
    at = rng.choice((rng.randrange(header), rng.randrange(24)))
    value = rng.choice(NUMBERS) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, "little")


def digits(rng: random.Random, data: bytearray, header: int) -> None:
    """Replace a digit in the header by a negative, huge or invalid value."""
    positions = [i for i in range(8, header) if chr(data[i]).isdigit()]
    if positions:
        at = rng.choice(positions)
        values = ("-1", str(rng.choice(NUMBERS)), "1e9", "9" * 5000, "null", "[[]]", '"x"', "NaN")
        data[at : at + 1] = rng.choice(values).encode()


MUTATIONS: tuple[Mutation, ...] = (flip, replace, truncate, remove, repeat, number, digits)


def mutate(rng: random.Random, data: bytes, header: int) -> bytes:
    """A damaged copy of ``data``: one to three mutations, most in the first ``header`` bytes."""
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if mutant:
            rng.choice(MUTATIONS)(rng, mutant, max(1, min(header, len(mutant))))
    return bytes(mutant)


JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 7, 10**30, 1.5, float("nan"), float("inf"), "", "x", "..", "\0", "1" * 999,
    [], [1], ["1", 0], ["1", "0"], [["1", 0]], {}, {"__value__": [1]}, {"id": 1}, {"name": []},
)  # fmt: skip


def mutate_document(document: Any, rng: random.Random) -> Any:
    """Return a copy with one to three values replaced, removed, duplicated or renamed."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        if not places:  # an earlier change emptied it
            break
        holder, key = rng.choice(places)
        match rng.randrange(4):
            case 0:
                holder[key] = copy.deepcopy(rng.choice(JUNK))
            case 1:
                del holder[key]
            case 2:
                other, there = rng.choice(places)
                holder[key] = copy.deepcopy(other[there])
            case _:
                if isinstance(holder, list):
                    holder.insert(key, copy.deepcopy(holder[key]))
                else:
                    holder[f"{key}x"] = holder.pop(key)
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
