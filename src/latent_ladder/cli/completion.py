"""Values that the shell offers after an option: presets, model files, samplers, runs.

Each function gets what has been typed so far and returns all values that start with it, with a
short description for shells that show one. Nothing here imports torch or reads a model file; an
error while looking for values offers none, because a shell cannot show a message.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer

from latent_ladder.errors import LadderError

Completion = tuple[str, str]
"""A value and its description."""

AUDIO_MODES = ("refine", "keep", "none")
CODECS = ("h264", "h265", "av1", "prores", "h264_nvenc", "h265_nvenc")
FITS = ("cover", "letterbox")
OFFLOADS = ("auto", "none", "stream", "disk")
FAST = ("attention", "fused", "fp8", "fp4", "loras", "graphs", "compile")
OOM_POLICIES = ("same", "tiles", "fp8", "tiles,fp8")
PRECISIONS = ("stored", "fp8")
DRAFT_PREVIEWS = ("rgb", "tae", "full")
VIDEO_MODES = ("v2v", "retake", "extend", "reference")
WINDOW_MODES = ("auto", "off")

_MODEL_CATEGORIES = ("checkpoints", "diffusion_models")
_MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf")
_UPSCALER_SUFFIXES = (".safetensors", ".pth", ".pt")
_PROMPT_CHARACTERS = 40


def offer(values: Iterable[str]) -> Callable[[str], list[str]]:
    """A completion function for an option that takes one of ``values``."""
    known = tuple(values)

    def complete(incomplete: str) -> list[str]:
        return [value for value in known if value.startswith(incomplete)]

    return complete


def complete_preset(incomplete: str) -> list[Completion]:
    """Presets with their summaries, the user's own among them."""
    from latent_ladder.request.presets import preset_names

    return _with_summaries(preset_names(), incomplete) + complete_own_preset(incomplete)


def complete_own_preset(incomplete: str) -> list[Completion]:
    """The user's own presets with their summaries."""
    from latent_ladder.request.presets import own_preset_names

    return _with_summaries(own_preset_names(), incomplete)


def _with_summaries(names: Iterable[str], incomplete: str) -> list[Completion]:
    from latent_ladder.request.presets import find_preset

    found = (find_preset(name) for name in names if name.startswith(incomplete))
    return [(preset.name, preset.summary) for preset in found if preset is not None]


def complete_checkpoint(ctx: typer.Context, incomplete: str) -> list[str]:
    """Checkpoints and transformers in the model folders, as the option names them."""
    return _model_files(ctx, _MODEL_CATEGORIES, _MODEL_SUFFIXES, incomplete)


def complete_upscaler(ctx: typer.Context, incomplete: str) -> list[str]:
    """The built-in upscalers and the files of ``upscale_models/``."""
    built_in = [name for name in ("lanczos", "rtx") if name.startswith(incomplete)]
    return built_in + _model_files(ctx, ("upscale_models",), _UPSCALER_SUFFIXES, incomplete)


def complete_set(ctx: typer.Context, incomplete: str) -> list[str]:
    """Fields of the preset's stages (``refine.denoise=``), and samplers after ``.sampler=``."""
    from latent_ladder.request.presets import read_preset
    from latent_ladder.sampling.names import SAMPLER_FACTS

    field, equals, _ = incomplete.partition("=")
    if equals:
        values = SAMPLER_FACTS if field.endswith(".sampler") else ()
        return [text for text in (f"{field}={v}" for v in values) if text.startswith(incomplete)]
    try:
        stages = read_preset(ctx.params.get("preset") or "distilled").fields["stages"]
    except LadderError:
        return []
    names = {
        f"{stage['kind']}.{name}=": None for stage in stages for name in stage if name != "kind"
    }
    return [name for name in names if name.startswith(incomplete)]


def complete_run(ctx: typer.Context, incomplete: str) -> list[Completion]:
    """``last`` and the ids of stored runs, the newest first, with their prompts."""
    if _is_after_word_break():
        return []
    from latent_ladder.storage.artifact_store import Store, default_root

    store = ctx.params.get("store")
    try:
        records, _ = Store(Path(store) if store else default_root()).runs.list()
    except (LadderError, OSError):
        return []
    found = [(run.id, str(run.request.get("prompt", ""))[:_PROMPT_CHARACTERS]) for run in records]
    if found:
        found.insert(0, ("last", "the newest run"))
    return [(name, prompt) for name, prompt in found if name.startswith(incomplete)]


def _model_files(
    ctx: typer.Context,
    categories: Sequence[str],
    suffixes: tuple[str, ...],
    incomplete: str,
) -> list[str]:
    """Names of files in the model folders, relative to the folder of their category."""
    from latent_ladder.checkpoints.search_paths import CATEGORIES, model_folders

    names: dict[str, None] = {}
    try:
        for folder in model_folders(ctx.params.get("folders") or ()):
            own = [folder.path] if folder.category in categories else []
            below = [folder.path / old for old, new in CATEGORIES.items() if new in categories]
            for root in own if folder.category else below:
                files = (path for path in root.rglob("*") if path.suffix.lower() in suffixes)
                names |= dict.fromkeys(str(path.relative_to(root)) for path in sorted(files))
    except (LadderError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def _is_after_word_break() -> bool:
    """True in bash after ``last:``, which it has split into words that cannot be completed."""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    position = int(os.environ.get("COMP_CWORD", "0") or 0)
    return any(word in (":", "=") for word in words[max(position - 1, 0) : position + 1])
