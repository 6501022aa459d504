"""Adapters (LoRA and its kin): put beside a transformer's layers and taken away, never merged.

Attaching and detaching changes no weight and loses no precision, so each stage of a run can have
its own adapters on one loaded base, whatever form its weights are stored in. What a file holds is
read once: a second stage with another strength uses the same tensors. The arithmetic of each kind
is in :mod:`adapters`, the spellings are in :mod:`lora_keys`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from torch import nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.lora_keys import Amended, amended_modules, finder
from latent_ladder.errors import CheckpointError
from latent_ladder.models.lora.adapters import ordered
from latent_ladder.models.lora.build import (
    Checks,
    build,
    check_fit,
    placed,
    raise_if_not_finite,
)
from latent_ladder.models.weights.linear import Branch, Linear

Prepared = dict[str, tuple[Branch, ...]]
"""Module of the transformer -> branches of one file at strength 1."""

_PREPARED: WeakKeyDictionary[nn.Module, dict[str, Prepared]] = WeakKeyDictionary()
"""Transformer -> id of a LoRA -> what was read of it: those of the last ``attach`` only."""

SHOWN_MISSES = 3
CONNECTORS = "embeddings_connector"


@dataclass(frozen=True)
class LoraMatch:
    """What one file amends: ``found`` of ``total`` modules; ``misses`` names the others."""

    name: str
    strength: float
    found: int
    total: int
    misses: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.name}: {self.found} of {self.total} modules at strength {self.strength:g}"
        if not self.misses:
            return text
        more = ", ..." if len(self.misses) > SHOWN_MISSES else ""
        text += f"; not in this model: {', '.join(self.misses[:SHOWN_MISSES])}{more}"
        if any(CONNECTORS in miss for miss in self.misses):
            text += "; connectors of the text are never amended"
        return text


@dataclass(frozen=True)
class LoraReport:
    """The matches of all files, in the order given."""

    matches: tuple[LoraMatch, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every module of every file was found."""
        return not any(m.misses for m in self.matches)

    def __str__(self) -> str:
        return "\n".join(map(str, self.matches))


def attach(transformer: nn.Module, loras: Sequence[tuple[Component, float]]) -> LoraReport:
    """Replace the adapters of ``transformer`` by ``loras``: (component, strength) each.

    Strength 0 attaches nothing and is still checked. Raises :class:`CheckpointError` when a file
    fits no module, has wrong shapes, NaN or infinite numbers, or is of a kind without arithmetic
    here; then nothing has changed. A partial match is the report's business.
    """
    layers = {name: m for name, m in transformer.named_modules() if isinstance(m, Linear)}
    matched = [_match(component, strength, layers) for component, strength in loras]
    known = _PREPARED.get(transformer, {})
    kept: dict[str, Prepared] = {}
    branches: dict[str, list[Branch]] = {}
    for (component, strength), (_, modules) in zip(loras, matched, strict=True):
        if not strength:
            continue
        if component.id not in kept:
            kept[component.id] = _prepare(component, modules, layers, known.get(component.id))
        for name, made in kept[component.id].items():
            at_strength = [replace(b, strength=b.strength * strength) for b in made]
            branches.setdefault(name, []).extend(at_strength)
    _PREPARED[transformer] = kept
    for name, layer in layers.items():
        layer.branches = ordered(branches.get(name, []))
    return LoraReport(tuple(match for match, _ in matched))


def detach(transformer: nn.Module) -> None:
    """Take all adapters away."""
    attach(transformer, ())


@contextmanager
def attached(
    transformer: nn.Module, loras: Sequence[tuple[Component, float]]
) -> Iterator[LoraReport]:
    """Adapters for the duration of a ``with`` block; what was attached before comes back."""
    layers = [m for m in transformer.modules() if isinstance(m, Linear)]
    before = [layer.branches for layer in layers]
    try:
        yield attach(transformer, loras)
    finally:
        for layer, branches in zip(layers, before, strict=True):
            layer.branches = branches


def _match(
    component: Component, strength: float, layers: Mapping[str, Linear]
) -> tuple[LoraMatch, dict[str, Amended]]:
    """Which layers a file amends, from names and shapes alone."""
    file = component.file.path.name
    modules, misses = amended_modules(component)
    find = finder(layers)
    found: dict[str, Amended] = {}
    for module in modules:
        name = find(module.written)
        if name is None:
            misses.append(module.written)
            continue
        if name in found:
            raise CheckpointError(
                f"{file}: {module.written} and {found[name].written} both amend {name}",
                "the file was put together wrongly",
            )
        check_fit(component, module, name, layers[name])
        found[name] = module
    total = len(found) + len(misses)
    if not found:
        first = ", ".join(misses[:SHOWN_MISSES]) or "no adapter tensors at all"
        raise CheckpointError(
            f"{file}: fits 0 of {total} modules of this transformer ({first})",
            "the LoRA belongs to another model family",
        )
    return LoraMatch(file, strength, len(found), total, tuple(misses)), found


def _prepare(
    component: Component,
    modules: Mapping[str, Amended],
    layers: Mapping[str, Linear],
    known: Prepared | None,
) -> Prepared:
    """The branches of one file where their layers are: moved if they were read before."""
    if known is not None:
        return {name: tuple(placed(b, layers[name]) for b in made) for name, made in known.items()}
    checks: Checks = []
    made = {
        name: build(component, module, layers[name], checks) for name, module in modules.items()
    }
    raise_if_not_finite(component, checks)
    return made
