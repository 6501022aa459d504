"""Nodes that compute numbers, texts and switches, with the rules of constant folding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from latent_ladder.comfyui.constant_folding import FOLDABLE_NODES
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction, NodeResult
from latent_ladder.comfyui.runtime.values import Conditioning, Images, Latent, Value
from latent_ladder.errors import WorkflowError


def compute_foldable(class_type: str, ctx: NodeContext) -> list[Value]:
    """Compute a foldable node whose inputs were not known before the graph ran."""
    values = {name: ctx.fetch(name) for name in ctx.input_names}
    try:
        return list(FOLDABLE_NODES[class_type](values))
    except (WorkflowError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise ctx.error(str(error)) from error


def switch(ctx: NodeContext) -> list[Value]:
    """``ComfySwitchNode``: the selected input, or the other one if only that is connected."""
    selected, other = ("on_true", "on_false") if ctx.boolean("switch") else ("on_false", "on_true")
    return [ctx.fetch(selected if ctx.has(selected) else other)]


def pass_prompt(ctx: NodeContext) -> list[Value]:
    """``TextGenerateLTX2Prompt``: the prompt unchanged, as no language model is available."""
    prompt = ctx.text("prompt") if ctx.has("prompt") else ""
    if not prompt.strip():
        raise ctx.error(
            "prompt is empty, and no language model writes one here",
            "enter a prompt, or disable prompt enhancement",
        )
    ctx.warn(
        "prompt_as_written",
        "no language model rewrites prompts here: the prompt is used as written",
    )
    return [prompt, ""]


def preview_any(ctx: NodeContext) -> NodeResult:
    """``PreviewAny``: a value as text."""
    text = _as_text(ctx.fetch("source"))
    return NodeResult((text,), {"text": [text]})


def _as_text(value: object) -> str:
    if isinstance(value, Images):
        return f"IMAGE {value.count} x {value.width}x{value.height}"
    if isinstance(value, Latent):
        shapes = {name: list(tensor.shape) for name, tensor in value.tensors().items()}
        return f"LATENT {shapes}"
    if isinstance(value, Conditioning):
        return f"CONDITIONING {value.text!r}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value) if isinstance(value, str | int | float) else type(value).__name__


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        **{name: NodeFunction(partial(compute_foldable, name)) for name in FOLDABLE_NODES},
        "ComfySwitchNode": NodeFunction(switch),
        "PreviewAny": NodeFunction(preview_any),
        "TextGenerateLTX2Prompt": NodeFunction(pass_prompt),
    }
)
