"""Shape inference: sizes, frame counts, frame rates and lengths of outputs before a graph runs.

Each output is represented by its shape: a latent by its size, audio by its length. A shape that is
unknown, such as that of a missing image, is ``None``, and so are the shapes that depend on it. The
rules, one per node type, are in ``shape_rules.py``.
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
from latent_ladder.latents.shapes import (
    AUDIO_LATENTS_PER_SECOND,
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
)

MEL_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class VideoShape:
    """The shape of video latents, in pixels and pixel frames.

    ``requested_size`` and ``requested_frames`` are what was asked for before truncation to whole
    latents. ``masked``: a noise mask protects part of it, such as an image at the start.
    ``mask_dropped``: an upsampler has removed that mask. ``has_guides``: guide frames are appended.
    ``stages`` are the sampling nodes it went through.
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
    """The length of audio latents or of a waveform."""

    seconds: float


@dataclass(frozen=True)
class AudioVideoShape:
    """The shape of an audio-video latent."""

    video: VideoShape | None
    audio: AudioLength | None


@dataclass(frozen=True)
class FramesShape:
    """The shape of decoded frames, and of the latents they were decoded from."""

    width: int
    height: int
    count: int
    latent: VideoShape | None = None


@dataclass(frozen=True)
class ClipShape:
    """The shape of a video: frames, frame rate and audio."""

    frames: FramesShape | None
    fps: float | None
    audio: AudioLength | None


@dataclass
class InferredShapes:
    """The known values and shapes of all outputs, and the findings of the rules."""

    graph: Graph
    values: dict[Link, Any] = field(default_factory=dict)
    findings: list[LintFinding] = field(default_factory=list)
    upscale_factors: Mapping[str, tuple[str, Fraction]] = field(default_factory=dict)
    """Axis and factor of upscalers, by the file name in the graph: ``("spatial", 2)``."""
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(width, height) of input images, by name."""


@dataclass(frozen=True)
class ShapeContext:
    """One node with its known input values and shapes, as passed to a rule."""

    shapes: InferredShapes
    node: Node

    def get(self, name: str) -> Any:
        """Return the value or shape of an input, ``None`` if it is unknown."""
        return input_value(self.node, name, self.shapes.values)

    def integer(self, name: str) -> int | None:
        """Return an input as an integer, ``None`` if it is unknown."""
        value = self.get(name)
        return int(value) if is_number(value) else None

    def integers(self, *names: str) -> tuple[int, ...] | None:
        """Return several inputs as integers, ``None`` if one of them is unknown."""
        found = tuple(self.integer(name) for name in names)
        return None if None in found else tuple(n for n in found if n is not None)

    def number(self, name: str) -> float | None:
        """Return an input as a number, ``None`` if it is unknown."""
        value = self.get(name)
        return float(value) if is_number(value) else None

    def video(self, name: str) -> VideoShape | None:
        """Return the shape of the video latents of an input."""
        value = self.get(name)
        value = value.video if isinstance(value, AudioVideoShape) else value
        return value if isinstance(value, VideoShape) else None

    def audio(self, name: str) -> AudioLength | None:
        """Return the audio length of an input."""
        value = self.get(name)
        value = value.audio if isinstance(value, AudioVideoShape) else value
        return value if isinstance(value, AudioLength) else None

    def frames(self, name: str) -> FramesShape | None:
        """Return the shape of the frames of an input."""
        value = self.get(name)
        return value if isinstance(value, FramesShape) else None

    def with_video(self, name: str, video: VideoShape | None) -> Any:
        """Return the shape of an input with its video replaced by ``video``."""
        value = self.get(name)
        return replace(value, video=video) if isinstance(value, AudioVideoShape) else video

    def warn(self, code: str, message: str) -> None:
        """Add a finding about this node."""
        self.shapes.findings.append(LintFinding(code, message, self.node.id))


Rule = Callable[[ShapeContext], tuple[Any, ...]]


def infer_shapes(
    graph: Graph,
    rules: Mapping[str, Rule],
    factors: Mapping[str, tuple[str, Fraction]] | None = None,
    images: Mapping[str, tuple[int, int]] | None = None,
) -> InferredShapes:
    """Infer the values and shapes of all outputs of a graph."""
    shapes = InferredShapes(graph, {}, [], factors or {}, images or {})
    for node in topological_order(graph):
        outputs = _infer_node(node, rules, shapes)
        pairs = enumerate(outputs)
        shapes.values |= {Link(node.id, i): v for i, v in pairs if v is not None}
    return shapes


def _infer_node(node: Node, rules: Mapping[str, Rule], shapes: InferredShapes) -> tuple[Any, ...]:
    if node.class_type in FOLDABLE_NODES and node.class_type not in rules:
        inputs = {
            name: shapes.values.get(v) if isinstance(v, Link) else v
            for name, v in node.inputs.items()
        }
        values = {name: v for name, v in inputs.items() if v is not None}
        values |= {n: d for n, d in _defaults(node).items() if n not in node.inputs}
        try:
            return FOLDABLE_NODES[node.class_type](values)
        except (WorkflowError, KeyError, ValueError, TypeError, OverflowError):
            return ()
    rule = rules.get(node.class_type)
    return rule(ShapeContext(shapes, node)) if rule else ()


def _defaults(node: Node) -> dict[str, Value]:
    inputs = NODE_TYPES[node.class_type].inputs
    return {item.name: item.default for item in inputs if item.is_widget}


def empty_video_shape(width: int, height: int, frames: int) -> VideoShape:
    """Return the shape of an empty latent: sides are multiples of 32, frames are 8k + 1."""
    return VideoShape(
        width // PIXELS_PER_LATENT * PIXELS_PER_LATENT,
        height // PIXELS_PER_LATENT * PIXELS_PER_LATENT,
        (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1,
        (Fraction(width), Fraction(height)),
        frames,
    )


def format_size(width: float | Fraction, height: float | Fraction) -> str:
    """Return a size as text, such as ``1280x704``."""
    return f"{round(width)}x{round(height)}"


def audio_seconds(latents: int) -> float:
    """Return the duration of decoded audio latents: 4n - 3 mel frames for n latents (causal)."""
    return max(0, 4 * latents - 3) / MEL_FRAMES_PER_SECOND


def audio_latent_count(frames: int, fps: float) -> int:
    """Return the number of audio latents that ComfyUI creates for a number of frames."""
    return round(frames / fps * AUDIO_LATENTS_PER_SECOND) if fps > 0 and math.isfinite(fps) else 0
