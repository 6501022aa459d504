"""Fields of a request that enlarges a video or an image through latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.errors import RequestError

if TYPE_CHECKING:
    from latent_ladder.media.video_input import InputVideo

DEFAULT_PROMPT = "a video, sharp and rich in detail"
"""Prompt for a video that the user does not describe."""
LOW_DENOISE = 0.3
FACTORS = (1.5, 2.0)
"""Factors for which there are latent upsamplers."""


def upscale_fields(clip: Path, video: InputVideo, by: float) -> dict[str, Any]:
    """The fields of a request that enlarges a video. Raises :class:`RequestError`.

    ``upsample_by`` is no field of a request: it is the factor of its upsample stage.
    """
    from latent_ladder.latents import shapes

    if by not in FACTORS:
        raise RequestError(f"by={by:g} has no latent upsampler", "use --by 2 or --by 1.5")
    fps = video.fps if 1 <= video.fps <= shapes.MAX_FPS else Fraction(24)
    width, height = (2 * round(side * by / 2) for side in video.size)
    return {
        "width": width,
        "height": height,
        "frames": shapes.frames_for(Fraction(video.frames), Fraction(1)),
        "fps": shapes.format_fps(fps),
        "upsample_by": by,
        "video": {"file": str(clip), "mode": "v2v", "denoise": 0.0},
        **({"audio": "none"} if video.sound_file is None else {"audio_in": str(video.sound_file)}),
    }


def choose_stages(
    stages: Sequence[Mapping[str, Any]], factor: float, only_base: bool
) -> list[Mapping[str, Any]]:
    """The base stage of a preset, followed by an upsample and its last refine stage."""
    if only_base:
        return [stages[0]]
    refine = [stage for stage in stages if stage["kind"] == "refine"]
    if not refine:
        raise RequestError("the preset has no refine stage", "choose another --preset")
    return [stages[0], {"kind": "upsample", "factor": factor}, refine[-1]]
