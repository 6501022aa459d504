"""The schema of node definitions: inputs, their order as widgets, and outputs.

Definitions are data; they need no torch. They are in the other modules of this package, one per
topic; the implementation of a node is in :mod:`latent_ladder.comfyui.nodes` under the same name.
They state facts about ComfyUI and contain none of its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from latent_ladder.comfyui.graph import Value

WIDGETS = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
"""Types whose inputs can hold a literal value; inputs of other types only take links."""
ANY = "*"


@dataclass(frozen=True)
class Input:
    """The definition of one input.

    ``type`` may list alternatives (``"FLOAT,INT"``) or be ``"*"``. ``low``, ``high`` and ``step``
    bound numbers. ``options`` are the choices of a COMBO; ``folder`` names the model folder whose
    files are its choices (``"input"`` for uploaded files). ``extra_widgets`` are the values after
    it in ``widgets_values`` that belong to no input (``control_after_generate``, upload buttons),
    by their names in ``widgets_values_named``. ``option_inputs`` are the inputs that a dynamic
    combo shows for each option; their names are ``"<name>.<sub>"``. ``socket``: the input only
    takes a link, although its type could have a widget. ``is_old``: only older versions of the node
    have it; files with it are read, and it is not shown.
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
    extra_widgets: tuple[str, ...] = ()
    option_inputs: Mapping[str, tuple[Input, ...]] = field(default_factory=dict)
    socket: bool = False
    multiline: bool = False
    is_old: bool = False

    @property
    def types(self) -> frozenset[str]:
        """All accepted types."""
        return frozenset(self.type.split(","))

    @property
    def is_widget(self) -> bool:
        """True if the input can hold a literal value, and so has a place in ``widgets_values``."""
        return not self.socket and bool(self.types & WIDGETS)


class Output(NamedTuple):
    """The definition of one output.

    ``is_list`` is not represented, as no LTX graph uses it.
    """

    type: str
    name: str


@dataclass(frozen=True)
class NodeType:
    """The definition of one node type.

    ``is_output``: it saves or shows a result, so a graph runs for it. ``pack`` is ``"comfy-core"``
    or the registry name of a node pack. ``unsupported_reason`` says why this type cannot run here,
    and is empty if it can. ``lazy``: inputs that are evaluated only if the node reads them.
    """

    class_type: str
    display: str
    category: str
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    pack: str = "comfy-core"
    is_output: bool = False
    unsupported_reason: str = ""
    lazy: frozenset[str] = frozenset()
    autogrow_prefix: str = ""
    """Prefix of inputs that appear one after another as they are linked, such as ``"values."``."""

    def visible_inputs(self, values: Mapping[str, Value]) -> Iterator[Input]:
        """Return the inputs in order, with those of dynamic combos that ``values`` select."""
        return _visible_inputs(self.inputs, values)


def _visible_inputs(inputs: tuple[Input, ...], values: Mapping[str, Value]) -> Iterator[Input]:
    for item in inputs:
        yield item
        if item.option_inputs:
            option = values.get(item.name, item.default)
            yield from _visible_inputs(item.option_inputs.get(str(option), ()), values)
