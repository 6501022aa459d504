"""A session of drafts: stage 1 only of many prompts and seeds, previewed, measured, on one sheet.

A draft's artefacts are exactly those that a run with its prompt and seed makes or reuses, so
refining it later continues from them. Seeds run prompt by prompt; all prompts are encoded before
the first draft and the transformer is loaded once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.checkpoints.components import Component
from latent_ladder.drafts.draft_page import write_draft_page
from latent_ladder.drafts.draft_run_files import GRID, LIVE, PAGE, SHEET, clip_name
from latent_ladder.drafts.seeds import DraftChoice, draft_request
from latent_ladder.drafts.shared_forwards import Together, group_size
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
from latent_ladder.pipeline.events import DraftDone, DraftStarted
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, make_plan
from latent_ladder.pipeline.preparation import Prepared
from latent_ladder.pipeline.run_options import PartStopped, RunOptions
from latent_ladder.pipeline.run_session import RunSession
from latent_ladder.pipeline.stages.audio_decoding import SAMPLE_RATE_KEY
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.run_records import DraftRecord, RunRecord

FLASH_LEVELS = 30
"""Jump of the mean luma between neighbouring frames that counts as flashing."""
CELL_PX, SMALL_CELL_PX, MANY_CELLS = 224, 160, 16


@dataclass(frozen=True)
class DraftPlan:
    """Planned drafts: ``plans`` are cut after stage 1; ``prepared`` is the request they vary.

    ``kind`` names the preview (``pipeline.latent_preview.KINDS``), ``tiny`` is the decoder of the
    kind "tae".
    """

    prepared: Prepared
    plans: tuple[RunPlan, ...]
    kind: str = "rgb"
    tiny: Component | None = None


@dataclass(frozen=True)
class DraftsResult:
    """Finished drafts: their record, and the folder with the sheet and the video."""

    record: RunRecord
    folder: Path
    warnings: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The HTML page in which all drafts play."""
        return self.folder / PAGE

    @property
    def sheet(self) -> Path:
        """The picture with all drafts."""
        return self.folder / SHEET

    @property
    def video(self) -> Path:
        """The video with all drafts."""
        return self.folder / GRID

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "run": self.record.id,
            "folder": str(self.folder),
            "sheet": str(self.sheet),
            "page": str(self.page),
            "video": str(self.video),
            "request": dict(self.record.request),
            "drafts": [asdict(d) for d in self.record.drafts],
            "warnings": list(self.warnings),
        }


def plan_drafts(prepared: Prepared, choices: Sequence[DraftChoice], kind: str = "rgb") -> DraftPlan:
    """Plan stage 1 of every draft; loads nothing heavy.

    ``prepared`` is the request whose prompt and seed the drafts replace. Raises what
    :func:`latent_ladder.pipeline.run.prepare` raises.
    """
    from latent_ladder.pipeline.latent_preview import check_kind, find_tiny_decoder

    models, library = prepared.plan.models, prepared.library
    tiny = find_tiny_decoder([f.component for f in library.of("preview_vae")], models.video_vae)
    check_kind(kind, tiny)
    requests = [draft_request(prepared.request, choice) for choice in choices]
    plans = tuple(_cut_after_base(make_plan(r, models, library), kind, prepared) for r in requests)
    return DraftPlan(prepared, plans, kind, tiny)


def _cut_after_base(plan: RunPlan, kind: str, prepared: Prepared) -> RunPlan:
    """The plan up to its base stage; for a full preview also the sound of that stage."""
    base = next(s for s in plan.stages if s.kind == "base")
    stages = list(_with_inputs(plan, base))
    if kind == "full" and plan.request.resolved.has_sound:
        request = plan.request.model_copy(update={"audio": "keep"})
        sound = make_plan(request, plan.models, prepared.library).sound
        stages += [sound] if sound is not None else []
    return replace(plan, stages=tuple(stages))


def _with_inputs(plan: RunPlan, stage: PlannedStage) -> tuple[PlannedStage, ...]:
    """The stage and all stages that it needs, in the order they run."""
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
    for name in (SHEET, PAGE):
        if (folder / name).exists() and not overwrite:
            raise MediaError(
                f"{folder / name} already exists",
                "--overwrite replaces it, or name another folder with -o",
            )
    check_video_path(folder / GRID, overwrite)


def run_drafts(
    plan: DraftPlan,
    options: RunOptions,
    folder: Path | None = None,
    together: Together = 1,
    *,
    clips: bool = False,
) -> DraftsResult:
    """Make the drafts that the store does not have; write the sheet and the grid video.

    ``folder`` is ``drafts-RUN`` in the working folder unless it is named. ``together`` drafts
    share each forward of the transformer, see :mod:`.shared_forwards`. ``clips`` writes a file of
    its own for each draft, too (:func:`clip_name`). A draft that fails, or that
    ``options.cancel`` stops by its number, is recorded as failed and the others go on. Raises
    :class:`LadderError` if all fail, or for a problem that concerns all of them.
    """
    if folder is not None:
        check_folder(folder, options.overwrite)
    for warning in plan.prepared.warnings:
        options.on_event(warning)
    return DraftRun(plan, options, folder, together, clips=clips).run()


class DraftRun:
    """One session of drafts under way."""

    def __init__(
        self,
        plan: DraftPlan,
        options: RunOptions,
        folder: Path | None,
        together: Together = 1,
        *,
        clips: bool = False,
    ) -> None:
        self._plan, self._together, self._clips = plan, together, clips
        stages = {stage.key: stage for one in plan.plans for stage in one.stages}
        prompts_first = sorted(stages.values(), key=lambda stage: stage.kind != "prompt")
        self._whole = replace(plan.plans[0], stages=tuple(prompts_first))
        drafts = tuple(
            DraftRecord(n, p.request.prompt, p.request.seed, tuple(s.key for s in p.stages))
            for n, p in enumerate(plan.plans, 1)
        )
        request = plan.prepared.request.to_dict()
        session = RunSession(
            plan.prepared, self._whole, options, request, kind="draft", drafts=drafts
        )
        # a folder without a name gets the run's id, so that sessions never share one
        self._folder = folder or Path(f"drafts-{session.recorder.record.id}")
        session.recorder.update(output=str(self._folder))
        self._session = session

    @property
    def _drafts(self) -> tuple[DraftRecord, ...]:
        return self._session.recorder.record.drafts

    def run(self) -> DraftsResult:
        """Make, preview and measure all drafts."""
        session = self._session
        with session.recorder.recording():
            if not self._folder.exists():
                check_folder(self._folder)
            whole = _without_unused_prompts(session.mark_stored(self._whole))
            missing = [stage for stage in whole.stages if not stage.stored]
            session.total = len(missing)
            live = self._folder / LIVE if any(s.sigmas for s in missing) else None
            session.open_runner(whole, self._plan.prepared.memory, live)
            for stage in missing:
                if stage.kind == "prompt":
                    session.run_stage(whole, stage)
            for group in self._groups():
                if len(group) == 1 or not self._make_together(group):
                    for draft, plan in group:
                        self._make_draft(draft, plan)
            session.runner.release()
            self._write_previews()
            failed = [d for d in self._drafts if d.status == "failed"]
            if len(failed) == len(self._drafts):
                raise LadderError(f"all {len(failed)} drafts failed; the first: {failed[0].error}")
        warnings = tuple(w.message for w in session.warnings)
        return DraftsResult(session.recorder.record, self._folder, warnings)

    def _groups(self) -> list[list[tuple[DraftRecord, RunPlan]]]:
        """Drafts in the order they are made; those of a group can share forwards."""
        drafts = list(zip(self._drafts, self._plan.plans, strict=True))
        if self._together == 1:
            return [[one] for one in drafts]
        memory = self._session.memory.of(self._plan.plans[0].latents.name)
        size, limit = group_size(self._together, memory, self._session.runner.budget)
        if limit is not None:
            self._session.warn("fewer_together", limit)
        missing = [one for one in drafts if not self._session.mark_stored(one[1]).latents.stored]
        stored = [[one] for one in drafts if one not in missing]
        return stored + [missing[n : n + size] for n in range(0, len(missing), size)]

    def _make_together(self, group: Sequence[tuple[DraftRecord, RunPlan]]) -> bool:
        """Run stage 1 of several drafts with shared forwards; false if they need single runs."""
        session, began = self._session, time.monotonic()
        with ExitStack() as locks:
            # always in one order, so that two processes cannot wait for each other
            for plan in sorted((plan for _, plan in group), key=lambda plan: plan.run_key):
                locks.enter_context(session.lock(plan))
            if any(session.mark_stored(plan).latents.stored for _, plan in group):
                return False
            try:
                for _, plan in group:
                    self._make_inputs(plan)
            except (Cancelled, StoreError):
                raise
            except LadderError:
                return False  # single runs record it
            for draft, _ in group:
                session.emit(
                    DraftStarted(draft.number, len(self._drafts), draft.prompt, draft.seed)
                )
            if not session.run_stages_together([(plan, plan.latents) for _, plan in group]):
                return False
        share = (time.monotonic() - began) / len(group)
        for draft, _ in group:
            session.recorder.set_draft(replace(draft, status="done", seconds=share))
            session.emit(DraftDone(draft.number))
        return True

    def _make_inputs(self, plan: RunPlan) -> None:
        """Make what the base stage of a draft reads and the store does not have."""
        found = self._session.mark_stored(plan)
        for stage in found.stages:
            if stage is not found.latents and stage.kind != "sound" and not stage.stored:
                self._session.run_stage(plan, stage)

    def _make_draft(self, draft: DraftRecord, plan: RunPlan) -> None:
        """Run stage 1 of one draft; if it fails, record its error."""
        session = self._session
        session.emit(DraftStarted(draft.number, len(self._drafts), draft.prompt, draft.seed))
        began = time.monotonic()
        stopped = False
        try:
            with session.options.cancel.in_part(draft.number), session.lock(plan):
                reused = self._run_stages(plan)
            draft = replace(draft, status="done", reused=reused)
        except (Cancelled, StoreError):
            raise
        except LadderError as error:
            stopped = isinstance(error, PartStopped)
            text = f"draft {draft.number} (seed {draft.seed}): {error.message}"
            session.warn("draft_stopped" if stopped else "draft_failed", text)
            draft = replace(draft, status="failed", error=error.message)
        session.recorder.set_draft(replace(draft, seconds=time.monotonic() - began))
        session.emit(DraftDone(draft.number, draft.error, stopped))

    def _run_stages(self, plan: RunPlan) -> bool:
        """Make the missing stages of a draft; true if its base stage was stored already."""
        found = self._session.mark_stored(plan)
        base = found.latents
        for stage in found.stages:
            if stage.kind == "sound":
                continue  # decoded later, when the transformer is unloaded
            if not stage.stored and (stage is base or not base.stored):
                self._session.run_stage(plan, stage)
            elif stage is base:
                self._session.reuse_stage(stage)
        return base.stored

    # -- previews -----------------------------------------------------------------------------

    def _write_previews(self) -> None:
        """Decode every draft as its preview shows it, measure it, write the sheet and the video."""
        from latent_ladder.pipeline.latent_preview import preview_stream

        session, plan, first = self._session, self._plan, self._plan.plans[0].request
        resolution, vae = first.resolutions[0], plan.prepared.plan.models.video_vae
        longest = CELL_PX if len(self._drafts) <= MANY_CELLS else SMALL_CELL_PX
        size = cell_size(resolution.width, resolution.height, longest)
        stream = preview_stream(plan.kind, vae, session.store, plan.tiny, session.runner.device)
        cells = []
        for draft, one in zip(self._drafts, plan.plans, strict=True):
            session.check_cancelled()
            frames, note = np.zeros((0, size[1], size[0], 3), np.uint8), draft.error or ""
            if draft.status == "done":
                latents = session.load(one.latents)["video"]
                small = _SmallFrames(self._written(draft, stream(latents), one), size)
                finite = bool(latents.isfinite().all())
                metrics = draft_metrics(small, float(resolution.fps), finite, self._sound(one))
                frames, note = small.frames(), " ".join(metrics["flags"])
                session.recorder.set_draft(replace(draft, metrics=metrics))
            cells.append(Cell(draft.number, draft.seed, draft.prompt, frames, note))
        self._write_files(cells, size)
        write_draft_page(
            self._folder / PAGE,
            session.recorder.record,
            cells,
            resolution.fps,
            store=session.store.root,
            command=session.options.command,
        )

    def _written(
        self, draft: DraftRecord, chunks: Iterator[NDArray[np.uint8]], plan: RunPlan
    ) -> Iterator[NDArray[np.uint8]]:
        """The chunks unchanged; at their end the draft's own clip is written, if it is wanted."""
        kept: list[NDArray[np.uint8]] = []
        for chunk in chunks:
            if self._clips:
                kept.append(chunk)
            yield chunk
        if not kept:
            return
        height, width = kept[0].shape[1:3]
        write_video(
            self._folder / clip_name(draft.number),
            iter(kept),
            VideoSpec((width, height), plan.request.resolutions[0].fps),
            audio=self._sound(plan),
            overwrite=True,
        )

    def _sound(self, plan: RunPlan) -> tuple[NDArray[np.float32], int] | None:
        """Waveform of the base stage and its sample rate; ``None`` but for a full preview."""
        stage = plan.sound
        if stage is None:
            return None
        if self._session.store.get(stage.key) is None:
            self._session.run_stage(plan, stage)
        found = self._session.load(stage)
        return found["waveform"].numpy(), int(found[SAMPLE_RATE_KEY])

    def _write_files(self, cells: Sequence[Cell], size: tuple[int, int]) -> None:
        path = self._folder / SHEET
        data = contact_sheet(cells, size)
        with convert_write_errors(
            MediaError, f"contact sheet {path.name}", self._folder, len(data)
        ):
            write_atomically(path, data)
        if any(len(cell.frames) for cell in cells):
            fps = self._plan.plans[0].request.resolutions[0].fps
            write_video(
                self._folder / GRID,
                grid_frames(cells, size),
                VideoSpec(grid_size(len(cells), size), fps),
                overwrite=self._session.options.overwrite,
            )


def _without_unused_prompts(plan: RunPlan) -> RunPlan:
    """The plan without the prompts that only stored drafts need."""
    used = {key for s in plan.stages if not s.stored for key in s.inputs}
    stages = tuple(s for s in plan.stages if s.kind != "prompt" or s.key in used)
    return replace(plan, stages=stages)


class _SmallFrames:
    """Frames of a draft while they are measured; keeps copies in the size of a cell."""

    def __init__(self, chunks: Iterator[NDArray[np.uint8]], size: tuple[int, int]) -> None:
        self._chunks, self._size = chunks, size
        self._small: list[NDArray[np.uint8]] = []

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for chunk in self._chunks:
            self._small.append(resize_frames(chunk, self._size))
            yield chunk

    def frames(self) -> NDArray[np.uint8]:
        """All frames seen so far, in the size of a cell."""
        return np.concatenate(self._small)


def draft_metrics(
    frames: _SmallFrames | Sequence[NDArray[np.uint8]],
    fps: float,
    finite: bool = True,
    sound: tuple[NDArray[np.float32], int] | None = None,
) -> dict[str, Any]:
    """The metrics of ``metrics.measure.measure_clip`` as plain data, and ``flags``.

    ``flags`` are "NaN" (latents not ``finite``), "flashing" (the mean luma jumps by more than
    :data:`FLASH_LEVELS` between two frames) and the first words of the clip's warnings: "static",
    "dark" ...
    """
    from latent_ladder.metrics.measure import measure_clip

    means: list[float] = []
    measured = measure_clip(_add_means(frames, means), fps, sound)
    flags = [] if finite else ["NaN"]
    flags += ["flashing"] if np.abs(np.diff(means)).max(initial=0) > FLASH_LEVELS else []
    flags += [text.split(":")[0] for text in measured.warnings]
    return measured.to_dict() | {"flags": list(dict.fromkeys(flags))}


def _add_means(
    frames: _SmallFrames | Sequence[NDArray[np.uint8]], means: list[float]
) -> Iterator[NDArray[np.uint8]]:
    """The chunks unchanged; the mean luma of each frame is added to ``means``."""
    for chunk in frames:
        means += (chunk.mean((1, 2)) @ (0.2126, 0.7152, 0.0722)).tolist()
        yield chunk
