"""``ladder advise``: the recommended preset for a clip, and what the others would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import ADVISE_RULES
from latent_ladder.cli.commands.flags import InputFlags, MemoryFlags, RequestFlags
from latent_ladder.cli.commands.options import Json
from latent_ladder.cli.console import (
    format_bytes,
    print_json,
    print_table,
    print_text,
    show_loading,
    show_note,
    show_warning,
)

if TYPE_CHECKING:
    from latent_ladder.diagnostics.preset_recommendation import Option, Proposal

MOST_USED = (
    "preset", "size", "duration", "frames", "fps", "images", "video", "folders", "vram", "device",
)  # fmt: skip
"""Options that ``advise`` lists first in its help."""


PROMPT_CHARACTERS = 60
"""Length of a prompt in the answer."""


def register(app: typer.Typer) -> None:
    """Add ``advise``."""
    app.command(cls=GroupedCommand)(expand_flags(advise, MOST_USED, ADVISE_RULES))


def advise(
    request_flags: RequestFlags, inputs: InputFlags, memory: MemoryFlags, as_json: Json = False
) -> None:
    """Recommend a preset for a clip on this machine.

    Compares a single pass with two or more stages, and the preset of
    --preset: memory, work and time. Says what the prompt lacks.
    """
    show_loading("reading the headers of the model files", as_json)
    from latent_ladder.checkpoints.selection import model_folders, scan, select_models
    from latent_ladder.diagnostics.preset_readiness import check_preset
    from latent_ladder.diagnostics.preset_recommendation import propose
    from latent_ladder.memory.hardware import budget, read_rates
    from latent_ladder.memory.planner import Policy
    from latent_ladder.pipeline.preparation import request_warnings

    options = memory.to_options()
    library = scan(model_folders(request_flags.folders or ()))
    request = request_flags.build_request(library, inputs).pick_seed()
    models = select_models(library, request.models.choices, request.preset)
    check_preset(request, models, library)
    available = budget(options, memory.device)
    policy = Policy(options.offload, options.changes, request.models.precision)
    rates, asked = read_rates(available.rates_name), request_flags.preset
    proposal = propose(request, models, available, policy, rates, asked)
    warnings = request_warnings(request, models)
    if as_json:
        found = [{"code": w.code, "message": w.message} for w in warnings]
        print_json({**proposal.to_dict(), "warnings": found})
        return
    print_text(
        f'For "{shorten(request.prompt)}", {request.width}x{request.height}, '
        f"{float(request.resolved.duration_s):.2f} s, with {models.transformer.file.path.name}:"
    )
    _print_proposal(proposal, asked)
    for warning in warnings:
        show_warning(warning.message)
    if not any(o.seconds for o in proposal.options):
        show_note("times are unknown: run `ladder bench` once to estimate them")


def shorten(text: str) -> str:
    """The beginning of a prompt, at most :data:`PROMPT_CHARACTERS` long."""
    return text if len(text) <= PROMPT_CHARACTERS else f"{text[: PROMPT_CHARACTERS - 1]}…"


def _print_proposal(proposal: Proposal, asked: str | None) -> None:
    print_text(proposal.sentence)
    columns = ("", "way", "preset", "peak", "work", "time", "")
    print_table("", columns, [_option_row(option, proposal, asked) for option in proposal.options])


def _option_row(option: Option, proposal: Proposal, asked: str | None) -> tuple[str, ...]:
    mark = "->" if option.preset == proposal.preset else "asked" if option.preset == asked else ""
    if option.why_not is not None:
        return mark, option.way, option.preset, "", "", "", option.why_not
    peak, flops = format_bytes(option.peak_bytes or 0), option.flops or 0.0
    time = "" if option.seconds is None else f"{option.seconds:.3g} s"
    note = "blocks streamed" if option.streams else ""
    return mark, option.way, option.preset, peak, f"{flops / 1e12:.4g} TFLOP", time, note
