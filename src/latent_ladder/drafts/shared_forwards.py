"""Number of drafts that share each forward of the transformer.

A forward reads, copies or dequantises every weight once, however many drafts are in it. Where a
draft has few tokens that is most of its time. The latents equal those of single runs but for
rounding, so a draft made alone has other last bits.
"""

from __future__ import annotations

from typing import Literal

from latent_ladder.memory.planner import Budget, StageMemory

Together = int | Literal["auto"]
"""Drafts in one forward: a number, or as many as fill one chunk of tokens."""


def parse_together(text: str) -> Together:
    """Number of ``--together``. Raises :class:`RequestError`."""
    from latent_ladder.errors import RequestError

    if text == "auto":
        return "auto"
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise RequestError(
        f"--together={text} is not a number of drafts", "use --together 4, or --together auto"
    )


def group_size(asked: Together, memory: StageMemory, budget: Budget) -> tuple[int, str | None]:
    """Drafts in one forward, and a message where memory allows fewer than ``asked``.

    ``memory`` is the plan of stage 1 of a single draft. Activations grow by as much for each.
    """
    free = budget.device_bytes - memory.weight_bytes
    fitting = max(int(free // max(memory.activation_bytes, 1)), 1)
    if asked == "auto":
        rows = memory.offload_plan.rows or max(memory.cost.passes, 1)
        tokens = rows * (memory.cost.window_tokens + memory.cost.audio_tokens)
        filling = memory.offload_plan.chunk_tokens // max(tokens, 1)
        return max(min(filling, fitting), 1), None
    if asked <= fitting:
        return asked, None
    return fitting, f"memory for {fitting} of {asked} drafts together; --vram allows more"
