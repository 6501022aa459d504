"""Numbers, texts, switches and arithmetic: the rules of ``comfyui.constant_folding``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from latent_ladder.comfyui.constant_folding import PLAIN
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning, Results
from latent_ladder.comfyui.runtime.values import Conditioning, Images, Latent, Value
from latent_ladder.errors import WorkflowError


def computed(class_type: str, ask: Ask) -> list[Value]:
    """The outputs of a plain node whose inputs were not known before the graph ran."""
    values = {name: ask.fetch(name) for name in ask.names}
    try:
        return list(PLAIN[class_type](values))
    except (WorkflowError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise ask.error(str(error)) from error


def switch(ask: Ask) -> list[Value]:
    """``ComfySwitchNode``: only the chosen side is computed; the other where it is the only one."""
    chosen, other = ("on_true", "on_false") if ask.flag("switch") else ("on_false", "on_true")
    return [ask.fetch(chosen if ask.has(chosen) else other)]


def as_written(ask: Ask) -> list[Value]:
    """``TextGenerateLTX2Prompt``: no language model rewrites the prompt here; it is passed on."""
    prompt = ask.text("prompt") if ask.has("prompt") else ""
    if not prompt.strip():
        raise ask.error(
            "there is no prompt to pass on, and none is written here",
            "type a prompt, or switch enhancement off",
        )
    ask.warn("prompt_as_written", "no language model rewrites prompts here: taken as it is")
    return [prompt, ""]


def preview_any(ask: Ask) -> Results:
    """``PreviewAny``: shows a value as text."""
    found = _as_text(ask.fetch("source"))
    return Results((found,), {"text": [found]})


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


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        **{name: Meaning(partial(computed, name)) for name in PLAIN},
        "ComfySwitchNode": Meaning(switch),
        "PreviewAny": Meaning(preview_any),
        "TextGenerateLTX2Prompt": Meaning(as_written),
    }
)
