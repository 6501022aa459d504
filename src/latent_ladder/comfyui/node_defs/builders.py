"""How rows of the table of node types are written: one short constructor for each kind of input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from latent_ladder.comfyui.node_defs.schema import Input, NodeType, Output

SIDE: Final = 16384
"""The largest width, height or frame count that ComfyUI takes."""
SEED: Final = 2**64 - 1
WHOLE: Final = 2**63 - 1
CONTROL: Final = ("control_after_generate",)
"""The value behind a seed that says what happens to it after a run; it belongs to no input."""
CORE: Final = "comfy-core"
LTXV: Final = "ComfyUI-LTXVideo"
KJ: Final = "comfyui-kjnodes"

SCALE_METHODS: Final = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CROPS: Final = ("disabled", "center")


def link(name: str, kind: str, *, required: bool = True) -> Input:
    """An input that only comes from another node."""
    return Input(name, kind, required=required, socket=True)


def integer(
    name: str, default: int, low: float, high: float, step: float = 1, *, required: bool = True
) -> Input:
    """A whole number."""
    return Input(name, "INT", default, low, high, step, required=required)


def seed(name: str, default: int = 0, low: int = 0) -> Input:
    """A seed; the interface puts a control widget behind it."""
    return Input(name, "INT", default, low, SEED, 1, phantoms=CONTROL)


def number(
    name: str, default: float, low: float, high: float, step: float = 0.01, *, required: bool = True
) -> Input:
    """A number."""
    return Input(name, "FLOAT", default, low, high, step, required=required)


def text(name: str, default: str = "", *, multiline: bool = False, required: bool = True) -> Input:
    """A text."""
    return Input(name, "STRING", default, required=required, multiline=multiline)


def flag(name: str, default: bool = False, *, required: bool = True) -> Input:
    """Yes or no."""
    return Input(name, "BOOLEAN", default, required=required)


def choice(
    name: str, options: Sequence[str], default: str | None = None, *, required: bool = True
) -> Input:
    """One of ``options``; the first where no default is named, as in ComfyUI."""
    chosen = default if default is not None else (options[0] if options else None)
    return Input(name, "COMBO", chosen, options=tuple(options), required=required)


def branching(
    name: str,
    branches: Mapping[str, Sequence[Input]],
    default: str | None = None,
    *,
    required: bool = True,
) -> Input:
    """A dynamic combo: each option shows inputs of its own, named ``"<name>.<sub>"``."""
    return Input(
        name,
        "COMBO",
        default if default is not None else next(iter(branches)),
        options=tuple(branches),
        required=required,
        branches={option: tuple(inputs) for option, inputs in branches.items()},
    )


def file(name: str, folder: str, *, phantoms: tuple[str, ...] = ()) -> Input:
    """A file of a model folder (``"a,b"``: of either), or of the input folder."""
    return Input(name, "COMBO", folder=folder, phantoms=phantoms)


def outputs(*written: str) -> tuple[Output, ...]:
    """``"TYPE"`` or ``"TYPE name"``; an output without a name is called by its type."""
    parts = (one.partition(" ") for one in written)
    return tuple(Output(kind, name or kind) for kind, _, name in parts)


def node(
    class_type: str, display: str, category: str, inputs: Sequence[Input], *outs: str, **more: Any
) -> NodeType:
    """A row; ``outs`` as :func:`outputs` takes them, ``more`` are fields of :class:`NodeType`."""
    return NodeType(class_type, display, category, tuple(inputs), outputs(*outs), **more)
