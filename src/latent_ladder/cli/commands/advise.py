"""``ladder advise``: which way to a clip, with which preset, and what the others would take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from latent_ladder.cli.commands.flags import InputFlags, Json, MemoryFlags, RequestFlags, flags
from latent_ladder.cli.console import gib, show_note, table

if TYPE_CHECKING:
    from latent_ladder.diagnostics.preset_recommendation import Option, Proposal


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(flags(advise))


def advise(
    asked: RequestFlags, inputs: InputFlags, memory: MemoryFlags, as_json: Json = False
) -> None:
    """Say which way suits a clip: a single pass, the distilled stages or more, and why."""
    from latent_ladder.checkpoints.selection import model_folders, scan, select
    from latent_ladder.diagnostics.preset_recommendation import propose
    from latent_ladder.memory.hardware import budget, read_rates
    from latent_ladder.memory.planner import Policy

    options = memory.options()
    library = scan(model_folders(asked.folders or ()))
    request = asked.request(library, inputs)
    models = select(library, request.models.choices)
    available = budget(options, memory.device)
    policy = Policy(options.offload, options.changes, request.models.precision)
    proposal = propose(request, models, available, policy, read_rates(available.device))
    if as_json:
        print(json.dumps(proposal.to_dict(), indent=2, ensure_ascii=False))
        return
    _print(proposal)
    if not any(o.seconds for o in proposal.options):
        show_note("run `ladder bench` once, and times are predicted too")


def _print(proposal: Proposal) -> None:
    print(proposal.sentence)
    columns = ("", "way", "preset", "peak", "work", "time", "")
    table("", columns, [_row(option, proposal) for option in proposal.options])


def _row(option: Option, proposal: Proposal) -> tuple[str, ...]:
    chosen = "->" if option.preset == proposal.preset else ""
    if option.why_not is not None:
        return chosen, option.way, option.preset, "", "", "", option.why_not
    peak, flops = gib(option.peak_bytes or 0), option.flops or 0.0
    time = "" if option.seconds is None else f"{option.seconds:.3g} s"
    held = "blocks streamed" if option.streams else ""
    return chosen, option.way, option.preset, peak, f"{flops / 1e12:.4g} TFLOP", time, held
