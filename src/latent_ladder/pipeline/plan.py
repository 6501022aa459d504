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

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import Library, ModelSet, find_named
from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import Resolution, duration
from latent_ladder.pipeline.input_files import GivenFile, Inputs, all_fields, look_at, window
from latent_ladder.request.model import Request
from latent_ladder.request.stages import (
    BaseStage,
    Lora,
    RefineStage,
    SamplingStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)
from latent_ladder.request.windows import Window
from latent_ladder.storage.artifact_store import Damage, Store, artefact_key
from latent_ladder.upscale.plan import UpscalePlan, plan_upscale

VERSIONS: Mapping[str, int] = {
    "prompt": 1, "base": 1, "upsample": 1, "refine": 1, "sound": 1, "images": 1, "audio_in": 1,
    "video_in": 1, "source": 1,
}  # fmt: skip
"""Raise a stage's number when the same inputs begin to give another result."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage and the artefact it makes.

    ``inputs`` are the keys it reads; ``sigmas`` is empty where nothing is sampled, ``stored``
    whether the artefact is there already. ``position`` is the stage's index in the request,
    ``None`` for prompts and sound. ``windows`` are those in time that it works in, one where it is
    made whole.
    """

    name: str
    kind: str
    key: str
    inputs: tuple[str, ...] = ()
    position: int | None = None
    resolution: Resolution | None = None
    sigmas: tuple[float, ...] = ()
    loras: tuple[tuple[Component, float], ...] = ()
    upsampler: Component | None = None
    text: str = ""
    files: tuple[GivenFile, ...] = ()
    stored: bool = False
    windows: tuple[Window, ...] = ()

    @property
    def steps(self) -> int:
        """How many steps are sampled in all windows."""
        return max(len(self.sigmas) - 1, 0) * max(len(self.windows), 1)


@dataclass(frozen=True)
class RunPlan:
    """All stages of a request in the order they run, and the models they use."""

    request: Request
    models: ModelSet
    stages: tuple[PlannedStage, ...]
    notes: tuple[str, ...] = ()
    upscale: UpscalePlan | None = None

    @property
    def run_key(self) -> str:
        """Names the run: equal requests on equal models share it (and wait for each other)."""
        fields = self.request.clip_fields()
        inputs = [self.stages[-1].key, self.latents.key]
        ids = [self.models.video_vae.id, *([self.upscale.id] if self.upscale else [])]
        return artefact_key("clip", 1, fields, inputs, ids)

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
    :class:`CheckpointNotFound` for an upsampler, upscaler or LoRA that is not there.
    """
    _check(request, models)
    inputs = look_at(request, models.family)
    stages = _Builder(request, models, library, inputs).stages()
    upscale = None
    if request.upscale is not None:
        upscale = plan_upscale(request.upscale, (request.width, request.height), library)
    return RunPlan(request, models, tuple(stages), inputs.notes, upscale)


def look_up(plan: RunPlan, store: Store, on_damage: Callable[[str, Damage], None]) -> RunPlan:
    """The plan with ``stored`` filled in; ``on_damage(stage name, damage)`` for what is broken."""
    stages = []
    for stage in plan.stages:
        found = store.get(stage.key, partial(on_damage, stage.name))
        stages.append(replace(stage, stored=found is not None))
    return replace(plan, stages=tuple(stages))


def has_sound(request: Request) -> bool:
    """True where the clip gets sound: requested, and longer than half an audio latent (20 ms)."""
    return request.resolved.has_sound


def _check(request: Request, models: ModelSet) -> None:
    encodes = request.video is not None and request.video.mode != "reference"
    if has_sound(request) and encodes and not _encodes_sound(models):
        raise models.missing("audio_vae", "the sound of a video needs one that holds an encoder")
    if has_sound(request) and request.audio_in is not None:
        if not _encodes_sound(models):
            raise models.missing("audio_vae", "audio_in needs one that holds an encoder")
    elif has_sound(request) and not models.has_audio:
        role = "vocoder" if models.vocoder is None else "audio_vae"
        raise models.missing(role, "the request wants sound; without it, use --audio none")


def _encodes_sound(models: ModelSet) -> bool:
    vae = models.audio_vae
    return vae is not None and any(name.startswith("encoder.") for name in vae.names)


@dataclass(frozen=True)
class _Builder:
    """Computes keys front to back: each stage's key holds those of its inputs."""

    request: Request
    models: ModelSet
    library: Library
    given: Inputs

    def stages(self) -> list[PlannedStage]:
        prompts = self._prompts()
        planned: list[PlannedStage] = []
        encoded: dict[str, PlannedStage] = {}
        for position, stage in enumerate(self.request.stages):
            if isinstance(stage, UpscaleStage):
                continue  # on the way into the file: nothing is kept of it
            before = planned[-1:]
            inputs = tuple(s.key for s in before)
            if isinstance(stage, SamplingStage):
                inputs += tuple(p.key for p in prompts[: 1 + stage.needs_negative])
                for made in [] if position == 0 and self._is_source else self._inputs(position):
                    encoded.setdefault(made.key, made)
                    inputs += (made.key,)
            planned.append(self._stage(position, stage, inputs))
        sound = [self._sound(planned)] if has_sound(self.request) else []
        return [*prompts, *encoded.values(), *planned, *sound]

    def _inputs(self, position: int) -> list[PlannedStage]:
        """The input files that a sampling stage holds, encoded at its size."""
        resolution = self.request.resolutions[position]
        made = [self._images(resolution)] if self.given.images else []
        if self.given.sound is not None and has_sound(self.request):
            made.append(self._audio_in(self.given.sound, resolution))
        if self.given.video is not None and (position == 0 or self._keeps):
            made.append(self._video_in("video_in", self.given.video, position))
        return made

    @property
    def _keeps(self) -> bool:
        """Whether every stage holds a part of the video."""
        return self.request.video is not None and self.request.video.keeps

    def _video_in(self, kind: str, file: GivenFile, position: int) -> PlannedStage:
        """A video as latents: to start from, to keep a part of, or, as it is scaled, a guide."""
        request, resolution = self.request, self.request.resolutions[position]
        options = dict(file.options)
        if file.role == "reference":
            options |= self._reference_factors()
        fields = {
            "file": {**file.fields(), **options},
            "canvas": [resolution.width, resolution.height, resolution.frames],
            "window": list(window(request, resolution)),
            "fps": str(resolution.fps),
            "audio_latents": resolution.audio_latents if has_sound(request) else 0,
            "sound": None if self.given.sound is None else self.given.sound.fields(),
        }
        models = self.models
        ids = [c.id for c in (models.video_vae, models.audio_vae) if c is not None]
        files: tuple[GivenFile, ...] = (replace(file, options=options),)
        if kind == "source" and self.given.sound is not None:
            files += (self.given.sound,)
        name = f"video {resolution.width}x{resolution.height}"
        return PlannedStage(
            name, kind, _key(kind, fields, (), ids), resolution=resolution, files=files
        )

    @property
    def _is_source(self) -> bool:
        """Whether the base stage is the video itself."""
        video = self.request.video
        return video is not None and video.mode == "v2v" and video.denoise == 0

    def _reference_factors(self) -> dict[str, int]:
        """By how much the first LoRA that says so wants its reference smaller and slower."""
        base = self.request.stages[0]
        loras = base.loras if isinstance(base, BaseStage) else ()
        for lora in loras:
            facts = self._lora(lora).config
            if lora.strength != 0 and "reference_downscale_factor" in facts:
                slower = facts.get("reference_temporal_scale_factor", 1)
                return {"smaller": int(facts["reference_downscale_factor"]), "slower": int(slower)}
        if not any(lora.strength for lora in loras if lora.name is not None):
            raise RequestError(
                "a reference video needs an IC-LoRA in the base stage, which has none",
                'set base.loras=[{name="an-ic-lora.safetensors"}]',
            )
        return {"smaller": 1, "slower": 1}

    def _audio_in(self, file: GivenFile, resolution: Resolution) -> PlannedStage:
        fields = {"file": file.fields(), "latents": resolution.audio_latents}
        ids = [c.id for c in (self.models.audio_vae,) if c is not None]
        key = _key("audio_in", fields, (), ids)
        return PlannedStage("audio_in", "audio_in", key, resolution=None, files=(file,))

    def _images(self, resolution: Resolution) -> PlannedStage:
        files = self.given.images
        fields = {"files": all_fields(files), "canvas": [resolution.width, resolution.height]}
        if any(file.options["fit"] == "letterbox" for file in files):
            fields["window"] = list(window(self.request, resolution))
        one = replace(resolution, frames=1, audio_latents=0)
        name = f"images {resolution.width}x{resolution.height}"
        key = _key("images", fields, (), [self.models.video_vae.id])
        return PlannedStage(name, "images", key, resolution=one, files=files)

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
        resolved = self.request.resolved.stages[position]
        name, resolution = resolved.name, resolved.resolution
        if isinstance(stage, BaseStage) and self._is_source and self.given.video is not None:
            made = self._video_in("source", self.given.video, position)
            return replace(made, name=name, position=position)
        planned = PlannedStage(
            name, stage.kind, "", inputs, position, resolution, windows=resolved.windows
        )
        if isinstance(stage, UpsampleStage):
            upsampler = self._upsampler(stage)
            planned = replace(planned, upsampler=upsampler)
            ids = [upsampler.id, self.models.video_vae.id]
        elif isinstance(stage, BaseStage | RefineStage):
            loras = tuple((self._lora(x), x.strength) for x in stage.loras if x.strength != 0)
            planned = replace(planned, loras=loras, sigmas=resolved.sigmas)
            ids = [self.models.transformer.id, *(lora.id for lora, _ in loras)]
        else:
            raise RequestError(f"{name}: a {stage.kind} stage cannot be run by this version")
        fields = self.request.stage_fields(position)
        return replace(planned, key=_key(stage.kind, fields, inputs, ids))

    def _sound(self, planned: Sequence[PlannedStage]) -> PlannedStage:
        """Sound of the base stage where it is kept, else of the last sampling stage; or given."""
        if self.given.sound is not None:
            file, length = self.given.sound, duration(self.request.frames, self.request.fps)
            fields = {"file": file.fields(), "duration": str(length)}
            return PlannedStage("sound", "sound", _key("sound", fields, (), ()), files=(file,))
        sampled = [s for s in planned if s.kind in ("base", "refine", "source")]
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
