"""``ladder runs``: stored runs and the artefacts (results of stages) that they made."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import CommandGroup, GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flags import open_store
from latent_ladder.cli.commands.measure import print_metrics
from latent_ladder.cli.commands.options import Json, StoreFolder, other_option
from latent_ladder.cli.console import (
    format_bytes,
    print_json,
    print_lines,
    print_table,
    show_loading,
    show_warning,
)

if TYPE_CHECKING:
    from latent_ladder.storage.run_records import RunRecord

DAMAGED_EXIT_CODE = 8
"""Exit code of ``verify`` for damaged artefacts, that of :class:`StoreError`."""

PROMPT_CHARACTERS = 48
"""Length of a prompt in the table of runs."""

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        autocompletion=completion.complete_run,
        help="Id of a run, the beginning of one, or last.",
    ),
]
KeepDays = Annotated[
    float | None,
    other_option("--keep-days", metavar="DAYS", help="Keep runs younger than this many days."),
]
KeepLast = Annotated[
    int | None,
    other_option("--keep-last", metavar="NUMBER", help="Keep this many of the newest runs."),
]
DryRun = Annotated[
    bool, other_option("--dry-run", help="Print what would be deleted, and delete nothing.")
]


def register(app: typer.Typer) -> None:
    """Add ``runs list``, ``show``, ``verify`` and ``prune``."""
    runs = typer.Typer(
        help="List, show, check and delete stored runs.", no_args_is_help=True, cls=CommandGroup
    )
    runs.command("list", cls=GroupedCommand)(expand_flags(list_runs))
    runs.command("show", cls=GroupedCommand)(expand_flags(show_run))
    runs.command("verify", cls=GroupedCommand)(expand_flags(verify_artefacts))
    runs.command("prune", cls=GroupedCommand)(expand_flags(prune_runs))
    app.add_typer(runs, name="runs")


def list_runs(store: StoreFolder = None, as_json: Json = False) -> None:
    """List the runs, the newest last."""
    records, damaged = open_store(store).runs.list()
    if as_json:
        print_json([asdict(r) for r in records])
        return
    columns = ("run", "when", "status", "stages", "output", "prompt")
    print_table(
        "",
        columns,
        [_run_row(record) for record in reversed(records)],
        whole=("output",),
        below=("prompt", "stages"),
    )
    for run in damaged:
        show_warning(f"{run.path}: {run.reason}")


def show_run(run: RunName, store: StoreFolder = None, as_json: Json = False) -> None:
    """Show one run: its command, stages, drafts, metrics and warnings."""
    record = open_store(store).runs.find(run)
    if as_json:
        print_json(asdict(record))
        return
    print_lines(f"run     {record.id}\nmade    {record.created}\nstatus  {record.status}")
    print_lines(f"output  {record.output or '-'}\ncommand {record.command}")
    rows = [
        (
            stage.stage,
            "reused" if stage.reused else f"{stage.seconds:.1f} s",
            format_bytes(stage.peak_memory_bytes or 0),
            stage.memory or "-",
            stage.key,
        )
        for stage in record.stages
    ]
    print_table(
        "", ("stage", "time", "peak memory", "offload plan", "artefact"), rows, whole=("artefact",)
    )
    if record.drafts:
        drafts = [
            (str(d.number), str(d.seed), d.status, f"{d.seconds:.1f} s", d.prompt)
            for d in record.drafts
        ]
        print_table("", ("draft", "seed", "status", "time", "prompt"), drafts, below=("prompt",))
    if record.metrics is not None:
        print_metrics(record.metrics)
    for warning in record.warnings:
        show_warning(warning)


def verify_artefacts(store: StoreFolder = None, as_json: Json = False) -> None:
    """Check every stored artefact; exit code 8 if some are damaged."""
    opened = open_store(store)
    show_loading(f"reading every artefact in {opened.root}", as_json)
    sound, damaged = opened.verify()
    if as_json:
        rows = [{"key": d.key, "reason": d.reason} for d in damaged]
        print_json({"sound": sound, "damaged": rows})
    else:
        print_lines(f"{sound} artefacts are intact, {len(damaged)} were damaged and moved away")
        for damage in damaged:
            show_warning(f"{damage.key}: {damage.reason}")
    if damaged:
        raise typer.Exit(DAMAGED_EXIT_CODE)


def prune_runs(
    keep_days: KeepDays = None,
    keep_last: KeepLast = None,
    dry_run: DryRun = False,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Delete old runs, and artefacts that no remaining run uses."""
    done = open_store(store).prune(keep_days=keep_days, keep_last=keep_last, dry_run=dry_run)
    if as_json:
        body = {"runs": done.runs, "artefacts": done.artefacts, "freed_bytes": done.freed_bytes}
        print_json(body)
        return
    verb = "would delete" if dry_run else "deleted"
    size = format_bytes(done.freed_bytes)
    print_lines(f"{verb} {len(done.runs)} runs and {len(done.artefacts)} artefacts, {size}")


def _count_drafts(record: RunRecord) -> str:
    """Number of drafts of a run of ``ladder draft``."""
    return f", {len(record.drafts)} drafts" if record.kind == "draft" else ""


def _run_row(record: RunRecord) -> tuple[str, ...]:
    prompt = str(record.request.get("prompt", ""))
    if len(prompt) > PROMPT_CHARACTERS:
        prompt = f"{prompt[: PROMPT_CHARACTERS - 1]}…"
    made = sum(not stage.reused for stage in record.stages)
    return (
        record.id,
        record.created[:19].replace("T", " "),
        record.status,
        f"{made} made, {len(record.stages) - made} reused" + _count_drafts(record),
        record.output or "-",
        prompt,
    )
