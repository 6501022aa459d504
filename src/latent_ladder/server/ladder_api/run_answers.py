"""Models of bodies and answers about runs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from latent_ladder.server.ladder_api.answers import Form, OutputFile


class RunClip(Form):
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
    sets: list[str] = Field(default=[], description="Settings of a point of a sweep.")


class Run(Form):
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


class RunList(Form):
    runs: list[Run]
    total: int
    next: str | None


class RunStage(Form):
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


class StarBody(Form):
    starred: bool
    clip: int = Field(default=0, ge=0, description="0: the run.")


class Deletion(Form):
    frees_bytes: int
    artifacts: int
    files: list[str]
    kept_files: list[str] = Field(description="Files outside of the output folder.")
    kept_by: list[str] = Field(description="Runs that use some of its artefacts.")


class SweepPoint(Form):
    number: int
    settings: dict[str, str]
    metrics: dict[str, Any]
    video_url: str | None
    thumbnail_url: str | None
    error: str | None
    recommended: bool


class Axis(Form):
    path: str
    values: list[str]


class Recommendation(Form):
    point: int | None
    why: str
    outcome: str


class Noise(Form):
    detail_db: float
    least_kept: float | None


class SweepReport(Form):
    axes: list[Axis]
    points: list[SweepPoint]
    recommendation: Recommendation
    noise: Noise


class ApplyBody(Form):
    point: int


class RequestAnswer(Form):
    request: dict[str, Any]


class ClipName(Form):
    run: str
    clip: int = 1


class CompareBody(Form):
    a: ClipName
    b: ClipName


class Side(Form):
    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    has_sound: bool


class Comparison(Form):
    frames: int
    fps: float
    width: int
    height: int
    metrics: dict[str, Any] | None
    note: str | None
    a: Side
    b: Side
