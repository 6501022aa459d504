"""From the tensors of an adapter file to branches on the device of the layer they amend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.lora_keys import Amended, amended_shape
from latent_ladder.errors import CheckpointError, CorruptCheckpoint
from latent_ladder.models.lora.adapters import (
    BiasShift,
    Difference,
    Hadamard,
    Kronecker,
    decomposed,
)
from latent_ladder.models.weights.linear import Branch, Linear, LowRank
from latent_ladder.models.weights.quantized_tensor import read_float

Checks = list[tuple[str, Tensor]]
"""Names of tensors read, each with a truth value on its device: all numbers are finite."""


def check_fit(component: Component, module: Amended, name: str, layer: Linear) -> None:
    """Raise :class:`CheckpointError` unless a module's shapes fit the layer. Reads no tensor."""
    file, needed = component.file.path.name, (layer.out_features, layer.in_features)
    shape = amended_shape(component, module)
    shapes = {part: component.shape(key) for part, key in module.parts.items()}
    if shape is not None and shape != needed:
        raise CheckpointError(
            f"{file}: {name} amends {shape[0]} x {shape[1]}, the layer is {needed[0]} x "
            f"{needed[1]}",
            "the LoRA belongs to another model family",
        )
    if shapes.get("diff_b", needed[:1]) != needed[:1]:
        raise CheckpointError(
            f"{file}: {name} amends a bias of {list(shapes['diff_b'])}, the layer has {needed[0]}",
            "the LoRA belongs to another model family",
        )
    magnitude = shapes.get("magnitude")
    if magnitude is not None:
        _check_magnitude(file, name, module.kind, magnitude, needed)


def _check_magnitude(
    file: str, name: str, kind: str, found: tuple[int, ...], needed: tuple[int, int]
) -> None:
    rows = found in ((needed[0],), (needed[0], 1))
    if not rows and not (found == (1, needed[1]) and kind == "lora"):
        raise CheckpointError(
            f"{file}: {name} has DoRA magnitudes of {list(found)}, expected [{needed[0]}, 1]"
            + (f" or [1, {needed[1]}]" if kind == "lora" else ""),
            "the LoRA belongs to another model family, or was made for convolutions",
        )


def build(
    component: Component, module: Amended, layer: Linear, checks: Checks
) -> tuple[Branch, ...]:
    """The branches of one module at strength 1; appends to ``checks`` what was read."""

    def read(part: str, dtype: torch.dtype = layer.compute_dtype) -> Tensor:
        key = module.parts[part]
        tensor = read_float(component, key, dtype).to(layer.device)
        # The sum is not finite as soon as one number is not, and takes a single pass.
        checks.append((key, torch.isfinite(tensor.sum(dtype=torch.float32))))
        return tensor

    alpha = _alpha(component, module) if "alpha" in module.parts else None
    made: tuple[Branch, ...] = ()
    if module.kind != "diff":
        made = (_BUILDERS[module.kind](module.parts, read, alpha),)
        if "magnitude" in module.parts:
            made = decomposed(made[0], read("magnitude", torch.float32), layer)
    if "diff" in module.parts:
        made += (Difference(1.0, read("diff")),)
    if "diff_b" in module.parts:
        made += (BiasShift(1.0, read("diff_b")),)
    return made


def _alpha(component: Component, module: Amended) -> float:
    """One number, which some trainers write as a whole one or as a vector of one."""
    key = module.parts["alpha"]
    tensor = component.read(key)
    value = float(tensor) if tensor.numel() == 1 else math.nan
    if not math.isfinite(value):
        raise CorruptCheckpoint(
            f"{component.file.path.name}: {key} is {tensor.tolist()}, expected one number",
            "the file is damaged, download it again",
        )
    return value


def raise_if_not_finite(component: Component, checks: Checks) -> None:
    """Raise :class:`CorruptCheckpoint` naming the first tensor with NaN or infinite numbers."""
    if not checks:
        return
    # One look for all: asking a GPU for each of some thousand truth values takes a while.
    sound = torch.stack([flag.to(checks[0][1].device) for _, flag in checks]).tolist()
    for (key, _), fine in zip(checks, sound, strict=True):
        if not fine:
            raise CorruptCheckpoint(
                f"{component.file.path.name}: {key} holds NaN or infinite numbers",
                "the file is damaged or its training failed; download it again or use another",
            )


def placed(branch: Branch, layer: Linear) -> Branch:
    """The branch where the layer is now; itself if it is there."""
    moved: dict[str, Any] = {
        f.name: value.to(layer.device, layer.compute_dtype)
        for f in fields(branch)
        if isinstance(value := getattr(branch, f.name), Tensor)
    }
    same = all(getattr(branch, name) is tensor for name, tensor in moved.items())
    return branch if same else replace(branch, **moved)


Read = Callable[[str], Tensor]


def _lora(_: Mapping[str, str], read: Read, alpha: float | None) -> Branch:
    down = read("down")
    return LowRank(_scale(alpha, down.shape[0]), down, read("up"))


def _lokr(parts: Mapping[str, str], read: Read, alpha: float | None) -> Branch:
    """A factor may itself be a product; alpha is over its rank, the second factor's if both are."""
    factors, rank = [], None
    for name in ("w1", "w2"):
        if name in parts:
            factors.append(read(name))
            continue
        up, down = read(f"{name}_a"), read(f"{name}_b")
        rank = down.shape[0]
        factors.append((up.float() @ down.float()).to(up.dtype))
    scale = 1.0 if rank is None else _scale(alpha, rank)
    return Kronecker(scale, *factors)


def _loha(_: Mapping[str, str], read: Read, alpha: float | None) -> Branch:
    first = read("hada_w1_b")
    scale = _scale(alpha, first.shape[0])
    return Hadamard(scale, read("hada_w1_a"), first, read("hada_w2_a"), read("hada_w2_b"))


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


_BUILDERS: Mapping[str, Callable[[Mapping[str, str], Read, float | None], Branch]] = {
    "lora": _lora,
    "lokr": _lokr,
    "loha": _loha,
}
