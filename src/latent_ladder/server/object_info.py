"""The table of node types for ``/object_info``, which editors and clients read.

Node types of other packs that cannot run here are not listed, so that clients report them as
missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import WIDGETS, Input, NodeType

ListNames = Callable[[str], Sequence[str]]
"""Returns the file names of a folder of models, or of the uploads (``"input"``)."""

_UPLOADS = {"image": "image_upload", "video": "video_upload", "file": "video_upload",
            "audio": "audio_upload"}  # fmt: skip
_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_MAX_AUTOGROW_INPUTS = 100


def object_info(list_names: ListNames) -> dict[str, Any]:
    """All node types that are listed (:func:`is_listed`), by class type."""
    return {
        name: node_info(definition, list_names)
        for name, definition in NODE_TYPES.items()
        if is_listed(definition)
    }


def is_listed(definition: NodeType) -> bool:
    """True for a node type that runs here, or that has known inputs.

    A type that cannot run may be in a branch that no switch selects, as prompt enhancers in
    published graphs. If a prompt needs it, the prompt is refused with the reason.
    """
    return not definition.unsupported_reason or bool(definition.inputs)


def node_info(definition: NodeType, list_names: ListNames) -> dict[str, Any]:
    """The description of one node type."""
    inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for item in (one for one in definition.inputs if not one.is_old):
        group = "required" if item.required else "optional"
        inputs[group][item.name] = _input_info(item, list_names)
    if definition.autogrow_prefix:
        inputs["required"][definition.autogrow_prefix.rstrip(".")] = _autogrow_info()
    order = {group: list(items) for group, items in inputs.items() if items}
    if definition.is_output:
        order["hidden"] = list(_HIDDEN)
    reason = definition.unsupported_reason
    is_core = definition.pack == "comfy-core"
    return {
        "input": {
            **{g: items for g, items in inputs.items() if items or g == "required"},
            **({"hidden": dict(_HIDDEN)} if definition.is_output else {}),
        },
        "input_order": order,
        "is_input_list": False,
        "output": [output.type for output in definition.outputs],
        "output_is_list": [False] * len(definition.outputs),
        "output_name": [output.name for output in definition.outputs],
        "name": definition.class_type,
        "display_name": definition.display,
        "description": f"Does not run here: {reason}." if reason else "",
        "python_module": "nodes" if is_core else f"custom_nodes.{definition.pack}",
        "category": definition.category,
        "output_node": definition.is_output,
        "deprecated": False,
        "experimental": False,
        "api_node": False,
    }


def _input_info(item: Input, list_names: ListNames) -> list[Any]:
    if item.option_inputs:
        return _dynamic_combo_info(item, list_names)
    options = _input_options(item)
    if item.folder:
        return [list(list_names(item.folder)), options]
    if item.options:
        return [list(item.options), options]
    return [item.type, options]


def _input_options(item: Input) -> dict[str, Any]:
    """The second element of an input's description: default, range and widget settings."""
    if not item.is_widget:
        return {"forceInput": True} if item.socket and item.types & {"INT", "FLOAT"} else {}
    bounds = {"default": item.default, "min": item.low, "max": item.high, "step": item.step}
    options: dict[str, Any] = {name: value for name, value in bounds.items() if value is not None}
    if "," in item.type:  # the widget of a socket with several types
        options["widgetType"] = next(kind for kind in item.type.split(",") if kind in WIDGETS)
    if item.multiline:
        options["multiline"] = True
    if "control_after_generate" in item.extra_widgets:
        options["control_after_generate"] = True
    if item.folder == "input":
        options[_UPLOADS.get(item.name, "image_upload")] = True
    return options


def _dynamic_combo_info(item: Input, list_names: ListNames) -> list[Any]:
    """A combo whose options have inputs of their own, named without the combo's prefix."""
    options = []
    for option, option_inputs in item.option_inputs.items():
        inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for inner in option_inputs:
            group = "required" if inner.required else "optional"
            name = inner.name.removeprefix(f"{item.name}.")
            inputs[group][name] = _input_info(inner, list_names)
        options.append({"key": option, "inputs": {g: i for g, i in inputs.items() if i}})
    return ["COMFY_DYNAMICCOMBO_V3", {"options": options}]


def _autogrow_info() -> list[Any]:
    template: Mapping[str, Any] = {
        "input": {"required": {"value": ["*", {}]}},
        "names": [chr(ord("a") + i) for i in range(26)],
        "min": 0,
        "max": _MAX_AUTOGROW_INPUTS,
    }
    return ["COMFY_AUTOGROW_V3", {"template": template}]
