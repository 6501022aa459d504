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

from latent_ladder.comfyui.constant_folding import (
    FOLDABLE_NODES,
    input_value,
    is_number,
    topological_order,
)
from latent_ladder.comfyui.graph import Graph, Link, LintFinding, Node, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import WorkflowError
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT

MEL_FRAMES_PER_SECOND = 100
LATENTS_PER_SECOND = 25


@dataclass(frozen=True)
class VideoShape:
    """Video latents: pixels they stand for, and pixel frames; ``asked`` is what was wanted.

    ``masked``: part of it is kept (an image at the start); ``lost_mask``: it was, before an
    upsampler; ``guides``: guide latents hang at its end. ``stages`` sampled it.
    """

    width: int
    height: int
    frames: int
    requested_size: tuple[Fraction, Fraction]
    requested_frames: int
    masked: bool = False
    mask_dropped: bool = False
    has_guides: bool = False
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class AudioLength:
    """Audio latents or a waveform, by its length."""

    seconds: float


@dataclass(frozen=True)
class AudioVideoShape:
    """An audio-video latent."""

    video: VideoShape | None
    audio: AudioLength | None


@dataclass(frozen=True)
class FramesShape:
    """Decoded frames, and the latents they came from."""

    width: int
    height: int
    count: int
    latent: VideoShape | None = None


@dataclass(frozen=True)
class ClipShape:
    """Frames with a rate, and perhaps a sound."""

    frames: FramesShape | None
    fps: float | None
    audio: AudioLength | None


@dataclass
class InferredShapes:
    """Values of all outputs that can be told, and what was noticed on the way."""

    graph: Graph
    values: dict[Link, Any] = field(default_factory=dict)
    findings: list[LintFinding] = field(default_factory=list)
    upscale_factors: Mapping[str, tuple[str, Fraction]] = field(default_factory=dict)
    """What upscalers do, by file name as the graph has it: ``("spatial", 2)``."""
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Sizes of input pictures, by name."""


@dataclass(frozen=True)
class ShapeContext:
    """One node, as a rule looks at it."""

    shapes: InferredShapes
    node: Node

    def get(self, name: str) -> Any:
        """An input's value, ``None`` if it cannot be told."""
        return input_value(self.node, name, self.shapes.values)

    def integer(self, name: str) -> int | None:
        """A whole number."""
        value = self.get(name)
        return int(value) if is_number(value) else None

    def integers(self, *names: str) -> tuple[int, ...] | None:
        """Several, if all can be told."""
        found = tuple(self.integer(name) for name in names)
        return None if None in found else tuple(n for n in found if n is not None)

    def number(self, name: str) -> float | None:
        """A number."""
        value = self.get(name)
        return float(value) if is_number(value) else None

    def video(self, name: str) -> VideoShape | None:
        """The video latents of an input."""
        value = self.get(name)
        value = value.video if isinstance(value, AudioVideoShape) else value
        return value if isinstance(value, VideoShape) else None

    def audio(self, name: str) -> AudioLength | None:
        """The sound of an input."""
        value = self.get(name)
        value = value.audio if isinstance(value, AudioVideoShape) else value
        return value if isinstance(value, AudioLength) else None

    def frames(self, name: str) -> FramesShape | None:
        """The frames of an input."""
        value = self.get(name)
        return value if isinstance(value, FramesShape) else None

    def with_video(self, name: str, picture: VideoShape | None) -> Any:
        """An input with other video latents; its sound stays."""
        value = self.get(name)
        return replace(value, video=picture) if isinstance(value, AudioVideoShape) else picture

    def warn(self, code: str, message: str) -> None:
        """Notice something about this node."""
        self.shapes.findings.append(LintFinding(code, message, self.node.id))


Rule = Callable[[ShapeContext], tuple[Any, ...]]


def infer_shapes(
    graph: Graph,
    rules: Mapping[str, Rule],
    factors: Mapping[str, tuple[str, Fraction]] | None = None,
    images: Mapping[str, tuple[int, int]] | None = None,
) -> InferredShapes:
    """Everything that can be told of a graph's outputs."""
    shapes = InferredShapes(graph, {}, [], factors or {}, images or {})
    for node in topological_order(graph):
        results = _infer_node(node, rules, shapes)
        pairs = enumerate(results)
        shapes.values |= {Link(node.id, i): v for i, v in pairs if v is not None}
    return shapes


def _infer_node(node: Node, rules: Mapping[str, Rule], shapes: InferredShapes) -> tuple[Any, ...]:
    if node.class_type in FOLDABLE_NODES and node.class_type not in rules:
        given = {
            name: shapes.values.get(v) if isinstance(v, Link) else v
            for name, v in node.inputs.items()
        }
        values = {name: v for name, v in given.items() if v is not None}
        values |= {n: d for n, d in _defaults(node).items() if n not in node.inputs}
        try:
            return FOLDABLE_NODES[node.class_type](values)
        except (WorkflowError, KeyError, ValueError, TypeError, OverflowError):
            return ()
    rule = rules.get(node.class_type)
    return rule(ShapeContext(shapes, node)) if rule else ()


def _defaults(node: Node) -> dict[str, Value]:
    inputs = NODE_TYPES[node.class_type].inputs
    return {one.name: one.default for one in inputs if one.is_widget}


def empty_video_shape(width: int, height: int, frames: int) -> VideoShape:
    """The latents of a wish: whole blocks of 32 pixels, whole latent frames."""
    return VideoShape(
        width // PIXELS_PER_LATENT * PIXELS_PER_LATENT,
        height // PIXELS_PER_LATENT * PIXELS_PER_LATENT,
        (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1,
        (Fraction(width), Fraction(height)),
        frames,
    )


def format_size(width: float | Fraction, height: float | Fraction) -> str:
    """``1280x704``."""
    return f"{round(width)}x{round(height)}"


def audio_seconds(latents: int) -> float:
    """How long decoded audio latents last: causal, three mel frames short of four each."""
    return max(0, 4 * latents - 3) / MEL_FRAMES_PER_SECOND


def audio_latent_count(frames: int, fps: float) -> int:
    """Audio latents for a number of frames, as ComfyUI sizes them."""
    return round(frames / fps * LATENTS_PER_SECOND) if fps > 0 and math.isfinite(fps) else 0
