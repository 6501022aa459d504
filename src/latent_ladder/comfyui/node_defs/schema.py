"""What a node type is: its inputs, their order as widgets, its outputs. Data, no meaning, no torch.

The rows stand in ``workflow/types/*.py``, one table a topic; what a node does stands in
``workflow/meaning/*.py`` under the same name. Facts of ComfyUI, none of its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from latent_ladder.comfyui.graph import Value

WIDGETS = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
"""Types whose inputs can hold a value of their own; all others only come through links."""
ANY = "*"


@dataclass(frozen=True)
class Input:
    """One input.

    ``type`` may list alternatives (``"FLOAT,INT"``) or be ``"*"``. ``default`` of a widget is
    ComfyUI's. ``low``, ``high``, ``step`` bound numbers; ``options`` are a COMBO's choices, and
    ``folder`` names the model folder whose files are (``"input"``: uploaded files).
    ``phantoms`` counts the values behind it in ``widgets_values`` that belong to no input
    (``control_after_generate``, upload buttons), by their names in ``widgets_values_named``.
    ``branches`` are the inputs that a dynamic combo shows for each option; they are named
    ``"<name>.<sub>"``. ``socket`` makes a widget type an input that only comes through a link.
    """

    name: str
    type: str
    default: Value = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    folder: str = ""
    required: bool = True
    phantoms: tuple[str, ...] = ()
    branches: Mapping[str, tuple[Input, ...]] = field(default_factory=dict)
    socket: bool = False
    multiline: bool = False

    @property
    def types(self) -> frozenset[str]:
        """The types it takes."""
        return frozenset(self.type.split(","))

    @property
    def is_widget(self) -> bool:
        """Whether it has a value of its own, and so a place in ``widgets_values``."""
        return not self.socket and bool(self.types & WIDGETS)


class Output(NamedTuple):
    """One output; ``is_list`` is never used by LTX graphs and therefore left out."""

    type: str
    name: str


@dataclass(frozen=True)
class NodeType:
    """A row of the table.

    ``is_output``: it runs because someone wants its result, not because another node needs it.
    ``pack`` is ``"comfy-core"`` or the registry name of a pack. ``why_not``: why this type cannot
    run here, empty if it can. ``lazy``: inputs that are computed only when its meaning asks.
    """

    class_type: str
    display: str
    category: str
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    pack: str = "comfy-core"
    is_output: bool = False
    why_not: str = ""
    lazy: frozenset[str] = frozenset()
    growing: str = ""
    """Prefix of inputs that a node grows as they are linked (``"values."``), of any number."""

    def shown(self, values: Mapping[str, Value]) -> Iterator[Input]:
        """The inputs in order, those of dynamic combos as ``values`` choose them, nested too."""
        return _shown(self.inputs, values)


def _shown(inputs: tuple[Input, ...], values: Mapping[str, Value]) -> Iterator[Input]:
    for one in inputs:
        yield one
        if one.branches:
            chosen = values.get(one.name, one.default)
            yield from _shown(one.branches.get(str(chosen), ()), values)
