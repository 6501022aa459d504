"""Carry out a sweep: what points share is made once, each is measured against its draft.

All latents come first, so that the transformer loads once; then every clip is decoded into the
measures, without a file. Results are kept point by point, so a sweep that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import Cancelled, LadderError, MediaError, StoreError
from latent_ladder.memory.planner import MemoryPlan
from latent_ladder.metrics.measure import collect_metrics, compare_clips, iterate_frames
from latent_ladder.metrics.video import ClipMeter
from latent_ladder.pipeline.events import PointDone, PointStarted, StageStarted
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, look_up
from latent_ladder.pipeline.run import Run, RunOptions, fit_memory
from latent_ladder.storage.atomic_write import convert_write_errors
from latent_ladder.storage.run_records import DraftRecord, RunRecord, StageRecord
from latent_ladder.sweeps.frame_capture import Pictures, Spool
from latent_ladder.sweeps.plan import Point, Sweep
from latent_ladder.sweeps.point_results import Measured, keep, kept

if TYPE_CHECKING:
    from latent_ladder.pipeline.stage_runner import Workshop

POINTS = "points"
"""The folder of results inside a sweep's folder."""

SAVE_EVERY_S = 2.0


@dataclass(frozen=True)
class SweepResult:
    """All points in order, the drafts they were measured against by key, and the run's id."""

    run: str
    points: tuple[Measured, ...]
    drafts: dict[str, Measured]
    stages: tuple[StageRecord, ...]
    warnings: tuple[str, ...]


def run_sweep(sweep: Sweep, options: RunOptions, folder: Path) -> SweepResult:
    """Make and measure what is not there yet; results and pictures go to ``folder``/points.

    A point that fails is recorded so and the others go on. Raises :class:`LadderError` for what
    concerns all of them, :class:`Cancelled` when stopped: the same call goes on.
    """
    with convert_write_errors(MediaError, f"folder {folder}", folder.parent, 0):
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
    for warning in sweep.prepared.warnings:
        options.on_event(warning)
    return SweepRun(sweep, options, folder).points()


@dataclass
class _Group:
    """Points that one workshop can make: the same models, held in the same way."""

    plan: RunPlan
    memory: MemoryPlan
    points: list[Point] = field(default_factory=list)


class SweepRun(Run):
    """One sweep under way."""

    def __init__(self, sweep: Sweep, options: RunOptions, folder: Path) -> None:
        stages = sorted(sweep.stages().values(), key=lambda stage: stage.kind != "prompt")
        whole = replace(sweep.prepared.plan, stages=tuple(stages))
        self._saved = 0.0
        super().__init__(replace(sweep.prepared, plan=whole), folder, options)
        self._sweep, self._folder = sweep, folder / POINTS
        self._of, self._done = 0, dict[int, Measured]()
        self._drafts: dict[str, Measured] = {}
        self._spools: dict[str, Spool] = {}
        self._earlier = {
            stage.key: stage.seconds
            for record in sweep.prepared.store.runs.list()[0]
            for stage in record.stages
            if not stage.reused
        }
        drafts = tuple(
            DraftRecord(
                p.number,
                p.plan.request.prompt,
                p.plan.request.seed,
                tuple(s.key for s in p.stages),
                sets=p.sets,
            )
            for p in sweep.points
        )
        self._record = super()._save(replace(self._record, kind="sweep", drafts=drafts))

    def points(self) -> SweepResult:
        """Make and measure them all."""
        with self._recorded():
            for point in self._sweep.points:
                found = kept(self._folder, point.key)
                if found is not None:
                    numbered = replace(found, number=point.number, settings=point.settings)
                    self._finish_point(point, replace(numbered, sets=point.sets), reused=True)
            for group in self._groups():
                self._group(group)
            self._record = super()._save(self._record)
        done = tuple(self._done[p.number] for p in self._sweep.points)
        warnings = tuple(w.message for w in self._warnings)
        return SweepResult(self._record.id, done, self._drafts, self._record.stages, warnings)

    # -- what belongs together ----------------------------------------------------------------

    def _groups(self) -> list[_Group]:
        """Points to do, by models and by how these are held; some may not fit at all."""
        groups: dict[Any, _Group] = {}
        for point in self._sweep.points:
            if point.number in self._done and self._draft_is_known(point):
                continue
            try:
                memory = fit_memory(point.plan, self._options.memory, self._memory.budget.device)
            except LadderError as error:
                self._failed(point, error)
                continue
            held = tuple((s.cost.name, str(s.offload_plan)) for s in memory.stages)
            group = groups.setdefault((id(point.plan.models), held), _Group(point.plan, memory))
            group.points.append(point)
        for group in groups.values():
            stages = {s.key: s for p in group.points for s in p.stages}
            ordered = sorted(stages.values(), key=lambda stage: stage.kind != "prompt")
            group.plan = replace(group.plan, stages=tuple(ordered))
        return list(groups.values())

    def _draft_is_known(self, point: Point) -> bool:
        """Whether the draft of a measured point is there to be shown."""
        if point.draft is None or point.draft.key in self._drafts:
            return True
        found = kept(self._folder, point.draft.key)
        if found is not None:
            self._drafts[point.draft.key] = found
        return found is not None

    def _group(self, group: _Group) -> None:
        self._plan, self._memory = look_up(group.plan, self._store, self._on_damage), group.memory
        self._of = sum(not stage.stored for stage in self._plan.stages)
        workshop = self._workshop()
        todo = [p for p in group.points if p.number not in self._done]
        for point in todo:
            self._step(point, workshop, self._latents)
        workshop.release()
        try:
            for point in group.points:
                if point.number not in self._done or not self._draft_is_known(point):
                    self._step(point, workshop, self._measure)
        finally:
            for spool in self._spools.values():
                spool.close()
            self._spools.clear()

    # -- one point ----------------------------------------------------------------------------

    def _step(
        self, point: Point, workshop: Workshop, work: Callable[[Point, Workshop], None]
    ) -> None:
        """Do a part of a point; what goes wrong with it is recorded."""
        self._options.cancel.check()
        workshop.turn_to(point.plan)
        try:
            work(point, workshop)
        except (Cancelled, StoreError):
            raise
        except LadderError as error:
            self._failed(point, error)

    def _latents(self, point: Point, workshop: Workshop) -> None:
        """Make what the store lacks of it, and nothing that only feeds stored artefacts."""
        said = self._sweep.said(point)
        self._options.on_event(PointStarted(point.number, len(self._sweep.points), said))
        plan = look_up(point.plan, self._store, self._on_damage)
        wanted = {stage.key for stage in plan.needed()}
        if point.draft is not None and not plan.stage(point.draft.key).stored:
            cut = replace(plan, stages=tuple(_until(plan.stages, point.draft)))
            wanted |= {stage.key for stage in cut.needed()}
        for stage in plan.stages:
            if stage.key in wanted:
                self._make(stage, workshop)

    def _measure(self, point: Point, workshop: Workshop) -> None:
        """Decode it into the measures, its draft first if nobody has yet."""
        draft = None if point.draft is None else self._draft(point.draft, workshop)
        if point.number in self._done:
            return
        fps, request = float(point.plan.request.fps), point.plan.request
        self._begin(f"measure #{point.number}", request.frames, workshop)
        latents = self._load(point.plan.latents.key)

        def measure() -> Measured:
            meter, pictures = ClipMeter(fps), Pictures(request.frames)
            frames = pictures.watching(_metered(meter, workshop.frames(latents)))
            against = None
            if draft is None or point.draft is None or point.draft.resolution is None:
                for _ in frames:
                    self._options.cancel.check()
            else:
                watched = self._stoppable(frames)
                draft_fps = float(point.draft.resolution.fps)
                found = compare_clips(draft.frames(), watched, draft_fps, None, fps)
                against = found.to_dict() | {"notes": list(found.notes)}  # as JSON has it
                for _ in watched:  # a draft of fewer frames: see the others too
                    pass
            names, clip = pictures.save(self._folder, point.key, request.fps)
            return Measured(
                point.key, point.number, point.settings, point.sets,
                metrics=collect_metrics(meter, fps, None).to_dict(), comparison=against,
                size=pictures.size, frames=names, shown=pictures.shown, clip=clip,
            )  # fmt: skip

        result = self._fitting("decode", workshop, measure)
        seconds = self._spent(point)
        drafted = None if point.draft is None else point.draft.key
        self._finish_point(point, replace(result, seconds=seconds, draft=drafted))

    def _spent(self, point: Point) -> float:
        """Seconds of the stages after the draft, as far as some run's record tells."""
        drafted = set[str]()
        if point.draft is not None:
            drafted = {s.key for s in _until(point.stages, point.draft)}
        mine = {stage.key for stage in point.stages} - drafted
        seconds = self._earlier | {s.key: s.seconds for s in self._record.stages if not s.reused}
        return sum(seconds.get(key, 0.0) for key in mine)

    def _draft(self, stage: PlannedStage, workshop: Workshop) -> Spool:
        """The decoded frames of a draft: measured and kept on disk when first asked for."""
        if stage.key in self._spools:
            return self._spools[stage.key]
        if stage.resolution is None:
            raise TypeError(f"{stage.name} is not a planned stage of latents")
        resolution, fps = stage.resolution, float(stage.resolution.fps)
        self._begin("measure the draft", resolution.frames, workshop)
        latents = self._load(stage.key)
        spool = Spool(self._folder / f"{stage.key}.rgb")

        def measure() -> Measured:
            meter, pictures = ClipMeter(fps), Pictures(resolution.frames)
            decoded = spool.fill(workshop.drafted_frames(latents))
            for _ in pictures.watching(_metered(meter, decoded)):
                self._options.cancel.check()
            names, clip = pictures.save(self._folder, stage.key, resolution.fps)
            return Measured(
                stage.key, metrics=collect_metrics(meter, fps, None).to_dict(),
                size=pictures.size, frames=names, shown=pictures.shown, clip=clip,
            )  # fmt: skip

        found = self._fitting("decode", workshop, measure)
        keep(self._folder, found)
        self._drafts[stage.key], self._spools[stage.key] = found, spool
        return spool

    def _stoppable(self, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for chunk in chunks:
            self._options.cancel.check()
            yield chunk

    # -- records ------------------------------------------------------------------------------

    def _failed(self, point: Point, error: LadderError) -> None:
        if point.number in self._done:
            return
        self._warn("point_failed", f"point {point.number} ({self._sweep.said(point)}): {error}")
        failed = Measured(
            point.key, point.number, point.settings, point.sets, "failed", error.message
        )
        self._finish_point(point, failed)

    def _finish_point(self, point: Point, result: Measured, reused: bool = False) -> None:
        if result.status == "done" and not reused:
            keep(self._folder, result)
        if point.draft is not None:
            self._draft_is_known(point)
        self._done[point.number] = result
        draft = self._record.drafts[point.number - 1]
        numbers = {"clip": dict(result.metrics), "against_draft": result.comparison}
        draft = replace(
            draft,
            status=result.status,
            error=result.error,
            reused=reused,
            seconds=result.seconds,
            metrics=numbers if result.status == "done" else {},
        )
        self._record = self._save(self._record.with_draft(draft))
        of = len(self._sweep.points)
        self._options.on_event(PointDone(point.number, of, reused, result.error))

    def _begin(self, name: str, steps: int, workshop: Workshop) -> float:
        self._started += 1
        total = max(self._of + 1 + len(self._sweep.points), self._started)
        self._options.on_event(StageStarted(name, self._started, total, steps))
        workshop.begin_measuring()
        return time.monotonic()

    def _save(self, record: RunRecord) -> RunRecord:
        """As a run does, but only now and then meanwhile: records of many points are long."""
        now = time.monotonic()
        if record.status == "running" and now - self._saved < SAVE_EVERY_S:
            return record
        self._saved = now
        return super()._save(record)


def _until(stages: Sequence[PlannedStage], last: PlannedStage) -> Iterator[PlannedStage]:
    """The stages up to ``last`` and with it."""
    for stage in stages:
        yield stage
        if stage.key == last.key:
            return


def _metered(meter: ClipMeter, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
    """The chunks unchanged, each frame measured before it goes on."""
    for chunk in chunks:
        for frame in iterate_frames([chunk]):
            meter.add(frame)
        yield chunk
