"""Problems of a request: of one value, and the report of all."""

from __future__ import annotations

from collections.abc import Sequence

from latent_ladder.errors import RequestError, shorten_words

Found = tuple[str, str | None]
"""One problem: its sentence and its hint."""


MOST_SHOWN = 40
"""Most problems of one report; a file that is something else can have thousands."""


class Problem(ValueError):
    """The problem of one value: ``message`` continues "name=value ...", ``hint`` says what to do.

    With ``whole`` the message is a whole sentence that starts with the field's own name.
    """

    def __init__(self, message: str, hint: str | None = None, *, whole: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.whole = whole


def report(problems: Sequence[Found]) -> RequestError:
    """One error for all ``problems``: the sentences line by line, each with its hint."""
    if len(problems) == 1:
        return RequestError(problems[0][0], problems[0][1], tuple(problems))
    shown: list[Found] = [(shorten_words(text), hint) for text, hint in problems[:MOST_SHOWN]]
    if len(problems) > MOST_SHOWN:
        shown.append((f"there are {len(problems) - MOST_SHOWN} more problems", "mend these first"))
    lines = [f"the request has {len(problems)} problems"]
    lines += [f"  {text}" + (f" ({hint})" if hint else "") for text, hint in shown]
    return RequestError("\n".join(lines), None, tuple(shown))
