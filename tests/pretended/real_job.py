"""A whole job of the 22B model on pretended cards: peaks, FLOPs and allocations of each stage.

    for result in simulate(RealJob("fp8"), (16, 24), folder): ...

Files have the published names, shapes and dtypes (:mod:`helpers.true_size`) and no data; the code
that runs is the product's, from the plan to the last decoded frame. With ``blocks="some"``, all 48
blocks are loaded, placed and copied as planned, but only three compute in a forward: the first, the
last and the first that is streamed. All blocks of a form allocate the same, so peaks are those of
all 48 (a test compares them).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import true_size
from PIL import Image

from latent_ladder.checkpoints.scan import scan
from latent_ladder.checkpoints.selection import Library
from latent_ladder.errors import MemoryBudgetError
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.memory.planner import MemoryPlan, StageMemory
from latent_ladder.models.transformer.block import TransformerBlock
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.weights.block_offload import StreamedBlocks
from latent_ladder.models.weights.block_placement import PlacedBlock
from latent_ladder.pipeline.events import StageStarted
from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.pipeline.preparation import Prepared, prepare
from latent_ladder.pipeline.run_options import RunOptions
from latent_ladder.pipeline.run_session import MEMORY_NAMES, RunSession
from latent_ladder.pipeline.stages.decoding import DecodeJob, decode_frames
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.artifact_store import Store
from pretended import ghost
from pretended.standins import GIB, Card, Machine

DESKTOP_GIB, RESERVED_GIB, RAM_GIB = 0.5, 0.6, 64
"""Memory of the card that CUDA and the desktop use, that is kept free, and RAM to pin."""
TEXT = "A cat walks along the quay. "
ALL_KINDS = frozenset({"prompt", "images", "base", "upsample", "refine", "sound", "decode"})
"""Kinds of stage of a job."""
SIGMAS = {"base": "[1.0, 0.9, 0.0]", "refine": "[0.9, 0.4, 0.0]"}
"""Two steps of each sampling stage."""
CONTEXTS = {"video": (1, 1024, 4096), "audio": (1, 1024, 2048)}
"""Shapes of an encoded prompt of LTX-2.3."""


@dataclass(frozen=True)
class RealJob:
    """A job to simulate.

    ``prompt`` is the number of sentences, ``preset`` a name (else the distilled one of LTX-2.3),
    ``sets`` are further overrides. ``skip`` names kinds of
    stage that are left out. Fewer ``layers`` make a smaller model.
    """

    precision: str = "bf16"
    layers: int = 48
    size: tuple[int, int] = (1920, 1080)
    frames: int = 121
    lora: bool = False
    image: bool = False
    prompt: int = 8
    preset: str | None = None
    sets: tuple[str, ...] = ()
    blocks: Literal["some", "all"] = "some"
    skip: frozenset[str] = frozenset()
    watch: bool = False


@dataclass
class StageResult:
    """One stage: simulated and planned peak, and what was on the card when it began.

    ``events`` is its part of the log's trace.
    """

    name: str
    plan: StageMemory | None = None
    peak: int = 0
    before: int = 0
    flops: int = 0
    events: tuple[int, int] = (0, 0)

    @property
    def ratio(self) -> float:
        """Simulated peak by planned peak."""
        return self.peak / self.planned

    @property
    def planned(self) -> int:
        """Planned peak in bytes."""
        return 0 if self.plan is None else self.plan.peak_bytes


@dataclass
class JobResult:
    """All stages of a job in the order they ran, on a card that leaves ``budget`` bytes.

    ``left`` are the bytes on the card after the last stage but decoding, with nothing loaded.
    """

    job: RealJob
    card_gib: float
    budget: int
    prepared: Prepared
    log: ghost.Log
    stages: list[StageResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    left: int = 0

    @property
    def peak(self) -> int:
        """The highest simulated peak."""
        return max(stage.peak for stage in self.stages)

    def of(self, name: str) -> StageResult:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


def write_models(job: RealJob, folder: Path) -> Path:
    """Write the model files of a job; returns their folder."""
    models = folder / f"{job.precision}-{job.layers}{'-lora' if job.lora else ''}"
    if not models.exists():
        true_size.companions(models, "fp8", has_lora=job.lora)
        true_size.checkpoint(models, job.precision, job.layers)
        if job.precision in true_size.GGUF:
            true_size.split(models)
    return models


def job_request(job: RealJob, folder: Path) -> Request:
    """The request of a job: two steps per stage of the distilled preset."""
    preset = job.preset or ("distilled-lora" if job.lora else "distilled")
    fields = read_preset(preset).fields | {"prompt": (TEXT * job.prompt).strip(), "seed": 1}
    sets = [f"width={job.size[0]}", f"height={job.size[1]}", f"frames={job.frames}"]
    sets += [f"{stage}.sigmas={sigmas}" for stage, sigmas in SIGMAS.items()]
    if job.image:
        picture = folder / "first.png"
        if not picture.exists():
            Image.new("RGB", (64, 36), (200, 30, 30)).save(picture)
        fields["images"] = [{"file": str(picture), "frame": 0}]
    return Request.from_dict(apply_sets(fields, (*sets, *job.sets)))


def prepare_job(job: RealJob, card_gib: float, folder: Path) -> Prepared:
    """The plan of a job; needs a pretended card."""
    library = _library(write_models(job, folder))
    memory = MemoryOptions(vram=card_gib - DESKTOP_GIB - RESERVED_GIB, ram=RAM_GIB)
    return prepare(job_request(job, folder), library, Store(folder / "store"), memory, "cuda")


@lru_cache(maxsize=4)
def _library(models: Path) -> Library:
    return scan([models])


def plan_jobs(jobs: Iterable[tuple[RealJob, float]], folder: Path) -> Iterator[MemoryPlan | str]:
    """The memory plan of each (job, card in GiB), or why it is refused; nothing is simulated."""
    with ghost.pretend(Machine([Card()])) as log:
        for job, card_gib in jobs:
            log.machine.cards[0] = _card(card_gib)
            try:
                yield prepare_job(job, card_gib, folder).memory
            except MemoryBudgetError as error:
                yield error.message


def _card(card_gib: float) -> Card:
    return Card(total_bytes=int(card_gib * GIB), other_bytes=int(DESKTOP_GIB * GIB))


def simulate(job: RealJob, cards_gib: Iterable[float], folder: Path) -> Iterator[JobResult]:
    """Run a job on one card after the other; its files are written into ``folder``."""
    gc.collect()
    gc.freeze()  # PyTorch's own objects: later collections need not look at them
    for card_gib in cards_gib:
        card = _card(card_gib)
        most = 8 * job_request(job, folder).resolved.canvas.video_tokens  # positions of tokens
        with (
            pytest.MonkeyPatch.context() as patch,
            _few_blocks(job.blocks == "some"),
            ghost.pretend(Machine([card]), watch=job.watch) as log,
        ):
            patch.setattr(ghost, "SMALL", max(ghost.SMALL, most))
            prepared = prepare_job(job, card_gib, folder)
            result = JobResult(job, card_gib, prepared.memory.budget.device_bytes, prepared, log)
            _run(result)
            yield result


def _run(result: JobResult) -> None:
    prepared, plan, job = result.prepared, result.prepared.plan, result.job

    def on_event(event: object) -> None:
        if isinstance(event, StageStarted):
            _begin(result, event.stage)

    options = RunOptions("cuda", prepared.options, on_event=on_event, measure=False)
    session = RunSession(prepared, plan, options, prepared.request.to_dict())
    session.open_runner(plan, prepared.memory)
    stored: dict[str, Any] = {}

    def keep(stage: PlannedStage, tensors: Mapping[str, torch.Tensor], _: object) -> None:
        stored[stage.key] = {name: tensor.cpu() for name, tensor in tensors.items()}

    def decode(job: DecodeJob) -> int:
        latents = stored[plan.latents.key]["video"]
        return sum(len(chunk) for chunk in decode_frames(job, latents))

    with pytest.MonkeyPatch.context() as patch:  # no files of zeros
        patch.setattr(session, "_keep", keep)
        patch.setattr(session, "load", lambda stage: stored[stage.key])
        for stage in plan.stages:
            if stage.kind in job.skip:
                stored[stage.key] = _zeros(stage)
            else:
                session.run_stage(plan, stage)
                _end(result, session.memory.of(MEMORY_NAMES.get(stage.kind, stage.name)))
        session.runner.release()
        result.left = result.log.machine.cards[0].allocated
        if "decode" not in job.skip:
            session.start_stage("decode", 0)
            session.retry_decoding(plan, decode)
            _end(result, session.memory.of("decode"))
    result.warnings = [warning.message for warning in session.warnings]


def _zeros(stage: PlannedStage) -> dict[str, torch.Tensor]:
    """An artefact of the right shapes for a stage that is left out."""
    if stage.kind == "prompt":
        return {name: torch.zeros(s, dtype=torch.bfloat16) for name, s in CONTEXTS.items()}
    if stage.resolution is None:
        return {}
    video = torch.zeros(stage.resolution.video_latent_shape(128))
    return {"video": video, "audio": torch.zeros(stage.resolution.audio_latent_shape(8, 16))}


def _begin(result: JobResult, name: str) -> None:
    log, card = result.log, result.log.machine.cards[0]
    gc.collect()
    log.stage, log.peaks[name, 0] = name, card.allocated
    result.stages.append(StageResult(name, before=card.allocated, events=(len(log.trace), 0)))


def _end(result: JobResult, plan: StageMemory) -> None:
    log, stage = result.log, result.stages[-1]
    stage.plan, stage.peak = plan, log.peaks[stage.name, 0]
    stage.flops = log.stage_flops(stage.name)
    stage.events = stage.events[0], len(log.trace)


@contextmanager
def _few_blocks(is_on: bool) -> Iterator[None]:
    """Let only a few blocks of a forward compute."""
    if not is_on:
        yield
        return
    chosen: set[int] = set()
    forward, block_forward = Transformer.forward, TransformerBlock.forward

    def choose(model: Transformer, *args: Any, **kwargs: Any) -> Any:
        blocks, iterator = list(model.transformer_blocks), model.block_iterator
        streamed = list(iterator._streamed)[:1] if isinstance(iterator, StreamedBlocks) else []
        numbers = {0, len(blocks) - 1, *streamed}
        chosen.clear()
        chosen.update(id(blocks[n]) for n in numbers)
        return forward(model, *args, **kwargs)

    def compute(block: TransformerBlock, *args: Any) -> None:
        if id(block) in chosen:
            block_forward(block, *args)

    def install(placed: PlacedBlock, buffer: torch.Tensor) -> None:
        if id(placed.module) in chosen:  # others would only make views of the buffer
            install_block(placed, buffer)

    install_block = PlacedBlock.install
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlacedBlock, "install", install)
        patch.setattr(Transformer, "forward", choose)
        patch.setattr(TransformerBlock, "forward", compute)
        yield
