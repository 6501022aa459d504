"""``--set path=value``: changes of single fields of a request table, stages included.

``apply_sets(table, ["seed=5", "refine.denoise=0.4", "base.guidance.video.cfg=3.5"])``

* A path is field names joined by dots; ``name[1]`` is the second entry of a list.
* ``base``, ``refine``, ``upsample`` and ``upscale`` mean the stages of that kind: ``refine`` all of
  them, ``refine[1]`` the second one. ``base.steps`` is short for ``base.schedule.steps``,
  ``refine.lora`` for the strength of its distilled LoRA, or of its only one.
* A value is written as in TOML; anything else is text, so quotes are rarely needed.
* The field that is set replaces those that it excludes: ``steps``, ``schedule`` and ``denoise``
  replace ``sigmas``, and the other way round; ``duration_s`` replaces ``frames``.

Tables are raw here; ``request.model.Request`` validates names and values afterwards.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request, override
from latent_ladder.request.problems import Found, report
from latent_ladder.request.stage_rules import stage_kinds, stage_names
from latent_ladder.request.stages import STAGE_TABLES
from latent_ladder.request.validation_errors import field_hint
from latent_ladder.sampling.schedules import SCHEDULES, manual_sigmas

TEXT_FIELDS = frozenset(
    {"prompt", "negative_prompt", "preset", "name", "file", "method", "audio_in"}
)
DEFAULT_SCHEDULE = {"base": "ltx", "refine": "simple"}
"""The schedule that replaces a fixed list of sigmas when its steps or its start change."""
_STEP = re.compile(r"([A-Za-z_]\w*)(?:\[(\d+)\])?")


class _Step(NamedTuple):
    name: str
    at: int | None


def apply_sets(table: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """A copy of the request ``table`` with every ``path=value`` of ``sets`` applied in order.

    Raises RequestError listing each one that cannot be applied.
    """
    out = copy.deepcopy(dict(table))
    problems: list[Found] = []
    for text in sets:
        try:
            out = _apply(out, text)
        except RequestError as error:
            problems += error.problems
    if problems:
        raise report(problems)
    return out


def _apply(table: dict[str, Any], text: str) -> dict[str, Any]:
    path, equals, written = text.partition("=")
    steps = _steps(path.strip()) if equals else ()
    if not steps:
        raise RequestError(
            f"--set {text!r} is not path=value", "write for example refine.denoise=0.4"
        )
    value = _value(steps, written.strip())
    first, *rest = steps
    if first.name not in STAGE_TABLES:
        _check_first(first)
        if not rest and first.at is None:
            return override(table, {first.name: value})
        _assign(table, steps, value)
        return table
    if not rest:
        raise RequestError(f"--set {text!r} names a stage, not a field", f"use {first.name}.seed")
    for stage in _stages(table, first):
        _set_in_stage(first.name, stage, rest, value)
    return table


def _steps(path: str) -> tuple[_Step, ...]:
    """``refine[1].seed`` -> (refine, 1), (seed, None); empty when it is not a path."""
    found = [_STEP.fullmatch(part) for part in path.split(".")]
    if any(match is None for match in found):
        return ()
    return tuple(
        _Step(match[1], None if match[2] is None else int(match[2])) for match in found if match
    )


def _value(steps: tuple[_Step, ...], written: str) -> Any:
    """The value as TOML where it is TOML; text fields take only quoted TOML."""
    name = steps[-1].name
    is_text = name in TEXT_FIELDS or (steps[0].name == "models" and name != "folders")
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    value = parsed.pop("value")
    is_one = not parsed  # text with line breaks can happen to be TOML
    return value if is_one and (not is_text or isinstance(value, str)) else written


def _check_first(first: _Step) -> None:
    if first.name not in Request.model_fields:
        hint = field_hint(first.name, Request, STAGE_TABLES)
        raise RequestError(f"{first.name} is not a field", hint)


def _stages(table: Mapping[str, Any], wanted: _Step) -> list[dict[str, Any]]:
    kinds = stage_kinds(table.get("stages", ()))
    found = [s for s, kind in zip(table.get("stages", ()), kinds, strict=True) if kind == wanted[0]]
    if not found or (wanted.at is not None and wanted.at >= len(found)):
        name = wanted.name if wanted.at is None else f"{wanted.name}[{wanted.at}]"
        names = ", ".join(stage_names(kinds)) or "none"
        raise RequestError(f"the request has no stage {name}", f"its stages are {names}")
    return found if wanted.at is None else [found[wanted.at]]


def _set_in_stage(name: str, stage: dict[str, Any], path: list[_Step], value: Any) -> None:
    if path == [_Step("steps", None)]:
        path = [_Step("schedule", None), *path]
    if path == [_Step("lora", None)]:
        path = [_Step("loras", _only_lora(name, stage)), _Step("strength", None)]
    fields = [step.name for step in path]
    if fields == ["schedule", "name"] and value in SCHEDULES:
        stage["schedule"] = _switch_schedule(stage, value)
        return
    if fields[0] == "sigmas":
        stage.pop("schedule", None)
        stage.pop("denoise", None)
    elif fields[0] in ("schedule", "denoise"):
        _use_schedule(stage)
    _assign(stage, path, value, name)


def _only_lora(name: str, stage: Mapping[str, Any]) -> int:
    """Index of the LoRA of ``refine.lora``: the distilled one, or the only one."""
    loras = stage.get("loras") or ()
    distilled = [i for i, lora in enumerate(loras) if lora.get("role") == "distilled"]
    if len(distilled) == 1 or len(loras) == 1:
        return (distilled or [0])[0]
    if not loras:
        raise RequestError(
            f"{name}.lora is the strength of a LoRA, and {name} has none",
            f'use --set {name}.loras=[{{role="distilled"}}]',
        )
    hint = f"use {name}.loras[0].strength to {name}.loras[{len(loras) - 1}].strength"
    raise RequestError(f"{name} has {len(loras)} LoRAs, {name}.lora is ambiguous", hint)


def _fixed_sigmas_of(stage: Mapping[str, Any]) -> tuple[float, ...]:
    """The fixed sigmas of a stage, from its list or from a named list; empty without any."""
    sigmas = stage.get("sigmas")
    if isinstance(sigmas, str):
        return manual_sigmas(sigmas)
    schedule = stage.get("schedule")
    name = schedule.get("name") if isinstance(schedule, Mapping) else None
    return tuple(sigmas or (SCHEDULES[name].fixed if name in SCHEDULES else ()))


def _use_schedule(stage: dict[str, Any]) -> None:
    """Replace fixed sigmas by a schedule of the same number of steps."""
    fixed = _fixed_sigmas_of(stage)
    if fixed:
        stage.pop("sigmas", None)
        stage["schedule"] = {"name": DEFAULT_SCHEDULE[stage["kind"]], "steps": len(fixed) - 1}


def _switch_schedule(stage: dict[str, Any], name: str) -> dict[str, Any]:
    """The table of schedule ``name``, with the parameters it shares with the former schedule."""
    fixed = _fixed_sigmas_of(stage)
    stage.pop("sigmas", None)
    if SCHEDULES[name].function is None:
        stage.pop("denoise", None)
        return {"name": name}
    before = {"steps": len(fixed) - 1} if fixed else dict(stage.get("schedule") or {})
    shared = {k: v for k, v in before.items() if k == "steps" or k in SCHEDULES[name].parameters}
    return {"name": name} | shared


def _assign(
    table: MutableMapping[str, Any], path: Iterable[_Step], value: Any, prefix: str = ""
) -> None:
    """Put ``value`` at ``path`` below ``table``, creating missing tables.

    ``prefix`` is the path of ``table`` itself, for messages.
    """
    *way, last = path
    here = table
    for step in way:
        prefix += f".{step.name}" if prefix else step.name
        inner = here.setdefault(step.name, {})
        if step.at is not None:
            inner = _entry(inner, step, prefix)
        if not isinstance(inner, dict):
            raise RequestError(f"{prefix}={inner!r} has no fields", f"set {prefix} itself")
        here = inner
    if last.at is None:
        here[last.name] = value
    else:
        _entry(here.get(last.name), last, f"{prefix}.{last.name}" if prefix else last.name)
        here[last.name][last.at] = value


def _entry(values: Any, step: _Step, prefix: str) -> Any:
    if not isinstance(values, list) or step.at is None or step.at >= len(values):
        have = len(values) if isinstance(values, list) else 0
        raise RequestError(
            f"{prefix} has no entry {step.at}, it has {have}",
            f"set the whole list: {prefix}=[...]",
        )
    return values[step.at]
