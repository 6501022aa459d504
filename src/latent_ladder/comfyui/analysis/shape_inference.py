"""What a graph will produce, before it runs: sizes, frames, rates and lengths along its links.

Values stand in for what the nodes compute: a latent is its size, a sound its seconds. What cannot
be told, such as the size of a picture that is not here, is ``None``, and so is what follows from
it. The rules, a row for each type, are in ``forecast_rules.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from latent_ladder.comfyui.constant_folding import PLAIN, in_order, is_number, value_of
from latent_ladder.comfyui.graph import Graph, Link, Node, Trap, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import WorkflowError
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT

MEL_FRAMES_PER_SECOND = 100
LATENTS_PER_SECOND = 25


@dataclass(frozen=True)
class Picture:
    """Video latents: pixels they stand for, and pixel frames; ``asked`` is what was wanted.

    ``masked``: part of it is kept (an image at the start); ``lost_mask``: it was, before an
    upsampler; ``guides``: guide latents hang at its end. ``stages`` sampled it.
    """

    width: int
    height: int
    frames: int
    asked: tuple[Fraction, Fraction]
    asked_frames: int
    masked: bool = False
    lost_mask: bool = False
    guides: bool = False
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sound:
    """Audio latents or a waveform, by its length."""

    seconds: float


@dataclass(frozen=True)
class Both:
    """An audio-video latent."""

    picture: Picture | None
    sound: Sound | None


@dataclass(frozen=True)
class Frames:
    """Decoded frames, and the latents they came from."""

    width: int
    height: int
    count: int
    latent: Picture | None = None


@dataclass(frozen=True)
class Clip:
    """Frames with a rate, and perhaps a sound."""

    frames: Frames | None
    fps: float | None
    sound: Sound | None


@dataclass
class Forecast:
    """Values of all outputs that can be told, and what was noticed on the way."""

    graph: Graph
    values: dict[Link, Any] = field(default_factory=dict)
    traps: list[Trap] = field(default_factory=list)
    factors: Mapping[str, tuple[str, Fraction]] = field(default_factory=dict)
    """What upscalers do, by file name as the graph has it: ``("spatial", 2)``."""
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Sizes of input pictures, by name."""


@dataclass(frozen=True)
class Look:
    """One node, as a rule looks at it."""

    forecast: Forecast
    node: Node

    def get(self, name: str) -> Any:
        """An input's value, ``None`` if it cannot be told."""
        return value_of(self.node, name, self.forecast.values)

    def whole(self, name: str) -> int | None:
        """A whole number."""
        value = self.get(name)
        return int(value) if is_number(value) else None

    def wholes(self, *names: str) -> tuple[int, ...] | None:
        """Several, if all can be told."""
        found = tuple(self.whole(name) for name in names)
        return None if None in found else tuple(n for n in found if n is not None)

    def number(self, name: str) -> float | None:
        """A number."""
        value = self.get(name)
        return float(value) if is_number(value) else None

    def picture(self, name: str) -> Picture | None:
        """The video latents of an input."""
        value = self.get(name)
        value = value.picture if isinstance(value, Both) else value
        return value if isinstance(value, Picture) else None

    def sound(self, name: str) -> Sound | None:
        """The sound of an input."""
        value = self.get(name)
        value = value.sound if isinstance(value, Both) else value
        return value if isinstance(value, Sound) else None

    def frames(self, name: str) -> Frames | None:
        """The frames of an input."""
        value = self.get(name)
        return value if isinstance(value, Frames) else None

    def with_picture(self, name: str, picture: Picture | None) -> Any:
        """An input with other video latents; its sound stays."""
        value = self.get(name)
        return replace(value, picture=picture) if isinstance(value, Both) else picture

    def trap(self, code: str, message: str) -> None:
        """Notice something about this node."""
        self.forecast.traps.append(Trap(code, message, self.node.id))


Rule = Callable[[Look], tuple[Any, ...]]


def forecast(
    graph: Graph,
    rules: Mapping[str, Rule],
    factors: Mapping[str, tuple[str, Fraction]] | None = None,
    images: Mapping[str, tuple[int, int]] | None = None,
) -> Forecast:
    """Everything that can be told of a graph's outputs."""
    told = Forecast(graph, {}, [], factors or {}, images or {})
    for node in in_order(graph):
        results = _results(node, rules, told)
        pairs = enumerate(results)
        told.values |= {Link(node.id, i): v for i, v in pairs if v is not None}
    return told


def _results(node: Node, rules: Mapping[str, Rule], told: Forecast) -> tuple[Any, ...]:
    if node.class_type in PLAIN and node.class_type not in rules:
        given = {
            name: told.values.get(v) if isinstance(v, Link) else v
            for name, v in node.inputs.items()
        }
        values = {name: v for name, v in given.items() if v is not None}
        values |= {n: d for n, d in _defaults(node).items() if n not in node.inputs}
        try:
            return PLAIN[node.class_type](values)
        except (WorkflowError, KeyError, ValueError, TypeError, OverflowError):
            return ()
    rule = rules.get(node.class_type)
    return rule(Look(told, node)) if rule else ()


def _defaults(node: Node) -> dict[str, Value]:
    inputs = NODE_TYPES[node.class_type].inputs
    return {one.name: one.default for one in inputs if one.is_widget}


def empty_picture(width: int, height: int, frames: int) -> Picture:
    """The latents of a wish: whole blocks of 32 pixels, whole latent frames."""
    return Picture(
        width // PIXELS_PER_LATENT * PIXELS_PER_LATENT,
        height // PIXELS_PER_LATENT * PIXELS_PER_LATENT,
        (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1,
        (Fraction(width), Fraction(height)),
        frames,
    )


def spoken_size(width: float | Fraction, height: float | Fraction) -> str:
    """``1280x704``."""
    return f"{round(width)}x{round(height)}"


def seconds_of(latents: int) -> float:
    """How long decoded audio latents last: causal, three mel frames short of four each."""
    return max(0, 4 * latents - 3) / MEL_FRAMES_PER_SECOND


def audio_latents(frames: int, fps: float) -> int:
    """Audio latents for a number of frames, as ComfyUI sizes them."""
    return round(frames / fps * LATENTS_PER_SECOND) if fps > 0 and math.isfinite(fps) else 0
