"""``ladder runs``: look after the runs and artefacts in the store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from latent_ladder.cli.commands.flags import Json, StoreFolder, open_store
from latent_ladder.cli.commands.measure import print_metrics
from latent_ladder.cli.console import gib, show_warning, table

if TYPE_CHECKING:
    from latent_ladder.storage.run_records import RunRecord


def register(app: typer.Typer) -> None:
    """Add ``runs list``, ``find``, ``verify`` and ``prune``."""
    runs = typer.Typer(help="Look after the runs and artefacts in the store.", no_args_is_help=True)
    runs.command("list")(runs_list)
    runs.command("show")(runs_show)
    runs.command("verify")(runs_verify)
    runs.command("prune")(runs_prune)
    app.add_typer(runs, name="runs")


def runs_list(store: StoreFolder = None, as_json: Json = False) -> None:
    """List the runs, newest first."""
    records, damaged = open_store(store).runs.list()
    if as_json:
        print(json.dumps([asdict(r) for r in records], indent=2, ensure_ascii=False))
        return
    table(
        "",
        ("run", "when", "status", "stages", "output", "prompt"),
        [_run_row(record) for record in records],
    )
    for run in damaged:
        show_warning(f"{run.path}: {run.reason}")


def runs_show(run: str, store: StoreFolder = None, as_json: Json = False) -> None:
    """Show one run (an id, its beginning, or `last`)."""
    record = open_store(store).runs.find(run)
    if as_json:
        print(json.dumps(asdict(record), indent=2, ensure_ascii=False))
        return
    print(f"run     {record.id}\nmade    {record.created}\nstatus  {record.status}")
    print(f"output  {record.output or '-'}\ncommand {record.command}")
    rows = [
        (
            stage.stage,
            "reused" if stage.reused else f"{stage.seconds:.1f} s",
            gib(stage.peak_memory_bytes or 0),
            stage.memory or "-",
            stage.key,
        )
        for stage in record.stages
    ]
    table("", ("stage", "time", "peak memory", "held", "artefact"), rows)
    if record.drafts:
        drafts = [
            (str(d.number), str(d.seed), d.status, f"{d.seconds:.1f} s", d.prompt)
            for d in record.drafts
        ]
        table("", ("draft", "seed", "status", "time", "prompt"), drafts)
    if record.metrics is not None:
        print_metrics(record.metrics)
    for warning in record.warnings:
        show_warning(warning)


def runs_verify(store: StoreFolder = None, as_json: Json = False) -> None:
    """Check every artefact against its hash; damaged ones are moved aside."""
    sound, damaged = open_store(store).verify()
    if as_json:
        rows = [{"key": d.key, "reason": d.reason} for d in damaged]
        print(json.dumps({"sound": sound, "damaged": rows}, indent=2))
    else:
        print(f"{sound} artefacts are sound, {len(damaged)} were damaged and moved aside")
        for damage in damaged:
            show_warning(f"{damage.key}: {damage.reason}")
    if damaged:
        raise typer.Exit(8)


def runs_prune(
    keep_days: Annotated[float | None, typer.Option(help="Keep runs younger than this.")] = None,
    keep_last: Annotated[int | None, typer.Option(help="Keep this many of the newest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Remove old runs and every artefact that no remaining run refers to."""
    done = open_store(store).prune(keep_days=keep_days, keep_last=keep_last, dry_run=dry_run)
    if as_json:
        body = {"runs": done.runs, "artefacts": done.artefacts, "freed_bytes": done.freed_bytes}
        print(json.dumps(body, indent=2))
        return
    verb = "would remove" if dry_run else "removed"
    print(f"{verb} {len(done.runs)} runs, {len(done.artefacts)} artefacts, {gib(done.freed_bytes)}")


def _drafts(record: RunRecord) -> str:
    """How many drafts a session has."""
    return f", {len(record.drafts)} drafts" if record.kind == "draft" else ""


def _run_row(record: RunRecord) -> tuple[str, ...]:
    prompt = str(record.request.get("prompt", ""))
    made = sum(not stage.reused for stage in record.stages)
    return (
        record.id,
        record.created[:19].replace("T", " "),
        record.status,
        f"{made} made, {len(record.stages) - made} reused" + _drafts(record),
        record.output or "-",
        prompt if len(prompt) <= 48 else prompt[:47] + "…",
    )
