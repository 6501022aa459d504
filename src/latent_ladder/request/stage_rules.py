"""Names of stages, and the rules between their fields and their order.

The rules are checked on the raw tables, so that they are reported together with wrong values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from latent_ladder.errors import RequestError
from latent_ladder.request.problems import Found
from latent_ladder.request.sampling_options import Schedule
from latent_ladder.request.stages import STAGE_TABLES
from latent_ladder.sampling.schedules import DEFAULT_TOKENS

UPSAMPLERS: Mapping[str, tuple[float, ...]] = {"spatial": (1.5, 2.0), "temporal": (2.0,)}
"""Factors of the family's latent upsamplers, by axis."""


def stage_kinds(stages: Iterable[Any]) -> list[Any]:
    """The kind of each stage, raw table or validated."""
    return [s.get("kind") if isinstance(s, Mapping) else getattr(s, "kind", None) for s in stages]


def stage_names(kinds: Sequence[Any]) -> list[str]:
    """The names of stages as a user writes them: ``refine``, ``refine[1]`` where a kind repeats."""
    names = []
    for i, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in STAGE_TABLES:
            names.append(f"stages[{i}]")
        elif kinds.count(kind) == 1:
            names.append(kind)
        else:
            names.append(f"{kind}[{kinds[:i].count(kind)}]")
    return names


def stages_problems(stages: Sequence[Any]) -> list[Found]:
    """Problems of the order of stages, and of fields that exclude each other."""
    kinds = stage_kinds(stages)
    problems = _order_problems(kinds)
    for name, stage in zip(stage_names(kinds), stages, strict=True):
        if isinstance(stage, Mapping):
            problems += _stage_problems(name, stage)
    return problems


def _order_problems(kinds: Sequence[Any]) -> list[Found]:
    found: list[Found] = []
    if not kinds or kinds[0] != "base" or kinds.count("base") > 1:
        order = " -> ".join(str(kind) for kind in kinds) or "none"
        text = f"the stages are {order}, expected exactly one base, and first"
        found.append((text, "start with one base; upsample and refine follow"))
    if "upscale" in kinds[:-1]:
        text = "an upscale stage works on decoded frames, and stages follow it"
        found.append((text, "put one upscale stage last; an upsample stage doubles latents"))
    return found


def _stage_problems(name: str, stage: Mapping[str, Any]) -> list[Found]:
    if stage.get("kind") == "upsample":
        return _factor_problems(name, stage.get("axis", "spatial"), stage.get("factor", 2.0))
    if stage.get("kind") == "upscale":
        return _target_problems(name, stage)
    if stage.get("kind") not in ("base", "refine"):
        return []
    found = _sigma_problems(name, stage)
    guidance = stage.get("guidance")
    for stream, values in guidance.items() if isinstance(guidance, Mapping) else ():
        if isinstance(values, Mapping):
            found += _guidance_problems(f"{name}.guidance.{stream}", values)
    loras = stage.get("loras")
    for i, lora in enumerate(loras if isinstance(loras, list | tuple) else ()):
        if isinstance(lora, Mapping) and (lora.get("name") is None) == (lora.get("role") is None):
            text = f"{name}.loras[{i}] needs exactly one of name and role"
            found.append((text, 'use {name = "file.safetensors"} or {role = "distilled"}'))
    return found


def _target_problems(name: str, stage: Mapping[str, Any]) -> list[Found]:
    present = {key for key in ("factor", "width", "height") if stage.get(key) is not None}
    if present in (set(), {"factor"}, {"width", "height"}):
        return []
    text = f"{name} has {' and '.join(sorted(present))}, expected a factor, or width and height"
    return [(text, f"keep {name}.factor, or set {name}.width and {name}.height")]


def _sigma_problems(name: str, stage: Mapping[str, Any]) -> list[Found]:
    present = [key for key in ("sigmas", "schedule") if stage.get(key) is not None]
    denoise = stage.get("denoise")
    if len(present) != 1:
        both = "both sigmas and a schedule" if present else "neither sigmas nor a schedule"
        hint = f"keep one of {name}.sigmas and {name}.schedule"
        return [(f"{name} has {both}, expected one of them", hint)]
    if present == ["sigmas"]:
        text = f"{name} has both sigmas and denoise, but sigmas already set the start"
        hint = f"remove {name}.denoise, or replace {name}.sigmas by {name}.schedule"
        return [(text, hint)] if denoise is not None else []
    try:
        schedule = Schedule.model_validate(stage["schedule"])
        share = denoise if isinstance(denoise, int | float) and 0 < denoise <= 1 else 1.0
        schedule.sigmas(DEFAULT_TOKENS, share)
    except ValidationError:
        return []  # reported with the other wrong values
    except RequestError as error:
        return [(f"{name}: {error.message}", error.hint)]
    return []


def _guidance_problems(path: str, values: Mapping[str, Any]) -> list[Found]:
    found: list[Found] = []
    if values.get("stg") and not values.get("stg_blocks"):
        text = f"{path}.stg={values['stg']} names no blocks to perturb"
        found.append((text, f"set {path}.stg_blocks=[28], the block used with LTX 2.3"))
    low, high = values.get("sigma_low", 0.0), values.get("sigma_high", 1.0)
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        found.append((f"{path}: sigma_low={low} is above sigma_high={high}", "swap the two"))
    return found


def _factor_problems(name: str, axis: Any, factor: Any) -> list[Found]:
    known = UPSAMPLERS.get(str(axis))
    if known is None or not isinstance(factor, int | float) or factor in known:
        return []
    nearest = min(known, key=lambda one: abs(one - factor))
    text = f"{name}.factor={factor} has no {axis} upsampler"
    return [(text, f"use {name}.factor={nearest:g}")]
