"""Many drafts of a clip: stage 1 only, looked at cheaply, measured, on one sheet.

A draft's artefacts are exactly those that making the clip with its prompt and seed makes or
reuses, so that refining it later starts where it ended. Seeds run prompt by prompt; all prompts
are encoded before the first draft and the transformer is loaded once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.checkpoints.components import Component
from latent_ladder.drafts.seeds import Asked
from latent_ladder.errors import Cancelled, LadderError, MediaError, StoreError
from latent_ladder.media.contact_sheet import (
    Cell,
    cell_size,
    contact_sheet,
    grid_frames,
    grid_size,
    resize_frames,
)
from latent_ladder.media.video_writer import VideoSpec, check_video_path, write_video
from latent_ladder.pipeline.events import DraftStarted, StageStarted, Waiting
from latent_ladder.pipeline.output import SAMPLE_RATE_KEY
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, has_sound, look_up, make_plan
from latent_ladder.pipeline.run import Prepared, Run, RunOptions
from latent_ladder.request.model import Request
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.run_records import DraftRecord, RunRecord, StageRecord

if TYPE_CHECKING:
    from latent_ladder.pipeline.stage_runner import Workshop

SHEET, GRID, LIVE = "sheet.png", "drafts.mp4", "live.png"
"""The files in the folder of a session: all drafts, all playing, what is being estimated."""

FLASH_LEVELS = 30
CELL_PX, SMALL_CELL_PX, MANY_CELLS = 224, 160, 16


@dataclass(frozen=True)
class Session:
    """Checked drafts: ``prepared`` is that of the first one, ``plans`` are cut after stage 1.

    ``kind`` is how they are looked at (``pipeline.latent_preview.KINDS``), ``tiny`` the decoder
    for the kind "tae".
    """

    prepared: Prepared
    plans: tuple[RunPlan, ...]
    kind: str = "rgb"
    tiny: Component | None = None


@dataclass(frozen=True)
class DraftsResult:
    """Finished drafts: their record, and the files they can be chosen from."""

    record: RunRecord
    folder: Path
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "run": self.record.id,
            "folder": str(self.folder),
            "sheet": str(self.folder / SHEET),
            "video": str(self.folder / GRID),
            "request": dict(self.record.request),
            "drafts": [asdict(d) for d in self.record.drafts],
            "warnings": list(self.warnings),
        }


def draft_request(request: Request, asked: Asked) -> Request:
    """The request of one draft. Raises :class:`RequestError` for an impossible seed or prompt."""
    return Request.from_dict(request.to_dict() | {"prompt": asked.prompt, "seed": asked.seed})


def plan_drafts(prepared: Prepared, asked: Sequence[Asked], kind: str = "rgb") -> Session:
    """Plan stage 1 of every draft; loads nothing heavy.

    ``prepared`` is the request whose prompt and seed the drafts replace. Raises what
    :func:`latent_ladder.pipeline.run.prepare` raises.
    """
    from latent_ladder.pipeline.latent_preview import check_kind, fitting_tiny

    models, library = prepared.plan.models, prepared.library
    tiny = fitting_tiny([f.component for f in library.of("preview_vae")], models.video_vae)
    check_kind(kind, tiny)
    requests = [draft_request(prepared.request, one) for one in asked]
    plans = tuple(_stage_1(make_plan(r, models, library), kind, prepared) for r in requests)
    return Session(prepared, plans, kind, tiny)


def _stage_1(plan: RunPlan, kind: str, prepared: Prepared) -> RunPlan:
    """The plan without what follows its base stage; a full look also hears stage 1's sound."""
    base = next(s for s in plan.stages if s.kind == "base")
    stages = list(_with_inputs(plan, base))
    if kind == "full" and has_sound(plan.request):
        kept = plan.request.model_copy(update={"audio": "keep"})
        sound = make_plan(kept, plan.models, prepared.library).sound
        stages += [sound] if sound is not None else []
    return replace(plan, stages=tuple(stages))


def _with_inputs(plan: RunPlan, stage: PlannedStage) -> tuple[PlannedStage, ...]:
    """The stage and all that it needs, in the order they run."""
    wanted, todo = {stage.key}, [stage]
    while todo:
        keys = set(todo.pop().inputs) - wanted
        wanted |= keys
        todo += [plan.stage(key) for key in keys]
    return tuple(s for s in plan.stages if s.key in wanted)


def check_folder(folder: Path, overwrite: bool = False) -> None:
    """Make the folder; raise :class:`MediaError` if the session's files cannot be written there."""
    with convert_write_errors(MediaError, f"folder {folder}", folder.parent, 0):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / SHEET).exists() and not overwrite:
        raise MediaError(
            f"{folder / SHEET} already exists", "allow overwriting, or choose another folder"
        )
    check_video_path(folder / GRID, overwrite)


def run_drafts(session: Session, options: RunOptions, folder: Path | None = None) -> DraftsResult:
    """Make the drafts that the store does not have; write the sheet and the grid video.

    ``folder`` is ``drafts-RUN`` in the working folder unless it is named. A draft that fails is
    recorded so and the others go on. Raises :class:`LadderError` where none succeeds, or for what
    concerns all of them.
    """
    if folder is not None:
        check_folder(folder, options.overwrite)
    for warning in session.prepared.warnings:
        options.on_event(warning)
    return DraftRun(session, options, folder).drafts()


class DraftRun(Run):
    """One session under way."""

    def __init__(self, session: Session, options: RunOptions, folder: Path | None) -> None:
        plans = session.plans
        stages = {stage.key: stage for plan in plans for stage in plan.stages}
        prompts_first = sorted(stages.values(), key=lambda stage: stage.kind != "prompt")
        whole = replace(plans[0], stages=tuple(prompts_first))
        super().__init__(replace(session.prepared, plan=whole), folder or Path(), options)
        self._session = session
        self._folder = folder or Path(f"drafts-{self._record.id}")
        # One folder as it is, an unnamed one with the run's number: nothing is ever mixed up.
        self._options = replace(options, preview=self._folder / LIVE)
        drafts = tuple(
            DraftRecord(n, p.request.prompt, p.request.seed, tuple(s.key for s in p.stages))
            for n, p in enumerate(plans, 1)
        )
        self._record = self._save(
            replace(
                self._record,
                kind="draft",
                drafts=drafts,
                output=str(self._folder),
                request=session.prepared.request.to_dict(),
            )
        )

    def drafts(self) -> DraftsResult:
        """Make them all."""
        with self._recorded():
            if not self._folder.exists():
                check_folder(self._folder)
            self._refreshed()
            todo = self._todo()
            workshop = self._workshop()
            if any(s.sigmas for s in todo):
                self._watch()
            self._of = len(todo)
            for stage in todo:
                if stage.kind == "prompt":
                    self._make(stage, workshop)
            for draft, plan in zip(self._record.drafts, self._session.plans, strict=True):
                self._one(draft, plan, workshop)
            workshop.release()
            self._show(workshop)
            failed = [d for d in self._record.drafts if d.status == "failed"]
            if len(failed) == len(self._record.drafts):
                raise LadderError(f"all {len(failed)} drafts failed; the first: {failed[0].error}")
        return DraftsResult(self._record, self._folder, tuple(w.message for w in self._warnings))

    def _todo(self) -> list[PlannedStage]:
        """What the store lacks; prompts of drafts that it has are left out of the plan."""
        used = {key for s in self._plan.stages if not s.stored for key in s.inputs}
        stages = [s for s in self._plan.stages if s.kind != "prompt" or s.key in used]
        self._plan = replace(self._plan, stages=tuple(stages))
        return [s for s in stages if not s.stored]

    def _one(self, draft: DraftRecord, plan: RunPlan, workshop: Workshop) -> None:
        """Stage 1 of one draft; what goes wrong with it is recorded."""
        of = len(self._record.drafts)
        self._options.on_event(DraftStarted(draft.number, of, draft.prompt, draft.seed))
        began = time.monotonic()
        workshop.turn_to(plan)
        lock = self._store.lock(
            plan.run_key,
            on_wait=lambda pid: self._options.on_event(Waiting(pid)),
            timeout=self._options.lock_timeout_s,
            poll=self._options.cancel.check,
        )
        try:
            with lock:
                reused = self._draft_stages(plan, workshop)
            draft = replace(draft, status="done", reused=reused)
        except (Cancelled, StoreError):
            raise
        except LadderError as error:
            self._warn("draft_failed", f"draft {draft.number} (seed {draft.seed}): {error.message}")
            draft = replace(draft, status="failed", error=error.message)
        draft = replace(draft, seconds=time.monotonic() - began)
        self._record = self._save(self._record.with_draft(draft))

    def _draft_stages(self, plan: RunPlan, workshop: Workshop) -> bool:
        """Make what is missing of a draft; whether its base stage was there already."""
        found = look_up(plan, self._store, self._on_damage)
        base = found.latents
        for stage in found.stages:
            if stage.kind == "sound":
                continue  # heard later, when the transformer is gone
            if not stage.stored and (stage is base or not base.stored):
                self._make(stage, workshop)
            elif stage is base:
                self._finish(StageRecord(stage.name, stage.key, True, 0.0, 0))
        return base.stored

    def _begin(self, name: str, steps: int, workshop: Workshop) -> float:
        self._started += 1
        of = max(self._of, self._started)
        self._options.on_event(StageStarted(name, self._started, of, steps))
        workshop.begin_measuring()
        return time.monotonic()

    # -- looking ------------------------------------------------------------------------------

    def _show(self, workshop: Workshop) -> None:
        from latent_ladder.pipeline.latent_preview import preview_stream

        session, first = self._session, self._session.plans[0].request
        resolution, vae = first.resolutions[0], session.prepared.plan.models.video_vae
        drafts = self._record.drafts
        longest = CELL_PX if len(drafts) <= MANY_CELLS else SMALL_CELL_PX
        size = cell_size(resolution.width, resolution.height, longest)
        stream = preview_stream(session.kind, vae, self._store, session.tiny, workshop.device)
        cells = []
        for draft, plan in zip(drafts, session.plans, strict=True):
            self._options.cancel.check()
            frames, note = np.zeros((0, size[1], size[0], 3), np.uint8), draft.error or ""
            if draft.status == "done":
                latents = self._load(plan.latents.key)["video"]
                look = _Look(stream(latents), size)
                sound = self._sound(plan, workshop)
                finite = bool(latents.isfinite().all())
                metrics = draft_metrics(look, float(resolution.fps), finite, sound)
                frames, note = look.small(), " ".join(metrics["flags"])
                self._record = self._save(self._record.with_draft(replace(draft, metrics=metrics)))
            cells.append(Cell(draft.number, draft.seed, draft.prompt, frames, note))
        self._write_files(cells, size)

    def _sound(self, plan: RunPlan, workshop: Workshop) -> tuple[NDArray[np.float32], int] | None:
        """Stage 1's waveform and its rate, where the look is a full one."""
        stage = plan.sound
        if stage is None:
            return None
        workshop.turn_to(plan)
        if self._store.get(stage.key) is None:
            self._make(stage, workshop)
        found = self._load(stage.key)
        return found["waveform"].numpy(), int(found[SAMPLE_RATE_KEY])

    def _write_files(self, cells: Sequence[Cell], size: tuple[int, int]) -> None:
        path = self._folder / SHEET
        data = contact_sheet(cells, size)
        with convert_write_errors(
            MediaError, f"contact sheet {path.name}", self._folder, len(data)
        ):
            write_atomically(path, data)
        if any(len(cell.frames) for cell in cells):
            fps = self._session.plans[0].request.resolutions[0].fps
            write_video(
                self._folder / GRID,
                grid_frames(cells, size),
                VideoSpec(grid_size(len(cells), size), fps),
                overwrite=self._options.overwrite,
            )


class _Look:
    """Frames on their way to be measured; small copies of them are kept."""

    def __init__(self, chunks: Iterator[NDArray[np.uint8]], size: tuple[int, int]) -> None:
        self._chunks, self._size = chunks, size
        self._kept: list[NDArray[np.uint8]] = []

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for chunk in self._chunks:
            self._kept.append(resize_frames(chunk, self._size))
            yield chunk

    def small(self) -> NDArray[np.uint8]:
        """All frames in the size of a cell, once they have gone by."""
        return np.concatenate(self._kept)


def draft_metrics(
    frames: _Look | Sequence[NDArray[np.uint8]],
    fps: float,
    finite: bool = True,
    sound: tuple[NDArray[np.float32], int] | None = None,
) -> dict[str, Any]:
    """All measures of ``metrics.measure.measure_clip`` as plain data, and ``flags``.

    ``flags`` are "NaN" (latents not ``finite``), "flashing" (mean luma jumps by more than 30 levels
    between neighbours, anywhere) and the first words of the clip's warnings: "static", "dark" ...
    """
    from latent_ladder.metrics.measure import measure_clip

    means: list[float] = []
    measured = measure_clip(_with_means(frames, means), fps, sound)
    flags = [] if finite else ["NaN"]
    flags += ["flashing"] if np.abs(np.diff(means)).max(initial=0) > FLASH_LEVELS else []
    flags += [text.split(":")[0] for text in measured.warnings]
    return measured.to_dict() | {"flags": list(dict.fromkeys(flags))}


def _with_means(
    frames: _Look | Sequence[NDArray[np.uint8]], means: list[float]
) -> Iterator[NDArray[np.uint8]]:
    """The chunks, each frame's mean luma noted on the way."""
    for chunk in frames:
        means += (chunk.mean((1, 2)) @ (0.2126, 0.7152, 0.0722)).tolist()
        yield chunk
