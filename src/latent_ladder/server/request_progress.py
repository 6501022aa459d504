"""Progress of a request under way, as the documents of ``/ladder/jobs`` show it.

Has the methods of :class:`.client_messages.JobMessages` that the job loop calls, and no messages
for ComfyUI's clients.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from latent_ladder.pipeline import events
from latent_ladder.server.client_messages import Failure, Message
from latent_ladder.server.job_store import Job
from latent_ladder.server.worker_protocol import JobEvent

LEAST_STEPS = 2
"""Steps of a stage after which its remaining time is estimated."""


@dataclass
class Clip:
    """One clip of a job: ``state`` is queued, running, done, killed or failed."""

    number: int
    prompt: str
    seed: int
    state: str = "queued"
    run: str | None = None
    flags: tuple[str, ...] = ()
    error: str | None = None


class RequestProgress:
    """State of one request: clips, stage, steps, warnings, and its end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.node: str | None = None
        self.started: str | None = None
        self.ended: str | None = None
        self.run: str | None = None
        self.outputs: list[str] = []
        self.progress: dict[str, Any] | None = None
        self.state = "queued"
        self.error: dict[str, Any] | None = None
        checked = job.checked
        self.warnings: list[dict[str, str]] = list(checked.get("warnings", ()))
        self.clips = {c["number"]: Clip(**c) for c in checked.get("clips", ())}
        for number in checked.get("body", {}).get("killed", ()):
            if number in self.clips:
                self.clips[number].state = "killed"
        self.current = 0
        self.previews: dict[int, tuple[str, int, bytes]] = {}
        self._stage_began = 0.0

    @property
    def clip(self) -> int | None:
        """The number of the clip under way."""
        return self.current or None

    # --- what the job loop calls --------------------------------------------------------------

    def report_start(self) -> Iterator[Message]:
        """Mark the job as running."""
        self.started, self.state = now_iso(), "running"
        yield from ()

    def report_event(self, event: JobEvent) -> Iterator[Message]:
        """Take over one event of the worker."""
        match event:
            case events.RunStarted():
                self.run = event.run
            case events.StageStarted():
                self._stage_began = time.monotonic()
                self._set(event.stage, event.position, event.of, 0, event.steps)
            case events.StepDone():
                old = self.progress or {}
                place = old.get("position", 1), old.get("of", 1)
                self._set(event.stage, *place, event.done, event.steps)
            case events.Warned():
                if (warning := asdict(event)) not in self.warnings:
                    self.warnings.append(warning)
            case events.DraftStarted():
                self._start_clip(event.number)
            case events.DraftDone():
                self._end_clip(event.number, event.error, event.stopped)
            case events.PointStarted():
                self._start_clip(event.number)
            case events.PointDone():
                self._end_clip(event.number, event.error, stopped=False)
            case events.Preview():
                self.previews[self.current] = (event.stage, event.step, event.picture)
            case _:
                pass
        yield from ()

    def report_result(self, result: Mapping[str, Any]) -> None:
        """Take over the result of a job that is done."""
        self.run = next(iter(result.get("runs", ())), self.run)
        self.outputs = [str(path) for path in result.get("outputs", ())]
        runs, flags = result.get("clips", {}), result.get("flags", {})
        for clip in self.clips.values():
            clip.run = runs.get(str(clip.number))
            clip.flags = tuple(flags.get(str(clip.number), ()))
            if clip.run is not None:
                clip.state = "done"

    def report_success(self) -> Iterator[Message]:
        """Mark the job as done."""
        yield from self._end("done")

    def report_failure(self, failure: Failure) -> Iterator[Message]:
        """Mark the job as failed; its message and hint are for a person."""
        message, _, hint = failure.message.partition("\n")
        self.error = {"kind": failure.kind, "message": message, "hint": hint or None}
        yield from self._end("failed")

    def report_interrupt(self) -> Iterator[Message]:
        """Mark the job as cancelled."""
        yield from self._end("cancelled")

    def build_history_entry(self) -> dict[str, Any]:
        """The job as it was queued, to run it again."""
        return {"kind": self.job.kind, "extra": self.job.extra}

    def build_summary(self) -> dict[str, Any]:
        """The state of the job at its end."""
        return self.to_dict()

    # --- documents ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The fields of a job's document that change while it runs."""
        return {
            "state": self.state,
            "started": self.started,
            "ended": self.ended,
            "clips": [{**asdict(c), "flags": list(c.flags)} for c in self.clips.values()],
            "progress": self.progress,
            "run": self.run,
            "outputs": self.outputs,
            "warnings": self.warnings,
            "error": self.error,
        }

    def _set(self, stage: str, position: int, of: int, done: int, steps: int) -> None:
        left = None
        if LEAST_STEPS <= done < steps:
            left = round((time.monotonic() - self._stage_began) / done * (steps - done), 1)
        self.progress = {
            "stage": stage,
            "position": position,
            "of": of,
            "done": done,
            "steps": steps,
            "seconds_left": left,
        }

    def _start_clip(self, number: int) -> None:
        self.current = number
        if number in self.clips and self.clips[number].state == "queued":
            self.clips[number].state = "running"

    def _end_clip(self, number: int, error: str | None, stopped: bool) -> None:
        self.current = 0
        clip = self.clips.get(number)
        if clip is not None:
            clip.error = error
            clip.state = "killed" if stopped else "done" if error is None else "failed"

    def _end(self, state: str) -> Iterator[Message]:
        self.state, self.ended, self.progress = state, now_iso(), None
        ends = {"queued", "running"}
        for clip in self.clips.values():
            if clip.state in ends:
                clip.state = "failed" if state == "failed" else "killed"
        self.previews.clear()
        yield from ()


def now_iso() -> str:
    """The time now in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
