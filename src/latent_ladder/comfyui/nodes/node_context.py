"""What a meaning is, and how it reads the inputs of its node.

A meaning is a function of an :class:`Ask` that gives the values of the node's outputs. Inputs are
fetched when they are read, so an input that is not read is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.events import Shown
from latent_ladder.comfyui.runtime.values import Value
from latent_ladder.errors import WorkflowError

T = TypeVar("T")

LATENT_CHANNELS = 128
"""Channels of the video latents of every published transformer of the family."""

_SPOKEN = {
    "TextEncoderFiles": "CLIP",
    "Images": "IMAGE", "VideoVaeFile": "a video VAE", "AudioVaeFile": "an audio VAE",
    "SigmaList": "SIGMAS", "UpsamplerFile": "LATENT_UPSCALE_MODEL", "UpscalerFile": "UPSCALE_MODEL",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What an output node made: values for links that read it, and what is shown of it."""

    values: tuple[Value, ...] = ()
    shown: Shown = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A node that runs: its inputs, the engine, and where to tell what happens.

    ``fetch(name)`` gives the value of an input; ``keep(name, make)`` gives tensors that are stored
    under the node's key and made only where the store has none. ``channels`` are those of the video
    latents of the graph's transformer.
    """

    node: Node
    names: frozenset[str]
    fetch: Callable[[str], Value]
    engine: Engine
    graph: Graph
    keep: Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
    progress: Callable[[int, int], None]
    warn: Callable[[str, str], None]
    check_cancelled: Callable[[], None]
    look: Callable[[Component, Callable[[], Tensor]], None] = lambda *_: None
    """Told the transformer and how to get the estimate (1, C, F, H, W) after a step."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    channels: int = LATENT_CHANNELS

    def has(self, name: str) -> bool:
        """Whether an optional input is there."""
        return name in self.names

    def get(self, name: str, kind: type[T]) -> T:
        """An input that is of a class of :mod:`latent_ladder.comfyui.runtime.values`.

        Raises :class:`WorkflowError` where it is missing or another thing.
        """
        if name not in self.names:
            raise self.error(f"{name} is not connected", "connect it")
        value = self.fetch(name)
        if value is None:
            raise self.error(
                f"{name} is empty: the file it comes from has none", "use a loader for it"
            )
        if not isinstance(value, kind):
            wanted, got = spoken(kind), spoken(type(value))
            raise self.error(f"{name} is {got}, expected {wanted}", f"connect {wanted}")
        return value

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """As :meth:`get`, ``None`` where nothing is connected."""
        return self.get(name, kind) if name in self.names else None

    def text(self, name: str) -> str:
        """A STRING or the choice of a COMBO."""
        return self.get(name, str)

    def number(self, name: str) -> float:
        """A FLOAT; whole numbers are fine."""
        value = self.get(name, object)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{name} is {value!r}, expected a number")
        return float(value)

    def whole(self, name: str) -> int:
        """An INT; a FLOAT is cut as ComfyUI does."""
        return int(self.number(name))

    def flag(self, name: str) -> bool:
        """A BOOLEAN."""
        return bool(self.get(name, object))

    def error(self, message: str, hint: str | None = None) -> WorkflowError:
        """An error that names the node."""
        return self.node.error(message, hint)


def spoken(kind: type) -> str:
    """A class of values as ComfyUI's users know it."""
    return _SPOKEN.get(kind.__name__, kind.__name__.upper())


Run = Callable[[Ask], Sequence[Value] | Results]


@dataclass(frozen=True)
class Meaning:
    """What a node type does.

    ``keeps``: its outputs are latents or sound, and are stored. ``version`` is raised when the same
    inputs begin to give another result. ``refuses(node)`` says before anything runs why a node with
    these values cannot run.
    """

    run: Run
    keeps: bool = False
    version: int = 1
    refuses: Callable[[Node], str] = lambda _: ""


Meanings = Mapping[str, Meaning]
