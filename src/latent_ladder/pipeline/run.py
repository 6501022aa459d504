"""Runs: from a request to a finished video file.

The order is always: validate, find the files, plan, check the output, and only then load anything
heavy. Every finished stage is stored before the next one begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.pipeline.events import StepDone, Warned
from latent_ladder.pipeline.plan import RunPlan
from latent_ladder.pipeline.preparation import (
    Prepared,
    default_preset,
    fit_memory,
    policy_of,
    prepare,
)
from latent_ladder.pipeline.run_options import Cancel, RunOptions
from latent_ladder.pipeline.run_session import RunSession, lock_plan
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Store, default_root
from latent_ladder.storage.run_records import StageRecord

__all__ = [
    "Cancel",
    "Prepared",
    "Result",
    "RunOptions",
    "default_preset",
    "execute",
    "fit_memory",
    "policy_of",
    "prepare",
    "run",
]

WRITE_STAGE = "decode and write"


@dataclass(frozen=True)
class Result:
    """A finished clip, with the stages and warnings of its run.

    ``pictures`` are the poster, the contact sheet, the preview strip and the comparison with the
    draft, where they were asked for.
    """

    output: Path
    run: str
    request: Request
    frames: int
    duration_s: float
    audio_duration_s: float | None
    stages: tuple[StageRecord, ...]
    warnings: tuple[Warned, ...]
    metrics: Mapping[str, Any] | None = None
    pictures: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``ladder make --json`` prints it."""
        return {
            "output": str(self.output),
            "pictures": [str(path) for path in self.pictures],
            "run": self.run,
            "request": self.request.to_dict(),
            "width": self.request.resolved.final_size[0],
            "height": self.request.resolved.final_size[1],
            "frames": self.frames,
            "fps": str(self.request.fps),
            "seed": self.request.seed,
            "metrics": self.metrics,
            "duration_s": self.duration_s,
            "audio_duration_s": self.audio_duration_s,
            "stages": [
                {
                    "stage": s.stage,
                    "key": s.key,
                    "reused": s.reused,
                    "seconds": s.seconds,
                    "peak_memory_bytes": s.peak_memory_bytes,
                    "memory": s.memory,
                }
                for s in self.stages
            ],
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
        }


def run(
    request: Request,
    output: Path | str,
    *,
    store: Store | None = None,
    options: RunOptions | None = None,
) -> Result:
    """Make the clip of ``request`` at ``output``.

    Models are searched in the request's own folders, ``LADDER_MODELS``, ``./models`` and the
    package's pocket model. Raises a :class:`LadderError`; finished stages stay stored.
    """
    library = scan(model_folders(request.models.folders))
    options = options or RunOptions()
    store = store or Store(default_root())
    prepared = prepare(request.pick_seed(), library, store, options.memory, options.device)
    return execute(prepared, Path(output), options)


def execute(prepared: Prepared, output: Path, options: RunOptions) -> Result:
    """Run a prepared request. Raises what :func:`run` raises."""
    from latent_ladder.media.writers import check_clip

    if prepared.request.auto_duration is not None:
        from latent_ladder.pipeline.predicted_length import predict_length

        prepared = predict_length(prepared)
    request = prepared.request
    check_clip(output, options.overwrite, request.encoder_settings, request.frames)
    for warning in prepared.warnings:
        options.on_event(warning)
    with lock_plan(prepared.store, prepared.plan, options):
        session = RunSession(
            prepared, prepared.plan, options, request.to_dict(), output=str(output)
        )
        with session.recorder.recording():
            # another process may have made or damaged artefacts since the plan was made
            plan = session.mark_stored(prepared.plan)
            missing = {stage.key for stage in plan.missing_stages()}
            session.total = len(missing) + 1
            samples = any(stage.sigmas for stage in plan.missing_stages())
            session.open_runner(plan, prepared.memory, options.preview if samples else None)
            for stage in plan.stages:
                if stage.key in missing:
                    session.run_stage(plan, stage)
                elif stage.stored:
                    session.reuse_stage(stage)
            return _write(session, plan, output)


def _write(session: RunSession, plan: RunPlan, output: Path) -> Result:
    """Decode the latents into the file, measuring the clip on the way."""
    from latent_ladder.media.video_writer import WrittenVideo
    from latent_ladder.metrics.measure import RunMeter
    from latent_ladder.pipeline.stages.decoding import DecodeJob, write_clip

    request, options = plan.request, session.options
    session.runner.release()
    began = session.start_stage(WRITE_STAGE, request.frames)
    latents = session.load(plan.latents)
    sound = None if plan.sound is None else session.load(plan.sound)

    def on_frames(done: int) -> None:
        session.emit(StepDone(WRITE_STAGE, done, request.frames))
        session.check_cancelled()

    def write(job: DecodeJob) -> tuple[WrittenVideo, RunMeter | None]:
        # a new meter for each try: one that ran out of memory has seen some frames already
        meter = RunMeter(float(request.fps)) if options.measure else None
        written = write_clip(
            job,
            output,
            latents,
            sound,
            overwrite=options.overwrite,
            on_frames=on_frames,
            meter=meter,
        )
        return written, meter

    written, meter = session.retry_decoding(plan, write)
    found = None if meter is None else meter.result()
    metrics = None if found is None else found.to_dict()
    session.recorder.update(metrics=metrics)
    session.finish_stage(WRITE_STAGE, plan.run_key, began, "decode")
    return Result(
        output=output,
        run=session.recorder.record.id,
        request=request,
        frames=written.frames,
        duration_s=written.duration_s,
        audio_duration_s=written.audio_duration_s,
        stages=session.recorder.record.stages,
        warnings=tuple(session.warnings),
        metrics=metrics,
        pictures=_pictures(request, options, output),
    )


def _pictures(request: Request, options: RunOptions, output: Path) -> tuple[Path, ...]:
    """The pictures that were written next to the clip."""
    from latent_ladder.pipeline.thumbnails import thumbnail_path

    asked = {"poster": request.output.poster, "sheet": request.output.sheet}
    named = [thumbnail_path(output, kind) for kind, wanted in asked.items() if wanted]
    if options.preview is not None:
        named.append(options.preview)
    return tuple(path for path in named if path.exists())
