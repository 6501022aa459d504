"""Short constructors for node definitions, one for each kind of input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from latent_ladder.comfyui.node_defs.schema import Input, NodeType, Output

MAX_SIDE: Final = 16384
"""The largest width, height or frame count that ComfyUI accepts."""
MAX_SEED: Final = 2**64 - 1
INT64_MAX: Final = 2**63 - 1
SEED_CONTROL: Final = ("control_after_generate",)
"""The widget after a seed that sets how it changes after a run; it belongs to no input."""
LTXV: Final = "ComfyUI-LTXVideo"
KJ: Final = "comfyui-kjnodes"

SCALE_METHODS: Final = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CROPS: Final = ("disabled", "center")


def link(name: str, kind: str, *, required: bool = True) -> Input:
    """Return an input that only takes a link."""
    return Input(name, kind, required=required, socket=True)


def integer(
    name: str, default: int, low: float, high: float, step: float = 1, *, required: bool = True
) -> Input:
    """Return an INT input."""
    return Input(name, "INT", default, low, high, step, required=required)


def seed(name: str, default: int = 0, low: int = 0) -> Input:
    """Return a seed input; the interface adds a control widget after it."""
    return Input(name, "INT", default, low, MAX_SEED, 1, extra_widgets=SEED_CONTROL)


def number(
    name: str, default: float, low: float, high: float, step: float = 0.01, *, required: bool = True
) -> Input:
    """Return a FLOAT input."""
    return Input(name, "FLOAT", default, low, high, step, required=required)


def text(name: str, default: str = "", *, multiline: bool = False, required: bool = True) -> Input:
    """Return a STRING input."""
    return Input(name, "STRING", default, required=required, multiline=multiline)


def flag(name: str, default: bool = False, *, required: bool = True) -> Input:
    """Return a BOOLEAN input."""
    return Input(name, "BOOLEAN", default, required=required)


def choice(
    name: str, options: Sequence[str], default: str | None = None, *, required: bool = True
) -> Input:
    """Return a COMBO input; its default is the first option, as in ComfyUI."""
    selected = default if default is not None else (options[0] if options else None)
    return Input(name, "COMBO", selected, options=tuple(options), required=required)


def dynamic_combo(
    name: str,
    option_inputs: Mapping[str, Sequence[Input]],
    default: str | None = None,
    *,
    required: bool = True,
) -> Input:
    """Return a dynamic combo: each option shows inputs of its own, named ``"<name>.<sub>"``."""
    return Input(
        name,
        "COMBO",
        default if default is not None else next(iter(option_inputs)),
        options=tuple(option_inputs),
        required=required,
        option_inputs={option: tuple(inputs) for option, inputs in option_inputs.items()},
    )


def file(name: str, folder: str, *, extra_widgets: tuple[str, ...] = ()) -> Input:
    """Return an input for a file of a model folder (``"a,b"``: of either) or the input folder."""
    return Input(name, "COMBO", folder=folder, extra_widgets=extra_widgets)


def outputs(*texts: str) -> tuple[Output, ...]:
    """Return outputs from texts ``"TYPE"`` or ``"TYPE name"``; the default name is the type."""
    parts = (text.partition(" ") for text in texts)
    return tuple(Output(kind, name or kind) for kind, _, name in parts)


def node(
    class_type: str, display: str, category: str, inputs: Sequence[Input], *outs: str, **more: Any
) -> NodeType:
    """Return a node definition.

    ``outs`` are arguments of :func:`outputs`, ``more`` are fields of :class:`NodeType`.
    """
    return NodeType(class_type, display, category, tuple(inputs), outputs(*outs), **more)
