"""Which preset a request equals, or is nearest to, and in what it differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from latent_ladder.request.model import Request
from latent_ladder.request.presets import preset_names, read_preset
from latent_ladder.sampling.schedules import DEFAULT_TOKENS, SCHEDULES

IGNORED_FIELDS = frozenset(
    {"prompt", "preset", "seed", "models", "images", "audio_in", "video", "output", "duration_s"}
)
"""Fields that say what is shown, or where files are: no preset is known by them."""
STAGE_KIND_WEIGHT = 20
"""How many fields it counts for if a stage is of another kind."""
_MISSING = object()


@dataclass(frozen=True)
class Difference:
    """One field that differs: its path and both values, written."""

    path: str
    preset: Any
    request: Any

    def __str__(self) -> str:
        return f"{self.path} = {_format_value(self.request)} (preset: {_format_value(self.preset)})"


@dataclass(frozen=True)
class PresetMatch:
    """The preset that a request is nearest to."""

    preset: str
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def match_preset(request: Request) -> PresetMatch:
    """The preset with the fewest fields that differ; of several the first by name."""
    found = [_compare(request, name) for name in preset_names()]
    return min(found, key=lambda near: sum(_weight(d) for d in near.differences))


def _weight(difference: Difference) -> int:
    return STAGE_KIND_WEIGHT if difference.path.endswith(".kind") else 1


def _compare(request: Request, name: str) -> PresetMatch:
    fields = read_preset(name).fields
    preset = Request.from_dict({"prompt": request.prompt, **fields})
    ours, theirs = _flatten(request), _flatten(preset)
    paths = dict.fromkeys([*theirs, *ours])
    differences = (
        Difference(path, theirs.get(path, _MISSING), ours.get(path, _MISSING)) for path in paths
    )
    return PresetMatch(name, tuple(d for d in differences if d.preset != d.request))


def _flatten(request: Request) -> dict[str, Any]:
    """All fields by path, those of stages under their names; equal meanings written equally."""
    table = {k: v for k, v in request.to_dict().items() if k not in IGNORED_FIELDS}
    stages = table.pop("stages")
    flat = dict(_leaves("", table))
    seed = request.seed
    for stage, name in zip_longest(stages, request.stage_names):
        flat |= dict(_leaves(name, _normalise_stage(stage, seed)))
    return flat


def _normalise_stage(stage: Mapping[str, Any], seed: int) -> dict[str, Any]:
    out = {k: v for k, v in stage.items() if k not in ("file", "batch_passes")}
    schedule = dict(out.get("schedule") or {})
    spec = SCHEDULES.get(schedule.get("name", ""))
    if spec is not None and spec.fixed:
        del out["schedule"]
        out["sigmas"] = list(spec.fixed)
    elif spec is not None:
        defaults = {**spec.parameters, "tokens": DEFAULT_TOKENS}
        out["schedule"] = {k: v for k, v in schedule.items() if defaults.get(k) != v}
    if out.get("seed") in ("same", seed):
        out.pop("seed")
    options = dict(out.pop("options", {}))
    if out.get("sampler") == "res_2s":
        options = {k: v for k, v in options.items() if (k, v) not in (("eta", 0.5), ("bong", True))}
    return out | ({"options": options} if options else {})


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{path}.{name}" if path else name, inner)


def _format_value(value: Any) -> str:
    return "unset" if value is _MISSING else f"{value}"
