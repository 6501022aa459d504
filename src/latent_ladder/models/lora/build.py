"""Build adapter branches from the tensors of a LoRA file, on the devices of their layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.lora_keys import AdapterModule, adapter_shape
from latent_ladder.errors import CheckpointError, CorruptCheckpoint
from latent_ladder.models.lora.adapters import (
    BiasShift,
    Difference,
    Hadamard,
    Kronecker,
    apply_dora,
)
from latent_ladder.models.weights.linear import Branch, Linear, LowRank
from latent_ladder.models.weights.quantized_tensor import read_float

FiniteChecks = list[tuple[str, Tensor]]
"""Names of the tensors that were read, each with a boolean tensor: all its numbers are finite."""


def check_module_shapes(
    component: Component, module: AdapterModule, name: str, layer: Linear
) -> None:
    """Raise :class:`CheckpointError` unless a module's shapes match its layer; reads no tensor."""
    file, needed = component.file.path.name, (layer.out_features, layer.in_features)
    shape = adapter_shape(component, module)
    shapes = {part: component.shape(key) for part, key in module.parts.items()}
    if shape is not None and shape != needed:
        raise CheckpointError(
            f"{file}: {name} is for a layer of {shape[0]} x {shape[1]}, the model's layer is "
            f"{needed[0]} x {needed[1]}",
            "use a LoRA of the transformer's model family",
        )
    if shapes.get("diff_b", needed[:1]) != needed[:1]:
        raise CheckpointError(
            f"{file}: {name} is for a bias of {list(shapes['diff_b'])}, the model's layer has "
            f"{needed[0]} outputs",
            "use a LoRA of the transformer's model family",
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
            "use a LoRA of the transformer's model family, for linear layers",
        )


def build_branches(
    component: Component,
    module: AdapterModule,
    layer: Linear,
    checks: FiniteChecks,
    header_scale: float = 1.0,
) -> tuple[Branch, ...]:
    """Build the branches of one module at strength 1, on the layer's device.

    ``header_scale`` is the scale that the file's header states, for a file without alpha tensors.
    Appends a check of each tensor to ``checks``, for :func:`check_finite`.
    """

    def read(part: str, dtype: torch.dtype = layer.compute_dtype) -> Tensor:
        key = module.parts[part]
        tensor = read_float(component, key, dtype).to(layer.device)
        # The sum is not finite if any number is not, and needs a single pass.
        checks.append((key, torch.isfinite(tensor.sum(dtype=torch.float32))))
        return tensor

    alpha = _alpha(component, module) if "alpha" in module.parts else None
    branches: tuple[Branch, ...] = ()
    if module.kind != "diff":
        branch = _BUILDERS[module.kind](module.parts, read, alpha)
        branches = (replace(branch, strength=branch.strength * header_scale),)
        if "magnitude" in module.parts:
            branches = apply_dora(branches[0], read("magnitude", torch.float32), layer)
    if "diff" in module.parts:
        branches += (Difference(1.0, read("diff")),)
    if "diff_b" in module.parts:
        branches += (BiasShift(1.0, read("diff_b")),)
    return branches


def _alpha(component: Component, module: AdapterModule) -> float:
    """Read alpha; some trainers write it as an integer or as a vector with one element."""
    key = module.parts["alpha"]
    tensor = component.read(key)
    value = float(tensor) if tensor.numel() == 1 else math.nan
    if not math.isfinite(value):
        raise CorruptCheckpoint(
            f"{component.file.path.name}: {key} is {tensor.tolist()}, expected one number",
            "the file is damaged, download it again",
        )
    return value


def check_finite(component: Component, checks: FiniteChecks) -> None:
    """Raise :class:`CorruptCheckpoint` with the first tensor that has NaN or infinite numbers."""
    if not checks:
        return
    # One transfer for all: reading thousands of booleans from a GPU one by one is slow.
    results = torch.stack([flag.to(checks[0][1].device) for _, flag in checks]).tolist()
    for (key, _), is_finite in zip(checks, results, strict=True):
        if not is_finite:
            raise CorruptCheckpoint(
                f"{component.file.path.name}: {key} has NaN or infinite numbers",
                "the file is damaged or its training failed: download it again, or use another",
            )


def move_branch(branch: Branch, layer: Linear) -> Branch:
    """Move a branch to its layer's device and dtype; returns the branch itself if it is there."""
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
    """Build a LoKr branch. A factor may be a low-rank product itself.

    Alpha is divided by the rank of that product, of the second one if both are products.
    """
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
