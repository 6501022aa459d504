"""Attach adapters (LoRA, DoRA, LoKr, LoHa) to the layers of a transformer, without merging.

Attaching and detaching changes no weight and loses no precision, so each stage of a run can use
different adapters on one loaded transformer, in any stored form of its weights. The tensors of a
file are read once: using the same LoRA at another strength reads nothing. Each kind of adapter is
a class of :mod:`adapters`; the names of adapter tensors are in
:mod:`latent_ladder.checkpoints.lora_keys`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from torch import nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.lora_keys import (
    AdapterModule,
    ModuleNames,
    describe_scales,
    find_adapter_modules,
    is_text_module,
    module_scales,
)
from latent_ladder.errors import CheckpointError
from latent_ladder.models.lora.adapters import merge_low_rank, order_branches
from latent_ladder.models.lora.build import (
    FiniteChecks,
    build_branches,
    check_finite,
    check_module_shapes,
    move_branch,
)
from latent_ladder.models.weights.linear import Branch, Linear

FileBranches = dict[str, tuple[Branch, ...]]
"""Branches of one LoRA file at strength 1, by module name of the transformer."""

_LOADED: WeakKeyDictionary[nn.Module, dict[str, FileBranches]] = WeakKeyDictionary()
"""Branches loaded by the last :func:`attach_loras` of each transformer, by id of the LoRA."""

MAX_SHOWN = 3
"""Unmatched modules named in a message."""


@dataclass(frozen=True)
class LoraAttachment:
    """Result of attaching one LoRA file: ``matched`` of ``total`` modules exist in the model.

    ``total`` and ``unmatched`` (names as in the file) leave out modules of the text connectors and
    the text projection, whose number is ``text_modules``: they change the encoded prompt.
    ``scales`` says in sentences what the file's header does to its strength.
    """

    name: str
    strength: float
    matched: int
    total: int
    unmatched: tuple[str, ...]
    text_modules: int = 0
    scales: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.name}: {self.matched} of {self.total} modules at strength {self.strength:g}"
        if self.text_modules:
            text += f", {self.text_modules} more in the text connectors and projection"
        if self.unmatched:
            more = ", ..." if len(self.unmatched) > MAX_SHOWN else ""
            text += f"; not in this model: {', '.join(self.unmatched[:MAX_SHOWN])}{more}"
        scales = (each.removeprefix(f"{self.name}: ") for each in self.scales)
        return "; ".join((text, *scales))


@dataclass(frozen=True)
class LoraReport:
    """Results for all attached files, in the order of the call."""

    matches: tuple[LoraAttachment, ...] = ()

    @property
    def complete(self) -> bool:
        """True if all modules of all files exist in the model."""
        return not any(m.unmatched for m in self.matches)

    def __str__(self) -> str:
        return "\n".join(map(str, self.matches))


def attach_loras(
    transformer: nn.Module, loras: Sequence[tuple[Component, float]], merged: bool = False
) -> LoraReport:
    """Replace the adapters of ``transformer`` with ``loras``, pairs of (component, strength).

    A LoRA with strength 0 is checked, but not attached. A file of which only some modules match
    is attached; the report names the others. Modules of the text connectors and the text
    projection are only counted: :mod:`latent_ladder.models.lora.text_parts` applies them. With
    ``merged``, the low-rank branches of a layer become one, at the cost of a copy of them. Raises
    :class:`CheckpointError` if no module of a file matches, or a file has wrong shapes, NaN or
    infinite numbers, or an unsupported kind of adapter; the transformer is then unchanged.
    """
    layers = {name: m for name, m in transformer.named_modules() if isinstance(m, Linear)}
    matched = [_match(component, strength, layers) for component, strength in loras]
    previous = _LOADED.get(transformer, {})
    loaded: dict[str, FileBranches] = {}
    branches: dict[str, list[Branch]] = {}
    for (component, strength), (_, modules) in zip(loras, matched, strict=True):
        if not strength:
            continue
        if component.id not in loaded:
            known = previous.get(component.id)
            loaded[component.id] = _load_or_move(component, modules, layers, known)
        for name, unit_branches in loaded[component.id].items():
            at_strength = [replace(b, strength=b.strength * strength) for b in unit_branches]
            branches.setdefault(name, []).extend(at_strength)
    _LOADED[transformer] = loaded
    for name, layer in layers.items():
        ordered = order_branches(branches.get(name, []))
        layer.branches = merge_low_rank(ordered) if merged else ordered
    return LoraReport(tuple(match for match, _ in matched))


def detach_loras(transformer: nn.Module) -> None:
    """Remove all adapters from ``transformer``."""
    attach_loras(transformer, ())


@contextmanager
def temporary_loras(
    transformer: nn.Module, loras: Sequence[tuple[Component, float]], merged: bool = False
) -> Iterator[LoraReport]:
    """Attach ``loras`` inside a ``with`` block, then restore the adapters that were there before.

    Raises the errors of :func:`attach_loras`.
    """
    layers = [m for m in transformer.modules() if isinstance(m, Linear)]
    before = [layer.branches for layer in layers]
    try:
        yield attach_loras(transformer, loras, merged)
    finally:
        for layer, branches in zip(layers, before, strict=True):
            layer.branches = branches


def _match(
    component: Component, strength: float, layers: Mapping[str, Linear]
) -> tuple[LoraAttachment, dict[str, AdapterModule]]:
    """Find the layer of each module of a LoRA file, from names and shapes only."""
    file = component.file.path.name
    modules, unmatched = find_adapter_modules(component)
    own = [module for module in modules if not is_text_module(module.name)]
    n_text = len(modules) - len(own)
    found = match_layers(component, own, layers)
    used = {module.name for module in found.values()}
    unmatched += [module.name for module in own if module.name not in used]
    total = len(found) + len(unmatched)
    if not found and not n_text:
        first = ", ".join(unmatched[:MAX_SHOWN]) or "it has no adapter tensors"
        raise CheckpointError(
            f"{file}: 0 of {total} modules match this transformer ({first})",
            "use a LoRA of the transformer's model family",
        )
    scales = describe_scales(component)
    attached = LoraAttachment(file, strength, len(found), total, tuple(unmatched), n_text, scales)
    return attached, found


def match_layers(
    component: Component, modules: Sequence[AdapterModule], layers: Mapping[str, Linear]
) -> dict[str, AdapterModule]:
    """The modules of a LoRA file by the name of their layer, without those that have none.

    Raises :class:`CheckpointError` for shapes that do not fit, and two modules for one layer.
    """
    meant = ModuleNames(layers).match(module.name for module in modules)
    found: dict[str, AdapterModule] = {}
    for module in modules:
        name = meant.get(module.name)
        if name is None:
            continue
        if name in found:
            raise CheckpointError(
                f"{component.file.path.name}: {module.name} and {found[name].name} are both for "
                f"{name}",
                "the file was merged incorrectly; use another copy of the LoRA",
            )
        check_module_shapes(component, module, name, layers[name])
        found[name] = module
    return found


def load_branches(
    component: Component, modules: Mapping[str, AdapterModule], layers: Mapping[str, Linear]
) -> FileBranches:
    """Read the branches of a LoRA file at strength 1, on the devices of their layers.

    Raises :class:`CorruptCheckpoint` for NaN or infinite numbers.
    """
    checks: FiniteChecks = []
    scales = module_scales(component, find_adapter_modules(component)[0])
    loaded = {}
    for name, module in modules.items():
        scale = scales[module.name].scale if module.name in scales else 1.0
        loaded[name] = build_branches(component, module, layers[name], checks, scale)
    check_finite(component, checks)
    return loaded


def _load_or_move(
    component: Component,
    modules: Mapping[str, AdapterModule],
    layers: Mapping[str, Linear],
    known: FileBranches | None,
) -> FileBranches:
    """Branches of a LoRA file on the devices of their layers; not read again if ``known``."""
    if known is None:
        return load_branches(component, modules, layers)
    return {
        name: tuple(move_branch(b, layers[name]) for b in branches)
        for name, branches in known.items()
    }
