"""Bodies of jobs as clients send them: one model per kind, unknown fields refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from latent_ladder.drafts.seeds import MANY
from latent_ladder.errors import RequestError
from latent_ladder.jobs.upscaling import LOW_DENOISE
from latent_ladder.request.problems import Found, report

Fields = dict[str, Any]
"""Top-level fields of a request that replace those of its preset."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MakeJob(_Body):
    """Clips of one request; several have seeds that count up."""

    kind: Literal["make"]
    request: Fields
    sets: list[str] = Field(
        default=[], description="Fields inside stages, such as `refine.denoise=0.4`."
    )
    count: int = Field(default=1, ge=1, le=MANY)


class DraftsJob(_Body):
    """Drafts of one request, one for each seed."""

    kind: Literal["drafts"]
    request: Fields
    sets: list[str] = []
    count: int = Field(default=8, ge=1, le=MANY)
    seeds: list[int] | None = Field(default=None, max_length=MANY)
    preview: Literal["auto", "rgb", "tae", "full"] = Field(
        default="auto",
        description="Decoder of the drafts' clips: rgb is coarse, tae a tiny decoder, full the "
        "model's own. auto: tae if its file is there, else full.",
    )
    together: str = Field(default="1", description="Drafts in one forward: 1, a number, or auto.")


class RefineJob(_Body):
    """Finished clips of chosen drafts, or of a whole clip with other settings of later stages."""

    kind: Literal["refine"]
    run: str
    drafts: list[int] = Field(default=[], max_length=MANY)
    request: Fields = {}
    sets: list[str] = []


class SweepJob(_Body):
    """Points with several settings of one clip, measured against each other."""

    kind: Literal["sweep"]
    axes: list[str] = Field(min_length=1, description="Such as `refine.denoise=0.2:0.8:0.1`.")
    request: Fields = {}
    sets: list[str] = []
    run: str | None = Field(default=None, description="A run to vary, in place of a request.")
    drafts: list[int] = Field(default=[], max_length=1)
    zipped: bool = False
    keep_motion: float = Field(default=0.9, gt=0, le=1)


class UpscaleJob(_Body):
    """An uploaded video or image, or the clip of a run, enlarged by the model."""

    kind: Literal["upscale"]
    upload: str | None = None
    run: str | None = None
    by: float = 2.0
    prompt: str | None = None
    denoise: float = Field(default=LOW_DENOISE, ge=0, le=1)
    request: Fields = {}
    sets: list[str] = []


class DownloadJob(_Body):
    """Published model files; ``entries`` are ids of the catalogue in ``/ladder/models``."""

    kind: Literal["download"]
    entries: list[str] = Field(min_length=1)
    accept_licences: bool = Field(
        default=False, description="You have read and accept the licences of gated files."
    )


class GraphJob(_Body):
    """A ComfyUI graph; ``inputs`` replaces values: ``{"NODE.NAME": value}``."""

    kind: Literal["graph"]
    graph: dict[str, Any]
    inputs: dict[str, Any] = {}


JobBody = Annotated[
    MakeJob | DraftsJob | RefineJob | SweepJob | UpscaleJob | DownloadJob | GraphJob,
    Field(discriminator="kind"),
]
KINDS = ("make", "drafts", "refine", "sweep", "upscale", "download", "graph")
_BODIES: TypeAdapter[Any] = TypeAdapter(JobBody)


def parse_body(data: Mapping[str, Any]) -> Any:
    """The checked body of a job. Raises :class:`RequestError` with all problems."""
    kind = data.get("kind")
    if kind not in KINDS:
        raise RequestError(f"kind={kind!r} is no kind of job", f"use one of {', '.join(KINDS)}")
    try:
        return _BODIES.validate_python(data)
    except ValidationError as error:
        raise report([_problem(each) for each in error.errors()]) from error


def parse_model(model: type[BaseModel], data: Mapping[str, Any]) -> Any:
    """An object of a model. Raises :class:`RequestError` with all problems."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise report([_problem(each) for each in error.errors()]) from error


def _problem(error: Any) -> Found:
    """One problem of pydantic in words."""
    place: Sequence[Any] = [part for part in error["loc"] if part not in KINDS]
    name = ".".join(map(str, place)) or "the body"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a known field", "remove it, or check its spelling"
    if error["type"] == "missing":
        return f"{name} is missing", f'send {{"{name}": ...}}'
    return f"{name}={error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}", None


def replace_uploads(value: Any, find: Any) -> Any:
    """``value`` with every ``{"upload": id}`` and ``"upload:ID"`` replaced by ``find(id)``."""
    if isinstance(value, Mapping):
        if set(value) == {"upload"} and isinstance(value["upload"], str):
            return str(find(value["upload"]))
        return {name: replace_uploads(each, find) for name, each in value.items()}
    if isinstance(value, list):
        return [replace_uploads(each, find) for each in value]
    if isinstance(value, str) and value.startswith("upload:"):
        return str(find(value.removeprefix("upload:")))
    return value


def is_inside(path: str, folders: Sequence[Path]) -> bool:
    """True if a path, with its links followed, is in one of the folders."""
    real = Path(path).resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders)
