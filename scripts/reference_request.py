"""Pages of the request: every field of its pydantic models, and the presets.

Names, types, ranges and defaults are those of the models. What a field means is its docstring, the
string that follows it in the source; :func:`find_undocumented` lists the fields without one.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen, MultipleOf
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from reference_text import code, markdown, table

from latent_ladder.latents.shapes import format_fps
from latent_ladder.request.fields import Table
from latent_ladder.request.model import Request
from latent_ladder.request.presets import preset_names, read_preset
from latent_ladder.request.stages import STAGE_TABLES
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import SCHEDULES

INTRO = """# Request

A request is everything that decides a clip. Flags of `ladder make`, a TOML or JSON file
(`--from request.toml`), `--set path=value` and Python (`Request.from_dict`) all make the same one.
The finished clip carries it: `ladder show clip.mp4` prints it.

`--set` changes any field of this page: `--set refine.denoise=0.4`, `--set output.codec=h265`,
`--set "refine.loras[0].strength=0.8"`. `base`, `refine`, `upsample` and `upscale` mean the stages
of that kind, `refine[1]` the second refine stage. `base.steps` is short for `base.schedule.steps`,
`refine.lora` for the strength of the stage's LoRA. Unknown fields and impossible values are refused
before anything runs, all in one report with exit code 2.

Every preset sets the required fields but `prompt`.
"""

PRESETS_INTRO = """A preset is a request without a prompt. `ladder make --preset NAME` uses it,
any field can be changed with flags and `--set`, and `ladder presets show NAME` prints it in full.
Without `--preset`, the preset that suits the model files is used: `distilled` for a distilled
checkpoint, `distilled-lora` for a dev checkpoint with the distilled LoRA, `pocket` for the embedded
model. `ladder advise` recommends one for a clip and this machine."""


def models() -> list[tuple[str, type[Table]]]:
    """Every table of a request with the path a user writes for it, outermost first."""
    found: dict[type[Table], str] = {}

    def visit(path: str, model: type[Table]) -> None:
        if model in found:
            return
        found[model] = path
        for name, field in model.model_fields.items():
            for inner in _tables_in(field.annotation):
                if inner not in STAGE_TABLES.values():
                    visit(_inner_path(path, name, field), inner)

    visit("", Request)
    order = list(found.items())
    for kind, model in STAGE_TABLES.items():
        found.pop(model, None)
        visit(kind, model)
    return [(path, model) for model, path in order + list(found.items())[len(order) :]]


def _inner_path(path: str, name: str, field: FieldInfo) -> str:
    many = "[...]" if get_origin(field.annotation) is tuple else ""
    return f"{path}.{name}{many}".lstrip(".")


def _tables_in(annotation: Any) -> Iterator[type[Table]]:
    if inspect.isclass(annotation) and issubclass(annotation, Table):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables_in(inner)


def page() -> str:
    """The page of all fields."""
    parts = [INTRO]
    for path, model in models():
        title = f"`{path}`" if path else "Fields of the request"
        parts += [f"## {title}", ""]
        if path:
            parts += [markdown(model.__doc__), ""]
        rows: list[tuple[str, ...]] = [
            (
                code(name),
                _meaning(model, name),
                _type(field),
                _range(field),
                _default(field),
            )
            for name, field in model.model_fields.items()
        ]
        columns: tuple[str, ...] = ("field", "meaning", "type", "range", "default")
        if not any(row[3] for row in rows):
            columns, rows = _without(3, columns), [_without(3, row) for row in rows]
        parts.append(table(columns, rows))
    return "\n".join([*parts, _samplers(), _schedules()])


def _without(index: int, row: tuple[str, ...]) -> tuple[str, ...]:
    return row[:index] + row[index + 1 :]


def find_undocumented() -> list[str]:
    """Fields without a docstring, as ``Class.field``."""
    return [
        f"{model.__name__}.{name}"
        for _, model in models()
        for name in model.model_fields
        if not _meaning(model, name)
    ]


def presets_page() -> str:
    """The table of presets, and where their numbers come from."""
    rows, sources = [], []
    for name in preset_names():
        preset = read_preset(name)
        request = Request.from_preset(name, prompt="a")
        steps = " + ".join(str(stage.steps) for _, stage in request.sampling_stages())
        width, height = request.resolved.final_size
        seconds = f"{float(request.frames / request.fps):.2f} s"
        size = f"{width}x{height}"
        rows.append((code(name), size, f"{request.frames} ({seconds})", steps, preset.summary))
        sources.append((code(name), preset.source))
    return "\n".join(
        [
            "# Presets",
            "",
            PRESETS_INTRO,
            "",
            table(("preset", "size", "frames", "steps", "purpose"), rows),
            "## Sources of the numbers",
            "",
            table(("preset", "source"), sources),
        ]
    )


def _samplers() -> str:
    rows = [
        (
            code(name),
            str(facts.evals_per_step),
            "yes" if facts.needs_uncond else "no",
            "yes" if facts.stochastic else "no",
        )
        for name, facts in SAMPLER_FACTS.items()
    ]
    columns = (
        "sampler",
        "model evaluations per step",
        "reads the negative prompt at CFG 1",
        "adds noise",
    )
    return "\n".join(["## Samplers", "", "Values of `sampler`.", "", table(columns, rows)])


def _schedules() -> str:
    rows = [
        (code(name), row.summary, ", ".join(code(p) for p in row.parameters))
        for name, row in SCHEDULES.items()
    ]
    text = (
        "Values of `schedule.name`. A fixed list of sigmas takes no `steps`; the others need them."
    )
    return "\n".join(
        ["## Schedules", "", text, "", table(("schedule", "purpose", "parameters"), rows)]
    )


# --- one field -----------------------------------------------------------------------------------


@cache
def _docstrings(model: type) -> dict[str, str]:
    """Field -> the string literal that follows it in the source of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, Table) or base is Table:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for before, node in zip(body.body, body.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(node, ast.Expr):
                assert isinstance(before.target, ast.Name)
                found[before.target.id] = ast.literal_eval(node.value)
    return found


def _meaning(model: type[Table], name: str) -> str:
    return " ".join(markdown(_docstrings(model).get(name)).split())


def _type(field: FieldInfo) -> str:
    return " or ".join(dict.fromkeys(_kinds(field.annotation)))


KINDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Fraction: "number or fraction",
}
"""Python's types -> words."""


def _kinds(annotation: Any) -> Iterator[str]:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return
    if origin is Annotated:
        yield from _kinds(args[0])
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from _kinds(arg)
    elif origin is Literal:
        yield from (code(json.dumps(value)) for value in args)
    elif origin is tuple:
        each = dict.fromkeys(kind for arg in args if arg is not ... for kind in _kinds(arg))
        yield f"list of {' or '.join(each)}"
    elif inspect.isclass(annotation) and issubclass(annotation, Table):
        yield "table"
    else:
        yield KINDS[annotation]


def _range(field: FieldInfo) -> str:
    """Limits that pydantic knows; rules of validators are in the field's docstring."""
    found = list(_limits([*field.metadata, field.annotation]))
    return ", ".join(dict.fromkeys(found))


def _limits(metadata: list[Any]) -> Iterator[str]:
    low = high = ""
    for one in metadata:
        bounds = list(one) if isinstance(one, Interval) else [one]
        for bound in bounds:
            if isinstance(bound, Ge):
                low = f"{bound.ge}"
            elif isinstance(bound, Gt):
                low = f"above {bound.gt}"
            elif isinstance(bound, Le):
                high = f"{bound.le}"
            elif isinstance(bound, Lt):
                high = f"below {bound.lt}"
            elif isinstance(bound, MultipleOf):
                yield f"multiple of {bound.multiple_of}"
            elif isinstance(bound, MinLen):
                yield "not empty"
            elif isinstance(bound, FieldInfo):
                yield from _limits(bound.metadata)
            elif get_args(bound) and get_origin(bound) is not Literal:
                yield from _nested_limits(bound)
    if low or high:
        yield " to ".join(part for part in (low, high) if part) if high else f"from {low}"


def _nested_limits(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Annotated:
        yield from _limits(list(annotation.__metadata__))
    for inner in get_args(annotation):
        if get_args(inner) and get_origin(inner) is not Literal:
            yield from _nested_limits(inner)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "unset"
    if isinstance(value, Table):
        return "its defaults"
    if isinstance(value, Fraction):
        return code(format_fps(value))
    return code(json.dumps(value))
