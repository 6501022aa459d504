"""``ladder sweep``: one clip with many settings, and one report that says which to take."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands.flags import (
    InputFlags,
    Json,
    MemoryFlags,
    Overwrite,
    Quiet,
    RequestFlags,
    StoreFolder,
    flags,
    open_store,
    prepare,
)
from latent_ladder.cli.commands.run_progress import watched
from latent_ladder.cli.commands.upscale import UNSAID, upscale_fields
from latent_ladder.cli.console import show_note, table
from latent_ladder.errors import MediaError, RequestError

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared
    from latent_ladder.storage.artifact_store import Store
    from latent_ladder.sweeps.recommend import Choice
    from latent_ladder.sweeps.sweep_plan import Sweep
    from latent_ladder.sweeps.sweep_run import SweepResult

ReportFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the report (else sweep-ID).")
]
Zip = Annotated[
    bool, typer.Option("--zip", help="Go through all --set lists together instead of all pairs.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Make more than 64 points.")]
Keep = Annotated[
    float,
    typer.Option("--keep-motion", help="Share of the most motion kept that a good point keeps."),
]

FACTOR = 2.0
"""By how much a video of any source is enlarged."""

_RUN = re.compile(r"(last|\d[0-9a-hjkmnp-tv-z]{2,7})(:\d+)?")
"""How a run is named: ``last``, an id or its beginning, and a draft's number."""


def register(app: typer.Typer) -> None:
    """Add ``sweep``."""
    app.command()(flags(sweep))


def sweep(
    asked: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    output: ReportFolder = None,
    zipped: Zip = False,
    keep_motion: Keep = 0.9,
    yes: Yes = False,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Try many settings of a clip (RUN, RUN:3, a prompt or clip.mp4) and write one report.

    --set refine.denoise=0.2:0.8:0.1 is a range with both ends, --set refine.seed=same,other a list;
    refine.lora is the strength of the stage's LoRA. What points share is made once.
    """
    from latent_ladder.sweeps.axes import parse_axes
    from latent_ladder.sweeps.export import check_folder, default_folder
    from latent_ladder.sweeps.sweep_plan import plan_sweep

    axes = parse_axes(asked.sets or ())
    if not axes:
        raise RequestError("there is nothing to sweep", "add --set refine.denoise=0.2:0.8:0.1")
    if not 0 < keep_motion <= 1:
        raise RequestError(f"keep-motion={keep_motion:g} is not a share", "use 0.9")
    opened = open_store(store)
    prepared = _prepared(replace(asked, sets=None), inputs, memory, store, opened)
    planned = plan_sweep(prepared, axes, zipped=zipped, agreed=yes, source=asked.prompt or "")
    folder = output or default_folder(planned)
    check_folder(folder, planned, overwrite)
    command = shlex.join(["ladder", *sys.argv[1:]])
    result, choice = _carry_out(planned, folder, memory, command, quiet or as_json, keep_motion)
    _print(planned, result, choice, folder, as_json)


def _prepared(
    asked: RequestFlags, inputs: InputFlags, memory: MemoryFlags, store: Path | None, opened: Store
) -> Prepared:
    """The clip that is varied: a stored one, one in a file, or a new one of a prompt."""
    target = asked.prompt
    if target is None or any(letter.isspace() for letter in target.strip()):
        return prepare(asked, memory, store, inputs)
    if Path(target).exists():
        path = Path(target)
        if _carries_request(path):
            return prepare(replace(asked, prompt=None, source=path), memory, store, inputs)
        return _of_any_video(asked, path, memory, opened)
    if Path(target).suffix or Path(target).name != target:
        raise MediaError(
            f"there is no file {target}", "check the path; a prompt is a whole sentence"
        )
    if _RUN.fullmatch(target) is None:
        return prepare(asked, memory, store, inputs)  # a prompt of one word
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.drafts.selection import choose, searched_folders
    from latent_ladder.pipeline import run as pipeline

    chosen = choose(opened, target)
    library = scan(model_folders(asked.folders or searched_folders(chosen)))
    request = replace(asked, prompt=None).request(library, inputs, chosen.request.to_dict())
    return pipeline.prepare(request, library, opened, memory.options(), memory.device)


def _carries_request(path: Path) -> bool:
    """Whether a file is a request, or a clip that holds one."""
    from latent_ladder.media.video_reader import read_metadata
    from latent_ladder.request.files import METADATA_KEY, READERS

    return path.suffix.lower() in READERS or METADATA_KEY in read_metadata(path)


def _of_any_video(asked: RequestFlags, path: Path, memory: MemoryFlags, opened: Store) -> Prepared:
    """A video of any source: it enters at the upsample stage, as with ``ladder upscale``."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.media.video_input import check_video
    from latent_ladder.pipeline import run as pipeline
    from latent_ladder.request.model import override
    from latent_ladder.request.presets import read_preset

    library = scan(model_folders(asked.folders or ()))
    fields = read_preset(asked.preset or pipeline.default_preset(library)).fields
    refine = [stage for stage in fields["stages"] if stage["kind"] == "refine"]
    if not refine:
        raise RequestError("the preset has no refine stage", "choose another --preset")
    given = upscale_fields(path, check_video(path), FACTOR)
    factor = given.pop("upsample_by", FACTOR)
    stages = [fields["stages"][0], {"kind": "upsample", "factor": factor}, refine[-1]]
    start = override(fields, {"prompt": UNSAID, **given, "stages": stages})
    request = replace(asked, prompt=None).request(library, None, start)
    return pipeline.prepare(request, library, opened, memory.options(), memory.device)


def _carry_out(
    planned: Sweep, folder: Path, memory: MemoryFlags, command: str, quiet: bool, keep: float
) -> tuple[SweepResult, Choice]:
    from latent_ladder.sweeps.export import write_files
    from latent_ladder.sweeps.html_report import Report, write_page
    from latent_ladder.sweeps.recommend import choose_point
    from latent_ladder.sweeps.sweep_run import run_sweep

    watch = watched(
        planned.prepared, memory.device, command, overwrite=True, quiet=quiet, kept="points"
    )
    with watch as options:
        result = run_sweep(planned, options, folder)
    choice = choose_point(result.points, result.drafts, keep)
    write_files(folder, planned, result, choice, command)
    write_page(Report(planned, result, choice, folder, command))
    return result, choice


def _print(
    planned: Sweep, result: SweepResult, choice: Choice, folder: Path, as_json: bool
) -> None:
    from latent_ladder.sweeps.export import PAGE, body
    from latent_ladder.sweeps.html_report import format_number
    from latent_ladder.sweeps.point_results import SHOWN

    if as_json:
        data: dict[str, Any] = body(planned, result, choice, shlex.join(["ladder", *sys.argv[1:]]))
        report = {"report": str(folder / PAGE), **data}
        print(json.dumps(report, ensure_ascii=False, indent=2))
        return
    names = ("motion_kept", "detail_added_db", "structure_similarity", "flicker", "seconds")
    rows = [
        (
            f"{p.number}{' *' if p.number == choice.point else ''}",
            planned.describe(planned.points[p.number - 1]),
            "failed" if p.status == "failed" else "done",
            *(format_number(name, p.number_of(name)) for name in names),
        )
        for p in result.points
    ]
    table("", ("point", "settings", "state", *(SHOWN[name][0] for name in names)), rows)
    show_note(choice.why)
    print(folder / PAGE)
