"""``ladder sweep``: one clip with several settings, and a report that recommends one of them."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import SWEEP_RULES
from latent_ladder.cli.commands.flags import (
    InputFlags,
    MemoryFlags,
    RequestFlags,
    open_store,
    prepare,
)
from latent_ladder.cli.commands.options import (
    Json,
    Notify,
    Open,
    Overwrite,
    Quiet,
    StoreFolder,
    other_option,
    output_option,
    stage_option,
)
from latent_ladder.cli.commands.run_progress import current_command, track_run
from latent_ladder.cli.console import print_json, print_lines, print_table, show_loading, show_note
from latent_ladder.cli.notify import notify_at_end
from latent_ladder.cli.open_file import open_file
from latent_ladder.cli.result_line import folder_lines
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.jobs.upscaling import DEFAULT_PROMPT, upscale_fields

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared
    from latent_ladder.storage.artifact_store import Store
    from latent_ladder.sweeps.recommend import Choice
    from latent_ladder.sweeps.sweep_plan import Sweep
    from latent_ladder.sweeps.sweep_run import SweepResult

MOST_USED = (
    "sets", "output", "keep_motion", "zipped", "preset", "size", "duration", "seed", "yes",
    "overwrite",
)  # fmt: skip
"""Options that ``sweep`` lists first in its help."""

UPSCALE_FACTOR = 2.0
"""Factor by which a video without a stored request is enlarged."""

ReportFolder = Annotated[
    Path | None,
    output_option(
        "--output", "-o", metavar="FOLDER", help="Folder for the report. Default: sweep-ID."
    ),
]
Zip = Annotated[
    bool,
    stage_option(
        "--zip",
        help="Combine the --set lists value by value, instead of every value with every other.",
    ),
]
Yes = Annotated[
    bool, other_option("--yes", "-y", help="Make more than 64 points without an error.")
]
KeepMotion = Annotated[
    float,
    stage_option(
        "--keep-motion",
        metavar="SHARE",
        help="Recommend only points that keep this share of the motion, from 0 to 1; 1 is the "
        "motion of the point that keeps most.",
    ),
]

_RUN_NAME = re.compile(r"(last|\d[0-9a-hjkmnp-tv-z]{2,7})(:\d+)?")
"""``last`` or the beginning of a run's id, and the number of a draft."""


def register(app: typer.Typer) -> None:
    """Add ``sweep``."""
    app.command(cls=GroupedCommand)(expand_flags(sweep, MOST_USED, SWEEP_RULES))


def sweep(
    request_flags: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    output: ReportFolder = None,
    zipped: Zip = False,
    keep_motion: KeepMotion = 0.9,
    yes: Yes = False,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
    open_result: Open = False,
    notify: Notify = False,
) -> None:
    """Try several settings of a clip and write a report.

    PROMPT may also be a run (last), a draft (last:3) or a clip (clip.mp4).
    --set gives the values: refine.denoise=0.2:0.8:0.1 is a range with both
    ends, refine.seed=same,other a list; refine.lora is the strength of the
    stage's LoRA. What several points need is computed once.
    """
    began = time.monotonic()
    show_loading("reading the headers of the model files", quiet or as_json)
    from latent_ladder.sweeps.axes import parse_axes
    from latent_ladder.sweeps.export import check_folder, default_folder
    from latent_ladder.sweeps.report_files import PAGE
    from latent_ladder.sweeps.sweep_plan import plan_sweep

    axes = parse_axes(request_flags.sets or ())
    if not axes:
        raise RequestError("there is nothing to sweep", "add --set refine.denoise=0.2:0.8:0.1")
    if not 0 < keep_motion <= 1:
        raise RequestError(
            f"keep-motion={keep_motion:g} is not above 0 and at most 1", "use --keep-motion 0.9"
        )
    opened = open_store(store)
    opened.check_writable()
    prepared = _prepare(replace(request_flags, sets=None), inputs, memory, store, opened)
    planned = plan_sweep(
        prepared, axes, zipped=zipped, agreed=yes, source=request_flags.prompt or ""
    )
    folder = output or default_folder(planned)
    check_folder(folder, planned, overwrite)
    with notify_at_end(notify, str(folder)):
        result, choice = _run(planned, folder, quiet or as_json, keep_motion)
    page = folder / PAGE
    if quiet and not as_json:
        print_lines(page)
    else:
        _print_result(planned, result, choice, folder, as_json)
    if not (quiet or as_json):
        facts = [f"{len(result.points)} points", f"seed {prepared.request.seed}"]
        print_lines(folder_lines(page, facts, time.monotonic() - began, []))
    if open_result:
        open_file(page)


def _prepare(
    flags: RequestFlags, inputs: InputFlags, memory: MemoryFlags, store: Path | None, opened: Store
) -> Prepared:
    """The plan of the clip to vary: of a stored run, a file, or a prompt."""
    target = flags.prompt
    if target is None or any(letter.isspace() for letter in target.strip()):
        return prepare(flags, memory, store, inputs, "sweep")
    if Path(target).exists():
        path = Path(target)
        if _has_request(path):
            return prepare(replace(flags, prompt=None, source=path), memory, store, inputs, "sweep")
        return _prepare_video(flags, path, memory, opened)
    if Path(target).suffix or Path(target).name != target:
        raise MediaError(
            f"file {target} does not exist", "check the path; a prompt has several words"
        )
    if _RUN_NAME.fullmatch(target) is None:
        return prepare(flags, memory, store, inputs, "sweep")  # a prompt of one word
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.drafts.selection import choose, searched_folders
    from latent_ladder.pipeline import run as pipeline

    chosen = choose(opened, target)
    library = scan(model_folders(flags.folders or searched_folders(chosen)))
    start = chosen.request.to_dict()
    request = replace(flags, prompt=None).build_request(library, inputs, start)
    return pipeline.prepare(request, library, opened, memory.to_options(), memory.device, "sweep")


def _has_request(path: Path) -> bool:
    """True for a request file, or a clip with a stored request."""
    from latent_ladder.media.video_reader import read_metadata
    from latent_ladder.request.files import METADATA_KEY, READERS

    return path.suffix.lower() in READERS or METADATA_KEY in read_metadata(path)


def _prepare_video(flags: RequestFlags, path: Path, memory: MemoryFlags, opened: Store) -> Prepared:
    """The plan for a video of any source, which is upsampled as by ``ladder upscale``."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.media.video_input import check_video
    from latent_ladder.pipeline import run as pipeline
    from latent_ladder.pipeline.preset_choice import preset_fields
    from latent_ladder.request.model import override

    library = scan(model_folders(flags.folders or ()))
    fields = preset_fields(flags.preset, library)
    refine = [stage for stage in fields["stages"] if stage["kind"] == "refine"]
    if not refine:
        raise RequestError("the preset has no refine stage", "choose another --preset")
    video_fields = upscale_fields(path, check_video(path), UPSCALE_FACTOR)
    factor = video_fields.pop("upsample_by", UPSCALE_FACTOR)
    stages = [fields["stages"][0], {"kind": "upsample", "factor": factor}, refine[-1]]
    start = override(fields, {"prompt": DEFAULT_PROMPT, **video_fields, "stages": stages})
    request = replace(flags, prompt=None).build_request(library, None, start)
    return pipeline.prepare(request, library, opened, memory.to_options(), memory.device, "sweep")


def _run(
    planned: Sweep, folder: Path, quiet: bool, keep_motion: float
) -> tuple[SweepResult, Choice]:
    """Make all points and write the report."""
    from latent_ladder.sweeps.report import make_report

    command = current_command()
    run = track_run(planned.prepared, command, overwrite=True, quiet=quiet, parts="points")
    with run as options:
        return make_report(planned, options, folder, keep_motion)


def _print_result(
    planned: Sweep, result: SweepResult, choice: Choice, folder: Path, as_json: bool
) -> None:
    from latent_ladder.sweeps.export import body
    from latent_ladder.sweeps.html_report import format_number
    from latent_ladder.sweeps.point_results import SHOWN
    from latent_ladder.sweeps.report_files import PAGE

    if as_json:
        data: dict[str, Any] = body(planned, result, choice, current_command())
        report = {"report": str(folder / PAGE), **data}
        print_json(report)
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
    print_table("", ("point", "settings", "state", *(SHOWN[name][0] for name in names)), rows)
    show_note(choice.why)
