"""Recommended preset for a clip: a single pass, the distilled two stages, or more stages.

The rules are those of the multi-stage guide: more stages are worth their time at 1080p or more, for
fine detail, for 4 s or more and for input pictures; one pass is enough for small, short and simple
clips and for cards under 12 GB; distilled models are tried first. The files on this machine and the
memory planner then decide which of these can run. Pure decisions on headers; nothing is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from latent_ladder.checkpoints.catalog import Upsampling
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.diagnostics.first_presets import training_of
from latent_ladder.diagnostics.preset_readiness import needs
from latent_ladder.errors import MemoryBudgetError, RequestError
from latent_ladder.memory.model_sizes import ModelSizes, sizes_of
from latent_ladder.memory.planner import GIB, Budget, Machine, MemoryPlan, Policy, plan_memory
from latent_ladder.models.text_encoder.tokenizer import text_length
from latent_ladder.request.model import Request, override
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.atomic_write import readable_size

Way = Literal["single pass", "distilled", "multi-stage"]

WAYS: tuple[Way, ...] = ("single pass", "distilled", "multi-stage")
"""From the cheapest to the most detailed."""
_PRESETS_2_5: Mapping[str, Mapping[Way, tuple[str, ...]]] = {
    "dev": {
        "single pass": ("ltx-2.5-one-stage",),
        "distilled": ("ltx-2.5-distilled-lora",),
        "multi-stage": ("ltx-2.5-hq", "ltx-2.5-two-stage"),
    },
    "distilled": {
        "single pass": ("ltx-2.5-distilled-single",),
        "distilled": ("ltx-2.5-distilled",),
    },
}
PRESETS: Mapping[str, Mapping[str, Mapping[Way, tuple[str, ...]]]] = MappingProxyType(
    {
        "2.3": {
            "dev": {
                "single pass": ("distilled-lora-single",),
                "distilled": ("distilled-lora",),
                "multi-stage": ("hq", "balanced"),
            },
            "distilled": {
                "single pass": ("distilled-single",),
                "distilled": ("distilled",),
                "multi-stage": ("three-stage",),
            },
        },
        "2.5": _PRESETS_2_5,
    }
)
"""The presets of each way, by family and training of the transformer, best first.

A family that is not listed has those of LTX-2.3.
"""


DELIVERY_PX = 1080
LONG_S = 4.0
SMALL_GIB = 12
COMPOSED_PX = 256
DETAIL = re.compile(
    r"\b(skin|freckles|wrinkles|pores|fabric|lace|knit\w*|wool|velvet|foliage|leaves|grass|moss|"
    r"bark|hair|fur|feathers?|text|letters|sign|writing|close-?up|macro|texture[ds]?|detail\w*|"
    r"intricate|raindrops|droplets|crowd)\b",
    re.IGNORECASE,
)
"""Words for subjects that gain most from more stages, according to the guide."""


@dataclass(frozen=True)
class Option:
    """One preset at the requested size: its cost, or ``why_not`` it cannot run.

    ``flops`` and ``seconds`` are those of all stages, ``seconds`` only after ``ladder bench``;
    ``streams`` is true where only a part of the transformer stays on the device, ``first_px`` is
    the shorter side of the first stage.
    """

    way: Way
    preset: str
    peak_bytes: int | None = None
    flops: float | None = None
    seconds: float | None = None
    streams: bool = False
    first_px: int = 0
    why_not: str | None = None


@dataclass(frozen=True)
class Proposal:
    """Recommended preset, the reasons and all options; ``preset`` is ``None`` if none can run."""

    way: Way | None
    preset: str | None
    reasons: tuple[str, ...]
    options: tuple[Option, ...]

    @property
    def sentence(self) -> str:
        """The recommendation in one line."""
        if self.preset is None:
            return f"no preset can make this clip: {'; '.join(self.reasons)}"
        return f"{self.way} (--preset {self.preset}): {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """The recommendation as plain data for JSON."""
        return asdict(self) | {"sentence": self.sentence}


def propose(
    request: Request,
    models: ModelSet,
    available: Budget,
    policy: Policy,
    machine: Machine | None = None,
    asked: str | None = None,
) -> Proposal:
    """Recommend a preset for the clip of ``request``, whatever its own preset and stages.

    ``models`` are the files found; ``available`` and ``policy`` are those of a run. ``asked`` is a
    preset to compare with the others.
    """
    wanted, reasons = suitable_way(request, available)
    if models.preset is not None:
        known: Mapping[Way, tuple[str, ...]] = {"multi-stage": (models.preset,)}
        name = models.transformer.file.path.name
        found = "; ".join(reasons)
        reasons = [f"the only preset of {name} (with LTX-2.3: {wanted}, because {found})"]
    else:
        known = PRESETS.get(models.family, PRESETS["2.3"])[training_of(models)]
    appraise = _Appraisal(request, models, available, policy, machine)
    options = tuple(appraise(way, name) for way in WAYS if way in known for name in known[way])
    if asked is not None and all(option.preset != asked for option in options):
        options += (appraise(_way_of(asked), asked),)
    return _decide(wanted, reasons, options)


def _way_of(preset: str) -> Way:
    """The way of a preset that is no recommended one: by the number of its stages."""
    return "single pass" if len(read_preset(preset).fields["stages"]) == 1 else "multi-stage"


def suitable_way(request: Request, available: Budget) -> tuple[Way, list[str]]:
    """The best way for a clip by the guide's rules, whatever files there are, and the reasons."""
    seconds = float(request.resolved.duration_s)
    size = f"{request.width}x{request.height}"
    small = available.device != "cpu" and available.device_bytes < SMALL_GIB * GIB
    found = DETAIL.search(request.prompt)
    large = min(request.width, request.height) >= DELIVERY_PX
    votes = {
        f"{size} is delivery size": large,
        f"{seconds:.1f} s is {LONG_S:g} s or more": seconds >= LONG_S,
        "it has input pictures": bool(request.active_images),
        f"the prompt asks for fine detail ({found[0] if found else ''})": found is not None,
    }
    reasons = [reason for reason, holds in votes.items() if holds]
    if len(reasons) >= 2:
        return "multi-stage", reasons
    if small:
        return "single pass", [f"under {SMALL_GIB} GiB of memory", *reasons]
    if not reasons:
        return "single pass", [f"{size} and {seconds:.1f} s are small and short"]
    return "distilled", [*reasons, "a distilled preset is tried first"]


def _decide(wanted: Way, reasons: Sequence[str], options: tuple[Option, ...]) -> Proposal:
    """The first option that can run: of the wanted way, then of a cheaper one, then of any."""
    cheaper = WAYS[WAYS.index(wanted) :: -1]
    order = [*cheaper, *(way for way in WAYS if way not in cheaper)]
    tried: list[str] = []
    for way in order:
        for option in (o for o in options if o.way == way):
            if option.why_not is None:
                option, instead = _richer(option, options)
                found = [*reasons, *tried, *instead, *_memory_reasons(option)]
                return Proposal(option.way, option.preset, tuple(found), options)
            tried.append(f"{option.preset} would suit, but {option.why_not}")
    return Proposal(None, None, tuple(tried), options)


def _richer(found: Option, options: Sequence[Option]) -> tuple[Option, list[str]]:
    """The cheapest way with more stages that costs no more than ``found``, and the reason.

    Attention grows with the square of the tokens, so one pass at the final size can cost more than
    one at half of it and a few refine steps. Half of a small picture is too small to compose in.
    """
    more = [
        o
        for o in options
        if o.why_not is None
        and WAYS.index(o.way) > WAYS.index(found.way)
        and o.first_px >= COMPOSED_PX
        and _work(o) <= _work(found)
        and (o.peak_bytes or 0) <= (found.peak_bytes or 0)
    ]
    if not more:
        return found, []
    best = min(more, key=_work)
    share = _work(best) / _work(found)
    return best, [f"its stages take {share:.0%} of the work of {found.preset}"]


def _work(option: Option) -> float:
    """Seconds where ``ladder bench`` measured the machine, else FLOPs."""
    work = option.flops if option.seconds is None else option.seconds
    return work or 0.0


def _memory_reasons(option: Option) -> list[str]:
    size = readable_size(option.peak_bytes or 0)
    return [f"takes {size} of memory" + (", its blocks streamed" if option.streams else "")]


@dataclass(frozen=True)
class _Appraisal:
    """Computes the cost of a preset for the clip."""

    request: Request
    models: ModelSet
    available: Budget
    policy: Policy
    machine: Machine | None
    sizes: dict[Upsampling | None, ModelSizes] = field(default_factory=dict)

    def __call__(self, way: Way, preset: str) -> Option:
        try:
            request = self._request(preset)
            missing = self._missing_file(request)
            if missing:
                return Option(way, preset, why_not=f"there is no {missing}")
            plan = plan_memory(request, self._sizes(request), self.available, self.policy)
        except (RequestError, MemoryBudgetError) as error:
            return Option(way, preset, why_not=error.message)
        first = request.resolved.stages[0].resolution
        return Option(
            way,
            preset,
            plan.peak_bytes,
            sum(stage.cost.flops for stage in plan.stages),
            self._seconds(plan),
            any(stage.offload_plan.resident is not None for stage in plan.stages),
            min(first.width, first.height),
        )

    def _request(self, preset: str) -> Request:
        asked = self.request
        names = ("prompt", "width", "height", "frames", "fps", "audio", "seed")
        return Request.from_dict(
            override(read_preset(preset).fields, {name: getattr(asked, name) for name in names})
        )

    def _missing_file(self, request: Request) -> str | None:
        """The first file of the preset that is missing."""
        for role, upsampling in needs(request):
            if upsampling is not None and upsampling not in self.models.upsamplers:
                return f"{upsampling[0]} x{float(upsampling[1]):g} upsampler"
            if role == "distilled_lora" and not self.models.has_distilled_lora:
                return "distilled LoRA"
            if role == "vocoder" and not self.models.has_audio:
                return "vocoder"
        return None

    def _sizes(self, request: Request) -> ModelSizes:
        """Sizes of the files that a preset uses, read once for each upsampler."""
        last = [upsampling for _, upsampling in needs(request) if upsampling is not None][-1:]
        upsampling = last[0] if last else None
        if upsampling not in self.sizes:
            self.sizes[upsampling] = self._read(upsampling)
        return self.sizes[upsampling]

    def _read(self, upsampling: Upsampling | None) -> ModelSizes:
        models = self.models
        parts: dict[str, Component | None] = {role: pick(models) for role, pick in PARTS.items()}
        if upsampling is not None:
            parts["latent_upsampler"] = models.upsamplers[upsampling]
        parts["distilled_lora"] = models.loras.get("distilled_lora")
        found = {role: part for role, part in parts.items() if part is not None}
        return sizes_of(found, self.available.value_bytes, text_length(models.text_encoder))

    def _seconds(self, plan: MemoryPlan) -> float | None:
        if self.machine is None:
            return None
        return sum(self.machine.seconds(stage) for stage in plan.stages if stage.cost.flops)


PARTS: Mapping[str, Callable[[ModelSet], Component | None]] = MappingProxyType(
    {
        "transformer": lambda m: m.transformer,
        "connectors": lambda m: m.connectors,
        "text_projection": lambda m: m.text_projection,
        "text_encoder": lambda m: m.text_encoder,
        "video_vae": lambda m: m.video_vae,
        "audio_vae": lambda m: m.audio_vae,
        "vocoder": lambda m: m.vocoder,
    }
)
