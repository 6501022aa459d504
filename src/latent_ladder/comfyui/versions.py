"""Differences between versions of ComfyUI and the official code in what a model computes.

Since 6 August 2026 (0.33) the audio of a transformer block attends to the video that has already
attended to the audio; before, and in the official code, to the video before that. All versions
encode prompts in their own way (:meth:`Tokenizer.tokenize_as_comfyui`, rounded norms).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from latent_ladder.errors import RequestError

ModelConvention = Literal["ltx", "comfyui", "comfyui-0.32"]
"""Values of ``model_convention`` of a request."""

UPDATED_VIDEO_SINCE = (0, 33)
"""First version whose audio attends to the updated video."""

_VERSIONS: Mapping[ModelConvention, str] = {
    "ltx": "0.33.0",
    "comfyui": "0.33.0",
    "comfyui-0.32": "0.32.0",
}

_NUMBER = re.compile(r"v?(\d+)\.(\d+)(?:\.\d+)*")


def parse_comfyui_version(text: str) -> ModelConvention:
    """Convention of ``current``, ``official`` or a version such as 0.32.1.

    Raises :class:`RequestError` for anything else.
    """
    word = text.strip().lower()
    if word in ("current", "official"):
        return "comfyui" if word == "current" else "ltx"
    found = _NUMBER.fullmatch(word)
    if found is None:
        raise RequestError(
            f"--comfyui-version {text!r} is not a version of ComfyUI",
            "use current, a number such as 0.32, or official for Lightricks' code",
        )
    recent = (int(found[1]), int(found[2])) >= UPDATED_VIDEO_SINCE
    return "comfyui" if recent else "comfyui-0.32"


def comfyui_version(convention: ModelConvention) -> str:
    """Version of ComfyUI that a convention is reported as to clients.

    The official code has no version of ComfyUI; its graphs are those of the current one.
    """
    return _VERSIONS[convention]
