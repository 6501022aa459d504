"""Small pieces of Markdown that the reference pages share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return (
        "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def markdown(docstring: str | None) -> str:
    """A docstring of the source (reStructuredText) as Markdown.

    Roles become code, double backticks single ones, ``::`` blocks stay indented blocks.
    """
    text = inspect.cleandoc(docstring or "")
    text = _ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    text = text.replace("``", "`")
    return re.sub(r"(?m)::$", ":", text)


def first_sentence(docstring: str | None) -> str:
    """The first sentence of a docstring, as Markdown on one line."""
    first = markdown(docstring).partition("\n\n")[0]
    return " ".join(first.split())


def code(text: object) -> str:
    """Text as inline code, also where it has backticks itself."""
    written = str(text)
    return f"`` {written} ``" if "`" in written else f"`{written}`"
