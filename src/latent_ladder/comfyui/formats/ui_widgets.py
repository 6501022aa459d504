"""The values of widgets as the UI format keeps them: by name, by position, or as an object.

Positions are those of all widgets of the type, linked or not, with values in between that belong to
no input: what happens to a seed after a run, the button of an upload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from latent_ladder.comfyui.graph import Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import Input, NodeType

SEED_CONTROLS = frozenset({"fixed", "increment", "increment-wrap", "decrement", "randomize"})
"""What the control widget behind a seed may say."""


def widget_values(kind: NodeType, written: Mapping[str, Any]) -> dict[str, Value]:
    """All widgets of a node by input name; those not in the file have the type's defaults.

    ``written`` is the node as the UI format has it. Names are preferred to positions.
    """
    if kind.class_type not in NODE_TYPES:
        return _values_of_unknown_type(written)
    named = _values_by_name(written)
    if named is not None:
        taken = {
            one.name: named[one.name] for one in kind.visible_inputs(named) if one.name in named
        }
    else:
        listed = written.get("widgets_values")
        rest = deque(listed if isinstance(listed, list) else ())
        taken = {}
        _take_positional(kind.inputs, rest, taken)
    return {
        one.name: taken.get(one.name, one.default)
        for one in kind.visible_inputs(taken)
        if one.is_widget and (one.name in taken or one.default is not None)
    }


def conflicting_values(
    kind: NodeType, written: Mapping[str, Any]
) -> dict[str, tuple[Value, Value]]:
    """Widgets whose value by name, which counts, is not the one by position: both of them.

    Somebody edited the file by hand, and only one of the two.
    """
    listed = written.get("widgets_values")
    named = written.get("widgets_values_named")
    if not isinstance(listed, list) or not isinstance(named, dict) or not named:
        return {}
    by_name = widget_values(kind, written)
    by_place = widget_values(kind, {"widgets_values": listed})
    common = by_name.keys() & by_place.keys() & named.keys()
    pairs = {name: (by_name[name], by_place[name]) for name in sorted(common)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _values_by_name(written: Mapping[str, Any]) -> Mapping[str, Value] | None:
    for key in ("widgets_values_named", "widgets_values"):
        named = written.get(key)
        if isinstance(named, dict) and (named or not written.get("widgets_values")):
            return named
    return None


def _take_positional(inputs: Iterable[Input], rest: deque[Value], taken: dict[str, Value]) -> None:
    for one in inputs:
        if not one.is_widget or not rest:
            continue
        value = taken[one.name] = rest.popleft()
        for phantom in one.extra_widgets:
            # API-minded tools leave the control out; an upload's button comes last
            if rest and (not _is_seed_control(phantom) or _is_control_value(rest[0])):
                rest.popleft()
        _take_positional(one.option_inputs.get(str(value), ()), rest, taken)


def _is_seed_control(phantom: str) -> bool:
    return phantom in ("control_after_generate", "fixed")


def _is_control_value(value: Value) -> bool:
    return isinstance(value, str) and value in SEED_CONTROLS


def _values_of_unknown_type(written: Mapping[str, Any]) -> dict[str, Value]:
    """What can be told without a table: names if the file has them, else the widgets listed."""
    named = _values_by_name(written)
    if named is not None:
        return {str(name): value for name, value in named.items()}
    listed = written.get("widgets_values")
    names = [one["widget"]["name"] for one in input_sockets(written) if widget_name(one)]
    return dict(zip(names, listed if isinstance(listed, list) else (), strict=False))


def input_sockets(written: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The inputs that a node of the UI format lists; not all its widgets are among them."""
    listed = written.get("inputs")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def widget_name(socket: Mapping[str, Any]) -> str | None:
    """The widget that an input stands for, ``None`` if it is a socket only."""
    widget = socket.get("widget")
    name = widget.get("name") if isinstance(widget, dict) else None
    return name if isinstance(name, str) else None
