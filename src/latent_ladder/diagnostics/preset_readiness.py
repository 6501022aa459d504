"""Readiness of presets: missing files, and the fit into memory.

Pure decisions on headers and sizes; ``diagnostics.doctor`` reads the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from latent_ladder.checkpoints.catalog import CatalogFile, Upsampling, suggest_file
from latent_ladder.checkpoints.selection import (
    REQUIRED,
    Library,
    ModelSet,
    PartialModelSet,
    display_name,
    select_available,
    without_transformer,
)
from latent_ladder.checkpoints.training import (
    training_of_file,
    transformer_training,
    unknown_training_error,
)
from latent_ladder.diagnostics.first_presets import first_preset, training_of
from latent_ladder.errors import CheckpointNotFound, MemoryBudgetError
from latent_ladder.memory.model_sizes import ModelSizes, sizes_of
from latent_ladder.memory.planner import Budget, Policy, plan_memory
from latent_ladder.request.model import Request
from latent_ladder.request.presets import (
    DEFAULT_FAMILY,
    Preset,
    find_preset,
    preset_family,
    preset_names,
    preset_training,
    read_preset,
)
from latent_ladder.request.stages import SamplingStage, UpsampleStage

Need = tuple[str, Upsampling | None]
"""A role that a preset needs; for an upsampler also its axis and factor."""


@dataclass(frozen=True)
class Missing:
    """Missing files of a preset: the roles, the reason, and a published file that fills them."""

    roles: tuple[str, ...]
    why: str
    file: CatalogFile | None


@dataclass(frozen=True)
class StageFit:
    """One stage on this machine: predicted peak in bytes, and the offload plan in words."""

    name: str
    peak_bytes: int
    offload_plan: str


@dataclass(frozen=True)
class PresetState:
    """Readiness of a preset with the files and the memory of this machine.

    ``too_big`` says what does not fit into memory; ``advice`` what runs, but not as intended.
    """

    name: str
    summary: str
    missing: tuple[Missing, ...]
    advice: tuple[str, ...]
    stages: tuple[StageFit, ...]
    too_big: str | None

    @property
    def ready(self) -> bool:
        """True where every file is there and the memory suffices."""
        return not self.missing and self.too_big is None


def preset_states(users: Library, pocket: PartialModelSet, fits: Fits) -> Iterator[PresetState]:
    """The state of every preset.

    The preset that the pocket names in its header is checked with the pocket, all others with the
    files of the user's own folders that a run of it would use.
    """
    own = None if pocket.transformer is None else pocket.transformer.component.file.metadata
    choices: dict[tuple[str, str], PartialModelSet] = {}
    for name in preset_names():
        preset = read_preset(name)
        if own is not None and own.get("preset") == name:
            yield _preset_state(preset, pocket, fits)
            continue
        kind = preset.family, preset_training(name)
        if kind not in choices:
            choices[kind] = _choice_for(users, preset)
        yield _preset_state(preset, choices[kind], fits)


def _choice_for(users: Library, preset: Preset) -> PartialModelSet:
    """The user's files for a preset; where it needs another family, those of that one."""
    choice = select_available(users, preset=preset.name)
    if _fits_family(preset.family, choice.family):
        return choice
    transformers = [f for f in users.of("transformer") if f.summary.family == preset.family]
    wanted = preset_training(preset.name)
    transformers.sort(key=lambda found: training_of_file(found.path) not in (None, wanted))
    if not transformers:
        return without_transformer(users, preset.family)
    return select_available(users, {"transformer": str(transformers[0].path)})


def _fits_family(preset_family: str, family: str) -> bool:
    """False for the presets of LTX-2.5 with another family; older ones run with newer files."""
    return preset_family in ("", DEFAULT_FAMILY, family)


def preset_notes(request: Request, models: ModelSet) -> Iterator[str]:
    """Warnings about a preset of an older family than the models that it runs with."""
    family = preset_family(request.preset)
    if models.preset is None and family and family != models.family and models.family == "2.5":
        preset = first_preset(
            models.family, training_of(models), has_lora=models.has_distilled_lora
        )
        yield (
            f"preset {request.preset} was made for LTX-{family}, the transformer is "
            f"LTX-{models.family}: the numbers of its steps are not those of its training; "
            f"--preset {preset} has them"
        )


def check_preset(request: Request, models: ModelSet, library: Library) -> None:
    """Raise :class:`CheckpointNotFound` for a preset that was made for other weights.

    A model whose header names a preset is made for that one; the built-in presets besides it, and
    the user's that are based on them, need the published weights, those of LTX-2.5 its own.
    """
    preset = find_preset(request.preset)
    if preset is not None and not _fits_family(preset.family, models.family):
        raise _other_family_error(request, preset, models, library)
    wanted = request.preset if preset is None else preset.based_on
    if models.preset is None or wanted not in preset_names() or wanted == models.preset:
        return
    file = models.transformer.file.path.name
    users, _ = split_off_pocket(library)
    missing = tuple(_missing(request, select_available(users), _wanted_variant(request)))
    roles = list(dict.fromkeys(display_name(role) for m in missing for role in m.roles))
    text = f"preset {request.preset} is made for the weights of LTX-2, and {file} is a model for "
    text += f"preset {models.preset}"
    if roles:
        text += f"; missing: {', '.join(roles)}"
    hint = f"`ladder models get ltx-2.3` downloads what is missing; or use --preset {models.preset}"
    raise CheckpointNotFound(text, hint if roles else f"use --preset {models.preset}")


def _other_family_error(
    request: Request, preset: Preset, models: ModelSet, library: Library
) -> CheckpointNotFound:
    users, _ = split_off_pocket(library)
    choice = _choice_for(users, preset)
    missing = tuple(_missing(request, choice, _wanted_variant(request)))
    roles = dict.fromkeys(display_name(role) for m in missing for role in m.roles)
    reasons = dict.fromkeys(m.why for m in missing if m.why != NONE_FOUND)
    text = f"preset {request.preset} needs LTX-{preset.family}; missing: {', '.join(roles)}"
    text += f" ({'; '.join(reasons)})" if reasons else ""
    other = models.preset or first_preset(
        models.family, training_of(models), has_lora=models.has_distilled_lora
    )
    return CheckpointNotFound(
        text,
        f"`ladder models get ltx-{preset.family}` downloads what is missing; or use "
        f"--preset {other} with {models.transformer.file.path.name} (LTX-{models.family})",
    )


NONE_FOUND = "none found"
"""Reason of a missing file for which nothing else was found."""


def _wanted_variant(request: Request) -> str:
    return "dev" if _needs_dev_model(request) else "distilled"


def split_off_pocket(library: Library) -> tuple[Library, Library]:
    """The files of the user's folders, and those of the pocket."""
    users, pocket = (
        {role: tuple(f for f in found if f.is_embedded == embedded)
         for role, found in library.found.items()}
        for embedded in (False, True)
    )  # fmt: skip
    return replace(library, found=users), replace(library, found=pocket)


def _preset_state(preset: Preset, choice: PartialModelSet, fits: Fits) -> PresetState:
    request = Request.from_dict({**preset.fields, "prompt": "a clip"}).pick_seed()
    wanted = _wanted_variant(request)
    missing = tuple(_missing(request, choice, wanted))
    if missing:
        return PresetState(preset.name, preset.summary, missing, (), (), None)
    stages, too_big = fits(request, choice)
    advice = tuple(_advice(choice, wanted))
    return PresetState(preset.name, preset.summary, (), advice, stages, too_big)


def needs(request: Request) -> Iterator[Need]:
    """The roles that a request needs, with the axis and factor of each upsampler."""
    yield from ((role, None) for role in ("transformer", *REQUIRED))
    if request.audio != "none":
        yield from (("audio_vae", None), ("vocoder", None))
    for stage in request.stages:
        if isinstance(stage, UpsampleStage) and stage.file is None:
            yield "latent_upsampler", (stage.axis, stage.exact_factor)
    if _distilled_lora(request):
        yield "distilled_lora", None


def _distilled_lora(request: Request) -> bool:
    sampled = [stage for stage in request.stages if isinstance(stage, SamplingStage)]
    return any(lora.role == "distilled" for stage in sampled for lora in stage.loras)


def _needs_dev_model(request: Request) -> bool:
    """True for requests for the dev model: with guidance, or with the distilled LoRA."""
    return _distilled_lora(request) or request.needs_negative


def _missing(request: Request, choice: PartialModelSet, wanted: str) -> Iterator[Missing]:
    covered: list[CatalogFile] = []
    for role, upsampling in dict.fromkeys(needs(request)):
        if _has(choice, role, upsampling) or any(role in file.roles for file in covered):
            continue
        reasons = choice.rejected.get(role, ())
        file = suggest_file(
            role,
            precision=choice.precision,
            variant=wanted if role == "transformer" else "",
            upsampling=upsampling,
            family=choice.family,
        )
        roles: tuple[str, ...] = (role,)
        if file is not None:
            roles = tuple(r for r in file.roles if r == role or not _has(choice, r, None))
            covered += [file] if role != "latent_upsampler" else []
        why = "; ".join(reasons) or NONE_FOUND
        yield Missing(roles, why, file)


def _has(choice: PartialModelSet, role: str, upsampling: Upsampling | None) -> bool:
    if upsampling is not None:
        return upsampling in choice.upsamplers
    return role in choice.parts or role in choice.loras


def _advice(choice: PartialModelSet, wanted: str) -> Iterator[str]:
    """Notes about the files; the hash or the name of a transformer says how it was trained."""
    yield from choice.notes
    if choice.transformer is None:
        return
    name, training = (
        choice.transformer.path.name,
        transformer_training(choice.transformer.component),
    )
    if training is not None and training != wanted:
        yield f"the preset is for a {wanted} model, {name} is a {training} model"
    if training is None and choice.family == "2.5":
        names = (first_preset("2.5", each, has_lora=True) for each in ("distilled", "dev"))
        error = unknown_training_error(choice.transformer.component, *names)
        yield f"{error.message}; {error.hint}"


@dataclass
class Fits:
    """Fit of requests into memory; sizes are read once for each set of files."""

    available: Budget | None
    policy: Policy
    sizes: dict[frozenset[tuple[str, Path]], ModelSizes] = field(default_factory=dict)

    def __call__(
        self, request: Request, choice: PartialModelSet
    ) -> tuple[tuple[StageFit, ...], str | None]:
        """The stages of a request with all its files, or the reason why one does not fit."""
        if self.available is None:
            return (), None
        parts = dict(choice.parts)
        for stage in request.stages:
            if isinstance(stage, UpsampleStage) and stage.file is None:
                parts["latent_upsampler"] = choice.upsamplers[(stage.axis, stage.exact_factor)]
        if "distilled_lora" in choice.loras:
            parts["distilled_lora"] = choice.loras["distilled_lora"]
        key = frozenset((role, part.file.path) for role, part in parts.items())
        if key not in self.sizes:
            self.sizes[key] = sizes_of(parts)
        try:
            plan = plan_memory(request, self.sizes[key], self.available, self.policy)
        except MemoryBudgetError as error:
            return (), error.message
        stages = (StageFit(s.cost.name, s.peak_bytes, str(s.offload_plan)) for s in plan.stages)
        return tuple(stages), None
