"""Low-rank adapters (LoRA): put beside a transformer's layers and taken away, never merged.

Attaching and detaching costs no time and loses no precision, so each stage of a run can have its
own adapters on one loaded base. Reads the PEFT (``lora_A``/``lora_B``) and kohya
(``lora_down``/``lora_up``, ``alpha``) spellings, with or without a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from latent_ladder.checkpoints.layout import Component
from latent_ladder.errors import CheckpointError
from latent_ladder.models.linear import Branch, Linear

_KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<part>A|B|down|up)(?:\.\w+)?(?:\.weight)?|(?P<alpha>alpha))$"
)
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:(?:model\.)?(?:diffusion_model|transformer)\.)?")
_KOHYA_PREFIX = re.compile(r"^lora_(?:unet|transformer)_")
_OTHER_KINDS = re.compile(r"\.(?:hada_w\d_\w|lokr_w\d\w*|dora_scale|oft_blocks|diff)\b")

SHOWN_MISSES = 3


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
        return f"{text}; not in this model: {', '.join(self.misses[:SHOWN_MISSES])}{more}"


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
    fits no module, has wrong shapes or is of another kind (LoHa, LoKr, DoRA); then nothing has
    changed. A partial match is the report's business.
    """
    layers = {name: m for name, m in transformer.named_modules() if isinstance(m, Linear)}
    branches: dict[str, list[Branch]] = {}
    matches = []
    for component, strength in loras:
        match, found = _match(component, strength, layers)
        matches.append(match)
        for name, branch in found.items():
            if strength:
                branches.setdefault(name, []).append(branch)
    for name, layer in layers.items():
        layer.branches = tuple(branches.get(name, ()))
    return LoraReport(tuple(matches))


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
) -> tuple[LoraMatch, dict[str, Branch]]:
    name = component.file.path.name
    modules = _modules(component)
    flat = {known.replace(".", "_"): known for known in layers}
    found: dict[str, Branch] = {}
    misses = []
    for written, keys in modules.items():
        bare = _PREFIX.sub("", written)
        known = bare if bare in layers else flat.get(_KOHYA_PREFIX.sub("", bare))
        if known is None:
            misses.append(written)
        else:
            found[known] = _branch(component, keys, strength, (known, layers[known]))
    if not found:
        first = ", ".join(misses[:SHOWN_MISSES]) or "no adapter tensors at all"
        raise CheckpointError(
            f"{name}: fits 0 of {len(modules)} modules of this transformer ({first})",
            "the LoRA belongs to another model family",
        )
    return LoraMatch(name, strength, len(found), len(modules), tuple(misses)), found


def _modules(component: Component) -> dict[str, dict[str, str]]:
    """Module as written in the file -> part (``down``, ``up``, ``alpha``) -> tensor name."""
    modules: dict[str, dict[str, str]] = {}
    spelling = {"A": "down", "B": "up", "down": "down", "up": "up", None: "alpha"}
    for key in component.names:
        if _OTHER_KINDS.search(key):
            raise CheckpointError(
                f"{component.file.path.name}: {key} is no plain LoRA tensor",
                "LoHa, LoKr, OFT and DoRA files cannot be used; convert it to a LoRA",
            )
        if parsed := _KEY.match(key):
            modules.setdefault(parsed["module"], {})[spelling[parsed["part"]]] = key
    return modules


def _branch(
    component: Component, keys: Mapping[str, str], strength: float, at: tuple[str, Linear]
) -> Branch:
    name, layer = at
    file = component.file.path.name
    if missing := {"down", "up"} - keys.keys():
        raise CheckpointError(
            f"{file}: {name} has no {missing.pop()} matrix",
            "the file is damaged, download it again",
        )
    down, up = component.read(keys["down"]), component.read(keys["up"])
    rank = down.shape[0]
    expected = (rank, layer.in_features), (layer.out_features, rank)
    if (tuple(down.shape), tuple(up.shape)) != expected:
        raise CheckpointError(
            f"{file}: {name} amends {up.shape[0]} x {down.shape[-1]}, the layer is "
            f"{layer.out_features} x {layer.in_features}",
            "the LoRA belongs to another model family",
        )
    scale = float(component.read(keys["alpha"])) / rank if "alpha" in keys else 1.0
    return Branch(_like(down, layer.weight), _like(up, layer.weight), strength * scale)


def _like(tensor: Tensor, weight: Tensor) -> Tensor:
    return tensor.to(weight.device, weight.dtype, copy=True)
