"""Runs a checked job in the worker: the same functions as the commands of ``ladder``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latent_ladder.errors import Cancelled, LadderError, RequestError, StoreError
from latent_ladder.jobs.downloading import default_target, download
from latent_ladder.jobs.file_names import prompt_stem
from latent_ladder.jobs.workplace import Workplace
from latent_ladder.pipeline.events import DraftDone, DraftStarted, OnEvent
from latent_ladder.pipeline.preparation import Prepared, prepare
from latent_ladder.pipeline.run_options import Cancel, PartStopped, RunOptions
from latent_ladder.request.model import Request
from latent_ladder.request.output import Output

SUFFIX = ".mp4"


@dataclass(frozen=True)
class JobRun:
    """One job under way: its id, its workplace, and the ways to report and to stop."""

    id: str
    body: Mapping[str, Any]
    place: Workplace
    on_event: OnEvent
    cancel: Cancel
    previews: Path

    def options(self, prepared: Prepared, command: Sequence[str], number: int = 0) -> RunOptions:
        """Options of a run of this job; ``command`` are words that a shell would repeat it with."""
        self.previews.mkdir(parents=True, exist_ok=True)
        return RunOptions(
            device=self.place.device,
            memory=prepared.options,
            overwrite=True,  # names contain the job's id: they are this job's own files
            command=shlex.join(command),
            on_event=self.on_event,
            cancel=self.cancel,
            preview=self.previews / f"{number}.png",
        )

    def prepare(self, fields: Mapping[str, Any], kind: str = "clip") -> Prepared:
        """The plan of a request. Raises a :class:`LadderError`."""
        place = self.place
        folders = tuple(Path(folder) for folder in self.body.get("folders", ()))
        if not place.folders and folders:
            place = replace(place, folders=tuple(f for f in folders if f.is_dir()))
        request = Request.from_dict(fields)
        return prepare(request, place.library(), place.store, place.memory, place.device, kind)

    def path(self, prompt: str, number: int = 0, suffix: str = SUFFIX) -> Path:
        """The file or folder of one result; the same each time the job runs."""
        tail = f"-{number}" if number else ""
        return self.place.outputs / f"{prompt_stem(prompt)}-{self.id[:8]}{tail}{suffix}"


def run_job(run: JobRun) -> dict[str, Any]:
    """Run a job to its end: ``runs`` (ids), ``outputs`` (paths) and the run of each clip.

    Raises a :class:`LadderError`, :class:`Cancelled` when stopped.
    """
    kind = str(run.body["kind"])
    if kind not in _RUNNERS:
        raise RequestError(f"kind={kind!r} is no kind of job", f"use one of {', '.join(_RUNNERS)}")
    return _RUNNERS[kind](run)


def _make(run: JobRun) -> dict[str, Any]:
    fields = run.body["request"]
    count = int(run.body["count"])
    tables = [{**fields, "seed": fields["seed"] + n} for n in range(count)]
    return _make_clips(run, tables, "make")


def _refine(run: JobRun) -> dict[str, Any]:
    return _make_clips(run, run.body["requests"], "refine", run.body["names"])


def _upscale(run: JobRun) -> dict[str, Any]:
    words = [run.body["source"]]
    return _make_clips(run, [run.body["request"]], "upscale", words)


def _make_clips(
    run: JobRun, tables: Sequence[Mapping[str, Any]], command: str, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Make one clip per request; one that fails does not end the others."""
    from latent_ladder.pipeline.run import execute

    found: dict[str, Any] = {"runs": [], "outputs": [], "clips": {}}
    errors: list[LadderError] = []
    for number, fields in enumerate(tables, 1):
        path = run.path(fields["prompt"], number if len(tables) > 1 else 0, _suffix(fields))
        named = [names[number - 1]] if names else ["--from", str(path)]
        words = ["ladder", command, *named, "-o", str(path)]

        def make(number: int = number, path: Path = path, words: Sequence[str] = words) -> None:
            prepared = run.prepare(tables[number - 1])
            options = run.options(prepared, words, number)
            result = execute(prepared, path, options)
            pictures = [each for each in result.pictures if each != options.preview]
            found["runs"].append(result.run)
            found["outputs"] += [str(result.output), *map(str, pictures)]
            found["clips"][str(number)] = result.run

        run.on_event(DraftStarted(number, len(tables), fields["prompt"], fields["seed"]))
        error = _try_clip(run, number, make)
        errors += [] if error is None else [error]
    if errors and not found["runs"]:
        raise errors[0]
    return found


def _try_clip(run: JobRun, number: int, make: Callable[[], None]) -> LadderError | None:
    """Make one clip of several and report its end; the error, if it failed or was stopped.

    Raises :class:`Cancelled`, and :class:`StoreError`, which concerns all clips.
    """
    try:
        with run.cancel.in_part(number):
            make()
    except (Cancelled, StoreError):
        raise
    except LadderError as error:
        text = error.message if error.hint is None else f"{error.message} ({error.hint})"
        run.on_event(DraftDone(number, text, isinstance(error, PartStopped)))
        return error
    run.on_event(DraftDone(number))
    return None


def _suffix(fields: Mapping[str, Any]) -> str:
    """The container for the codec of a request."""
    output = Output.model_validate(fields.get("output", {}))
    return ".mov" if output.codec == "prores" else SUFFIX


def _drafts(run: JobRun) -> dict[str, Any]:
    from latent_ladder.drafts.draft_run import plan_drafts, run_drafts
    from latent_ladder.drafts.draft_run_files import clip_name
    from latent_ladder.drafts.seeds import all_drafts
    from latent_ladder.drafts.shared_forwards import parse_together
    from latent_ladder.pipeline.latent_preview import find_tiny_decoder

    body = run.body
    prepared = run.prepare(body["request"], "draft")
    prompt, seeds = prepared.request.prompt, body["seeds"]
    kind = body["preview"]
    if kind == "auto":
        decoders = [found.component for found in prepared.library.of("preview_vae")]
        tiny = find_tiny_decoder(decoders, prepared.plan.models.video_vae)
        kind = "full" if tiny is None else "tae"
    plan = plan_drafts(prepared, all_drafts((prompt,), seeds, agreed=True), kind)
    folder = run.path(prompt, suffix="-drafts")
    words = ["ladder", "draft", prompt, "--seeds", ",".join(map(str, seeds)), "-o", str(folder)]
    options = run.options(prepared, words)
    result = run_drafts(plan, options, folder, parse_together(body["together"]), clips=True)
    made = [draft.number for draft in result.record.drafts if draft.status == "done"]
    return {
        "runs": [result.record.id],
        "outputs": [str(folder / clip_name(number)) for number in made],
        "clips": {str(number): result.record.id for number in made},
        "flags": {str(d.number): list(d.metrics.get("flags", ())) for d in result.record.drafts},
    }


def _sweep(run: JobRun) -> dict[str, Any]:
    from latent_ladder.sweeps.axes import parse_axes
    from latent_ladder.sweeps.report import make_report
    from latent_ladder.sweeps.sweep_plan import plan_sweep

    body = run.body
    prepared = run.prepare(body["request"], "sweep")
    axes = parse_axes(body["axes"])
    planned = plan_sweep(
        prepared, axes, zipped=body["zipped"], agreed=True, source=body.get("source", "")
    )
    folder = run.path(prepared.request.prompt, suffix="-sweep")
    sets = [word for axis in body["axes"] for word in ("--set", axis)]
    words = ["ladder", "sweep", body.get("source") or prepared.request.prompt, *sets]
    options = run.options(prepared, [*words, "-o", str(folder)])
    result, _ = make_report(planned, options, folder, float(body["keep_motion"]))
    numbers = [point.number for point in result.points if point.status == "done"]
    clips = {str(number): result.run for number in numbers}
    return {"runs": [result.run], "outputs": [str(folder / "report.html")], "clips": clips}


def _download(run: JobRun) -> dict[str, Any]:
    folder = run.place.folders[0] if run.place.folders else default_target()
    paths = download(run.body["entries"], folder.absolute(), run.on_event, run.cancel.check)
    return {"runs": [], "outputs": [str(path) for path in paths], "clips": {}}


_RUNNERS: Mapping[str, Callable[[JobRun], dict[str, Any]]] = {
    "make": _make,
    "drafts": _drafts,
    "refine": _refine,
    "sweep": _sweep,
    "upscale": _upscale,
    "download": _download,
}
