"""Run of a sweep: stages that points share are made once, each point is measured against its draft.

All latents are made first, so that the transformer loads once; then every clip is decoded into the
metrics, without a file. Results are stored point by point, so a stopped sweep can be continued.
"""

from __future__ import annotations

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
from latent_ladder.pipeline.events import PointDone, PointStarted
from latent_ladder.pipeline.plan import PlannedStage, RunPlan
from latent_ladder.pipeline.preparation import fit_memory
from latent_ladder.pipeline.run_options import RunOptions
from latent_ladder.pipeline.run_session import RunSession
from latent_ladder.storage.atomic_write import convert_write_errors
from latent_ladder.storage.run_records import DraftRecord, StageRecord
from latent_ladder.sweeps.frame_capture import FrameCapture, Spool
from latent_ladder.sweeps.point_results import PointResult, load_result, save_result
from latent_ladder.sweeps.report_files import POINTS
from latent_ladder.sweeps.sweep_plan import Point, Sweep

if TYPE_CHECKING:
    from latent_ladder.pipeline.stages.decoding import DecodeJob

SAVE_EVERY_S = 2.0
"""A running sweep's record is written at most this often: that of many points is long."""


@dataclass(frozen=True)
class SweepResult:
    """All points in order, the drafts they were measured against by key, and the run's id."""

    run: str
    points: tuple[PointResult, ...]
    drafts: dict[str, PointResult]
    stages: tuple[StageRecord, ...]
    warnings: tuple[str, ...]


def run_sweep(sweep: Sweep, options: RunOptions, folder: Path) -> SweepResult:
    """Make and measure the missing points; results and images go to ``folder``/points.

    A point that fails is recorded as failed and the others go on. Raises :class:`LadderError` for
    a problem that concerns all of them, :class:`Cancelled` when stopped: the same call continues.
    """
    with convert_write_errors(MediaError, f"folder {folder}", folder.parent, 0):
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
    for warning in sweep.prepared.warnings:
        options.on_event(warning)
    return SweepRun(sweep, options, folder).run()


@dataclass
class _Group:
    """Points that share models and memory plans, and so a loaded transformer."""

    plan: RunPlan
    memory: MemoryPlan
    points: list[Point] = field(default_factory=list)


class SweepRun:
    """One sweep under way."""

    def __init__(self, sweep: Sweep, options: RunOptions, folder: Path) -> None:
        self._sweep, self._folder = sweep, folder / POINTS
        stages = sorted(sweep.stages().values(), key=lambda stage: stage.kind != "prompt")
        whole = replace(sweep.prepared.plan, stages=tuple(stages))
        self._done = dict[int, PointResult]()
        self._drafts: dict[str, PointResult] = {}
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
        self._session = RunSession(
            sweep.prepared,
            whole,
            options,
            whole.request.to_dict(),
            SAVE_EVERY_S,
            kind="sweep",
            drafts=drafts,
            output=str(folder),
        )

    def run(self) -> SweepResult:
        """Make and measure all points."""
        session = self._session
        with session.recorder.recording():
            for point in self._sweep.points:
                found = load_result(self._folder, point.key)
                if found is not None:
                    numbered = replace(found, number=point.number, settings=point.settings)
                    self._finish_point(point, replace(numbered, sets=point.sets), reused=True)
            for group in self._groups():
                self._run_group(group)
        done = tuple(self._done[p.number] for p in self._sweep.points)
        warnings = tuple(w.message for w in session.warnings)
        record = session.recorder.record
        return SweepResult(record.id, done, self._drafts, record.stages, warnings)

    # -- groups of points ---------------------------------------------------------------------

    def _groups(self) -> list[_Group]:
        """Missing points by models and memory plans; a point that does not fit has failed."""
        groups: dict[Any, _Group] = {}
        session = self._session
        device = self._sweep.prepared.memory.budget.device
        for point in self._sweep.points:
            if point.number in self._done and self._find_draft(point):
                continue
            try:
                memory = fit_memory(point.plan, session.options.memory, device)
            except LadderError as error:
                self._record_failure(point, error)
                continue
            plans = tuple((s.cost.name, str(s.offload_plan)) for s in memory.stages)
            group = groups.setdefault((id(point.plan.models), plans), _Group(point.plan, memory))
            group.points.append(point)
        for group in groups.values():
            stages = {s.key: s for p in group.points for s in p.stages}
            ordered = sorted(stages.values(), key=lambda stage: stage.kind != "prompt")
            group.plan = replace(group.plan, stages=tuple(ordered))
        return list(groups.values())

    def _find_draft(self, point: Point) -> bool:
        """True if the measured draft of a point is there to be shown; loads it."""
        if point.draft is None or point.draft.key in self._drafts:
            return True
        found = load_result(self._folder, point.draft.key)
        if found is not None:
            self._drafts[point.draft.key] = found
        return found is not None

    def _run_group(self, group: _Group) -> None:
        session = self._session
        plan = session.mark_stored(group.plan)
        missing = sum(not stage.stored for stage in plan.stages)
        session.total = missing + 1 + len(self._sweep.points)
        session.open_runner(plan, group.memory)
        for point in group.points:
            if point.number not in self._done:
                self._try(point, self._make_latents)
        session.runner.release()
        try:
            for point in group.points:
                if point.number not in self._done or not self._find_draft(point):
                    self._try(point, self._measure)
        finally:
            for spool in self._spools.values():
                spool.close()
            self._spools.clear()

    # -- one point ----------------------------------------------------------------------------

    def _try(self, point: Point, work: Callable[[Point], None]) -> None:
        """Do a part of a point; if it fails, record its error."""
        self._session.check_cancelled()
        try:
            work(point)
        except (Cancelled, StoreError):
            raise
        except LadderError as error:
            self._record_failure(point, error)

    def _make_latents(self, point: Point) -> None:
        """Make the missing stages of a point, and none that only stored artefacts need."""
        session = self._session
        name = self._sweep.describe(point)
        session.emit(PointStarted(point.number, len(self._sweep.points), name))
        plan = session.mark_stored(point.plan)
        wanted = {stage.key for stage in plan.missing_stages()}
        if point.draft is not None and not plan.stage(point.draft.key).stored:
            cut = replace(plan, stages=tuple(_until(plan.stages, point.draft)))
            wanted |= {stage.key for stage in cut.missing_stages()}
        for stage in plan.stages:
            if stage.key in wanted:
                session.run_stage(point.plan, stage, keep=True)

    def _measure(self, point: Point) -> None:
        """Decode a point into the metrics, after its draft if that was not measured yet."""
        session = self._session
        draft = None if point.draft is None else self._measure_draft(point.plan, point.draft)
        if point.number in self._done:
            return
        fps, request = float(point.plan.request.fps), point.plan.request
        session.start_stage(f"measure #{point.number}", request.frames)
        latents = session.load(point.plan.latents)["video"]

        def measure(job: DecodeJob) -> PointResult:
            from latent_ladder.pipeline.stages.decoding import decode_frames

            meter, capture = ClipMeter(fps), FrameCapture(request.frames)
            frames = self._stoppable(capture.collect(_meter(meter, decode_frames(job, latents))))
            against = None
            if draft is not None and point.draft is not None and point.draft.resolution is not None:
                draft_fps = float(point.draft.resolution.fps)
                found = compare_clips(draft.frames(), frames, draft_fps, None, fps)
                against = found.to_dict() | {"notes": list(found.notes)}  # lists, as in JSON
            for _ in frames:  # those that were not compared: the draft may be shorter
                pass
            names, clip = capture.save(self._folder, point.key, request.fps)
            return PointResult(
                point.key, point.number, point.settings, point.sets,
                metrics=collect_metrics(meter, fps, None).to_dict(), comparison=against,
                size=capture.size, frames=names, shown=capture.indices, clip=clip,
            )  # fmt: skip

        result = session.retry_decoding(point.plan, measure)
        seconds = self._seconds_after_draft(point)
        draft_key = None if point.draft is None else point.draft.key
        self._finish_point(point, replace(result, seconds=seconds, draft=draft_key))

    def _seconds_after_draft(self, point: Point) -> float:
        """Seconds of the stages after the draft, as far as this or an earlier run recorded them."""
        shared = set[str]()
        if point.draft is not None:
            shared = {s.key for s in _until(point.stages, point.draft)}
        own = {stage.key for stage in point.stages} - shared
        stages = self._session.recorder.record.stages
        seconds = self._earlier | {s.key: s.seconds for s in stages if not s.reused}
        return sum(seconds.get(key, 0.0) for key in own)

    def _measure_draft(self, plan: RunPlan, stage: PlannedStage) -> Spool:
        """The decoded frames of a draft on disk; decoded and measured at the first call."""
        if stage.key in self._spools:
            return self._spools[stage.key]
        if stage.resolution is None:
            raise TypeError(f"{stage.name} is not a planned stage of latents")
        session = self._session
        resolution, fps = stage.resolution, float(stage.resolution.fps)
        session.start_stage("measure the draft", resolution.frames)
        latents = session.load(stage)["video"]
        spool = Spool(self._folder / f"{stage.key}.rgb")

        def measure(job: DecodeJob) -> PointResult:
            from latent_ladder.pipeline.stages.decoding import decode_draft_frames

            meter, capture = ClipMeter(fps), FrameCapture(resolution.frames)
            decoded = spool.fill(decode_draft_frames(job, latents))
            for _ in self._stoppable(capture.collect(_meter(meter, decoded))):
                pass
            names, clip = capture.save(self._folder, stage.key, resolution.fps)
            return PointResult(
                stage.key, metrics=collect_metrics(meter, fps, None).to_dict(),
                size=capture.size, frames=names, shown=capture.indices, clip=clip,
            )  # fmt: skip

        found = session.retry_decoding(plan, measure)
        save_result(self._folder, found)
        self._drafts[stage.key], self._spools[stage.key] = found, spool
        return spool

    def _stoppable(self, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The chunks unchanged; raises :class:`Cancelled` between two if a stop was requested."""
        for chunk in chunks:
            self._session.check_cancelled()
            yield chunk

    # -- results ------------------------------------------------------------------------------

    def _record_failure(self, point: Point, error: LadderError) -> None:
        if point.number in self._done:
            return
        text = f"point {point.number} ({self._sweep.describe(point)}): {error}"
        self._session.warn("point_failed", text)
        failed = PointResult(
            point.key, point.number, point.settings, point.sets, "failed", error.message
        )
        self._finish_point(point, failed)

    def _finish_point(self, point: Point, result: PointResult, reused: bool = False) -> None:
        if result.status == "done" and not reused:
            save_result(self._folder, result)
        if point.draft is not None:
            self._find_draft(point)
        self._done[point.number] = result
        recorder = self._session.recorder
        numbers = {"clip": dict(result.metrics), "against_draft": result.comparison}
        draft = replace(
            recorder.record.drafts[point.number - 1],
            status=result.status,
            error=result.error,
            reused=reused,
            seconds=result.seconds,
            metrics=numbers if result.status == "done" else {},
        )
        recorder.set_draft(draft)
        of = len(self._sweep.points)
        self._session.emit(PointDone(point.number, of, reused, result.error))


def _until(stages: Sequence[PlannedStage], last: PlannedStage) -> Iterator[PlannedStage]:
    """The stages up to and including ``last``."""
    for stage in stages:
        yield stage
        if stage.key == last.key:
            return


def _meter(meter: ClipMeter, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
    """The chunks unchanged; each frame is measured first."""
    for chunk in chunks:
        for frame in iterate_frames([chunk]):
            meter.add(frame)
        yield chunk
