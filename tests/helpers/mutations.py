"""Damage to bytes: seeded mutations of small real files, for tests that read them."""

from __future__ import annotations

import random
from collections.abc import Callable

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
    """A damaged copy of ``data``: one to three mutations, most within its first ``header`` bytes."""
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if mutant:
            rng.choice(MUTATIONS)(rng, mutant, max(1, min(header, len(mutant))))
    return bytes(mutant)
