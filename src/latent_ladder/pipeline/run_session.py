"""Session of a run: makes stages and stores their artefacts, reports events, keeps the record.

A plain run, a session of drafts and a sweep each own one; they decide which stages of which plans
are made, in which order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latent_ladder.errors import Cancelled, LadderError, StoreError
from latent_ladder.memory.hardware import budget
from latent_ladder.memory.planner import MemoryPlan, StageMemory, plan_fallback, ran_out
from latent_ladder.pipeline.events import (
    Event,
    Preview,
    RunStarted,
    StageDone,
    StageStarted,
    StepDone,
    Waiting,
    Warned,
)
from latent_ladder.pipeline.partial_results import PartialResult, partial_keys
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, mark_stored
from latent_ladder.pipeline.plan_report import model_sizes
from latent_ladder.pipeline.preparation import Prepared, damage_warning, fit_memory, policy_of
from latent_ladder.pipeline.run_options import RunOptions
from latent_ladder.pipeline.run_recorder import RunRecorder
from latent_ladder.storage.artifact_store import DamagedArtefact, Store
from latent_ladder.storage.run_records import StageRecord

if TYPE_CHECKING:
    from torch import Tensor

    from latent_ladder.models.text_encoder.conditioning import Conditioning
    from latent_ladder.pipeline.latent_preview import LivePreview
    from latent_ladder.pipeline.model_runner import ModelRunner
    from latent_ladder.pipeline.stages.decoding import DecodeJob
    from latent_ladder.pipeline.stages.stage_job import StageJob

T = TypeVar("T")
LEAST = 0.98
"""Share of the planned memory below which a plan is made again when the run starts."""

MEMORY_NAMES: Mapping[str, str] = {
    "prompt": "prompt", "images": "decode", "video_in": "decode", "audio_in": "decode",
}  # fmt: skip
"""Names in the memory plan by stage kind, where it is not the stage's own name.

An encoder of images, video or sound needs what the decoder needs.
"""


SAMPLING_KINDS = ("base", "refine")
"""Kinds of stage that use the transformer."""


class RunSession:
    """One run under way. ``total`` is the number of stages that its events announce."""

    def __init__(
        self,
        prepared: Prepared,
        plan: RunPlan,
        options: RunOptions,
        request: Mapping[str, Any],
        save_every_s: float = 0.0,
        **record: Any,
    ) -> None:
        """Start the record of ``request``, with further fields of it.

        ``plan`` has all stages that may be made; their artefacts are protected from pruning.
        """
        self.store, self.options, self.memory = prepared.store, options, prepared.memory
        self.warnings = list(prepared.warnings)
        self.total = 0
        self._started = 0
        self._runner: ModelRunner | None = None
        self._contexts: dict[str, Conditioning | None] = {}
        self._unstored: dict[str, dict[str, Tensor]] = {}
        self._preview: LivePreview | None = None
        self.store.remove_temporary_files()
        self.recorder = RunRecorder(self.store.runs, options.command, request, save_every_s)
        self.recorder.on_failure = self._warn_unrecorded
        self.emit(RunStarted(self.recorder.record.id))
        self.recorder.update(
            planned=tuple(key for s in plan.stages for key in (s.key, *partial_keys(s))),
            folders=tuple(str(folder) for folder in prepared.library.folders),
            warnings=tuple(w.message for w in self.warnings),
            **record,
        )

    # -- events -------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Send an event to the caller of the run."""
        self.options.on_event(event)

    def warn(self, code: str, message: str) -> None:
        """Send a warning and add it to the record."""
        self._add_warning(Warned(code, message))

    def check_cancelled(self) -> None:
        """Raise :class:`Cancelled` if a stop was requested."""
        self.options.cancel.check()

    def _warn_unrecorded(self, message: str) -> None:
        warning = Warned("not_recorded", message)
        self.warnings.append(warning)
        self.emit(warning)

    def _add_warning(self, warning: Warned) -> None:
        self.warnings.append(warning)
        self.recorder.update(warnings=tuple(w.message for w in self.warnings))
        self.emit(warning)

    # -- artefacts ----------------------------------------------------------------------------

    def lock(self, plan: RunPlan) -> AbstractContextManager[None]:
        """Lock of a plan's run key; waits for another process that runs the same plan."""
        return lock_plan(self.store, plan, self.options)

    def mark_stored(self, plan: RunPlan) -> RunPlan:
        """The plan with the artefacts that the store has now; warns about damaged ones.

        Those that could not be stored, and are in memory, count as stored.
        """
        found = mark_stored(plan, self.store, self._on_damage)
        stages = (replace(s, stored=s.stored or s.key in self._unstored) for s in found.stages)
        return replace(found, stages=tuple(stages))

    def _keep(
        self, stage: PlannedStage, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Store a stage's artefact; on a full disk keep it in memory, so that the run goes on."""
        error = self.store.try_put(stage.key, tensors, meta)
        if error is None:
            PartialResult(self.store, stage).remove()
            return
        self._unstored[stage.key] = {name: tensor.cpu() for name, tensor in tensors.items()}
        self.warn(
            "not_stored",
            f"the result of {stage.name} is not stored, the run goes on without: {error.message}; "
            f"{error.hint}",
        )

    def load(self, stage: PlannedStage) -> dict[str, Tensor]:
        """The tensors of a stage's artefact. Raises :class:`LadderError` if it is missing."""
        if stage.key in self._unstored:
            return dict(self._unstored[stage.key])
        found = self.store.get(stage.key, partial(self._on_damage, stage.name))
        if found is None:
            raise LadderError(
                f"artefact {stage.key} was removed or damaged while the run was using it",
                "run the same command again; it will be made again",
            )
        return found.load()

    def _on_damage(self, name: str, damage: DamagedArtefact) -> None:
        self._add_warning(damage_warning(name, damage))

    # -- models -------------------------------------------------------------------------------

    def open_runner(self, plan: RunPlan, memory: MemoryPlan, preview: Path | None = None) -> None:
        """Get ready to run stages with the models of ``plan``; nothing big is loaded yet.

        Its missing prompts are encoded together. ``preview`` is a PNG file for live previews.
        Raises :class:`CheckpointError` for a bad upscaler file.
        """
        from latent_ladder.models.device import choose_runtime, dtype_note
        from latent_ladder.pipeline.model_runner import ModelRunner
        from latent_ladder.pipeline.stages.decoding import check_upscaler

        runtime = choose_runtime(self.options.device)
        memory = self.memory = self._fitted(plan, memory, str(runtime.device))
        if (note := dtype_note(runtime)) is not None:
            self.warn("no_bfloat16", note)
        policy = policy_of(plan.request, self.options.memory)
        self._runner = ModelRunner(runtime, memory.budget, policy)
        keys = [s.key for s in plan.stages if s.kind == "prompt" and not s.stored]
        self._contexts = dict.fromkeys(keys)
        check_upscaler(plan.upscale, runtime)
        if preview is not None:
            self._preview = self._open_preview(plan, preview)

    def _fitted(self, plan: RunPlan, memory: MemoryPlan, device: str) -> MemoryPlan:
        """The memory plan, made again where PyTorch sees another device or less memory."""
        planned, found = memory.budget, budget(self.options.memory, device)
        is_same = (found.device, found.value_bytes) == (planned.device, planned.value_bytes)
        less = planned.device != "cpu" and found.device_bytes < LEAST * planned.device_bytes
        return memory if is_same and not less else fit_memory(plan, self.options.memory, device)

    @property
    def runner(self) -> ModelRunner:
        """The models of :meth:`open_runner`."""
        if self._runner is None:
            raise RuntimeError("open_runner() comes first")
        return self._runner

    def _open_preview(self, plan: RunPlan, path: Path) -> LivePreview:
        from latent_ladder.pipeline.latent_preview import LivePreview, load_projection

        def on_saved(stage: str, step: int) -> None:
            self.emit(Preview(stage, step, str(path)))

        return LivePreview(path, load_projection(plan.models.video_vae, self.store), on_saved)

    # -- stages -------------------------------------------------------------------------------

    def run_stage(self, plan: RunPlan, stage: PlannedStage, *, keep: bool = False) -> None:
        """Make a stage of a plan and store its artefact. Raises what the stage function raises.

        ``keep``: another clip follows, so the transformer stays loaded after its last stage too,
        where it fits.
        """
        from latent_ladder.pipeline.stages.table import STAGES

        name = MEMORY_NAMES.get(stage.kind, stage.name)
        if stage.kind not in SAMPLING_KINDS:
            if keep or _samples_after(plan, stage):
                self.runner.make_room(self.memory.of(name))
            else:
                self.runner.release()
        began = self.start_stage(stage.name, stage.steps)
        job = self._job(plan, stage)
        tensors, facts = self.runner.retry(
            stage.name,
            partial(STAGES[stage.kind], job),
            self.memory.of(name),
            partial(self._next_fallback, plan, stage),
            self.warn,
        )
        self._keep(stage, tensors, {**_provenance(plan, stage), **facts})
        self.finish_stage(stage.name, stage.key, began, name)
        self.check_cancelled()

    def run_stages_together(self, stages: Sequence[tuple[RunPlan, PlannedStage]]) -> bool:
        """Make base stages of several plans with shared forwards, and store their artefacts.

        False if they cannot share forwards, memory ran out or one of them fails; nothing was made
        then, and each can be made by itself.
        """
        from latent_ladder.memory.oom import is_out_of_memory
        from latent_ladder.pipeline.stages.denoising import can_share_forwards, denoise_together

        jobs = [self._job(plan, stage) for plan, stage in stages]
        if not all(can_share_forwards(jobs[0], job) for job in jobs[1:]):
            return False
        name = jobs[0].stage.name
        began = self.start_stage(f"{name} of {len(jobs)} drafts", jobs[0].stage.steps)
        try:
            results = denoise_together(jobs, self.memory.of(name))
        except (Cancelled, StoreError):
            raise
        except LadderError as error:
            self.warn("drafts_apart", f"{name}: {error.message}; making these drafts one by one")
            return False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.warn("out_of_memory", f"{name} ran out of memory; making drafts one by one")
            results = None
        if results is None:  # outside the handler, whose traceback keeps the tensors alive
            self.runner.release()
            return False
        for (plan, stage), (tensors, facts) in zip(stages, results, strict=True):
            self._keep(stage, tensors, {**_provenance(plan, stage), **facts})
        share = (time.monotonic() - began) / len(jobs)
        for _, stage in stages:
            self.finish_stage(stage.name, stage.key, time.monotonic() - share, name)
        self.check_cancelled()
        return True

    def retry_decoding(self, plan: RunPlan, work: Callable[[DecodeJob], T]) -> T:
        """Result of ``work``; after out-of-memory, again with smaller tiles where allowed."""
        from latent_ladder.pipeline.stages.decoding import DecodeJob

        def decode(memory: StageMemory) -> T:
            return work(DecodeJob(plan, self.runner, memory))

        first, next_fallback = self.memory.of("decode"), partial(self._next_fallback, plan, None)
        return self.runner.retry("decode", decode, first, next_fallback, self.warn)

    def start_stage(self, name: str, steps: int) -> float:
        """Announce a stage and start measuring its memory; returns the time it began."""
        self._started += 1
        total = max(self.total, self._started)
        self.emit(StageStarted(name, self._started, total, steps))
        self.runner.start_measuring()
        return time.monotonic()

    def finish_stage(self, name: str, key: str, began: float, memory_name: str) -> None:
        """Record a stage that was made since ``began``."""
        seconds, peak = time.monotonic() - began, self.runner.peak_bytes()
        used = str(self.memory.of(memory_name).offload_plan)
        self._record_stage(StageRecord(name, key, False, seconds, peak, used))

    def reuse_stage(self, stage: PlannedStage) -> None:
        """Record a stage whose artefact was stored already."""
        self._record_stage(StageRecord(stage.name, stage.key, True, 0.0, 0))

    def _record_stage(self, stage: StageRecord) -> None:
        self.recorder.add_stage(stage)
        peak = stage.peak_memory_bytes or 0
        self.emit(StageDone(stage.stage, stage.key, stage.reused, stage.seconds, peak))

    def _job(self, plan: RunPlan, stage: PlannedStage) -> StageJob:
        from latent_ladder.pipeline.stages.stage_job import StageJob

        def on_step(done: int, of: int, sigma: float) -> None:
            self.emit(StepDone(stage.name, done, of, sigma))
            if done < of:  # a finished stage is stored before the run stops
                self.check_cancelled()

        return StageJob(
            stage,
            plan,
            self.runner,
            tuple(self.load(plan.stage(key)) for key in stage.inputs),
            self._contexts,
            on_step,
            None if self._preview is None else partial(self._preview.update, stage.name),
            PartialResult(self.store, stage),
            self.warn,
        )

    def _next_fallback(
        self, plan: RunPlan, stage: PlannedStage | None, before: StageMemory
    ) -> StageMemory:
        """The next fallback of a stage, or of the decoder. Raises :class:`MemoryBudgetError`."""
        if stage is not None and stage.kind not in SAMPLING_KINDS:
            raise ran_out(stage.name, self.runner.budget)
        sizes = model_sizes(plan, self.runner.runtime.dtype.itemsize)
        budget, policy = self.runner.budget, self.runner.policy
        after = plan_fallback(before, plan.request, sizes, budget, policy)
        self.memory = self.memory.with_stage(after)
        return after


def _provenance(plan: RunPlan, stage: PlannedStage) -> dict[str, Any]:
    """Origin of an artefact, as metadata: input artefacts, model files, settings."""
    models = plan.models
    used = {
        "prompt": (models.text_encoder, models.text_projection, models.connectors),
        "base": (models.transformer,),
        "refine": (models.transformer,),
        "sound": (models.audio_vae, models.vocoder),
    }.get(stage.kind, ())
    files = [part for part in (*used, stage.upsampler) if part is not None]
    facts: dict[str, Any] = {
        "stage": stage.kind,
        "name": stage.name,
        "inputs": list(stage.inputs),
        "checkpoints": list(dict.fromkeys(part.file.path.name for part in files)),
    }
    if stage.sigmas:
        facts["sigmas"] = list(stage.sigmas)
    if stage.loras:
        facts["loras"] = [{"file": c.file.path.name, "strength": s} for c, s in stage.loras]
    if stage.text:
        facts["text"] = stage.text
    if stage.resolution is not None:
        facts["size"] = [stage.resolution.width, stage.resolution.height, stage.resolution.frames]
    return facts


def _samples_after(plan: RunPlan, stage: PlannedStage) -> bool:
    """True if a stage behind ``stage`` uses the transformer."""
    later = plan.stages[[other.key for other in plan.stages].index(stage.key) + 1 :]
    return any(other.kind in SAMPLING_KINDS for other in later)


def lock_plan(store: Store, plan: RunPlan, options: RunOptions) -> AbstractContextManager[None]:
    """Lock of a plan's run key; waits for another process that runs the same plan."""
    return store.lock(
        plan.run_key,
        on_wait=lambda pid: options.on_event(Waiting(pid)),
        timeout=options.lock_timeout_s,
        poll=options.cancel.check,
    )
