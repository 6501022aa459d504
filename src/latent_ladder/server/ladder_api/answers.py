"""Models of bodies and answers: the source of the OpenAPI document, checked in tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_Model):
    """One problem of a request; ``field`` is its path, where it is about one field."""

    field: str | None
    message: str
    hint: str | None


class ErrorDetail(_Model):
    """What went wrong: ``code`` is stable for programs, ``hint`` one thing to do."""

    code: str
    message: str
    hint: str | None
    problems: list[Problem]


class Error(_Model):
    """The answer to a request that was refused."""

    error: ErrorDetail


class Device(_Model):
    kind: str = Field(description="cuda, mps or cpu.")
    name: str
    memory_bytes: int | None


class Limits(_Model):
    upload_bytes: int
    drafts: int


class Worker(_Model):
    id: str
    job: str | None


class Queue(_Model):
    paused: bool
    jobs: int = Field(description="Unfinished jobs.")
    running: str | None
    workers: list[Worker]


class StoreState(_Model):
    path: str
    free_bytes: int
    outputs: str = Field(description="Folder of the clips.")


class State(_Model):
    """The server at a glance; answered from memory."""

    version: str
    started: str
    device: Device | None = Field(description="null until the model files were read once.")
    models_found: bool | None
    pocket_only: bool | None
    default_preset: str | None
    limits: Limits
    queue: Queue
    store: StoreState
    comfyui: bool = Field(description="ComfyUI's routes are served, too.")


class MissingFile(_Model):
    role: str
    file: str | None
    bytes: int | None
    page: str | None
    folder: str | None
    why: str


class PresetRow(_Model):
    name: str
    title: str
    description: str
    family: str
    own: bool
    ready: bool | None = Field(description="null for own presets: plan one to know.")
    missing: list[MissingFile]
    fits: bool | None
    too_big: str | None
    peak_bytes: int | None
    width: int | None
    height: int | None
    frames: int | None
    fps: float | None
    stages: list[str]
    world: dict[str, Any] | None


class PresetDocument(_Model):
    name: str
    request: dict[str, Any]
    description: str = ""
    own: bool


class PresetBody(_Model):
    request: dict[str, Any] = Field(
        description="Fields; prompt, seed and input files are left out."
    )
    description: str = ""
    overwrite: bool = False


class FieldRow(_Model):
    """One field of a request; ``path`` is as in `sets`, such as `refine.denoise`."""

    path: str
    type: str
    default: Any
    choices: list[Any]
    minimum: float | None
    maximum: float | None
    description: str


class PlanBody(_Model):
    """A job as for /ladder/jobs; `kind` is make if it is left out."""

    model_config = ConfigDict(extra="allow")
    kind: str = "make"


class PlanStage(_Model):
    name: str
    kind: str
    width: int | None
    height: int | None
    frames: int | None
    steps: int
    reused: bool
    seconds: float | None
    peak_bytes: int | None


class WarningRow(_Model):
    code: str
    message: str


class PlanModel(_Model):
    role: str
    file: str
    bytes: int


class PlanClip(_Model):
    prompt: str
    seed: int


class Plan(_Model):
    headline: str
    request: dict[str, Any]
    clips: list[PlanClip]
    stages: list[PlanStage]
    seconds: float | None = Field(description="null until `ladder bench` has measured the machine.")
    peak_bytes: int | None
    budget_bytes: int | None
    device: str
    artifacts_reused: int
    advice: str
    warnings: list[WarningRow]
    models: list[PlanModel]


class JobClip(_Model):
    number: int
    prompt: str
    seed: int
    state: Literal["queued", "running", "done", "killed", "failed"]
    run: str | None
    flags: list[str]
    error: str | None


class Progress(_Model):
    stage: str
    position: int
    of: int
    done: int
    steps: int
    seconds_left: float | None = Field(description="Of this stage.")


class OutputFile(_Model):
    name: str
    url: str
    mime: str
    bytes: int | None
    playable: bool
    proxy_url: str | None


class JobFailure(_Model):
    kind: str | None
    message: str
    hint: str | None


class Job(_Model):
    id: str
    kind: str
    title: str
    state: Literal["queued", "running", "paused", "done", "failed", "cancelled"]
    created: str | None
    started: str | None
    ended: str | None
    position: int | None
    worker: str | None
    prompt: str
    preset: str | None
    seed: int | None
    clips: list[JobClip]
    progress: Progress | None
    run: str | None
    outputs: list[OutputFile]
    warnings: list[WarningRow]
    error: JobFailure | None
    request: dict[str, Any] | None


class JobAnswer(_Model):
    job: Job


class JobList(_Model):
    jobs: list[Job]
    next: str | None


class MoveBody(_Model):
    before: str | None = Field(default=None, description="Id of a waiting job; null: the end.")


class Done(_Model):
    done: bool = True


class RunClip(_Model):
    number: int
    prompt: str
    seed: int | None
    state: str
    error: str | None
    flags: list[str]
    metrics: dict[str, Any] | None
    url: str | None
    proxy_url: str | None
    thumbnail_url: str | None
    playable: bool
    starred: bool
    sets: list[str] = []


class Run(_Model):
    id: str
    kind: Literal["make", "drafts", "refine", "sweep", "upscale", "sound", "workflow"]
    status: str
    created: str
    title: str
    prompt: str
    preset: str | None
    seed: int | None
    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    clips: list[RunClip]
    outputs: list[OutputFile]
    codec: str | None
    starred: bool
    parent: str | None
    missing: bool
    can_refine: bool


class RunList(_Model):
    runs: list[Run]
    total: int
    next: str | None


class RunStage(_Model):
    name: str
    key: str
    kind: str | None
    seconds: float
    peak_bytes: int | None
    reused: bool
    memory: str
    stored: bool
    inputs: list[str]
    checkpoints: list[str]
    settings: dict[str, Any]


class RunDetail(Run):
    request: dict[str, Any]
    command: str
    error: str | None
    warnings: list[str]
    metrics: dict[str, Any] | None
    stages: list[RunStage]


class StarBody(_Model):
    starred: bool
    clip: int = Field(default=0, ge=0, description="0: the run.")


class Deletion(_Model):
    frees_bytes: int
    artifacts: int
    files: list[str]
    kept_files: list[str] = Field(description="Files outside of the output folder.")
    kept_by: list[str] = Field(description="Runs that use some of its artefacts.")


class SweepPoint(_Model):
    number: int
    settings: dict[str, str]
    metrics: dict[str, Any]
    video_url: str | None
    thumbnail_url: str | None
    error: str | None
    recommended: bool


class Axis(_Model):
    path: str
    values: list[str]


class Recommendation(_Model):
    point: int | None
    why: str
    outcome: str


class Noise(_Model):
    detail_db: float
    least_kept: float | None


class SweepReport(_Model):
    axes: list[Axis]
    points: list[SweepPoint]
    recommendation: Recommendation
    noise: Noise


class ApplyBody(_Model):
    point: int


class RequestAnswer(_Model):
    request: dict[str, Any]


class ClipName(_Model):
    run: str
    clip: int = 1


class CompareBody(_Model):
    a: ClipName
    b: ClipName


class Side(_Model):
    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    has_sound: bool


class Comparison(_Model):
    frames: int
    fps: float
    width: int
    height: int
    metrics: dict[str, Any] | None
    note: str | None
    a: Side
    b: Side


class Upload(_Model):
    id: str
    name: str
    kind: Literal["image", "video", "audio"]
    width: int | None
    height: int | None
    frames: int | None
    fps: float | None
    seconds: float | None
    has_sound: bool
    bytes: int
    created: str
    url: str
    thumbnail_url: str | None
    playable: bool = Field(description="Browsers play it as it is.")
    proxy_url: str | None
    notes: list[str]


class Waveform(_Model):
    seconds: float
    peaks: list[tuple[float, float]]


class Making(_Model):
    state: Literal["making"]


class CatalogEntry(_Model):
    id: str
    title: str
    family: str
    folder: str
    precision: str
    roles: list[str]
    bytes: int
    license: str
    license_url: str
    page: str
    gated: bool
    have: bool
    file: str | None


class ModelFile(_Model):
    path: str
    name: str
    role: str
    family: str | None
    precision: str
    container: str
    bytes: int
    chosen: bool
    embedded: bool
    problems: list[str]


class Fit(_Model):
    preset: str
    ready: bool
    peak_bytes: int | None
    budget_bytes: int | None
    fits: bool | None
    missing: list[MissingFile]
    advice: list[str]


class Models(_Model):
    device: Device
    runs_now: list[str]
    files: list[ModelFile]
    damaged: list[dict[str, str]]
    folders: list[dict[str, Any]]
    fits: list[Fit]
    catalog: list[CatalogEntry]
    warnings: list[str]
    error: dict[str, Any] | None
    disk: dict[str, Any]


class GraphBody(_Model):
    graph: dict[str, Any]


class GraphInput(_Model):
    node: str
    title: str
    name: str
    type: str
    value: Any
    min: float | None
    max: float | None
    choices: list[Any]
    group: str


class GraphOutput(_Model):
    node: str
    title: str
    type: str
    size: list[int] | None
    frames: int | None


class UnsupportedNode(_Model):
    node: str
    type: str
    why: str


class GraphReport(_Model):
    inputs: list[GraphInput]
    outputs: list[GraphOutput]
    unsupported: list[UnsupportedNode]
    files: list[dict[str, Any]]
    problems: list[dict[str, Any]]
    warnings: list[str]
    can_run: bool


class SavedGraph(_Model):
    name: str
    bytes: int
    modified: str
    url: str
