"""Range of clips that a model was trained on: length, size, and the world of its pictures.

The header of a transformer has the range of its positions, and may name a preset; a preset that was
made for one model describes what that model was trained on (``[world]`` in the preset's file).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.latents import shapes
from latent_ladder.latents.shapes import MAX_PX_OF_ROPE, MAX_SECONDS_OF_ROPE
from latent_ladder.request.model import Request
from latent_ladder.request.presets import World, find_preset
from latent_ladder.request.windows import choose_windows

POSITIONS_KEY = "positional_embedding_max_pos"
"""Entry of a transformer's configuration: seconds and pixels that its positions cover."""


@dataclass(frozen=True)
class TrainingRange:
    """Longest clip in seconds and longest edge in pixels that a model was trained on.

    ``world`` describes the pictures of its training where these were few. The defaults are those of
    the published LTX-2 models.
    """

    seconds: Fraction = Fraction(MAX_SECONDS_OF_ROPE)
    edge_px: int = MAX_PX_OF_ROPE
    world: World | None = None

    @property
    def why_short(self) -> str:
        """Reason for the limit in time, as the end of a sentence."""
        seconds = f"{float(self.seconds):.3g} s"
        if self.world is not None:
            return f"the model was trained on clips of {seconds}"
        return f"the model's time positions cover {seconds}"


def training_range(models: ModelSet) -> TrainingRange:
    """The range of the selected transformer."""
    seconds, edge_px = _positions(models.transformer.config)
    preset = None if models.preset is None else find_preset(models.preset)
    world = None if preset is None else preset.world
    if world is not None:
        seconds = min(seconds, world.seconds)
    return TrainingRange(seconds, edge_px, world)


def _positions(config: Mapping[str, Any]) -> tuple[Fraction, int]:
    """Seconds and pixels in the header; an unusual entry counts as that of the family."""
    found = config.get(POSITIONS_KEY)
    if isinstance(found, list) and len(found) == 3 and all(_is_positive(v) for v in found):
        return Fraction(found[0]), int(min(found[1:]))
    return Fraction(MAX_SECONDS_OF_ROPE), MAX_PX_OF_ROPE


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def with_windows(request: Request, limits: TrainingRange) -> Request:
    """The request with windows of its own where ``auto`` would exceed the model's range in time.

    They are recorded like a seed that was picked, so that the clip can be made again.
    """
    if request.windows != "auto" or limits.seconds >= MAX_SECONDS_OF_ROPE:
        return request
    factor = shapes.time_product(request.factors)
    chosen = choose_windows(request.frames, request.fps, factor, limits.seconds)
    return request if chosen is None else request.model_copy(update={"windows": chosen})


def world_problems(request: Request, world: World) -> Iterator[tuple[str, str]]:
    """Code and sentence for each thing in a request that the model's world does not contain."""
    named = named_objects(request.prompt, world.objects)
    if len(named) > world.most_objects:
        yield (
            "several_objects",
            f"the prompt names {' and '.join(dict.fromkeys(named))}, and the model was trained on "
            f"clips of {_count(world.most_objects)}: the others are left out or mixed",
        )
    if request.images or request.video is not None:
        kinds = ["picture"] * bool(request.images) + ["video"] * (request.video is not None)
        yield (
            "outside_world",
            f"the model was trained on {world.shows} only: an input {' and '.join(kinds)} of "
            "anything else comes out as colours and smears",
        )


def _count(objects: int) -> str:
    return "one object" if objects == 1 else f"{objects} objects"


_DETERMINERS = frozenset({"a", "an", "another", "one", "second"})
_NUMBERS = frozenset(
    {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}
    | {"some", "many", "several"}
)


def named_objects(prompt: str, nouns: tuple[str, ...]) -> tuple[str, ...]:
    """The objects that a prompt introduces, such as ("a ball", "a ball", "stars").

    ``a ball`` introduces one, ``the ball`` and ``it`` refer to one; a plural or a number counts as
    two.
    """
    words = re.findall(r"[\w']+", prompt.lower())
    found: list[str] = []
    seen: set[str] = set()
    for position, word in enumerate(words):
        noun = word if word in nouns else _singular(word, nouns)
        if noun is None:
            continue
        before = words[max(0, position - 3) : position]
        if word != noun or _NUMBERS.intersection(before):
            found += [word, word] if word != noun else [f"several {word}"] * 2
        elif noun not in seen or _DETERMINERS.intersection(before):
            found.append(f"a {word}")
        seen.add(noun)
    return tuple(found)


def _singular(word: str, nouns: tuple[str, ...]) -> str | None:
    """The noun whose plural is ``word``."""
    return next((noun for noun in nouns if word in (f"{noun}s", f"{noun}es")), None)
