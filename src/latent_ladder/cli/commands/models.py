"""``ladder models``: list the model files on this machine, download and identify published ones."""

from __future__ import annotations

import pydoc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.checkpoints.catalog import PRECISIONS, PRECISIONS_2_5, PUBLISHED, option_names
from latent_ladder.cli import completion
from latent_ladder.cli.command_table import CommandGroup, GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.options import Folders, Json, model_option, other_option
from latent_ladder.cli.console import (
    format_bytes,
    print_json,
    print_lines,
    print_table,
    show_note,
    show_warning,
    stderr_console,
)
from latent_ladder.cli.printable import printable
from latent_ladder.errors import Cancelled, CheckpointNotFound, RequestError
from latent_ladder.jobs.downloading import accept_licences, default_target
from latent_ladder.storage.user_folders import expand_home

if TYPE_CHECKING:
    from latent_ladder.checkpoints.catalog import CatalogFile
    from latent_ladder.checkpoints.download import DownloadItem, DownloadPlan, ProgressCallback

FAMILIES = tuple(PUBLISHED)
ALL_PRECISIONS = tuple(dict.fromkeys((*PRECISIONS, *PRECISIONS_2_5)))
OPTIONS = tuple(dict.fromkeys(n for f in PUBLISHED.values() for n in option_names(f.family)))

CONFIRM_ABOVE_BYTES = 10**9
"""A larger download asks for confirmation."""

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=completion.offer(FAMILIES),
        help=f"Model to download: {', '.join(FAMILIES)}.",
    ),
]
Precision = Annotated[
    str | None,
    model_option(
        "--precision",
        metavar="NAME",
        autocompletion=completion.offer(ALL_PRECISIONS),
        help=f"Weight format of the files: {', '.join(PRECISIONS)} for ltx-2.3 (default fp8); "
        f"{', '.join(PRECISIONS_2_5)} for ltx-2.5 (default int8).",
    ),
]
Target = Annotated[
    Path | None,
    model_option(
        "--to",
        metavar="FOLDER",
        help="The models/ folder to download to. Default: the first one that is searched, else "
        "./models.",
    ),
]
Distilled = Annotated[
    bool | None,
    model_option(
        "--distilled/--dev",
        help="The distilled transformer (fewer steps, the default for ltx-2.5), or the dev "
        "transformer with its LoRA (the default for ltx-2.3).",
        show_default=False,
    ),
]
With = Annotated[
    list[str] | None,
    model_option(
        "--with",
        metavar="NAME",
        autocompletion=completion.offer(OPTIONS),
        help=f"Also a file that the usual presets do not need: {', '.join(OPTIONS)}; repeatable.",
    ),
]
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Model files, or names in model folders.")
]
Yes = Annotated[bool, other_option("--yes", "-y", help="Download without asking for confirmation.")]
DryRun = Annotated[
    bool, other_option("--dry-run", help="Print what would be downloaded, and download nothing.")
]


def register(app: typer.Typer) -> None:
    """Add ``models list``, ``models get`` and ``models identify``."""
    models = typer.Typer(
        help="List model files and download them.", no_args_is_help=True, cls=CommandGroup
    )
    models.command("list", cls=GroupedCommand)(expand_flags(list_models))
    models.command("get", cls=GroupedCommand)(expand_flags(get_models))
    models.command("identify", cls=GroupedCommand)(expand_flags(identify_models))
    app.add_typer(models, name="models")


def list_models(folders: Folders = None, as_json: Json = False) -> None:
    """List the model files found, with the role of each.

    The role comes from the content of a file, not from its name.
    """
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
                "embedded": found.is_embedded,
            }
            for role, found in listed
        ]
        unreadable = [{"path": str(p), "why": why} for p, why in library.unreadable]
        print_json({"models": rows, "unreadable": unreadable})
        return
    cells = [
        (role, f.name, format_bytes(f.path.stat().st_size), str(f.folder)) for role, f in listed
    ]
    print_table("", ("role", "file", "size", "folder"), cells, whole=("folder", "file"))
    for path, why in library.unreadable:
        show_warning(f"{path}: {why}")


def get_models(
    name: Name,
    precision: Precision = None,
    to: Target = None,
    distilled: Distilled = None,
    options: With = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download all files of a model into a models/ folder.

    Resumes where an earlier download stopped, skips files that are there,
    and checks sizes and hashes. The files of ltx-2.5 are gated: accept the
    licence on their page first, and set HF_TOKEN. Its text is shown before
    the first download and stays beside the files; --yes accepts it.
    """
    from latent_ladder.checkpoints.download import check_free_space, licence_notes, plan_download

    files = select_files(name, precision, distilled, options or ())
    for note in licence_notes(files):
        show_note(note)
    folder = expand_home(to or default_target()).absolute()
    if any((folder / f.folder / f.name).exists() for f in files):
        show_note("checking the files that are there")
    plan = plan_download(files, folder)
    if not as_json:
        _print_plan(plan)
    if not dry_run:
        check_free_space(plan)
        accept_licences(plan, _no_question if yes else _ask_for_acceptance, show_note)
        _confirm(plan, yes)
        _download(plan, quiet=as_json)
    if as_json:
        print_json(_to_dict(plan, done=not dry_run))
    elif not dry_run:
        print_lines(folder)


def identify_models(files: Files, folders: Folders = None, as_json: Json = False) -> None:
    """Say which published files these are.

    Compares the SHA-256 of the whole file, whatever its name is, and
    remembers it: `ladder` then knows whether a transformer is the dev or
    the distilled one.
    """
    from latent_ladder.checkpoints.catalog import find_published
    from latent_ladder.checkpoints.selection import model_folders
    from latent_ladder.storage.file_hashes import hash_file

    searched = [folder.path for folder in model_folders(folders or ())]
    rows = []
    for path in [_find_file(name, searched) for name in files]:
        n_bytes = path.stat().st_size
        if not as_json:
            show_note(f"reading {path.name}, {format_bytes(n_bytes)}")
        sha256 = hash_file(path, "sha256")
        rows.append((path, sha256, find_published(n_bytes, sha256)))
    if as_json:
        print_json(
            {"files": [
                {"path": str(path), "sha256": sha256,
                 "published": found and {"name": found.name, "repository": found.repository}}
                for path, sha256, found in rows
            ]}
        )  # fmt: skip
        return
    cells = [
        (path.name, found.name if found else "none with a known hash", sha256[:12])
        for path, sha256, found in rows
    ]
    print_table("", ("file", "published as", "sha256"), cells, whole=("file", "published as"))


def _find_file(name: Path, folders: Sequence[Path]) -> Path:
    """The file of this path, or of this name below the model folders."""
    path = expand_home(name)
    if path.is_file():
        return path
    found = (each for folder in folders for each in folder.rglob(path.name) if each.is_file())
    first = next(found, None)
    if first is None:
        raise CheckpointNotFound(f"{name} does not exist", "give the path of a model file")
    return first


def select_files(
    name: str,
    precision: str | None = None,
    distilled: bool | None = None,
    options: Sequence[str] = (),
) -> tuple[CatalogFile, ...]:
    """The published files of a model. Raises :class:`RequestError` if there are none."""
    from latent_ladder.checkpoints.catalog import select_file_set

    model = PUBLISHED.get(name.lower())
    if model is None:
        raise RequestError(
            f"model {name} is not known",
            f"use {' or '.join(f'`ladder models get {known}`' for known in FAMILIES)}",
        )
    wanted = (precision or model.precision).lower()
    if wanted not in model.precisions:
        fault = "published" if wanted in ALL_PRECISIONS else "known"
        raise RequestError(
            f"precision={precision} is not {fault} for {model.name}",
            f"use one of {', '.join(model.precisions)}",
        )
    known = option_names(model.family)
    for option in options:
        if option not in known:
            raise RequestError(
                f"with={option} is no file of {model.name}", f"use one of {', '.join(known)}"
            )
    if distilled is None:
        distilled = model.variant == "distilled"
    # The newest distilled one that is published in this precision.
    for variant in ("distilled-1.1", "distilled") if distilled else ("dev",):
        with suppress(KeyError):
            return select_file_set(wanted, variant, model.family, options)
    raise RequestError(
        f"{name} {'distilled' if distilled else 'dev'} is not published in {wanted}",
        f"use another --precision, or {'--dev' if distilled else '--distilled'}",
    )


def is_terminal() -> bool:
    """True if there is somebody to ask."""
    return sys.stdin.isatty()


def _no_question(_: CatalogFile, __: str) -> None:
    """Accept without asking."""


def _ask_for_acceptance(file: CatalogFile, text: str) -> None:
    from latent_ladder.checkpoints.download import licence_name

    name = licence_name(file)
    if not is_terminal():
        raise RequestError(
            f"{file.repository} needs the acceptance of {name}, and there is no terminal to ask",
            f"read it on https://{file.page}, and add --yes to accept it",
        )
    pydoc.pager(printable(text))
    if not typer.confirm(f"Do you accept {name} of {file.repository}?", err=True):
        raise Cancelled("the licence was not accepted, nothing was downloaded")


def _confirm(plan: DownloadPlan, yes: bool) -> None:
    """Ask before a large download; without a terminal ``--yes`` is needed."""
    if yes or plan.remaining_bytes <= CONFIRM_ABOVE_BYTES:
        return
    if not is_terminal():
        raise RequestError(
            f"downloading {format_bytes(plan.remaining_bytes)} to {plan.folder} needs a "
            "confirmation, and there is no terminal to ask",
            "add --yes",
        )
    if not typer.confirm(
        f"Download {format_bytes(plan.remaining_bytes)} to {plan.folder}?", err=True
    ):
        raise Cancelled("nothing was downloaded")


def _download(plan: DownloadPlan, quiet: bool) -> None:
    from latent_ladder.checkpoints.download import download_files

    try:
        with _show_progress(plan, quiet) as report:
            download_files(plan, report)
    except KeyboardInterrupt as error:
        show_note("stopped; the same command resumes the download")
        raise Cancelled("stopped by the user") from error


def _print_plan(plan: DownloadPlan) -> None:
    rows = [
        (
            item.file.folder,
            item.file.name,
            item.file.repository,
            format_bytes(item.nbytes),
            item.state if item.state != "partial" else f"{format_bytes(item.present_bytes)} there",
        )
        for item in plan.items
    ]
    print_table(
        "",
        ("folder", "file", "publisher", "size", "state"),
        rows,
        whole=("file", "publisher"),
    )
    show_note(f"{format_bytes(plan.remaining_bytes)} to download to {plan.folder}")


def _to_dict(plan: DownloadPlan, done: bool) -> dict[str, Any]:
    return {
        "folder": str(plan.folder),
        "bytes_to_download": 0 if done else plan.remaining_bytes,
        "bytes_needed_free": 0 if done else plan.required_bytes,
        "files": [_file_dict(item, done) for item in plan.items],
    }


def _file_dict(item: DownloadItem, done: bool) -> dict[str, Any]:
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
        "bytes_there": item.nbytes if done else item.present_bytes,
    }


@contextmanager
def _show_progress(plan: DownloadPlan, quiet: bool) -> Iterator[ProgressCallback]:
    """A bar per file on a terminal, else a line per finished file."""
    if quiet or not sys.stderr.isatty():
        yield _ignore_progress if quiet else _print_finished
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
    with Progress(*columns, console=stderr_console()) as progress:
        tasks = {
            item.path: progress.add_task(
                item.file.name, total=item.nbytes, completed=item.present_bytes
            )
            for item in plan.items
        }
        yield lambda item, done: progress.update(tasks[item.path], completed=done)


def _ignore_progress(_: DownloadItem, __: int) -> None:
    pass


def _print_finished(item: DownloadItem, done: int) -> None:
    if done == item.nbytes:
        show_note(f"{item.file.folder}/{item.file.name}: {format_bytes(done)}")
