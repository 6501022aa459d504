"""Options that several commands share are fields of a dataclass; a command takes them as one value.

:func:`expand_flags` turns such parameters into single options of the command, so that each option
is written once, and sorts the options into the panels of ``--help``.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from latent_ladder.cli.commands.flag_rules import Rule, check_rules

MOST_USED = "Most used"
STAGES = "Stages"
INPUTS = "Input files"
SOUND = "Sound"
OUTPUT = "Output file"
MODELS = "Model files"
MEMORY = "Device and memory"
OTHER = "Store, messages, help"

PANELS = (MOST_USED, INPUTS, STAGES, SOUND, OUTPUT, MODELS, MEMORY, OTHER)
"""Panels of ``--help`` from top to bottom."""


def expand_flags(
    command: Callable[..., None], most_used: Sequence[str] = (), rules: Sequence[Rule] = ()
) -> Callable[..., None]:
    """``command`` with each parameter that is a dataclass replaced by one option per field.

    The parameters named in ``most_used`` come first, in that order and in a panel of their own;
    the others are sorted by :data:`PANELS`. ``rules`` refuse options that mean nothing together.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _field_parameters(hints[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    field_names = {group: [f.name for f in fields(kind)] for group, kind in groups.items()}

    defaults = {p.name: p.default for p in parameters}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        check_rules(rules, {n: v for n, v in values.items() if v not in (None, defaults[n])})
        grouped = {
            group: kind(**{name: values.pop(name) for name in field_names[group]})
            for group, kind in groups.items()
        }
        command(**grouped, **values)

    ordered = _sort_parameters(parameters, most_used)
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    return run


def _field_parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def _sort_parameters(
    parameters: Iterable[inspect.Parameter], most_used: Sequence[str]
) -> list[inspect.Parameter]:
    """Keyword parameters in the order of ``--help``: arguments, most used, the other panels."""

    def position(parameter: inspect.Parameter) -> tuple[int, int]:
        info = _option_info(parameter)
        if isinstance(info, ArgumentInfo):
            return (-1, 0)
        if parameter.name in most_used:
            return (0, most_used.index(parameter.name))
        panel = None if info is None else info.rich_help_panel
        return (PANELS.index(panel) if panel in PANELS else len(PANELS), 0)

    ordered = sorted(parameters, key=position)
    return [
        parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            annotation=(
                _move_to_top(parameter.annotation)
                if parameter.name in most_used
                else parameter.annotation
            ),
        )
        for parameter in ordered
    ]


def _option_info(parameter: inspect.Parameter) -> OptionInfo | ArgumentInfo | None:
    """Typer's description in ``Annotated[type, typer.Option(...)]``."""
    if get_origin(parameter.annotation) is not Annotated:
        return None
    found = (a for a in get_args(parameter.annotation) if isinstance(a, OptionInfo | ArgumentInfo))
    return next(found, None)


def _move_to_top(annotation: Any) -> Any:
    """``annotation`` with its option in the panel :data:`MOST_USED`."""
    value_type, info = get_args(annotation)
    moved = copy.copy(info)
    moved.rich_help_panel = MOST_USED
    return Annotated[value_type, moved]
