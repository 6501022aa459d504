"""The interface of node implementations: their context, their result, and their table entry.

A node is implemented by a function that takes a :class:`NodeContext` and returns the values of the
node's outputs. Inputs are evaluated when the function reads them, so an input that is never read is
never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.events import UiOutput
from latent_ladder.comfyui.runtime.output_journal import OutputJournal
from latent_ladder.comfyui.runtime.values import Value
from latent_ladder.errors import WorkflowError

T = TypeVar("T")

LATENT_CHANNELS = 128
"""Channels of the video latents of every published LTX-2 transformer."""

_COMFYUI_TYPES = {
    "Images": "IMAGE", "TextEncoderFiles": "CLIP", "VideoVaeFile": "a video VAE",
    "AudioVaeFile": "an audio VAE", "SigmaList": "SIGMAS", "UpsamplerFile": "LATENT_UPSCALE_MODEL",
    "UpscalerFile": "UPSCALE_MODEL", "DurationHeadFile": "MODEL_PATCH",
}  # fmt: skip


@dataclass(frozen=True)
class NodeResult:
    """The result of an output node: its output values and what ComfyUI's interface shows."""

    values: tuple[Value, ...] = ()
    ui: UiOutput = field(default_factory=dict)


@dataclass(frozen=True)
class NodeContext:
    """The inputs of a running node, the engine, and callbacks to the executor.

    ``input_names`` are the inputs that have a value or a link. ``fetch(name)`` evaluates one of
    them. ``load_or_compute(name, compute)`` returns tensors stored under the node's key, and calls
    ``compute`` and stores its result if there are none. ``channels`` is the number of channels of
    the video latents of the graph's transformer. ``journal`` has the files that an earlier run of
    the same job wrote.
    """

    node: Node
    input_names: frozenset[str]
    fetch: Callable[[str], Value]
    engine: Engine
    graph: Graph
    load_or_compute: Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
    progress: Callable[[int, int], None]
    warn: Callable[[str, str], None]
    check_cancelled: Callable[[], None]
    show_preview: Callable[[Component, Callable[[], Tensor]], None] = lambda *_: None
    """Called after a sampling step with the transformer and a function that returns the current
    x0 estimate (1, C, F, H, W)."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    channels: int = LATENT_CHANNELS
    journal: OutputJournal = field(default_factory=OutputJournal)

    def has(self, name: str) -> bool:
        """Return whether an optional input has a value or a link."""
        return name in self.input_names

    def get(self, name: str, kind: type[T]) -> T:
        """Return an input of type ``kind``, a class of :mod:`latent_ladder.comfyui.runtime.values`.

        Raises :class:`WorkflowError` if it is missing, empty or of another type.
        """
        if name not in self.input_names:
            raise self.error(f"{name} is not connected", "connect it")
        value = self.fetch(name)
        if value is None:
            raise self.error(
                f"{name} is empty: the file it comes from does not contain one",
                "use a loader node for it",
            )
        if not isinstance(value, kind):
            wanted, got = comfyui_type_name(kind), comfyui_type_name(type(value))
            raise self.error(f"{name} is {got}, expected {wanted}", f"connect {wanted}")
        return value

    def get_optional(self, name: str, kind: type[T]) -> T | None:
        """Return an input as :meth:`get` does, or ``None`` if it is not connected or empty."""
        if name not in self.input_names or self.fetch(name) is None:
            return None
        return self.get(name, kind)

    def text(self, name: str) -> str:
        """Return a STRING input or the choice of a COMBO."""
        return self.get(name, str)

    def number(self, name: str) -> float:
        """Return a FLOAT input; an INT is converted."""
        return float(self._number(name))

    def integer(self, name: str) -> int:
        """Return an INT input, exact up to 64 bits; a FLOAT is truncated, as in ComfyUI."""
        return int(self._number(name))

    def _number(self, name: str) -> int | float:
        value = self.get(name, object)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{name} is {value!r}, expected a number")
        return value

    def boolean(self, name: str) -> bool:
        """Return a BOOLEAN input."""
        return bool(self.get(name, object))

    def error(self, message: str, hint: str | None = None) -> WorkflowError:
        """Return an error that names this node."""
        return self.node.error(message, hint)


def comfyui_type_name(kind: type) -> str:
    """Return the ComfyUI type name of a class of values, such as ``IMAGE``."""
    return _COMFYUI_TYPES.get(kind.__name__, kind.__name__.upper())


RunNode = Callable[[NodeContext], Sequence[Value] | NodeResult]


@dataclass(frozen=True)
class NodeFunction:
    """The implementation of a node type.

    ``run`` computes the outputs. ``stored``: the outputs are latents or audio, and the artefact
    store keeps them. ``samples``: the transformer runs, so that the version of ComfyUI
    (:mod:`latent_ladder.comfyui.versions`) is part of the key. ``version`` is raised when the same
    inputs give a different result than before. ``check(node)`` returns why a node with these
    literal inputs cannot run, or an empty string; it is called before anything runs.
    """

    run: RunNode
    stored: bool = False
    version: int = 1
    check: Callable[[Node], str] = lambda _: ""
    samples: bool = False
