"""Which presets can run with the files that are here, what each lacks, and how it fits memory.

Pure decisions on headers and sizes; ``diagnostics.doctor`` gathers what they are made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from latent_ladder.checkpoints.catalog import CatalogFile, Upsampling, suggest_file
from latent_ladder.checkpoints.compatibility import training_variant
from latent_ladder.checkpoints.selection import REQUIRED, Library, PartialModelSet
from latent_ladder.errors import MemoryBudgetError
from latent_ladder.memory.cost_model import ModelSizes, sizes_of
from latent_ladder.memory.planner import Budget, Policy, plan_memory
from latent_ladder.request.model import Request
from latent_ladder.request.presets import Preset, preset_names, read_preset
from latent_ladder.request.stages import SamplingStage, UpsampleStage

Need = tuple[str, Upsampling | None]
"""A role that a preset needs; of an upsampler also what it must do."""


@dataclass(frozen=True)
class Missing:
    """What a preset lacks: the roles, why nothing here fills them, and a file that would."""

    roles: tuple[str, ...]
    why: str
    file: CatalogFile | None


@dataclass(frozen=True)
class StageFit:
    """One stage on this machine: predicted peak in bytes, and how the transformer is held."""

    name: str
    peak_bytes: int
    offload_plan: str


@dataclass(frozen=True)
class PresetState:
    """Whether a preset can run with what is here.

    ``too_big`` says what does not fit the memory; ``advice`` what runs and is not as meant.
    """

    name: str
    summary: str
    missing: tuple[Missing, ...]
    advice: tuple[str, ...]
    stages: tuple[StageFit, ...]
    too_big: str | None

    @property
    def ready(self) -> bool:
        """Whether every file is there and the memory suffices."""
        return not self.missing and self.too_big is None


def preset_states(
    choice: PartialModelSet, pocket: PartialModelSet, fits: Fits
) -> Iterator[PresetState]:
    """Every preset: one that the pocket names in its header with the pocket, all others without.

    ``choice`` is what the user's own folders offer.
    """
    own = None if pocket.transformer is None else pocket.transformer.component.file.metadata
    for name in preset_names():
        mine = own is not None and own.get("preset") == name
        yield _preset_state(read_preset(name), pocket if mine else choice, fits)


def split_off_pocket(library: Library) -> tuple[Library, Library]:
    """The user's part of a library, and the pocket's."""
    users, pocket = (
        {role: tuple(f for f in found if f.is_embedded == embedded)
         for role, found in library.found.items()}
        for embedded in (False, True)
    )  # fmt: skip
    return replace(library, found=users), replace(library, found=pocket)


def _preset_state(preset: Preset, choice: PartialModelSet, fits: Fits) -> PresetState:
    request = Request.from_dict({**preset.fields, "prompt": "a clip"}).resolved()
    wanted = "dev" if _guided(request) else "distilled"
    missing = tuple(_missing(request, choice, wanted))
    if missing:
        return PresetState(preset.name, preset.summary, missing, (), (), None)
    stages, too_big = fits(request, choice)
    advice = tuple(_advice(choice, wanted))
    return PresetState(preset.name, preset.summary, (), advice, stages, too_big)


def needs(request: Request) -> Iterator[Need]:
    """The roles that a request needs, and what its upsamplers must do."""
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


def _guided(request: Request) -> bool:
    """Whether a request is meant for the dev model: it guides, or puts the distilled LoRA on."""
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
        why = "; ".join(reasons) or "none found"
        yield Missing(roles, why, file)


def _has(choice: PartialModelSet, role: str, upsampling: Upsampling | None) -> bool:
    if upsampling is not None:
        return upsampling in choice.upsamplers
    return role in choice.parts or role in choice.loras


def _advice(choice: PartialModelSet, wanted: str) -> Iterator[str]:
    """Nothing in a transformer's tensors tells how it was trained; its name does."""
    yield from choice.notes
    if choice.transformer is None:
        return
    name = choice.transformer.path.name
    if training_variant(name) is not None and training_variant(name) != wanted:
        yield f"made for a {wanted} model, {name} is a {training_variant(name)} one"


@dataclass
class Fits:
    """Asks the planner how requests fit; sizes are read once for each set of files."""

    available: Budget | None
    policy: Policy
    sizes: dict[frozenset[tuple[str, Path]], ModelSizes] = field(default_factory=dict)

    def __call__(
        self, request: Request, choice: PartialModelSet
    ) -> tuple[tuple[StageFit, ...], str | None]:
        """The stages of a request that has all its files, or why the largest does not fit."""
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
