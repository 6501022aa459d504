"""What a request will do, before anything heavy is loaded: stages, sizes, sigmas, keys.

The key of every artefact follows from the request and the checkpoints alone, so a plan knows
which stages the store already has. Changing one field moves the keys from the first stage that
reads it on, and no key before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from latent_ladder.checkpoints.layout import Component
from latent_ladder.checkpoints.library import Library, ModelSet, find_named
from latent_ladder.errors import CheckpointNotFound, RequestError
from latent_ladder.request import Request
from latent_ladder.request_stages import (
    BaseStage,
    Lora,
    RefineStage,
    SamplingStage,
    Stage,
    UpsampleStage,
)
from latent_ladder.shapes import Rung
from latent_ladder.stages.store import Damage, Store, artefact_key

VERSIONS: Mapping[str, int] = {"prompt": 1, "base": 1, "upsample": 1, "refine": 1, "sound": 1}
"""Raise a stage's number when the same inputs begin to give another result."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage and the artefact it makes.

    ``inputs`` are the keys it reads; ``sigmas`` is empty where nothing is sampled, ``stored``
    whether the artefact is there already. ``position`` is the stage's index in the request,
    ``None`` for prompts and sound.
    """

    name: str
    kind: str
    key: str
    inputs: tuple[str, ...] = ()
    position: int | None = None
    rung: Rung | None = None
    sigmas: tuple[float, ...] = ()
    loras: tuple[tuple[Component, float], ...] = ()
    upsampler: Component | None = None
    text: str = ""
    stored: bool = False


@dataclass(frozen=True)
class RunPlan:
    """All stages of a request in the order they run, and the models they use."""

    request: Request
    models: ModelSet
    stages: tuple[PlannedStage, ...]

    @property
    def run_key(self) -> str:
        """Names the run: equal requests on equal models share it (and wait for each other)."""
        fields = self.request.clip_fields()
        inputs = [self.stages[-1].key, self.latents.key]
        return artefact_key("clip", 1, fields, inputs, [self.models.video_vae.id])

    @property
    def latents(self) -> PlannedStage:
        """The stage whose video latents are decoded."""
        return next(s for s in reversed(self.stages) if s.position is not None)

    @property
    def sound(self) -> PlannedStage | None:
        """The stage that makes the waveform, if the clip has sound."""
        return next((s for s in self.stages if s.kind == "sound"), None)

    def stage(self, key: str) -> PlannedStage:
        """The stage that makes the artefact ``key``."""
        return next(s for s in self.stages if s.key == key)

    def needed(self) -> tuple[PlannedStage, ...]:
        """The stages that have to run: nothing that only feeds stored artefacts."""
        wanted, todo = set[str](), [self.latents, *([self.sound] if self.sound else [])]
        while todo:
            stage = todo.pop()
            if not stage.stored and stage.key not in wanted:
                wanted.add(stage.key)
                todo += [self.stage(key) for key in stage.inputs]
        return tuple(s for s in self.stages if s.key in wanted)


def make_plan(request: Request, models: ModelSet, library: Library) -> RunPlan:
    """Plan a request whose seed is drawn; see :func:`look_up` for what the store has of it.

    Raises before anything heavy loads:
    :class:`RequestError` for what the request asks and this version cannot do,
    :class:`CheckpointNotFound` for an upsampler or LoRA that is not there.
    """
    _check(request, models)
    return RunPlan(request, models, tuple(_Builder(request, models, library).stages()))


def look_up(plan: RunPlan, store: Store, on_damage: Callable[[str, Damage], None]) -> RunPlan:
    """The plan with ``stored`` filled in; ``on_damage(stage name, damage)`` for what is broken."""
    stages = []
    for stage in plan.stages:
        found = store.get(stage.key, partial(on_damage, stage.name))
        stages.append(replace(stage, stored=found is not None))
    return replace(plan, stages=tuple(stages))


def has_sound(request: Request) -> bool:
    """Whether the clip gets sound: asked for, and long enough for one latent of it (20 ms)."""
    return request.audio != "none" and request.rungs[-1].audio_latents > 0


def _check(request: Request, models: ModelSet) -> None:
    if has_sound(request) and not models.has_audio:
        role = "vocoder" if models.vocoder is None else "audio_vae"
        raise models.missing(role, "the request wants sound; without it, use --audio none")


@dataclass(frozen=True)
class _Builder:
    """Computes keys front to back: each stage's key holds those of its inputs."""

    request: Request
    models: ModelSet
    library: Library

    def stages(self) -> list[PlannedStage]:
        prompts = self._prompts()
        planned: list[PlannedStage] = []
        for position, stage in enumerate(self.request.stages):
            before = planned[-1:]
            inputs = tuple(s.key for s in before)
            if isinstance(stage, SamplingStage):
                inputs += tuple(p.key for p in prompts[: 1 + stage.needs_negative])
            planned.append(self._stage(position, stage, inputs))
        sound = [self._sound(planned)] if has_sound(self.request) else []
        return [*prompts, *planned, *sound]

    def _prompts(self) -> list[PlannedStage]:
        models = self.models
        ids = [c.id for c in (models.text_encoder, models.text_projection, models.connectors)]
        texts = [("prompt", self.request.prompt)]
        if self.request.needs_negative:
            texts.append(("negative prompt", self.request.negative_prompt))
        return [
            PlannedStage(
                name, "prompt", _key("prompt", {"prompt": text.strip()}, (), ids), text=text
            )
            for name, text in texts
        ]

    def _stage(self, position: int, stage: Stage, inputs: tuple[str, ...]) -> PlannedStage:
        name, rung = self.request.stage_names[position], self.request.rungs[position]
        planned = PlannedStage(name, stage.kind, "", inputs, position, rung)
        if isinstance(stage, UpsampleStage):
            upsampler = self._upsampler(stage)
            planned = replace(planned, upsampler=upsampler)
            ids = [upsampler.id, self.models.video_vae.id]
        elif isinstance(stage, BaseStage | RefineStage):
            loras = tuple((self._lora(x), x.strength) for x in stage.loras if x.strength != 0)
            planned = replace(planned, loras=loras, sigmas=self.request.sigmas(position))
            ids = [self.models.transformer.id, *(lora.id for lora, _ in loras)]
        else:
            raise RequestError(f"{name}: a {stage.kind} stage cannot be run by this version")
        fields = self.request.stage_fields(position)
        return replace(planned, key=_key(stage.kind, fields, inputs, ids))

    def _sound(self, planned: Sequence[PlannedStage]) -> PlannedStage:
        """Sound of the base stage where it is kept, else of the last sampling stage."""
        sampled = [s for s in planned if s.kind in ("base", "refine")]
        source = sampled[0] if self.request.audio == "keep" else sampled[-1]
        audio_vae, vocoder = self.models.audio_vae, self.models.vocoder
        ids = [c.id for c in (audio_vae, vocoder) if c is not None]
        return PlannedStage("sound", "sound", _key("sound", {}, (source.key,), ids), (source.key,))

    def _upsampler(self, stage: UpsampleStage) -> Component:
        if stage.file is not None:
            return find_named(self.library, stage.file, "latent_upsampler").component
        found = self.models.upsamplers.get((stage.axis, stage.exact_factor))
        if found is None:
            have = ", ".join(f"{a} x{float(f):g}" for a, f in self.models.upsamplers) or "none"
            raise self.models.missing(
                "latent_upsampler",
                f"none that is {stage.axis} x{stage.factor:g} fits; found: {have}",
                (stage.axis, stage.exact_factor),
            )
        return found

    def _lora(self, lora: Lora) -> Component:
        name = "distilled_lora" if lora.name is None else lora.name
        found = self.models.loras.get(name)
        if found is not None:
            return found
        if lora.name is None:
            raise self.models.missing("distilled_lora", "no distilled LoRA fits this transformer")
        return find_named(self.library, lora.name, "lora").component


def _key(
    kind: str, fields: Mapping[str, Any], inputs: Sequence[str], checkpoints: Sequence[str]
) -> str:
    return artefact_key(kind, VERSIONS[kind], fields, inputs, checkpoints)
