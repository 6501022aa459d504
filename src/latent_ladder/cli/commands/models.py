"""``ladder models``: which model files there are, and getting those that are not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.checkpoints.catalog import DEFAULT_PRECISION, PRECISIONS
from latent_ladder.cli.console import gib, show_note, show_warning, stderr, table
from latent_ladder.errors import Cancelled, RequestError

if TYPE_CHECKING:
    from latent_ladder.checkpoints.catalog import Published
    from latent_ladder.checkpoints.download import Item, Plan, Report

FAMILIES = ("ltx-2.3",)

ASK_ABOVE = 10**9
"""A download of more bytes than this is asked about."""

Folders = Annotated[
    list[Path] | None, typer.Option("--models", help="A ComfyUI models/ folder (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(FAMILIES)}.")]
Precision = Annotated[str, typer.Option("--precision", help=f"One of: {', '.join(PRECISIONS)}.")]
To = Annotated[
    Path | None,
    typer.Option("--to", help="The models/ folder to fill; else the first that is searched."),
]
Distilled = Annotated[
    bool,
    typer.Option("--distilled/--dev", help="The distilled transformer, or dev and its LoRA."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")]


def register(app: typer.Typer) -> None:
    """Add ``models list`` and ``models get``."""
    models = typer.Typer(help="The model files: found here, or to be had.", no_args_is_help=True)
    models.command("list")(models_list)
    models.command("get")(models_get)
    app.add_typer(models, name="models")


def models_list(folders: Folders = None, as_json: Json = False) -> None:
    """List the model files found, by the role their content gives them."""
    from latent_ladder.checkpoints.selection import model_folders, scan

    library = scan(model_folders(folders or ()))
    listed = [(role, f) for role, candidates in library.found.items() for f in candidates]
    if as_json:
        rows = [
            {
                "role": role,
                "name": found.name,
                "folder": str(found.folder),
                "bytes": found.path.stat().st_size,
                "embedded": found.embedded,
            }
            for role, found in listed
        ]
        unreadable = [{"path": str(p), "why": why} for p, why in library.unreadable]
        print(json.dumps({"models": rows, "unreadable": unreadable}, indent=2))
        return
    cells = [(role, f.name, gib(f.path.stat().st_size), str(f.folder)) for role, f in listed]
    table("", ("role", "file", "size", "folder"), cells)
    for path, why in library.unreadable:
        show_warning(f"{path}: {why}")


def models_get(
    name: Name,
    precision: Precision = DEFAULT_PRECISION,
    to: To = None,
    distilled: Distilled = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download all files of a model in one precision into a ComfyUI models/ folder.

    Goes on where an earlier run stopped, skips what is there, checks sizes and hashes.
    """
    from latent_ladder.checkpoints import download as hub

    files = chosen_set(name, precision, distilled)
    folder = (to or target_folder()).expanduser().absolute()
    if any((folder / f.folder / f.name).exists() for f in files):
        show_note("checking the files that are there")
    plan = hub.plan(files, folder)
    if not as_json:
        _print_plan(plan)
    if not dry_run:
        hub.check_room(plan)
        _ask(plan, yes)
        _download(plan, quiet=as_json)
    if as_json:
        print(json.dumps(_report(plan, done=not dry_run), indent=2))
    elif not dry_run:
        print(folder)


def chosen_set(name: str, precision: str, distilled: bool) -> tuple[Published, ...]:
    """The published files of a model; :class:`RequestError` for what nobody publishes."""
    from latent_ladder.checkpoints.catalog import published_set

    if name.lower() not in FAMILIES:
        raise RequestError(f"{name} is no model to get", f"known: {', '.join(FAMILIES)}")
    wanted = precision.lower()
    if wanted not in PRECISIONS:
        raise RequestError(
            f"precision={precision} is not known", f"use one of {', '.join(PRECISIONS)}"
        )
    # The newest distilled one that there is in this precision.
    for variant in ("distilled-1.1", "distilled") if distilled else ("dev",):
        with suppress(KeyError):
            return published_set(wanted, variant)
    raise RequestError(
        f"nobody publishes {name} {'distilled' if distilled else 'dev'} in {wanted}",
        f"use another --precision, or {'--dev' if distilled else '--distilled'}",
    )


def target_folder() -> Path:
    """The first model folder that is searched and is the user's, else ``./models``."""
    from latent_ladder.checkpoints.search_paths import model_folders

    # A folder with a category holds that one kind of file; the set needs ComfyUI's whole tree.
    own = [f.path for f in model_folders() if f.category is None and not f.embedded]
    return own[0] if own else Path("models")


def _ask(plan: Plan, yes: bool) -> None:
    """Let the user agree to a big download; without a terminal only ``--yes`` does."""
    if yes or plan.remaining <= ASK_ABOVE:
        return
    if not sys.stdin.isatty():
        raise RequestError(
            f"{gib(plan.remaining)} are to be downloaded to {plan.folder} and nobody can be asked",
            "add --yes",
        )
    if not typer.confirm(f"Download {gib(plan.remaining)} to {plan.folder}?", err=True):
        raise Cancelled("nothing was downloaded")


def _download(plan: Plan, quiet: bool) -> None:
    from latent_ladder.checkpoints import download as hub

    try:
        with _progress(plan, quiet) as report:
            hub.download(plan, report)
    except KeyboardInterrupt as error:
        show_note("stopped; what was downloaded is kept, the same command goes on from there")
        raise Cancelled("stopped by the user") from error


def _print_plan(plan: Plan) -> None:
    rows = [
        (
            item.file.folder,
            item.file.name,
            item.file.repository,
            gib(item.nbytes),
            item.state if item.state != "partial" else f"{gib(item.have)} there",
        )
        for item in plan.items
    ]
    table("", ("folder", "file", "publisher", "size", "state"), rows)
    show_note(f"{gib(plan.remaining)} to download to {plan.folder}")


def _report(plan: Plan, done: bool) -> dict[str, Any]:
    return {
        "folder": str(plan.folder),
        "bytes_to_download": 0 if done else plan.remaining,
        "bytes_needed_free": 0 if done else plan.needed,
        "files": [_row(item, done) for item in plan.items],
    }


def _row(item: Item, done: bool) -> dict[str, Any]:
    downloaded = done and item.state != "present"
    return {
        "folder": item.file.folder,
        "name": item.file.name,
        "path": str(item.path),
        "repository": item.file.repository,
        "revision": item.revision,
        "bytes": item.nbytes,
        "hash": str(item.hash) if item.hash is not None else None,
        "state": "downloaded" if downloaded else item.state,
        "bytes_there": item.nbytes if done else item.have,
    }


@contextmanager
def _progress(plan: Plan, quiet: bool) -> Iterator[Report]:
    """A bar per file on a terminal, a line per finished file elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield _silent if quiet else _line
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr()) as progress:
        tasks = {
            item.path: progress.add_task(item.file.name, total=item.nbytes, completed=item.have)
            for item in plan.items
        }
        yield lambda item, done: progress.update(tasks[item.path], completed=done)


def _silent(_: Item, __: int) -> None:
    pass


def _line(item: Item, done: int) -> None:
    if done == item.nbytes:
        show_note(f"{item.file.folder}/{item.file.name}: {gib(done)}")
