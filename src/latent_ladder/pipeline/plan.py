"""Plan of a run: its stages with sizes, sigmas, model files and artefact keys.

Nothing heavy is loaded. Keys follow from the request and the checkpoints alone
(:mod:`latent_ladder.pipeline.artifact_keys`), so a plan knows which artefacts the store already
has. Changing one field changes the keys from the first stage that reads it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from latent_ladder.checkpoints.compatibility import lora_family_note
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.families import marks_keyframes
from latent_ladder.checkpoints.in_context_loras import (
    in_context_notes,
    is_in_context,
    reference_factors,
)
from latent_ladder.checkpoints.lora_keys import describe_scales
from latent_ladder.checkpoints.selection import Library, ModelSet, find_by_name
from latent_ladder.checkpoints.text_loras import TextLoras, check_text_loras
from latent_ladder.checkpoints.training import is_distilled_twice, transformer_training
from latent_ladder.diagnostics.first_presets import first_preset
from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.models.text_encoder.tokenizer import fold_case
from latent_ladder.pipeline import artifact_keys as keys
from latent_ladder.pipeline.input_files import InputFile, InputFiles, read_input_files
from latent_ladder.request.keyframes_first import is_keyframes_first, keyframe_use
from latent_ladder.request.model import Request
from latent_ladder.request.sampling_options import Lora
from latent_ladder.request.stages import (
    BaseStage,
    RefineStage,
    SamplingStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)
from latent_ladder.request.windows import Window
from latent_ladder.storage.artifact_store import DamagedArtefact, Store
from latent_ladder.upscale.upscale_plan import UpscalePlan, plan_upscale


@dataclass(frozen=True)
class PlannedStage:
    """One stage and the artefact it makes.

    ``inputs`` are the keys of the artefacts it reads. ``sigmas`` is empty where nothing is sampled.
    ``stored`` is true if the store has the artefact. ``position`` is the stage's index in the
    request, ``None`` for prompts, inputs and sound. ``windows`` are the temporal windows it is made
    in, a single one for a short clip.
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
    files: tuple[InputFile, ...] = ()
    stored: bool = False
    windows: tuple[Window, ...] = ()

    @property
    def steps(self) -> int:
        """Number of sampling steps, summed over all windows."""
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
        """Key of the whole run. Processes with the same key wait for each other."""
        inputs = [self.stages[-1].key, self.latents.key]
        upscaler_id = self.upscale.id if self.upscale else None
        return keys.clip_key(self.request, inputs, self.models, upscaler_id)

    @property
    def stages_of_request(self) -> tuple[PlannedStage, ...]:
        """The planned stages that the request names, in its order."""
        return tuple(s for s in self.stages if s.position is not None)

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

    def missing_stages(self) -> tuple[PlannedStage, ...]:
        """Stages that have to run: those not stored, unless only stored artefacts need them."""
        wanted, todo = set[str](), [self.latents, *([self.sound] if self.sound else [])]
        while todo:
            stage = todo.pop()
            if not stage.stored and stage.key not in wanted:
                wanted.add(stage.key)
                todo += [self.stage(key) for key in stage.inputs]
        return tuple(s for s in self.stages if s.key in wanted)


def make_plan(request: Request, models: ModelSet, library: Library) -> RunPlan:
    """Plan a resolved request; :func:`mark_stored` then adds which artefacts the store has.

    Raises before anything heavy loads:
    :class:`RequestError` for what the request asks and this version cannot do,
    :class:`CheckpointNotFound` for an upsampler, upscaler or LoRA that is not there.
    """
    _check(request, models)
    _check_distilled_once(request, models)
    inputs = read_input_files(request, models.family)
    stages = _PlanBuilder(request, models, library, inputs).stages()
    upscale = None
    if request.upscale is not None:
        upscale = plan_upscale(request.upscale, (request.width, request.height), library)
    notes = (*inputs.notes, *_lora_notes(request, models, stages))
    return RunPlan(request, models, tuple(stages), notes, upscale)


def _lora_notes(
    request: Request, models: ModelSet, stages: Sequence[PlannedStage]
) -> Iterator[str]:
    """Notes on strength and target model from the headers of LoRAs, each file once."""
    used = {lora.id: lora for stage in stages for lora, _ in stage.loras}
    has_reference = request.video is not None and request.video.mode == "reference"
    has_reference |= is_keyframes_first(request.stages)
    for lora in used.values():
        yield from describe_scales(lora)
        note = lora_family_note(lora, models.family)
        if note is not None and note not in models.notes:
            yield note
        if is_distilled_twice(lora, models.transformer):
            yield (
                f"{lora.file.path.name} on {models.transformer.file.path.name}, which is distilled "
                "already: the change of distillation is applied a second time"
            )
        yield from in_context_notes(lora, has_reference)


def _check_distilled_once(request: Request, models: ModelSet) -> None:
    """Raise :class:`RequestError` for the LoRA role ``distilled`` on a distilled transformer."""
    used = [
        lora
        for _, stage in request.sampling_stages()
        for lora in stage.loras
        if lora.role == "distilled" and lora.strength > 0
    ]
    if used and transformer_training(models.transformer) == "distilled":
        name = models.transformer.file.path.name
        preset = first_preset(models.family, "distilled", has_lora=False)
        raise RequestError(
            f"the request adds the distilled LoRA, and {name} is distilled already: the LoRA is "
            "the difference between the two transformers",
            f"use --preset {preset}, or a dev transformer; a LoRA that is named by its file is "
            "added with a warning",
        )


def mark_stored(
    plan: RunPlan, store: Store, on_damage: Callable[[str, DamagedArtefact], None]
) -> RunPlan:
    """The plan with ``stored`` filled in.

    Calls ``on_damage(stage name, damage)`` for each damaged artefact.
    """
    stages = []
    for stage in plan.stages:
        found = store.get(stage.key, partial(on_damage, stage.name))
        stages.append(replace(stage, stored=found is not None))
    return replace(plan, stages=tuple(stages))


def _check(request: Request, models: ModelSet) -> None:
    _check_slots(request, models)
    encodes = request.video is not None and request.video.mode != "reference"
    if request.resolved.has_sound and encodes and not _encodes_sound(models):
        raise models.missing_error(
            "audio_vae", "the sound of a video needs one that holds an encoder"
        )
    if request.resolved.has_sound and request.audio_in is not None:
        if not _encodes_sound(models):
            raise models.missing_error("audio_vae", "audio_in needs one that holds an encoder")
    elif request.resolved.has_sound and not models.has_audio:
        role = "vocoder" if models.vocoder is None else "audio_vae"
        raise models.missing_error(role, "the request wants sound; without it, use --audio none")


def _check_slots(request: Request, models: ModelSet) -> None:
    base = request.stages[0]
    slots = base.generated_keyframes if isinstance(base, BaseStage) else 0
    if is_keyframes_first(request.stages) and not marks_keyframes(models.transformer):
        raise RequestError(
            f"base.keyframes=segments: {models.transformer.file.path.name} has no mark of "
            "keyframes, only LTX-2.5 has",
            "use another preset, or a transformer of LTX-2.5",
        )
    if slots and not marks_keyframes(models.transformer):
        raise RequestError(
            f"base.generated_keyframes={slots}: {models.transformer.file.path.name} has no mark of "
            "keyframes, only LTX-2.5 has",
            "set base.generated_keyframes=0, or use a transformer of LTX-2.5",
        )
    if slots and request.resolved.windows is not None:
        raise RequestError(
            f"base.generated_keyframes={slots} cannot be used with windows in time",
            "set base.generated_keyframes=0, or windows=off",
        )


def _encodes_sound(models: ModelSet) -> bool:
    vae = models.audio_vae
    return vae is not None and any(name.startswith("encoder.") for name in vae.names)


@dataclass(frozen=True)
class _PlanBuilder:
    """Plans the stages front to back: each stage's key contains those of its inputs."""

    request: Request
    models: ModelSet
    library: Library
    files: InputFiles

    def stages(self) -> list[PlannedStage]:
        prompts: dict[str, PlannedStage] = {}
        if not any(isinstance(stage, SamplingStage) for stage in self.request.stages):
            prompts = {made.key: made for made in self._prompts(())}
        planned: list[PlannedStage] = []
        encoded: dict[str, PlannedStage] = {}
        for position, stage in enumerate(self.request.stages):
            if isinstance(stage, UpscaleStage):
                continue  # happens while the file is written; nothing of it is stored
            inputs = tuple(s.key for s in planned[-1:])
            if isinstance(stage, SamplingStage):
                for text in self._prompts(self._loras(stage))[: 1 + stage.needs_negative]:
                    prompts.setdefault(text.key, text)
                    inputs += (text.key,)
                is_copied = position == 0 and self._starts_as_video
                for made in [] if is_copied else self._input_stages(position):
                    encoded.setdefault(made.key, made)
                    inputs += (made.key,)
                if keyframe_use(stage) == "refine" and self._is_in_context(stage):
                    inputs += (planned[0].key,)
            planned.append(self._stage(position, stage, inputs))
        sound = [self._sound(planned)] if self.request.resolved.has_sound else []
        return [*prompts.values(), *encoded.values(), *planned, *sound]

    def _is_in_context(self, stage: SamplingStage) -> bool:
        """True if a stage has a LoRA that works with a reference."""
        return any(is_in_context(lora) for lora, _ in self._loras(stage))

    def _input_stages(self, position: int) -> list[PlannedStage]:
        """Stages that encode the input files that the sampling stage ``position`` uses."""
        resolution = self.request.resolutions[position]
        made = [self._images(resolution)] if self.files.images else []
        if self.files.sound is not None and self.request.resolved.has_sound:
            made.append(self._audio_in(self.files.sound, resolution))
        if self.files.video is not None and (position == 0 or self._keeps_video):
            made.append(self._video_in("video_in", self.files.video, position))
        return made

    @property
    def _keeps_video(self) -> bool:
        """True if every stage keeps a part of the input video."""
        return self.request.video is not None and self.request.video.keeps

    def _video_in(self, kind: str, file: InputFile, position: int) -> PlannedStage:
        """Stage that encodes a video: to start from, to keep a part of, or as a reference."""
        resolution, sound = self.request.resolutions[position], self.files.sound
        if file.role == "reference":
            file = replace(file, options={**file.options, **self._reference_factors()})
        key = keys.input_video_key(
            kind, file, sound, self.request, resolution, self.models,
            with_sound=self.request.resolved.has_sound,
        )  # fmt: skip
        files = (file, sound) if kind == "source" and sound is not None else (file,)
        name = f"video {resolution.width}x{resolution.height}"
        return PlannedStage(name, kind, key, resolution=resolution, files=files)

    @property
    def _starts_as_video(self) -> bool:
        """True if the input video takes the place of the base stage's result."""
        video = self.request.video
        return video is not None and video.mode == "v2v" and video.denoise == 0

    def _reference_factors(self) -> dict[str, int]:
        """Downscaling of a reference video, in space and time, from the first LoRA that has one."""
        base = self.request.stages[0]
        loras = base.loras if isinstance(base, BaseStage) else ()
        for lora in loras:
            found = self._lora(lora)
            if lora.strength != 0 and is_in_context(found):
                return reference_factors(found)
        if not any(lora.strength for lora in loras if lora.name is not None):
            raise RequestError(
                "a reference video needs an IC-LoRA in the base stage, which has none",
                'set base.loras=[{name="an-ic-lora.safetensors"}]',
            )
        return {"smaller": 1, "slower": 1}

    def _audio_in(self, file: InputFile, resolution: Resolution) -> PlannedStage:
        key = keys.input_audio_key(file, resolution, self.models)
        return PlannedStage("audio_in", "audio_in", key, files=(file,))

    def _images(self, resolution: Resolution) -> PlannedStage:
        files = self.files.images
        key = keys.images_key(files, self.request, resolution, self.models)
        one = replace(resolution, frames=1, audio_latents=0)
        name = f"images {resolution.width}x{resolution.height}"
        return PlannedStage(name, "images", key, resolution=one, files=files)

    def _prompts(self, loras: tuple[tuple[Component, float], ...]) -> list[PlannedStage]:
        """The texts of a stage with ``loras``: some of these change the text connectors too."""
        models = self.models
        parts = (models.text_encoder, models.text_projection, models.connectors)
        as_comfyui = self.request.model_convention != "ltx"
        text_loras = TextLoras.select(loras, loras)
        check_text_loras(text_loras, models.connectors, models.text_projection)
        texts = [("prompt", self.request.prompt)]
        if self.request.needs_negative:
            texts.append(("negative prompt", self.request.negative_prompt))
        folded = [(name, fold_case(text, models.text_encoder)) for name, text in texts]
        return [
            PlannedStage(
                name if not text_loras else f"{name} with LoRA",
                "prompt",
                keys.prompt_key(text, *parts, text_loras, as_comfyui=as_comfyui),
                text=text,
                loras=text_loras.all,
            )
            for name, text in folded
        ]

    def _loras(self, stage: SamplingStage) -> tuple[tuple[Component, float], ...]:
        return tuple((self._lora(x), x.strength) for x in stage.loras if x.strength != 0)

    def _stage(self, position: int, stage: Stage, inputs: tuple[str, ...]) -> PlannedStage:
        request, models = self.request, self.models
        resolved = request.resolved.stages[position]
        name, resolution = resolved.name, resolved.resolution
        if isinstance(stage, BaseStage) and self._starts_as_video and self.files.video is not None:
            made = self._video_in("source", self.files.video, position)
            return replace(made, name=name, position=position)
        planned = PlannedStage(
            name, stage.kind, "", inputs, position, resolution, windows=resolved.windows
        )
        if isinstance(stage, UpsampleStage):
            upsampler = self._upsampler(stage)
            key = keys.upsample_key(request, position, inputs, upsampler, models)
            return replace(planned, key=key, upsampler=upsampler)
        if isinstance(stage, BaseStage | RefineStage):
            loras = self._loras(stage)
            key = keys.sampling_key(request, position, inputs, [c for c, _ in loras], models)
            return replace(planned, key=key, loras=loras, sigmas=resolved.sigmas)
        raise RequestError(f"{name}: a {stage.kind} stage cannot be run by this version")

    def _sound(self, planned: Sequence[PlannedStage]) -> PlannedStage:
        """Sound of the base stage if it is kept, else of the last sampling stage; or of a file."""
        if self.files.sound is not None:
            key = keys.copied_sound_key(self.files.sound, self.request)
            return PlannedStage("sound", "sound", key, files=(self.files.sound,))
        sampled = [s for s in planned if s.kind in ("base", "refine", "source")]
        source = sampled[0] if self.request.audio == "keep" else sampled[-1]
        key = keys.decoded_sound_key(source.key, self.models)
        return PlannedStage("sound", "sound", key, (source.key,))

    def _upsampler(self, stage: UpsampleStage) -> Component:
        if stage.file is not None:
            return find_by_name(self.library, stage.file, "latent_upsampler").component
        found = self.models.upsamplers.get((stage.axis, stage.exact_factor))
        if found is None:
            have = ", ".join(f"{a} x{float(f):g}" for a, f in self.models.upsamplers) or "none"
            raise self.models.missing_error(
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
            raise self.models.missing_error(
                "distilled_lora", "no distilled LoRA fits this transformer"
            )
        return find_by_name(self.library, lora.name, "lora").component
