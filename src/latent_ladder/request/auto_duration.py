"""Automatic duration: the model predicts the length of a clip from its prompt."""

from __future__ import annotations

from fractions import Fraction
from typing import Self

from pydantic import Field, model_validator

from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import clip_frames, duration, nearest_frames
from latent_ladder.request.fields import Real, Table

MAX_AUTO_S = 60


class AutoDuration(Table):
    """Limits of a length that the model predicts from the prompt (LTX-2.5 only)."""

    min_s: Real = Field(default=1.0, gt=0, le=MAX_AUTO_S)
    """Shortest length in seconds; a shorter prediction is raised to it."""
    max_s: Real = Field(default=20.0, gt=0, le=MAX_AUTO_S)
    """Longest length in seconds; a longer prediction is cut to it."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s={self.min_s:g} is above max_s={self.max_s:g}")
        return self

    def frames(self, seconds: float, fps: Fraction, time_factor: int = 1) -> int:
        """Frames of a clip for a predicted length, within the limits where 8k + 1 allows."""
        found = clip_frames(seconds, fps, self.min_s, self.max_s, time_factor)
        return nearest_frames(found, time_factor)[0]

    def longest(self, fps: Fraction, time_factor: int = 1) -> int:
        """Frames of the longest clip, by which a run is planned before the prediction."""
        return self.frames(self.max_s, fps, time_factor)

    def describe(self, seconds: float, frames: int, fps: Fraction) -> str:
        """The prediction and the length that follows from it, for the user."""
        limits = f"between {self.min_s:g} and {self.max_s:g} s"
        return (
            f"the model suggests {seconds:.2f} s for this prompt: the clip has {frames} frames, "
            f"{float(duration(frames, fps)):.2f} s ({limits})"
        )


def auto_not_here(command: str) -> RequestError:
    """The error for an automatic duration where several clips need one length."""
    return RequestError(
        f"{command} cannot use an automatic duration: its clips need one length",
        "use --duration SECONDS, or `ladder make` for one clip",
    )
