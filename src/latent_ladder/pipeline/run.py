"""From a request to a finished file: plan it, run what the store does not have, write the clip.

The order is always: validate, find the files, plan, check the output, and only then load anything
heavy. Every finished stage is in the store before the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latent_ladder.checkpoints.selection import Library, model_folders, scan, select
from latent_ladder.diagnostics.preset_recommendation import propose
from latent_ladder.diagnostics.request_warnings import advise
from latent_ladder.errors import Cancelled, LadderError
from latent_ladder.memory.hardware import MemoryOptions, budget, read_rates
from latent_ladder.memory.planner import MemoryPlan, Policy, plan_memory
from latent_ladder.models.text_encoder.tokenizer import token_report
from latent_ladder.pipeline.events import (
    OnEvent,
    Preview,
    StageDone,
    StageStarted,
    StepDone,
    Waiting,
    Warned,
    ignore,
)
from latent_ladder.pipeline.partial_results import Progress, progress_keys
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, look_up, make_plan
from latent_ladder.request.files import clip_metadata
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Damage, Store, default_root
from latent_ladder.storage.run_records import RunRecord, StageRecord

if TYPE_CHECKING:
    from latent_ladder.media.video_writer import WrittenVideo
    from latent_ladder.metrics.measure import RunMeter
    from latent_ladder.pipeline.latent_preview import LivePreview
    from latent_ladder.pipeline.stage_runner import Workshop

T = TypeVar("T")


@dataclass
class Cancel:
    """A request to stop, honoured after the step under way."""

    requested: bool = False

    def request(self) -> None:
        """Ask the run to stop."""
        self.requested = True

    def check(self) -> None:
        """Raise :class:`Cancelled` if someone asked."""
        if self.requested:
            raise Cancelled("stopped by the user", "run the same command to go on")


@dataclass(frozen=True)
class RunOptions:
    """What a run needs to know that is not about the clip itself.

    ``command`` is kept in the run's record; ``lock_timeout_s`` is how long to wait for another
    process that makes the same clip (``None``: as long as it takes). ``preview`` is a PNG file that
    keeps a strip of the picture as it is estimated while sampling. ``measure`` (the default) takes
    the clip's metrics while it is written and keeps them in the run's record.
    """

    device: str = "auto"
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    overwrite: bool = False
    command: str = ""
    on_event: OnEvent = ignore
    cancel: Cancel = field(default_factory=Cancel)
    lock_timeout_s: float | None = None
    measure: bool = True
    preview: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A checked request: its plan, its store, and what the user should be told before it runs.

    ``memory`` says how every stage fits into what ``options`` allow.
    """

    plan: RunPlan
    store: Store
    memory: MemoryPlan
    options: MemoryOptions
    warnings: tuple[Warned, ...]
    library: Library

    @property
    def request(self) -> Request:
        """The request, its seed drawn."""
        return self.plan.request

    def report(self) -> dict[str, Any]:
        """The plan as plain data, for ``ladder plan``."""
        from latent_ladder.pipeline.plan_report import plan_report

        warnings = [{"code": w.code, "message": w.message} for w in self.warnings]
        machine = read_rates(self.memory.budget.device)
        policy = policy_of(self.request, self.options)
        advice = propose(self.request, self.plan.models, self.memory.budget, policy, machine)
        report = plan_report(self.plan, self.memory, machine)
        return {**report, "advice": advice.to_dict(), "warnings": warnings}

    def headline(self) -> str:
        """One line: what comes out."""
        from latent_ladder.pipeline.plan_report import headline

        return headline(self.plan)


@dataclass(frozen=True)
class Result:
    """A finished clip and what was done for it."""

    output: Path
    run: str
    request: Request
    frames: int
    duration_s: float
    audio_duration_s: float | None
    stages: tuple[StageRecord, ...]
    warnings: tuple[Warned, ...]
    metrics: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``ladder make --json`` prints."""
        return {
            "output": str(self.output),
            "run": self.run,
            "request": self.request.to_dict(),
            "width": self.request.final_size[0],
            "height": self.request.final_size[1],
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
    package's pocket model. Raises a :class:`LadderError`; whatever was finished stays stored.
    """
    library = scan(model_folders(request.models.folders))
    options = options or RunOptions()
    store = store or Store(default_root())
    prepared = prepare(request.pick_seed(), library, store, options.memory, options.device)
    return execute(prepared, Path(output), options)


def prepare(
    request: Request,
    library: Library,
    store: Store,
    memory: MemoryOptions | None = None,
    device: str = "auto",
) -> Prepared:
    """Choose the models, plan stages and memory, collect warnings. Loads nothing heavy."""
    models = select(library, request.models.choices)
    found = [Warned(a.code, a.message) for a in advise(request)]
    found += [Warned("models", note) for note in models.notes]
    plan = make_plan(request, models, library)
    found += [Warned("inputs", note) for note in plan.notes]
    plan = look_up(plan, store, lambda name, damage: found.append(_damaged(name, damage)))
    report = token_report(request.prompt, models.text_encoder)
    if report.cut_text:
        text = report.cut_text if len(report.cut_text) <= 80 else report.cut_text[:79] + "…"
        found.append(
            Warned(
                "prompt_cut",
                f"the prompt has {report.n_tokens} tokens and the text encoder reads "
                f"{report.limit}: cut at {text!r}",
            )
        )
    if report.unknown_words:
        words = ", ".join(report.unknown_words[:12])
        found.append(
            Warned("unknown_words", f"the text encoder was not trained on these words: {words}")
        )
    memory = memory or MemoryOptions()
    fitted = fit_memory(plan, memory, device)
    tile = fitted.of("decode").offload_plan.tile_px
    if tile is not None:
        found.append(
            Warned("smaller_tiles", f"decoded in tiles of {tile} px to fit: a little different")
        )
    return Prepared(plan, store, fitted, memory, tuple(found), library)


def fit_memory(plan: RunPlan, options: MemoryOptions, device: str) -> MemoryPlan:
    """How every stage fits. Raises :class:`MemoryBudgetError`."""
    from latent_ladder.pipeline.plan_report import model_sizes

    available = budget(options, device)
    sizes = model_sizes(plan, 4 if available.device == "cpu" else 2)
    policy = policy_of(plan.request, options)
    made = {"decode"} | {s.kind if s.kind == "prompt" else s.name for s in plan.needed()}
    return plan_memory(plan.request, sizes, available, policy, made)


def policy_of(request: Request, options: MemoryOptions) -> Policy:
    """What may be given up for memory."""
    return Policy(options.offload, options.changes, request.models.precision)


def execute(prepared: Prepared, output: Path, options: RunOptions) -> Result:
    """Run a prepared request. Raises what :func:`run` raises."""
    from latent_ladder.media.writers import check_clip

    check_clip(output, options.overwrite, prepared.request.output.settings)
    for warning in prepared.warnings:
        options.on_event(warning)
    lock = prepared.store.lock(
        prepared.plan.run_key,
        on_wait=lambda pid: options.on_event(Waiting(pid)),
        timeout=options.lock_timeout_s,
        poll=options.cancel.check,
    )
    with lock:
        return Run(prepared, output, options).go()


def _damaged(name: str, damage: Damage) -> Warned:
    return Warned(
        "damaged_artefact",
        f"the stored result of {name} was damaged ({damage.reason}); it is made again",
    )


class Run:
    """One run under way: its record, its events, its loaded models."""

    def __init__(self, prepared: Prepared, output: Path, options: RunOptions) -> None:
        self._plan = prepared.plan
        self._store = prepared.store
        self._output = output
        self._options = options
        self._warnings = list(prepared.warnings)
        self._memory = prepared.memory
        self._started = 0
        self._meter: RunMeter | None = None
        self._live: LivePreview | None = None
        request = prepared.plan.request
        record = prepared.store.runs.start(options.command, request.to_dict())
        self._record = self._save(
            replace(
                record,
                planned=tuple(
                    key for s in prepared.plan.stages for key in (s.key, *progress_keys(s))
                ),
                output=str(output),
                folders=tuple(str(folder) for folder in prepared.library.folders),
                warnings=tuple(w.message for w in self._warnings),
            )
        )

    def go(self) -> Result:
        """Run and record how it ended."""
        with self._recorded():
            needed = {stage.key for stage in self._refreshed()}
            workshop = self._workshop()
            if any(stage.sigmas for stage in self._plan.stages if stage.key in needed):
                self._watch()
            for stage in self._plan.stages:
                if stage.key in needed:
                    self._make(stage, workshop)
                elif stage.stored:
                    self._finish(StageRecord(stage.name, stage.key, True, 0.0, 0))
            return self._write(workshop)

    def _workshop(self) -> Workshop:
        from latent_ladder.models.device import choose_runtime
        from latent_ladder.pipeline.stage_runner import Workshop

        runtime = choose_runtime(self._options.device)
        if runtime.device.type != self._memory.budget.device:  # torch cannot use the GPU
            self._memory = fit_memory(self._plan, self._options.memory, runtime.device.type)
        policy = policy_of(self._plan.request, self._options.memory)
        return Workshop(self._plan, runtime, self._memory, self._warn, policy)

    def _watch(self) -> None:
        """Get ready to show estimates, if they are wanted: before anything heavy is loaded."""
        path = self._options.preview
        if path is None:
            return
        from latent_ladder.pipeline.latent_preview import LivePreview, projection

        def saved(stage: str, step: int) -> None:
            self._options.on_event(Preview(stage, step, str(path)))

        to_rgb = projection(self._plan.models.video_vae, self._store)
        self._live = LivePreview(path, to_rgb, saved)

    def _refreshed(self) -> tuple[PlannedStage, ...]:
        """What to make now: another process may have made, or damaged, artefacts meanwhile."""
        self._plan = look_up(self._plan, self._store, self._on_damage)
        return self._plan.needed()

    def _make(self, stage: PlannedStage, workshop: Workshop) -> None:
        began = self._begin(stage.name, stage.steps, workshop)
        inputs = [self._load(key) for key in stage.inputs]

        def on_step(done: int, of: int, sigma: float) -> None:
            self._options.on_event(StepDone(stage.name, done, of, sigma))
            if done < of:  # a finished stage is stored before the run stops
                self._options.cancel.check()

        progress, live = Progress(self._store, stage), self._live
        look = None if live is None else partial(live.look, stage.name)
        tensors, facts = self._fitting(
            stage.name, workshop, lambda: workshop.make(stage, inputs, on_step, look, progress)
        )
        meta = {"stage": stage.kind, "name": stage.name, **facts}
        self._store.put(stage.key, tensors, meta)
        progress.forget()
        held = workshop.held(stage.name)
        seconds = time.monotonic() - began
        self._finish(StageRecord(stage.name, stage.key, False, seconds, workshop.peak(), held))
        self._options.cancel.check()

    def _fitting(self, name: str, workshop: Workshop, work: Callable[[], T]) -> T:
        """Do the work; each time memory runs out, go one rung down the ladder and say so.

        Raises :class:`MemoryBudgetError` where there is no resolution left.
        """
        from latent_ladder.memory.oom import is_out_of_memory

        while True:
            before = workshop.held(name)
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: what failed is held by its traceback until here.
            after = workshop.next_fallback(name)
            self._warn("out_of_memory", f"{name} ran out of memory ({before}); going on {after}")

    def _load(self, key: str) -> dict[str, Any]:
        name = self._plan.stage(key).name
        found = self._store.get(key, lambda damage: self._on_damage(name, damage))
        if found is None:
            raise LadderError(
                f"artefact {key} vanished or was damaged while the run was using it",
                "run the same command again; it will be made anew",
            )
        return found.load()

    def _write(self, workshop: Workshop) -> Result:
        from latent_ladder.metrics.measure import RunMeter

        request, plan = self._plan.request, self._plan
        began = self._begin("decode and write", request.frames, workshop)
        latents = self._load(plan.latents.key)
        sound = None if plan.sound is None else self._load(plan.sound.key)

        def on_frames(done: int) -> None:
            self._options.on_event(StepDone("decode and write", done, request.frames))
            self._options.cancel.check()

        def write() -> WrittenVideo:
            # Made anew at each try: one that ran out of memory has seen some frames already.
            self._meter = RunMeter(float(request.fps)) if self._options.measure else None
            return workshop.write(
                self._output,
                latents,
                sound,
                metadata=clip_metadata(request),
                overwrite=self._options.overwrite,
                on_frames=on_frames,
                meter=self._meter,
            )

        written = self._fitting("decode", workshop, write)
        seconds, held = time.monotonic() - began, workshop.held("decode")
        done = StageRecord("decode and write", plan.run_key, False, seconds, workshop.peak(), held)
        found = None if self._meter is None else self._meter.result()
        metrics = None if found is None else found.to_dict()
        self._record = replace(self._record, metrics=metrics)
        self._finish(done)
        return Result(
            output=self._output,
            run=self._record.id,
            request=request,
            frames=written.frames,
            duration_s=written.duration_s,
            audio_duration_s=written.audio_duration_s,
            stages=self._record.stages,
            warnings=tuple(self._warnings),
            metrics=metrics,
        )

    def _begin(self, name: str, steps: int, workshop: Workshop) -> float:
        self._started += 1
        total = len(self._plan.needed()) + 1
        self._options.on_event(StageStarted(name, self._started, total, steps))
        workshop.begin_measuring()
        return time.monotonic()

    def _finish(self, stage: StageRecord) -> None:
        self._record = self._save(self._record.with_stage(stage))
        peak = stage.peak_memory_bytes or 0
        self._options.on_event(StageDone(stage.stage, stage.key, stage.reused, stage.seconds, peak))

    def _on_damage(self, name: str, damage: Damage) -> None:
        self._tell(_damaged(name, damage))

    def _warn(self, code: str, message: str) -> None:
        self._tell(Warned(code, message))

    def _tell(self, warning: Warned) -> None:
        self._warnings.append(warning)
        self._options.on_event(warning)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except (Cancelled, KeyboardInterrupt):
            self._save(replace(self._record, status="cancelled"))
            raise
        except BaseException as error:
            self._save(replace(self._record, status="failed", error=str(error)))
            raise
        self._save(replace(self._record, status="done"))

    def _save(self, record: RunRecord) -> RunRecord:
        return self._store.runs.save(
            replace(record, warnings=tuple(w.message for w in self._warnings))
        )


def default_preset(library: Library, checkpoint: str | None = None) -> str:
    """The preset for the checkpoint that would be used: the one its header names, else 8 + 3 steps.

    A file cannot tell whether it is distilled, so here the name decides: without "distilled" in
    it, and with a distilled LoRA at hand, the LoRA is put on.
    """
    models = select(library, {"checkpoint": checkpoint} if checkpoint else {})
    if models.preset is not None:
        return models.preset
    name = models.transformer.file.path.name.lower()
    return "distilled-lora" if "distilled" not in name and models.distilled else "distilled"
