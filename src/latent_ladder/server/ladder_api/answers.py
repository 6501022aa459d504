"""Models of bodies and answers: the source of the OpenAPI document, checked in tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Form(BaseModel):
    """A form without unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Form):
    """One problem of a request; ``field`` is its path, where it is about one field."""

    field: str | None
    message: str
    hint: str | None


class ErrorDetail(Form):
    """A fault: ``code`` is stable for programs, ``hint`` one thing to do."""

    code: str
    message: str
    hint: str | None
    problems: list[Problem]


class Error(Form):
    """The answer to a request that was refused."""

    error: ErrorDetail


class Device(Form):
    kind: str = Field(description="cuda, mps or cpu.")
    name: str
    memory_bytes: int | None


class Limits(Form):
    upload_bytes: int
    drafts: int


class Worker(Form):
    id: str
    job: str | None


class Queue(Form):
    paused: bool
    jobs: int = Field(description="Unfinished jobs.")
    running: str | None
    workers: list[Worker]


class StoreState(Form):
    path: str
    free_bytes: int
    outputs: str = Field(description="Folder of the clips.")


class State(Form):
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


class MissingFile(Form):
    role: str
    file: str | None
    bytes: int | None
    page: str | None
    folder: str | None
    why: str


class PresetRow(Form):
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


class PresetDocument(Form):
    name: str
    request: dict[str, Any]
    description: str = ""
    own: bool


class PresetBody(Form):
    request: dict[str, Any] = Field(
        description="Fields; prompt, seed and input files are left out."
    )
    description: str = ""
    overwrite: bool = False


class FieldRow(Form):
    """One field of a request; ``path`` is as in `sets`, such as `refine.denoise`."""

    path: str
    type: str
    default: Any
    choices: list[Any]
    minimum: float | None
    maximum: float | None
    description: str


class PlanBody(Form):
    """A job as for /ladder/jobs; `kind` is make if it is left out."""

    model_config = ConfigDict(extra="allow")
    kind: str = "make"


class PlanStage(Form):
    name: str
    kind: str
    width: int | None
    height: int | None
    frames: int | None
    steps: int
    reused: bool
    seconds: float | None
    peak_bytes: int | None


class WarningRow(Form):
    code: str
    message: str


class PlanModel(Form):
    role: str
    file: str
    bytes: int


class PlanClip(Form):
    prompt: str
    seed: int


class Plan(Form):
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


class JobClip(Form):
    number: int
    prompt: str
    seed: int
    state: Literal["queued", "running", "done", "killed", "failed"]
    run: str | None
    flags: list[str]
    error: str | None


class Progress(Form):
    stage: str
    position: int
    of: int
    done: int
    steps: int
    seconds_left: float | None = Field(description="Of this stage.")


class OutputFile(Form):
    name: str
    url: str
    mime: str
    bytes: int | None
    playable: bool
    proxy_url: str | None


class JobFailure(Form):
    kind: str | None
    message: str
    hint: str | None


class Job(Form):
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


class JobAnswer(Form):
    job: Job


class JobList(Form):
    jobs: list[Job]
    next: str | None


class MoveBody(Form):
    before: str | None = Field(default=None, description="Id of a waiting job; null: the end.")


class Done(Form):
    done: bool = True


class Upload(Form):
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


class Waveform(Form):
    seconds: float
    peaks: list[tuple[float, float]]


class Making(Form):
    state: Literal["making"]


class CatalogEntry(Form):
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


class ModelFile(Form):
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


class Fit(Form):
    preset: str
    ready: bool
    peak_bytes: int | None
    budget_bytes: int | None
    fits: bool | None
    missing: list[MissingFile]
    advice: list[str]


class Models(Form):
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


class GraphBody(Form):
    graph: dict[str, Any]


class GraphInput(Form):
    node: str
    title: str
    name: str
    type: str
    value: Any
    min: float | None
    max: float | None
    choices: list[Any]
    group: str


class GraphOutput(Form):
    node: str
    title: str
    type: str
    size: list[int] | None
    frames: int | None


class UnsupportedNode(Form):
    node: str
    type: str
    why: str


class GraphReport(Form):
    inputs: list[GraphInput]
    outputs: list[GraphOutput]
    unsupported: list[UnsupportedNode]
    files: list[dict[str, Any]]
    problems: list[dict[str, Any]]
    warnings: list[str]
    can_run: bool


class SavedGraph(Form):
    name: str
    bytes: int
    modified: str
    url: str
