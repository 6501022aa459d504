"""Problems of a request in the words of the command line: ``--frames 97``, not ``frames=97``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from latent_ladder.errors import RequestError

FLAGS: Mapping[str, str] = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "seed": "--seed",
    "frames": "--frames",
    "duration_s": "--duration",
    "auto_duration": "--duration auto",
    "fps": "--fps",
    "audio": "--audio",
    "audio_in": "--audio-in",
    "windows": "--windows",
    "windows.frames": "--windows",
    "windows.overlap_frames": "--windows overlap",
    "images.file": "--image",
    "images.frame": "--image frame",
    "images.strength": "--image strength",
    "images.fit": "--fit",
    "video.file": "--video",
    "video.mode": "--mode",
    "video.fit": "--fit",
    "video.denoise": "--denoise",
    "video.region": "--region",
    "video.extend": "--extend",
    "output.codec": "--codec",
    "output.crf": "--crf",
    "models.precision": "--precision",
    "models.checkpoint": "--checkpoint",
}
"""The option that sets a field of the request, by the field's path."""

SIDES = ("width", "height")
"""Fields that ``--size`` sets together."""

_STAGES = "base|refine|upsample|upscale"
_VALUE = r"""\[[^\]]*\]|'[^']*'|"[^"]*"|[^\s,;()]+"""
_SETTING = re.compile(rf"(?<![\w.-])([a-z_]+(?:\[\d+\])?(?:\.[a-z_0-9]+(?:\[\d+\])?)*)=({_VALUE})")
_MISSING_VALUE = re.compile(r"(?<![\w.=-])(video\.(?:denoise|region|extend|mode))(?![\w.=])")
_INDEX = re.compile(r"\[\d+\]")
START_END = r"\1-\2"
_PAIR = re.compile(r"\[([\d.]+), ([\d.]+)\]")


_SIDE_HINT = re.compile(r"use (width|height)=(\d+)")


def in_flag_terms(error: RequestError, fields: Mapping[str, object] | None = None) -> RequestError:
    """The same error with the options that set its fields in place of the fields' names.

    ``fields`` are those of the request; a hint for a side names the whole ``--size``.
    """
    hints = (_SIDE_HINT.fullmatch(hint or "") for _, hint in error.problems)
    size = {**(fields or {}), **{found[1]: found[2] for found in hints if found}}
    problems = tuple(
        (_translate(text, is_hint=False), None if hint is None else _translate_hint(hint, size))
        for text, hint in error.problems
    )
    if len(problems) == 1:
        return RequestError(problems[0][0], problems[0][1], problems)
    return RequestError(error.message, error.hint, problems)


def _translate_hint(hint: str, size: Mapping[str, object]) -> str:
    if _SIDE_HINT.fullmatch(hint) and size.keys() >= set(SIDES):
        return f"use --size {size['width']}x{size['height']}"
    return _translate(hint, is_hint=True)


def _translate(text: str, *, is_hint: bool) -> str:
    def replace(match: re.Match[str]) -> str:
        path, value = match[1], match[2]
        if text[: match.start()].endswith("--set "):
            return match[0]
        option = FLAGS.get(_INDEX.sub("", path))
        if option is not None:
            return f"{option} {_PAIR.sub(START_END, value)}"
        if path in SIDES:
            return f"{path} {value} (--size)"
        is_setting = path.split("[")[0].split(".")[0] in _FIELDS
        return f"--set {match[0]}" if is_hint and is_setting else match[0]

    found = _SETTING.sub(replace, text)
    return _MISSING_VALUE.sub(lambda m: FLAGS[m[1]], found)


_FIELDS = frozenset((*_STAGES.split("|"), "decode", "output", "models", "windows", "images"))
"""Tables of a request whose fields ``--set`` changes."""
