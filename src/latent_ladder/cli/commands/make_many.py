"""Several clips of one command: ``make --count`` and ``make --prompts``.

All clips are checked before the first one is made. Their seeds and states are in ``NAME.json`` next
to them, so that the same command goes on where it stopped. At the end there are one table
(``NAME.csv``) and one page (``NAME.html``).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.cli.commands.flags import (
    InputFlags,
    MemoryFlags,
    RequestFlags,
    open_store,
)
from latent_ladder.cli.commands.run_progress import current_command, track_run
from latent_ladder.cli.console import print_json, print_lines, print_table, show_error, show_note
from latent_ladder.cli.result_line import clip_lines, folder_lines
from latent_ladder.errors import Cancelled, LadderError, MediaError, RequestError, StoreError
from latent_ladder.jobs.file_names import prompt_stem

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared, RunOptions
    from latent_ladder.request.model import Request
    from latent_ladder.request.prompt_files import PromptRow

MOST_CLIPS = 10_000
PROMPT_CHARACTERS = 40
NUMBERS = ("motion", "detail", "flicker")
"""Measures of each clip in the table and on the page."""


@dataclass(frozen=True)
class ManyOptions:
    """Options of the command for all clips; ``count`` clips are made of each row."""

    count: int = 1
    output: Path | None = None
    store: Path | None = None
    overwrite: bool = False
    quiet: bool = False
    as_json: bool = False
    measure: bool = True
    compare: bool = False


@dataclass(frozen=True)
class ClipState:
    """One clip of the list. ``status`` is "planned", "done" or "failed"."""

    number: int
    output: str
    prompt: str
    seed: int
    status: str = "planned"
    seconds: float = 0.0
    run: str = ""
    error: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Folder of the clips, and ``name``, the beginning of the names of their list and page."""

    folder: Path
    name: str
    stem: str = ""
    suffix: str = ".mp4"

    @property
    def list_file(self) -> Path:
        """The list of the clips."""
        return self.folder / f"{self.name}.json"


def make_many(
    rows: Sequence[PromptRow],
    request_flags: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    options: ManyOptions,
    default_name: str,
) -> tuple[Path, int]:
    """Make ``options.count`` clips of each row; returns the page and the exit code.

    ``default_name`` is the name of the folder without ``options.output``. A clip that fails is
    noted and the others go on; the exit code is then that of its error. Raises
    :class:`LadderError` for whatever concerns all of them.
    """
    began = time.monotonic()
    requests = list(_requests(rows, request_flags, inputs, options.count))
    place = _place(options.output, default_name, requests[0])
    names = _file_names(place, rows, requests, options.count)
    identity = _identity(requests, names)
    place, states = _resume(place, identity, names, requests, options)
    clips = _Clips(place, identity, states, options, memory, request_flags.folders or [])
    clips.check(requests)
    clips.make(requests)
    page = clips.write_results(requests[0])
    _print_states(clips.states, page, time.monotonic() - began, options)
    return page, clips.exit_code


def _requests(
    rows: Sequence[PromptRow], flags: RequestFlags, inputs: InputFlags, count: int
) -> Iterator[Request]:
    """The request of each clip, with seed -1 where none is given."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.request.fields import MAX_SEED

    if len(rows) * count > MOST_CLIPS:
        raise RequestError(f"this makes {len(rows) * count} clips", f"make at most {MOST_CLIPS}")
    library = scan(model_folders(flags.folders or ()))
    for row in rows:
        try:
            own_flags, own_inputs = _with_row(flags, inputs, row)
            request = own_flags.build_request(library, own_inputs)
        except LadderError as error:
            if len(rows) == 1:
                raise
            raise error.in_context(f"row {row.number}") from error
        for n in range(count):
            seed = request.seed if request.seed == -1 else (request.seed + n) % (MAX_SEED + 1)
            yield request.model_copy(update={"seed": seed})


def _with_row(
    flags: RequestFlags, inputs: InputFlags, row: PromptRow
) -> tuple[RequestFlags, InputFlags]:
    """The options of the command with the fields of a row in place of them."""
    own = {k: v for k, v in row.fields.items() if k not in ("audio_in", "video", "output")}
    if "frames" in own or "duration" in own:
        own = {"frames": None, "duration": None, **own}  # type: ignore[dict-item]
    sets = [*_without_fields_of(row, flags.sets or ()), *row.sets]
    flags = replace(flags, prompt=row.prompt, sets=sets or None, **own)  # type: ignore[arg-type]
    files = {k: Path(v) for k, v in row.fields.items() if k in ("audio_in", "video")}
    if row.images:
        inputs = replace(inputs, images=list(row.images))
    return flags, replace(inputs, **files)  # type: ignore[arg-type]


def _without_fields_of(row: PromptRow, sets: Sequence[str]) -> list[str]:
    """The command's ``--set`` texts for fields that the row does not set itself."""
    from latent_ladder.cli.commands.flag_rules import FIELDS, set_path

    own = {set_path(text) for text in row.sets}
    for name in row.fields:
        own.update(FIELDS[name][1] if name in FIELDS else ())
    return [text for text in sets if set_path(text) not in own]


def _place(output: Path | None, default_name: str, request: Request) -> Place:
    from latent_ladder.storage.user_config import configured_path

    suffix = ".mov" if request.output.codec == "prores" else ".mp4"
    if output is None:
        return Place((configured_path("output") or Path()) / default_name, "clips", "", suffix)
    if "%" in output.name:
        raise RequestError(
            f"output {output} is one image sequence for several clips", "name a folder with -o"
        )
    if output.suffix and not output.is_dir():
        return Place(output.parent, f"{output.stem}-clips", output.stem, output.suffix)
    return Place(output, "clips", "", suffix)


def _file_names(
    place: Place, rows: Sequence[PromptRow], requests: Sequence[Request], count: int
) -> list[str]:
    """A file name for each clip, numbered in the order of the list."""
    digits = len(str(len(requests)))
    names = []
    for number, request in enumerate(requests, 1):
        row = rows[(number - 1) // count]
        own = row.fields.get("output")
        if own is not None:
            names.append(_own_name(own, (number - 1) % count, count, place.suffix))
        elif place.stem:
            names.append(f"{place.stem}-{number:0{digits}}{place.suffix}")
        else:
            names.append(f"{number:0{digits}}-{prompt_stem(request.prompt)}{place.suffix}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"{len(twice)} names of clips repeat: {twice[0]}", "give other names")
    return names


def _own_name(name: str, copy: int, count: int, suffix: str) -> str:
    path = Path(name)
    if path.name != name or name in ("", ".", ".."):
        raise RequestError(
            f"output {name!r} of a row is not a plain file name", "name the folder with -o"
        )
    stem = path.stem if count == 1 else f"{path.stem}-{copy + 1}"
    return f"{stem}{path.suffix or suffix}"


def _identity(requests: Sequence[Request], names: Sequence[str]) -> str:
    """Equal for the same clips in the same order, without picked seeds."""
    data = json.dumps([[r.to_dict() for r in requests], list(names)], sort_keys=True)
    return hashlib.blake2b(data.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _resume(
    place: Place,
    identity: str,
    names: Sequence[str],
    requests: Sequence[Request],
    options: ManyOptions,
) -> tuple[Place, list[ClipState]]:
    """The place and the states of an earlier run of the same command, else new ones.

    Seeds that nobody gave are drawn once, so that a second run makes the same clips.
    """
    for number in range(1, MOST_CLIPS):
        earlier = _read_list(place.list_file)
        if earlier is None or earlier["id"] == identity or options.overwrite:
            break
        if options.output is not None:
            raise MediaError(
                f"{place.list_file} is the list of other clips",
                "--overwrite replaces it, or name another folder with -o",
            )
        base = place.folder.name if number == 1 else place.folder.name.rpartition("-")[0]
        place = replace(place, folder=place.folder.with_name(f"{base}-{number + 1}"))
    if earlier is not None and earlier["id"] == identity:
        states = [ClipState(**clip) for clip in earlier["clips"]]
        done = sum(state.status == "done" for state in states)
        if not options.quiet:
            show_note(f"{place.list_file}: {done} of {len(states)} clips are made; going on")
        return place, states
    drawn = int.from_bytes(os.urandom(4), "big")
    seeds = (drawn + n if r.seed == -1 else r.seed for n, r in enumerate(requests))
    return place, [
        ClipState(n, name, request.prompt, seed)
        for n, (name, request, seed) in enumerate(zip(names, requests, seeds, strict=True), 1)
    ]


def _read_list(path: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_text("utf-8"))
        [ClipState(**clip) for clip in table["clips"]]
        return {"id": str(table["id"]), "clips": table["clips"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass
class _Clips:
    """The clips of a list while they are made."""

    place: Place
    identity: str
    states: list[ClipState]
    options: ManyOptions
    memory: MemoryFlags
    folders: Sequence[Path]
    exit_code: int = 0

    def check(self, requests: Sequence[Request]) -> None:
        """Check every clip that is to be made; loads nothing heavy. Raises LadderError."""
        from latent_ladder.drafts.comparison import check_comparison
        from latent_ladder.media.writers import check_clip
        from latent_ladder.request.auto_duration import auto_not_here

        for position, request in enumerate(requests):
            if request.auto_duration is not None:
                raise auto_not_here("`ladder make` with several clips")
            if self._is_done(position):
                continue
            try:
                prepared = self._prepare(position, request)
                if self._is_made(position, prepared):
                    self.states[position] = replace(self.states[position], status="done", error="")
                    continue
                path = self.place.folder / self.states[position].output
                if path.parent.is_dir():
                    settings = request.encoder_settings
                    check_clip(path, self.options.overwrite, settings, request.frames)
                if self.options.compare:
                    check_comparison(prepared, path, self.options.overwrite)
            except LadderError as error:
                if len(requests) == 1:
                    raise
                raise error.in_context(f"clip {position + 1}") from error

    def make(self, requests: Sequence[Request]) -> None:
        """Make the clips that are not made yet."""
        self.place.folder.mkdir(parents=True, exist_ok=True)
        self._save()
        for position, request in enumerate(requests):
            state = self.states[position]
            path = self.place.folder / state.output
            if self._is_done(position):
                continue
            if not self.options.quiet and not self.options.as_json:
                show_note(f"clip {position + 1} of {len(requests)}: {path.name}")
            try:
                self.states[position] = self._make(position, request, path)
            except (Cancelled, StoreError):
                raise
            except LadderError as error:
                show_error(error)
                self.exit_code = self.exit_code or error.exit_code
                self.states[position] = replace(state, status="failed", error=error.message)
            self._save()

    def _is_done(self, position: int) -> bool:
        state = self.states[position]
        return state.status == "done" and (self.place.folder / state.output).exists()

    def _is_made(self, position: int, prepared: Prepared) -> bool:
        """True for a clip that was written just before the command was killed."""
        from latent_ladder.request.files import request_of_clip

        path = self.place.folder / self.states[position].output
        if self.options.overwrite or not path.is_file():
            return False
        try:
            return request_of_clip(path) == prepared.request
        except LadderError:
            return False

    def _prepare(self, position: int, request: Request) -> Prepared:
        from latent_ladder.checkpoints.selection import model_folders, scan
        from latent_ladder.pipeline import run as pipeline

        library = scan(model_folders(self.folders))
        seeded = request.model_copy(update={"seed": self.states[position].seed})
        options = self.memory.to_options()
        store = open_store(self.options.store)
        return pipeline.prepare(seeded, library, store, options, self.memory.device)

    def _make(self, position: int, request: Request, path: Path) -> ClipState:
        from latent_ladder.pipeline.run import execute

        began = time.monotonic()
        prepared = self._prepare(position, request)
        quiet = self.options.quiet or self.options.as_json
        run = track_run(
            prepared,
            current_command(),
            overwrite=self.options.overwrite,
            quiet=quiet,
            parts="clips and stages",
        )
        with run as options:
            result = execute(prepared, path, replace(options, measure=self.options.measure))
            self._compare(prepared, path, options)
        seconds = time.monotonic() - began
        if not quiet:
            show_note("\n".join(clip_lines(result, seconds)))
        return replace(
            self.states[position],
            status="done",
            error="",
            run=result.run,
            seconds=round(seconds, 2),
            metrics={name: (result.metrics or {}).get(name) for name in NUMBERS},
        )

    def _compare(self, prepared: Prepared, path: Path, options: RunOptions) -> None:
        if self.options.compare:
            from latent_ladder.drafts.comparison import write_comparison

            write_comparison(prepared, path, options)

    # -- results ------------------------------------------------------------------------------

    def _save(self) -> None:
        from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

        body = {"id": self.identity, "clips": [asdict(state) for state in self.states]}
        data = json.dumps(body, ensure_ascii=False, indent=1).encode("utf-8", "replace")
        path = self.place.list_file
        with convert_write_errors(MediaError, path.name, path.parent, len(data)):
            write_atomically(path, data)

    def write_results(self, request: Request) -> Path:
        """Write the table and the page; returns the page."""
        from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

        table = self.place.list_file.with_suffix(".csv")
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(("clip", "file", "prompt", "seed", "status", "seconds", *NUMBERS, "error"))
        for s in self.states:
            numbers = [s.metrics.get(name) for name in NUMBERS]
            row = (s.number, s.output, s.prompt, s.seed, s.status, s.seconds, *numbers, s.error)
            writer.writerow(row)
        data = out.getvalue().encode("utf-8", "replace")
        with convert_write_errors(MediaError, table.name, table.parent, len(data)):
            write_atomically(table, data)
        return self._write_page(request)

    def _write_page(self, request: Request) -> Path:
        from latent_ladder._version import __version__
        from latent_ladder.pages.clip_page import ClipCard, ClipPage, clip_page, relative_source
        from latent_ladder.pages.parts import write_html

        size = request.resolved.final_size
        cards = [
            ClipCard(
                number=s.number,
                name=f"{s.output} · seed {s.seed}",
                prompt=s.prompt,
                size=size,
                source=relative_source(Path(s.output)) if s.status == "done" else "",
                numbers={name: s.metrics.get(name) for name in NUMBERS},
                error=s.error or ("" if s.status == "done" else "not made"),
                command=_again(s, self.place),
                has_sound=request.resolved.has_sound,
                facts={"file": s.output, "prompt": s.prompt, "seed": str(s.seed)},
            )
            for s in self.states
        ]
        prompts = {s.prompt for s in self.states}
        made = sum(s.status == "done" for s in self.states)
        page = ClipPage(
            title=next(iter(prompts)) if len(prompts) == 1 else f"{len(prompts)} prompts",
            meta=[f"{made} of {len(self.states)} clips", f"preset {request.preset or '-'}"],
            cards=cards,
            request=request.to_toml(),
            footer=f"latent-ladder {__version__} · {current_command()}",
            with_table=True,
        )
        return write_html(self.place.list_file.with_suffix(".html"), clip_page(page))


def _again(state: ClipState, place: Place) -> str:
    """The command that makes a clip again, with what the user changes."""
    if state.status != "done":
        return ""
    return shlex.join(["ladder", "make", "--from", str(place.folder / state.output)])


def _print_states(
    states: Sequence[ClipState], page: Path, seconds: float, options: ManyOptions
) -> None:
    if options.as_json:
        body = {"page": str(page), "clips": [asdict(state) for state in states]}
        print_json(body)
        return
    if options.quiet:
        print_lines("\n".join(str(page.parent / s.output) for s in states if s.status == "done"))
        return
    rows = []
    for s in states:
        prompt = s.prompt if len(s.prompt) <= PROMPT_CHARACTERS else f"{s.prompt[:39]}…"
        motion = s.metrics.get("motion")
        shown = "-" if motion is None else f"{motion:.2f}"
        time_s = f"{s.seconds:.1f} s" if s.status == "done" else s.status
        rows.append((str(s.number), s.output, str(s.seed), time_s, shown, prompt))
    columns = ("clip", "file", "seed", "time", "motion", "prompt")
    print_table("", columns, rows, whole=("file",), below=("prompt",))
    made = sum(state.status == "done" for state in states)
    print_lines(folder_lines(page, [f"{made} clips"], seconds, [page.with_suffix(".csv")]))
