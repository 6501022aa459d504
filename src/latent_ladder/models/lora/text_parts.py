"""Adapters of the text connectors and the text projection, which change the encoded prompt.

A LoRA for the whole model of ComfyUI may hold modules of the connectors
(``diffusion_model.video_embeddings_connector. ...``), one for diffusers modules of the projection
(``text_embedding_projection.aggregate_embed``). They are applied when a prompt is encoded for a
stage that uses the LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from latent_ladder.checkpoints.lora_keys import PROJECTION, find_adapter_modules, is_text_module
from latent_ladder.checkpoints.text_loras import Loras
from latent_ladder.models.lora.adapters import order_branches
from latent_ladder.models.lora.attach import load_branches, match_layers
from latent_ladder.models.weights.linear import Branch, Linear


def adapt_layers(network: nn.Module, loras: Loras, prefix: str) -> None:
    """Add the branches of ``loras`` to the linear layers of ``network``, named after ``prefix``.

    Only layers that a LoRA changes are replaced, so the others give the same bits as before.
    """
    plain = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    layers = {prefix + name: with_branches(m.weight, m.bias) for name, m in plain.items()}
    for name, branches in _branches(loras, layers).items():
        layers[name].branches = branches
        parent, _, last = name.removeprefix(prefix).rpartition(".")
        owner = network.get_submodule(parent)
        owner._modules[last] = layers[name]


def projection_branches(loras: Loras, name: str, layer: Linear) -> tuple[Branch, ...]:
    """The branches of ``loras`` for the layer ``name`` of the text projection."""
    return _branches(loras, {PROJECTION + name: layer}).get(PROJECTION + name, ())


def with_branches(weight: Tensor, bias: Tensor | None) -> Linear:
    """A layer that can have branches and shares the tensors of a plain one."""
    layer = Linear(0, 0, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer.requires_grad_(False)


def _branches(loras: Loras, layers: Mapping[str, Linear]) -> dict[str, tuple[Branch, ...]]:
    """The branches of all LoRAs by layer, at their strengths."""
    found: dict[str, list[Branch]] = {}
    for component, strength in loras:
        modules, _ = find_adapter_modules(component)
        text = [module for module in modules if is_text_module(module.name)]
        matched = match_layers(component, text, layers)
        for name, branches in load_branches(component, matched, layers).items():
            at_strength = [replace(b, strength=b.strength * strength) for b in branches]
            found.setdefault(name, []).extend(at_strength)
    return {name: order_branches(branches) for name, branches in found.items()}
