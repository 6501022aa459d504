"""Pages of the Python API and of the exit codes, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from reference_text import code, first_sentence, markdown, table

from latent_ladder import errors
from latent_ladder.pipeline import events
from latent_ladder.pipeline import run as pipeline
from latent_ladder.request.model import Request

INTRO = """# Python

Everything that `ladder make` does can be called from Python. `Request` and `run` are imported from
`latent_ladder`; nothing heavy is loaded before the first clip.

```python
from latent_ladder import Request, run

request = Request.from_preset("pocket", prompt="a yellow star falls slowly", seed=3)
result = run(request, "star.mp4")
print(result.output, result.duration_s, [stage.stage for stage in result.stages])
```

Errors derive from `LadderError`: `message` says what was wrong, `hint` what helps, `code` is a
stable name. A request with several mistakes raises one `RequestError` whose `problems` lists all.
"""

EXIT_CODES = """# Exit codes

A command that fails prints `error:` with one sentence and, where something helps, `hint:` with it.
With `--json` the same is printed on standard output, as
`{"error": {"code": …, "message": …, "hint": …}}`. Unknown flags and commands end with 2 as well. A
bug in `ladder` itself ends with 1 and a traceback.
"""

METHODS = re.compile(r"from_\w+|to_\w+|pick_seed")
"""Methods of a request that programs use; all others serve the package itself."""


def page() -> str:
    """The page of the Python API."""
    parts = [INTRO, *_heading(pipeline.run, "latent_ladder"), *_function(pipeline.run)]
    parts += [*_heading(pipeline.RunOptions), *_dataclass(pipeline.RunOptions)]
    parts += [*_heading(pipeline.Cancel), markdown(pipeline.Cancel.__doc__), ""]
    parts += [*_methods(pipeline.Cancel)]
    parts += [*_heading(pipeline.Result), *_dataclass(pipeline.Result), *_methods(pipeline.Result)]
    parts += [*_heading(Request, "latent_ladder"), markdown(Request.__doc__), ""]
    parts += ["Fields: [Request](request.md).", ""]
    methods = [name for name in vars(Request) if METHODS.fullmatch(name)]
    rows: list[tuple[str, ...]] = [
        (code(_signature(name, getattr(Request, name))), _summary(getattr(Request, name)))
        for name in methods
    ]
    parts.append(table(("method", "purpose"), rows))
    parts += ["## Events", "", _events()]
    parts += ["## Errors", "", "From `latent_ladder.errors`; [exit codes](exit-codes.md).", ""]
    rows = [
        (code(error.__name__), code(_code(error)), first_sentence(error.__doc__))
        for error, _ in tree()
    ]
    parts.append(table(("class", "`code`", "meaning"), rows))
    return "\n".join(parts)


def _heading(item: Any, module: str = "") -> list[str]:
    """A heading and the line that imports the item."""
    line = f"from {module or item.__module__} import {item.__name__}"
    return [f"## `{item.__name__}`", "", "```python", line, "```", ""]


def exit_codes_page() -> str:
    """The page of exit codes."""
    rows = [("0", "", "The command did what it was asked.")]
    for error, depth in tree():
        if depth < 2:
            rows.append((str(error.exit_code), code(_code(error)), first_sentence(error.__doc__)))
    lines = [
        EXIT_CODES,
        table(("exit code", "`code`", "meaning"), rows),
        "Errors about model files have narrower codes in JSON, with the same exit code:",
        "",
        table(
            ("`code`", "exit code", "meaning"),
            [
                (code(_code(error)), str(error.exit_code), first_sentence(error.__doc__))
                for error, depth in tree()
                if depth >= 2
            ],
        ),
    ]
    return "\n".join(lines)


def tree() -> Iterator[tuple[type[errors.LadderError], int]]:
    """The error classes of ``latent_ladder.errors`` with their depth, parents first."""

    def below(error: type[errors.LadderError], depth: int) -> Iterator[tuple[Any, int]]:
        yield error, depth
        for inner in error.__subclasses__():
            if inner.__module__ == errors.__name__:
                yield from below(inner, depth + 1)

    yield from below(errors.LadderError, 0)


def _code(error: type[errors.LadderError]) -> str:
    return error("").code


def _function(function: Any) -> list[str]:
    name, parameters, result = _parts(function.__name__, function)
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    call = f"{name}(\n{lines}) -> {result}"
    return ["```python", call, "```", "", markdown(function.__doc__), ""]


def _dataclass(cls: type) -> list[str]:
    assert is_dataclass(cls)
    rows = [(code(field.name), code(field.type), _default(field)) for field in fields(cls)]
    return [markdown(cls.__doc__), "", table(("field", "type", "default"), rows)]


def _default(field: Any) -> str:
    if inspect.isclass(field.default_factory):
        return code(f"{field.default_factory.__name__}()")
    value = field.default
    if repr(value).startswith("<dataclasses."):
        return "required"
    return code(value.__name__ if callable(value) else repr(value))


def _methods(cls: type) -> list[str]:
    public = [
        (name, member)
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and not name.startswith("_")
    ]
    if not public:
        return []
    rows = [(code(_signature(name, member)), _summary(member)) for name, member in public]
    return [table(("method", "purpose"), rows)]


def _signature(name: str, member: Any) -> str:
    name, parameters, result = _parts(name, member)
    return f"{name}({', '.join(parameters)}) -> {result}"


def _parts(name: str, function: Any) -> tuple[str, list[str], str]:
    """Name, parameters as written in the source, and result of a function or method."""
    signature = inspect.signature(function)
    shown: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        shown.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    return name, shown, str(signature.return_annotation)


def _summary(member: Any) -> str:
    return first_sentence(member.__doc__)


def _events() -> str:
    classes = [
        cls
        for cls in vars(events).values()
        if inspect.isclass(cls) and is_dataclass(cls) and cls.__module__ == events.__name__
    ]
    rows = [
        (
            code(cls.__name__),
            ", ".join(code(field.name) for field in fields(cls)),
            first_sentence(cls.__doc__),
        )
        for cls in classes
    ]
    text = "`RunOptions.on_event` is called with these, from `latent_ladder.pipeline.events`."
    return f"{text}\n\n" + table(("event", "fields", "meaning"), rows)
