"""Comparison of a request with all presets: the closest one and the differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latent_ladder.checkpoints.families import family_in_name
from latent_ladder.request.model import Request
from latent_ladder.request.presets import preset_family, preset_names, read_preset
from latent_ladder.sampling.schedules import DEFAULT_TOKENS, SCHEDULES

IGNORED_FIELDS = frozenset(
    {
        "prompt", "preset", "seed", "models", "images", "audio_in", "video", "output",
        "duration_s", "model_convention", "image_resize", "image_crf",
    }
)  # fmt: skip
"""Fields about the content of the clip, its files or the version of ComfyUI, which do not
characterise a preset."""
STAGE_KIND_WEIGHT = 20
"""Number of differing fields that a stage of another kind counts for."""
_MISSING = object()


@dataclass(frozen=True)
class Difference:
    """A field that differs: its path and both values."""

    path: str
    preset: Any
    request: Any

    def __str__(self) -> str:
        return f"{self.path} = {_format_value(self.request)} (preset: {_format_value(self.preset)})"


@dataclass(frozen=True)
class PresetMatch:
    """The closest preset of a request, and the differences from it."""

    preset: str
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """True if the request equals the preset."""
        return not self.differences


def match_preset(request: Request) -> PresetMatch:
    """Return the preset with the fewest differing fields.

    Of several, that of the request, one for the family that its files are named after, the first.
    """
    matches = [_compare(request, name) for name in preset_names()]
    family = family_in_name(request.models.transformer or request.models.checkpoint or "")

    def rank(match: PresetMatch) -> tuple[int, bool, bool]:
        is_other = family is not None and preset_family(match.preset) != family
        weight = sum(_weight(d) for d in match.differences)
        return weight, match.preset != request.preset, is_other

    return min(matches, key=rank)


def _weight(difference: Difference) -> int:
    return STAGE_KIND_WEIGHT if difference.path.endswith(".kind") else 1


def _compare(request: Request, name: str) -> PresetMatch:
    fields = read_preset(name).fields
    preset = Request.from_dict({"prompt": request.prompt, **fields})
    own, expected = _flatten(request), _flatten(preset)
    paths = dict.fromkeys([*expected, *own])
    differences = (
        Difference(path, expected.get(path, _MISSING), own.get(path, _MISSING)) for path in paths
    )
    return PresetMatch(name, tuple(d for d in differences if d.preset != d.request))


def _flatten(request: Request) -> dict[str, Any]:
    """Return all fields by path, with stage names as prefixes, in a normal form."""
    table = {k: v for k, v in request.to_dict().items() if k not in IGNORED_FIELDS}
    stages = table.pop("stages")
    flat = dict(_leaves("", table))
    seed = request.seed
    for stage, resolved in zip(stages, request.resolved.stages, strict=True):
        flat |= dict(_leaves(resolved.name, _normalise_stage(stage, seed)))
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
