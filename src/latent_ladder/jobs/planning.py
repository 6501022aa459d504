"""Jobs checked and planned, without torch: seeds picked, models found, memory fitted.

A checked job is plain JSON data that says all that decides its clips. Running it again, after the
server was killed, makes the same clips and reuses every stored stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from latent_ladder.drafts.seeds import all_drafts
from latent_ladder.drafts.selection import (
    Chosen,
    choose,
    from_stage_1,
    searched_folders,
    with_changes,
)
from latent_ladder.errors import RequestError
from latent_ladder.jobs.downloading import check_accepted, find_entries
from latent_ladder.jobs.job_body import (
    DownloadJob,
    DraftsJob,
    MakeJob,
    RefineJob,
    SweepJob,
    UpscaleJob,
    parse_body,
)
from latent_ladder.jobs.upscaling import DEFAULT_PROMPT, choose_stages, upscale_fields
from latent_ladder.jobs.workplace import Workplace
from latent_ladder.pipeline.preparation import Prepared, prepare
from latent_ladder.pipeline.preset_choice import preset_fields
from latent_ladder.request.auto_duration import auto_not_here
from latent_ladder.request.fields import MAX_SEED
from latent_ladder.request.model import Request, override
from latent_ladder.request.overrides import apply_sets
from latent_ladder.storage.run_records import RunRecord
from latent_ladder.sweeps.axes import parse_axes
from latent_ladder.sweeps.sweep_plan import plan_sweep

SECONDS_DIGITS = 3


@dataclass(frozen=True)
class PlannedJob:
    """A checked job: ``body`` is what a worker gets, ``plans`` one plan for each kind of clip.

    ``times`` is how often each plan runs, ``clips`` are (prompt, seed) of what it makes.
    """

    title: str
    body: Mapping[str, Any]
    plans: tuple[Prepared, ...]
    clips: tuple[tuple[str, int], ...]
    times: int = 1
    last_stage: str | None = None

    def summary(self) -> dict[str, Any]:
        """Plain data for the queue."""
        request = self.plans[0].request if self.plans else None
        warnings = [w for plan in self.plans for w in plan.warnings]
        return {
            "title": self.title,
            "body": dict(self.body),
            "prompt": "" if request is None else request.prompt,
            "preset": "" if request is None else request.preset,
            "seed": None if request is None else request.seed,
            "request": None if request is None else request.to_dict(),
            "clips": [
                {"number": number, "prompt": prompt, "seed": seed}
                for number, (prompt, seed) in enumerate(self.clips, 1)
            ],
            "warnings": [asdict(w) for w in dict.fromkeys(warnings)],
        }


def check_job(data: Mapping[str, Any], place: Workplace) -> dict[str, Any]:
    """The summary of a job that can run. Raises a :class:`LadderError` for one that cannot."""
    place.store.check_writable(create=False)
    return plan_job(data, place).summary()


def plan_job(data: Mapping[str, Any], place: Workplace) -> PlannedJob:
    """Plan a job. Raises a :class:`LadderError` with everything that is wrong."""
    body = parse_body(data)
    return _PLANNERS[type(body)](body, place)


def request_of(
    fields: Mapping[str, Any], sets: Sequence[str], place: Workplace, *, prompt: str = ""
) -> Request:
    """The request of a preset with some fields replaced; its seed is -1 where none is given."""
    library = place.library()
    chosen = fields.get("preset")
    models = fields.get("models")
    checkpoint = models.get("checkpoint") if isinstance(models, Mapping) else None
    start = {} if "stages" in fields else preset_fields(chosen or None, library, checkpoint)
    is_whole = "stages" in fields
    given = {name: value for name, value in fields.items() if name != "preset" or is_whole}
    table = override(start, given)
    if prompt:
        table.setdefault("prompt", prompt)
    if "prompt" not in table:
        raise RequestError("there is no prompt", "say what to show: prompt")
    return Request.from_dict(apply_sets({"seed": -1, **table}, tuple(sets)))


def _prepare(request: Request, place: Workplace, kind: str = "clip") -> Prepared:
    if request.auto_duration is not None and kind != "clip":
        raise auto_not_here(f"`ladder {kind}`")
    return prepare(request, place.library(), place.store, place.memory, place.device, kind)


def _make(body: MakeJob, place: Workplace) -> PlannedJob:
    prepared = _prepare(request_of(body.request, body.sets, place), place)
    request = prepared.request
    seeds = _count_up(request.seed, body.count)
    resolved = body.model_dump() | {"request": request.to_dict(), "sets": []}
    clips = tuple((request.prompt, seed) for seed in seeds)
    return PlannedJob(request.prompt, resolved, (prepared,), clips, body.count)


def _drafts(body: DraftsJob, place: Workplace) -> PlannedJob:
    prepared = _prepare(request_of(body.request, body.sets, place), place, "draft")
    request = prepared.request
    seeds = body.seeds or _count_up(request.seed, body.count)
    choices = all_drafts((request.prompt,), list(dict.fromkeys(seeds)), agreed=False)
    resolved = body.model_dump() | {
        "request": request.to_dict(),
        "sets": [],
        "seeds": [choice.seed for choice in choices],
        "count": len(choices),
    }
    return PlannedJob(request.prompt, resolved, (prepared,), choices, len(choices), "base")


def _count_up(first: int, count: int) -> list[int]:
    """``count`` seeds from ``first`` on, at most the largest seed."""
    return [(first + n) % (MAX_SEED + 1) for n in range(count)]


def _refine(body: RefineJob, place: Workplace) -> PlannedJob:
    names = [f"{body.run}:{number}" for number in dict.fromkeys(body.drafts)] or [body.run]
    chosen = [choose(place.store, name) for name in names]
    plans = tuple(_prepare_refined(one, body, place) for one in chosen)
    resolved = body.model_dump() | {
        "requests": [plan.request.to_dict() for plan in plans],
        "names": [one.name for one in chosen],
        "folders": [str(folder) for folder in searched_folders(chosen[0])],
    }
    clips = tuple((plan.request.prompt, plan.request.seed) for plan in plans)
    return PlannedJob(plans[0].request.prompt, resolved, plans, clips)


def _prepare_refined(chosen: Chosen, body: RefineJob, place: Workplace) -> Prepared:
    place = place if place.folders else replace(place, folders=tuple(searched_folders(chosen)))
    changed = with_changes(chosen, body.sets)
    if body.request:
        changed = Request.from_dict(override(changed.to_dict(), body.request))
    return from_stage_1(chosen, _prepare(changed, place))


def _sweep(body: SweepJob, place: Workplace) -> PlannedJob:
    axes = parse_axes(body.axes)
    source = ""
    if body.run is not None:
        name = f"{body.run}:{body.drafts[0]}" if body.drafts else body.run
        chosen = choose(place.store, name)
        source = chosen.name
        fields = override(with_changes(chosen, body.sets).to_dict(), body.request)
        request = Request.from_dict(fields)
    else:
        request = request_of(body.request, body.sets, place)
    prepared = _prepare(request, place, "sweep")
    planned = plan_sweep(prepared, axes, zipped=body.zipped, source=source)
    resolved = body.model_dump() | {
        "request": prepared.request.to_dict(),
        "run": None,
        "drafts": [],
        "sets": [],
        "source": source,
    }
    clips = tuple((p.plan.request.prompt, p.plan.request.seed) for p in planned.points)
    return PlannedJob(prepared.request.prompt, resolved, (prepared,), clips, len(clips))


def _upscale(body: UpscaleJob, place: Workplace) -> PlannedJob:
    from latent_ladder.media.video_input import check_video

    if (body.upload is None) == (body.run is None):
        raise RequestError("an upscale needs an upload or a run", 'send {"upload": id}')
    path = Path(body.upload) if body.upload else clip_path(place.store.runs.find(body.run or ""))
    start = preset_fields(body.request.get("preset"), place.library())
    fields = upscale_fields(path, check_video(path), body.by)
    factor = fields.pop("upsample_by")
    fields["stages"] = choose_stages(start["stages"], factor, only_base=False)
    fields["prompt"] = body.prompt or DEFAULT_PROMPT
    given = {name: value for name, value in body.request.items() if name != "preset"}
    table = {"seed": -1, **override(override(start, fields), given)}
    sets = (f"refine.denoise={body.denoise}", *body.sets)
    prepared = _prepare(Request.from_dict(apply_sets(table, sets)), place)
    resolved = body.model_dump() | {"request": prepared.request.to_dict(), "source": str(path)}
    clips = ((prepared.request.prompt, prepared.request.seed),)
    return PlannedJob(f"{path.name} x{body.by:g}", resolved, (prepared,), clips)


def clip_path(record: RunRecord) -> Path:
    """The clip that a run wrote. Raises :class:`RequestError` if there is none."""
    path = None if record.output is None or record.drafts else Path(record.output)
    if path is None or not path.is_file():
        raise RequestError(f"run {record.id} has no clip to read", "choose another run")
    return path


def _download(body: DownloadJob, _: Workplace) -> PlannedJob:
    files = find_entries(body.entries)
    check_accepted(files, body.accept_licences)
    title = files[0].name if len(files) == 1 else f"{len(files)} model files"
    return PlannedJob(title, body.model_dump(), (), ())


_PLANNERS: Mapping[type, Callable[[Any, Workplace], PlannedJob]] = {
    MakeJob: _make,
    DraftsJob: _drafts,
    RefineJob: _refine,
    SweepJob: _sweep,
    UpscaleJob: _upscale,
    DownloadJob: _download,
}


# --- the plan as an answer ------------------------------------------------------------------------


def describe_plan(data: Mapping[str, Any], place: Workplace) -> dict[str, Any]:
    """The plan of a job as plain data: stages, seconds, memory, what is reused, warnings."""
    planned = plan_job(data, place)
    if not planned.plans:
        raise RequestError(f"a job of kind {data['kind']} has no plan", "send it to /ladder/jobs")
    reports = [prepared.report() for prepared in planned.plans]
    first = reports[0]
    stages = [_stage(row) for report in reports for row in _shown(report, planned)]
    seconds = [stage["seconds"] for stage in stages if not stage["reused"]]
    known = [value for value in seconds if value is not None]
    return {
        "headline": planned.plans[0].headline(picked=False),
        "request": first["request"],
        "clips": [{"prompt": prompt, "seed": seed} for prompt, seed in planned.clips],
        "stages": stages,
        "seconds": round(sum(known) * planned.times, SECONDS_DIGITS) if known else None,
        "peak_bytes": max((s["peak_bytes"] or 0 for s in stages), default=0) or None,
        "budget_bytes": first["memory"]["budget_bytes"],
        "device": first["memory"]["device"],
        "artifacts_reused": sum(stage["reused"] for stage in stages),
        "advice": first["advice"]["sentence"],
        "warnings": planned.summary()["warnings"],
        "models": [
            {name: model[name] for name in ("role", "file", "bytes")} for model in first["models"]
        ],
    }


def _shown(report: Mapping[str, Any], planned: PlannedJob) -> list[Mapping[str, Any]]:
    """The stages of a report up to the last one that the job runs."""
    rows: list[Mapping[str, Any]] = report["stages"]
    kinds = [row["kind"] for row in rows]
    if planned.last_stage not in kinds:
        return rows
    return rows[: kinds.index(planned.last_stage) + 1]


def _stage(row: Mapping[str, Any]) -> dict[str, Any]:
    seconds = row.get("seconds")
    return {
        "name": row["stage"],
        "kind": row["kind"],
        "width": row.get("width"),
        "height": row.get("height"),
        "frames": row.get("frames"),
        "steps": max(len(row["sigmas"]) - 1, 0),
        "reused": bool(row["stored"]),
        "seconds": None if seconds is None else round(seconds, SECONDS_DIGITS),
        "peak_bytes": row.get("peak_bytes"),
    }
