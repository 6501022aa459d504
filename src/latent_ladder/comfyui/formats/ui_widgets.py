"""Widget values of the UI format, which stores them by name, by position, or as an object.

Positions count all widgets of the type, linked or not, and extra values that belong to no input:
the control after a seed and upload buttons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from latent_ladder.comfyui.graph import Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import Input, NodeType

SEED_CONTROLS = frozenset({"fixed", "increment", "increment-wrap", "decrement", "randomize"})
"""Values of the control widget after a seed."""


def widget_values(definition: NodeType, node: Mapping[str, Any]) -> dict[str, Value]:
    """Return all widget values of a node by input name, defaults included.

    ``node`` is an entry of the UI format. Values by name are preferred to those by position.
    """
    if definition.class_type == POWER_LORA_LOADER:
        return _values_of_lora_list(node)
    if definition.class_type not in NODE_TYPES or _is_opaque(definition):
        return _values_of_unknown_type(node)
    named = _values_by_name(node)
    if named is not None:
        values = {
            item.name: named[item.name]
            for item in definition.visible_inputs(named)
            if item.name in named
        }
    else:
        listed = node.get("widgets_values")
        rest = deque(listed if isinstance(listed, list) else ())
        values = {}
        _take_positional(definition.inputs, rest, values)
    return {
        item.name: values.get(item.name, item.default)
        for item in definition.visible_inputs(values)
        if item.is_widget and (item.name in values or item.default is not None)
    }


def conflicting_values(
    definition: NodeType, node: Mapping[str, Any]
) -> dict[str, tuple[Value, Value]]:
    """Return widgets whose values by name and by position differ, as pairs.

    Files edited by hand can have such differences; the value by name is used.
    """
    listed = node.get("widgets_values")
    named = node.get("widgets_values_named")
    if not isinstance(listed, list) or not isinstance(named, dict) or not named:
        return {}
    by_name = widget_values(definition, node)
    by_place = widget_values(definition, {"widgets_values": listed})
    common = by_name.keys() & by_place.keys() & named.keys()
    pairs = {name: (by_name[name], by_place[name]) for name in sorted(common)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _values_by_name(node: Mapping[str, Any]) -> Mapping[str, Value] | None:
    for key in ("widgets_values_named", "widgets_values"):
        named = node.get(key)
        if isinstance(named, dict) and (named or not node.get("widgets_values")):
            return named
    return None


def _take_positional(inputs: Iterable[Input], rest: deque[Value], values: dict[str, Value]) -> None:
    for item in inputs:
        if not item.is_widget or not rest:
            continue
        value = values[item.name] = rest.popleft()
        for extra in item.extra_widgets:
            # some tools leave out the control; the button of an upload comes last
            if rest and (not _is_seed_control(extra) or _is_control_value(rest[0])):
                rest.popleft()
        _take_positional(item.option_inputs.get(str(value), ()), rest, values)


def _is_seed_control(extra: str) -> bool:
    return extra in ("control_after_generate", "fixed")


def _is_control_value(value: Value) -> bool:
    return isinstance(value, str) and value in SEED_CONTROLS


def _is_opaque(definition: NodeType) -> bool:
    """Return whether a type is known by name only."""
    return bool(definition.unsupported_reason) and not definition.inputs


POWER_LORA_LOADER = "Power Lora Loader (rgthree)"


def _values_of_lora_list(node: Mapping[str, Any]) -> dict[str, Value]:
    """Return the rows of a loader of several LoRAs, each an object, as ``lora_1``, ``lora_2``."""
    listed = node.get("widgets_values")
    values = listed.values() if isinstance(listed, dict) else listed
    rows = [v for v in values or () if isinstance(v, dict) and "lora" in v]
    return {f"lora_{i}": row for i, row in enumerate(rows, 1)}


def _values_of_unknown_type(node: Mapping[str, Any]) -> dict[str, Value]:
    """Return the widget values of an unknown type: by name, or else in the order of its inputs."""
    named = _values_by_name(node)
    if named is not None:
        return {str(name): value for name, value in named.items()}
    listed = node.get("widgets_values")
    names = [item["widget"]["name"] for item in input_sockets(node) if widget_name(item)]
    return dict(zip(names, listed if isinstance(listed, list) else (), strict=False))


def input_sockets(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the inputs that a UI node lists; some of its widgets may be missing among them."""
    listed = node.get("inputs")
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def widget_name(socket: Mapping[str, Any]) -> str | None:
    """Return the name of an input's widget, or ``None`` if it has none."""
    widget = socket.get("widget")
    name = widget.get("name") if isinstance(widget, dict) else None
    return name if isinstance(name, str) else None
