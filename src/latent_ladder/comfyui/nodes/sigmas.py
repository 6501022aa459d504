"""SIGMAS nodes: schedules and manual lists, and nodes that split, flip and extend them.

They behave as in ComfyUI's ``nodes_custom_sampler`` and ``nodes_lt``; the schedules are those of
:mod:`latent_ladder.sampling.schedules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

from latent_ladder.comfyui.node_defs.sampling import (
    SCHEDULERS,
    parse_manual_sigmas,
    split_by_denoise,
)
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.values import Latent, Model, SigmaList, Value
from latent_ladder.errors import RequestError
from latent_ladder.sampling.schedules import SCHEDULES, Sigmas, linspace, ltx


def manual_sigmas(ctx: NodeContext) -> list[Value]:
    """``ManualSigmas``: the numbers that ComfyUI finds in a text."""
    try:
        return [SigmaList(tuple(parse_manual_sigmas(ctx.text("sigmas"))))]
    except ValueError as error:
        raise ctx.error(str(error), "write 0.85, 0.725, 0.4219, 0.0") from error


def ltx_mu(ctx: NodeContext, max_shift: float, base_shift: float) -> float:
    """Return the shift for the tokens of the connected latent, or for 4096 without one."""
    slope = (max_shift - base_shift) / (4096 - 1024)
    return base_shift + slope * (_tokens(ctx) - 1024)


def _tokens(ctx: NodeContext) -> int:
    latent = ctx.get_optional("latent", Latent)
    if latent is None or latent.video is None:
        return 4096
    return math.prod(latent.video.shape[2:])


def ltx_scheduler(ctx: NodeContext) -> list[Value]:
    """``LTXVScheduler``: the LTX schedule."""
    sigmas = ltx(
        ctx.integer("steps"),
        _tokens(ctx),
        ctx.number("max_shift"),
        ctx.number("base_shift"),
        ctx.boolean("stretch"),
        ctx.number("terminal"),
    )
    return [SigmaList(sigmas)]


def schedule_sigmas(
    ctx: NodeContext, name: str, steps: int, denoise: float, shift: float
) -> Sigmas:
    """Return the sigmas of ``BasicScheduler`` and ``KSampler``.

    With a denoise below 1 they are the last ``steps`` of a longer schedule; with 0 the list is
    empty, and the latent passes through unchanged.
    """
    if denoise <= 0:
        return ()
    total = steps if denoise > 0.9999 else int(steps / denoise)
    spec = SCHEDULES.get(name)
    if name not in SCHEDULERS or spec is None or spec.function is None:
        raise ctx.error(f"the scheduler {name} is not supported", "use simple")
    shifts = {"shift": shift} if "shift" in spec.parameters else {}
    try:
        sigmas = spec.function(total, **{**spec.parameters, **shifts})
    except (ArithmeticError, ValueError, RequestError) as error:
        raise ctx.error(f"{name} has no schedule with {total} steps") from error
    return sigmas[-(steps + 1) :]


def basic_scheduler(ctx: NodeContext) -> list[Value]:
    """``BasicScheduler``: a schedule by name."""
    shift = ctx.get("model", Model).shift
    name, steps = ctx.text("scheduler"), ctx.integer("steps")
    return [SigmaList(schedule_sigmas(ctx, name, steps, ctx.number("denoise"), shift))]


def split(ctx: NodeContext) -> list[Value]:
    """``SplitSigmas``: two lists that share the sigma at the split."""
    sigmas, step = ctx.get("sigmas", SigmaList).sigmas, ctx.integer("step")
    return [SigmaList(sigmas[: step + 1]), SigmaList(sigmas[step:])]


def split_denoise(ctx: NodeContext) -> list[Value]:
    """``SplitSigmasDenoise``: the second list has round(steps * denoise) steps."""
    sigmas = ctx.get("sigmas", SigmaList).sigmas
    return [SigmaList(part) for part in split_by_denoise(sigmas, ctx.number("denoise"))]


def flip(ctx: NodeContext) -> list[Value]:
    """``FlipSigmas``: the reversed list; a first sigma of 0 becomes 0.0001."""
    sigmas = ctx.get("sigmas", SigmaList).sigmas[::-1]
    return [SigmaList((0.0001, *sigmas[1:]) if sigmas and sigmas[0] == 0 else sigmas)]


def set_first(ctx: NodeContext) -> list[Value]:
    """``SetFirstSigma``: the list with another first sigma."""
    sigmas = ctx.get("sigmas", SigmaList).sigmas
    return [SigmaList((ctx.number("sigma"), *sigmas[1:]) if sigmas else sigmas)]


SPACINGS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda x: x,
        "cosine": lambda x: math.sin(x * math.pi / 2),
        "sine": lambda x: 1 - math.cos(x * math.pi / 2),
    }
)


def extend(ctx: NodeContext) -> list[Value]:
    """``ExtendIntermediateSigmas``: more sigmas between those in a range.

    A start of -1 means no upper limit.
    """
    sigmas, steps = ctx.get("sigmas", SigmaList).sigmas, ctx.integer("steps")
    start, end = ctx.number("start_at_sigma"), ctx.number("end_at_sigma")
    start = math.inf if start < 0 else start
    spacing = SPACINGS[ctx.text("spacing")]
    extended: list[float] = []
    for a, b in pairwise(sigmas):
        extended.append(a)
        if end <= a <= start:
            extended += [a + (b - a) * spacing(x) for x in linspace(0, 1, steps + 1)[1:-1]]
    return [SigmaList((*extended, sigmas[-1]) if sigmas else ())]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "ManualSigmas": NodeFunction(manual_sigmas),
        "LTXVScheduler": NodeFunction(ltx_scheduler),
        "BasicScheduler": NodeFunction(basic_scheduler),
        "SplitSigmas": NodeFunction(split),
        "SplitSigmasDenoise": NodeFunction(split_denoise),
        "FlipSigmas": NodeFunction(flip),
        "SetFirstSigma": NodeFunction(set_first),
        "ExtendIntermediateSigmas": NodeFunction(extend),
    }
)
