"""Options that mean nothing without another one, or next to one: a table, checked before a command.

An option that is ignored in silence is found out after the run. A rule is a row; the rows of a
command are named where it is registered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_ladder.errors import RequestError

Values = Mapping[str, Any]
"""Options that the user set to something else than their default, by parameter name."""

SOUND_FILE = ".wav"


@dataclass(frozen=True)
class Rule:
    """``option`` means nothing where ``ignored`` holds for the other options.

    ``name`` is the parameter of the option; ``why`` continues the sentence "--option ...".
    """

    name: str
    option: str
    ignored: Callable[[Values], bool]
    why: str
    hint: str


def needs(name: str, option: str, others: Sequence[str], flags: str, hint: str) -> Rule:
    """A rule for an option that means nothing without one of ``others``, called ``flags``."""
    return Rule(
        name, option, lambda v: not any(o in v for o in others), f"needs {flags}", hint
    )  # fmt: skip


def excludes(name: str, option: str, other: str, flag: str, why: str) -> Rule:
    """A rule for an option that means nothing next to ``other``, called ``flag``."""
    return Rule(
        name, option, lambda v: other in v, f"means nothing with {flag}: {why}",
        f"leave out {option} or {flag}",
    )  # fmt: skip


FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "prompt": ("PROMPT", ("prompt",)),
    "negative": ("--negative", ("negative_prompt",)),
    "seed": ("--seed", ("seed",)),
    "size": ("--size", ("width", "height")),
    "frames": ("--frames", ("frames",)),
    "duration": ("--duration", ("duration_s",)),
    "fps": ("--fps", ("fps",)),
    "audio": ("--audio", ("audio",)),
    "no_audio": ("--no-audio", ("audio",)),
    "audio_in": ("--audio-in", ("audio_in",)),
    "windows": ("--windows", ("windows", "windows.frames")),
    "images": ("--image", ("images",)),
    "video": ("--video", ("video", "video.file")),
    "mode": ("--mode", ("video.mode",)),
    "denoise": ("--denoise", ("video.denoise",)),
    "region": ("--region", ("video.region",)),
    "extend": ("--extend", ("video.extend",)),
    "codec": ("--codec", ("output.codec",)),
    "crf": ("--crf", ("output.crf",)),
    "poster": ("--poster", ("output.poster",)),
    "sheet": ("--sheet", ("output.sheet",)),
    "checkpoint": ("--checkpoint", ("models.checkpoint",)),
    "precision": ("--precision", ("models.precision",)),
}
"""Parameter -> its option, and the fields of the request that it sets."""


def _sets_again(fields: Sequence[str]) -> Callable[[Values], bool]:
    """True where ``--set`` names one of ``fields``, or the whole table that one is in."""
    paths = set(fields) | {field.rpartition(".")[0] for field in fields} - {""}
    return lambda v: any(set_path(text) in paths for text in v.get("sets") or ())


def set_path(text: str) -> str:
    """The field that ``--set FIELD=VALUE`` names."""
    return text.partition("=")[0].strip()


def set_twice(name: str, fields: Sequence[str], option: str) -> Rule:
    """A rule against an option and a ``--set`` for the same field: one would win in silence."""
    path = fields[-1]
    return Rule(
        name, option, _sets_again(fields), f"and --set {path} set the same field",
        f"leave out {option} or --set {path}",
    )  # fmt: skip


def _repeats_a_field(values: Values) -> bool:
    paths = [set_path(text) for text in values.get("sets") or ()]
    return len(paths) > len(set(paths))


SET_RULES: tuple[Rule, ...] = (
    *(set_twice(name, fields, option) for name, (option, fields) in FIELDS.items()),
    Rule("sets", "--set", _repeats_a_field, "names one field twice", "leave out one of them"),
)
"""Two options for one field."""


def _has_mode(*modes: str) -> Callable[[Values], bool]:
    """True where --mode names another mode than ``modes``."""
    return lambda v: "mode" in v and v["mode"] not in modes


def _writes(*kinds: str) -> Callable[[Values], bool]:
    """True where the output is a sound file ("sound") or numbered pictures ("pictures")."""

    def ignored(values: Values) -> bool:
        output = values.get("output")
        if output is None:
            return False
        is_sound = output.suffix.lower() == SOUND_FILE
        return ("sound" in kinds and is_sound) or ("pictures" in kinds and "%" in output.name)

    return ignored


_IN_NO_VIDEO = "means nothing for this output: it is no video file"
_NO_PICTURE = "means nothing for a .wav file: it has no picture"

INPUT_RULES: tuple[Rule, ...] = (
    needs("mode", "--mode", ["video"], "--video", "add --video FILE"),
    needs("denoise", "--denoise", ["video"], "--video",
          "add --video FILE; for a refine stage use --set refine.denoise=0.4"),
    needs("region", "--region", ["video"], "--video", "add --video FILE"),
    needs("extend", "--extend", ["video"], "--video", "add --video FILE"),
    needs("fit", "--fit", ["images", "video"], "--image or --video",
          "add --image FILE or --video FILE"),
    Rule("denoise", "--denoise", _has_mode("v2v"), "belongs to --mode v2v", "use --mode v2v"),
    Rule("region", "--region", _has_mode("retake"), "belongs to --mode retake",
         "use --mode retake"),
    Rule("extend", "--extend", _has_mode("extend"), "belongs to --mode extend",
         "use --mode extend"),
    excludes("denoise", "--denoise", "region", "--region", "a retaken part is made from nothing"),
    excludes("denoise", "--denoise", "extend", "--extend", "the new seconds are made from nothing"),
    excludes("region", "--region", "extend", "--extend", "a video is used in one way"),
)  # fmt: skip

REQUEST_RULES: tuple[Rule, ...] = (
    needs("to", "--to", ["upscale"], "--upscale", "add --upscale lanczos"),
    needs("by", "--by", ["upscale"], "--upscale", "add --upscale lanczos"),
    excludes("by", "--by", "to", "--to", "both say how large the file is"),
    excludes("duration", "--duration", "frames", "--frames", "both say how long the clip is"),
    excludes("preset", "--preset", "source", "--from", "the file has all settings"),
    Rule("audio", "--audio", lambda v: "no_audio" in v and v["audio"] != "none",
         "means nothing with --no-audio", "leave out one of them"),
    Rule("audio", "--audio", lambda v: "audio_in" in v and v["audio"] != "none",
         "means nothing with --audio-in, whose sound is used as it is", "leave out --audio"),
)  # fmt: skip

MEMORY_RULES: tuple[Rule, ...] = (
    excludes("reserve_vram", "--reserve-vram", "vram", "--vram", "it says what may be used"),
    Rule("ram", "--ram", lambda v: v.get("offload") in ("none", "disk"),
         "means nothing with --offload none or disk: nothing waits in RAM",
         "use --offload stream or leave out --ram"),
)  # fmt: skip

OUTPUT_RULES: tuple[Rule, ...] = (
    needs("overwrite", "--overwrite", ["output"], "--output: else a new name is chosen",
          "name the file to replace with -o"),
    *(Rule(name, option, _writes("sound", "pictures"), _IN_NO_VIDEO, f"leave out {option}")
      for name, option in (("codec", "--codec"), ("crf", "--crf"))),
    *(Rule(name, option, _writes("sound"), _NO_PICTURE, f"leave out {option}")
      for name, option in (("poster", "--poster"), ("sheet", "--sheet"), ("upscale", "--upscale"),
                           ("preview", "--preview"))),
    Rule("no_audio", "--no-audio", _writes("sound"), "means nothing for a .wav file",
         "name a video file with -o"),
)  # fmt: skip

CLIP_RULES = (*INPUT_RULES, *REQUEST_RULES, *MEMORY_RULES, *SET_RULES)
"""Rules of every command that describes a clip."""

MAKE_RULES = (*CLIP_RULES, *OUTPUT_RULES)

_SEED_LIST = re.compile(r"\d*[,-]")

DRAFT_RULES: tuple[Rule, ...] = (
    *CLIP_RULES,
    needs("overwrite", "--overwrite", ["output"], "--output: else a new folder is made",
          "name the folder to replace with -o"),
    Rule("seed", "--seed", lambda v: _SEED_LIST.match(str(v.get("seeds", ""))) is not None,
         "means nothing with a list or range of --seeds", "use --seeds 8 to count from --seed"),
    excludes("prompts", "--prompts", "prompt", "PROMPT", "the file has the prompts"),
)  # fmt: skip

ADVISE_RULES: tuple[Rule, ...] = (
    *CLIP_RULES,
    *(Rule(name, option, lambda _: True, "means nothing here: it changes no cost",
           f"leave out {option}")
      for name, option in (("seed", "--seed"), ("codec", "--codec"), ("crf", "--crf"),
                           ("poster", "--poster"), ("sheet", "--sheet"))),
)  # fmt: skip

SWEEP_RULES: tuple[Rule, ...] = (
    *CLIP_RULES,
    Rule("zipped", "--zip", lambda v: len(v.get("sets") or ()) < 2,
         "combines several lists, and there is one", "leave out --zip"),
)  # fmt: skip

UPSCALE_RULES: tuple[Rule, ...] = (
    *MEMORY_RULES,
    *(rule for rule in SET_RULES if rule.name in ("sets", "seed", "windows")),
    set_twice("prompt", ["prompt"], "--prompt"),
    set_twice("denoise", ["refine.denoise"], "--denoise"),
)

SOUND_RULES: tuple[Rule, ...] = (
    *MEMORY_RULES,
    *(rule for rule in SET_RULES if rule.name in ("sets", "prompt", "seed", "duration")),
    needs("overwrite", "--overwrite", ["output"], "--output: else a new name is chosen",
          "name the file to replace with -o"),
)  # fmt: skip


def check_rules(rules: Iterable[Rule], values: Values) -> None:
    """Raise one :class:`RequestError` for all options in ``values`` that mean nothing."""
    problems = {
        (f"{rule.option} {rule.why}", rule.hint): None
        for rule in rules
        if rule.name in values and rule.ignored(values)
    }
    if not problems:
        return
    found = tuple(problems)
    text = found[0][0] if len(found) == 1 else f"{len(found)} options mean nothing here"
    raise RequestError(text, found[0][1] if len(found) == 1 else None, found)
