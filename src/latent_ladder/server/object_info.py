"""The table of node types as ComfyUI's ``/object_info`` tells it: what editors and clients read.

Types of other packs that do not run here are not listed, so that a client names them as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import WIDGETS, Input, NodeType

Names = Callable[[str], Sequence[str]]
"""The files of a folder of models, or of ``"input"``."""

_UPLOADS = {"image": "image_upload", "video": "video_upload", "file": "video_upload",
            "audio": "audio_upload"}  # fmt: skip
_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_GROWS_AT_MOST = 100


def object_info(names: Names) -> dict[str, Any]:
    """Every type that :func:`is_listed`."""
    return {name: node_info(row, names) for name, row in NODE_TYPES.items() if is_listed(row)}


def is_listed(row: NodeType) -> bool:
    """Whether a client should know a type: it runs, or its inputs are known.

    One of the latter may stand in a branch that no switch takes, as prompt enhancers do in
    published graphs; where it is needed, the prompt is refused and the reason told.
    """
    return not row.unsupported_reason or bool(row.inputs)


def node_info(row: NodeType, names: Names) -> dict[str, Any]:
    """One type."""
    inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for one in row.inputs:
        inputs["required" if one.required else "optional"][one.name] = _input(one, names)
    if row.autogrow_prefix:
        inputs["required"][row.autogrow_prefix.rstrip(".")] = _growing()
    order = {kind: list(found) for kind, found in inputs.items() if found}
    if row.is_output:
        order["hidden"] = list(_HIDDEN)
    return {
        "input": {
            **{kind: found for kind, found in inputs.items() if found or kind == "required"},
            **({"hidden": dict(_HIDDEN)} if row.is_output else {}),
        },
        "input_order": order,
        "is_input_list": False,
        "output": [one.type for one in row.outputs],
        "output_is_list": [False] * len(row.outputs),
        "output_name": [one.name for one in row.outputs],
        "name": row.class_type,
        "display_name": row.display,
        "description": f"Does not run here: {row.unsupported_reason}."
        if row.unsupported_reason
        else "",
        "python_module": "nodes" if row.pack == "comfy-core" else f"custom_nodes.{row.pack}",
        "category": row.category,
        "output_node": row.is_output,
        "deprecated": False,
        "experimental": False,
        "api_node": False,
    }


def _input(one: Input, names: Names) -> list[Any]:
    if one.option_inputs:
        return _dynamic(one, names)
    about = _about(one)
    if one.folder:
        return [list(names(one.folder)), about]
    if one.options:
        return [list(one.options), about]
    return [one.type, about]


def _about(one: Input) -> dict[str, Any]:
    if not one.is_widget:
        return {"forceInput": True} if one.socket and one.types & {"INT", "FLOAT"} else {}
    bounds = {"default": one.default, "min": one.low, "max": one.high, "step": one.step}
    about: dict[str, Any] = {name: value for name, value in bounds.items() if value is not None}
    if "," in one.type:  # which widget a socket of several types has
        about["widgetType"] = next(kind for kind in one.type.split(",") if kind in WIDGETS)
    if one.multiline:
        about["multiline"] = True
    if "control_after_generate" in one.extra_widgets:
        about["control_after_generate"] = True
    if one.folder == "input":
        about[_UPLOADS.get(one.name, "image_upload")] = True
    return about


def _dynamic(one: Input, names: Names) -> list[Any]:
    """A combo whose options show inputs of their own, whose names drop the combo's."""
    options = []
    for option, shown in one.option_inputs.items():
        inputs: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for inner in shown:
            kind = "required" if inner.required else "optional"
            inputs[kind][inner.name.removeprefix(f"{one.name}.")] = _input(inner, names)
        options.append({"key": option, "inputs": {k: v for k, v in inputs.items() if v}})
    return ["COMFY_DYNAMICCOMBO_V3", {"options": options}]


def _growing() -> list[Any]:
    template: Mapping[str, Any] = {
        "input": {"required": {"value": ["*", {}]}},
        "names": [chr(ord("a") + i) for i in range(26)],
        "min": 0,
        "max": _GROWS_AT_MOST,
    }
    return ["COMFY_AUTOGROW_V3", {"template": template}]
