"""Definitions of nodes that compute numbers, texts and switches."""

from __future__ import annotations

from collections.abc import Mapping

from latent_ladder.comfyui.node_defs.builders import (
    INT64_MAX,
    KJ,
    choice,
    flag,
    integer,
    link,
    node,
    number,
    seed,
    text,
)
from latent_ladder.comfyui.node_defs.schema import ANY, Input

NUMBER_TYPES = "FLOAT,INT,BOOLEAN"
ASPECT_RATIOS: Mapping[str, tuple[int, int]] = {
    f"{width}:{height} ({name})": (width, height)
    for width, height, name in (
        (1, 1, "Square"), (2, 3, "Portrait Photo"), (3, 2, "Photo"), (3, 4, "Portrait Standard"),
        (4, 3, "Standard"), (9, 16, "Portrait Widescreen"), (16, 9, "Widescreen"),
        (21, 9, "Ultrawide"),
    )
}  # fmt: skip
"""Width and height by the option of ``ResolutionSelector``."""

NODE_DEFS = (
    node(
        "PrimitiveInt",
        "Int",
        "utilities/primitive",
        # in widgets_values_named the control widget has the name of its value
        [Input("value", "INT", 0, -INT64_MAX, INT64_MAX, 1, extra_widgets=("fixed",))],
        "INT",
    ),
    node(
        "PrimitiveFloat",
        "Float",
        "utilities/primitive",
        [number("value", 0.0, -INT64_MAX, INT64_MAX, 0.1)],
        "FLOAT",
    ),
    node("PrimitiveBoolean", "Boolean", "utilities/primitive", [flag("value")], "BOOLEAN"),
    node("PrimitiveString", "String", "utilities/primitive", [text("value")], "STRING"),
    node(
        "PrimitiveStringMultiline",
        "String (Multiline)",
        "utilities/primitive",
        [text("value", multiline=True)],
        "STRING",
    ),
    node(
        "ComfyMathExpression",
        "Math Expression",
        "logic",
        [
            text("expression", "a + b", multiline=True),
            link("values.a", NUMBER_TYPES),
            link("values.b", NUMBER_TYPES, required=False),
            link("values.c", NUMBER_TYPES, required=False),
        ],
        "FLOAT",
        "INT",
        "BOOLEAN BOOL",
        autogrow_prefix="values.",
    ),
    node(
        "ComfySwitchNode",
        "Switch",
        "logic",
        [
            flag("switch"),
            link("on_false", ANY, required=False),
            link("on_true", ANY, required=False),
        ],
        "* output",
        lazy=frozenset({"on_false", "on_true"}),
    ),
    node(
        "PreviewAny",
        "Preview as Text",
        "utilities",
        [link("source", ANY)],
        "STRING",
        is_output=True,
    ),
    node(
        "ResolutionSelector",
        "Resolution Selector",
        "utilities",
        [
            choice("aspect_ratio", tuple(ASPECT_RATIOS)),
            number("megapixels", 1.0, 0.1, 16, 0.1),
            integer("multiple", 8, 8, 128, 4),
        ],
        "INT width",
        "INT height",
    ),
    node(
        "LTXFloatToInt",
        "Float To Int",
        "math/conversion",
        [number("a", 0.0, -INT64_MAX, INT64_MAX)],
        "INT",
        pack="ComfyUI-LTXVideo",
    ),
    node(
        "SimpleMath+",
        "Simple Math",
        "essentials/utilities",
        [
            text("value"),
            link("a", ANY, required=False),
            link("b", ANY, required=False),
            link("c", ANY, required=False),
        ],
        "INT",
        "FLOAT",
        pack="comfyui_essentials",
    ),
    node(
        "INTConstant",
        "INT Constant",
        "KJNodes/constants",
        [integer("value", 0, -INT64_MAX, INT64_MAX)],
        "INT value",
        pack=KJ,
    ),
    node(
        "FloatConstant",
        "Float Constant",
        "KJNodes/constants",
        [number("value", 0.0, -INT64_MAX, INT64_MAX, 0.00001)],
        "FLOAT value",
        pack=KJ,
    ),
    node(
        "Seed (rgthree)",
        "Seed (rgthree)",
        "rgthree",
        [seed("seed", -1, -3)],
        "INT SEED",
        pack="rgthree-comfy",
    ),
    node(
        "StringConstant",
        "String Constant",
        "KJNodes/constants",
        [text("string")],
        "STRING",
        pack=KJ,
    ),
    node(
        "StringConstantMultiline",
        "String Constant Multiline",
        "KJNodes/constants",
        [text("string", multiline=True), flag("strip_newlines", True)],
        "STRING",
        pack=KJ,
    ),
)
