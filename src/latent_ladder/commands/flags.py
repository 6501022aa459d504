"""Flags that several commands share, and how they become a request and memory options.

A group of flags is a frozen dataclass; :func:`flags` spreads its fields into a command's own
signature, so that each flag is written once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from latent_ladder.errors import RequestError

if TYPE_CHECKING:
    from latent_ladder.checkpoints.library import Library
    from latent_ladder.machine import MemoryOptions
    from latent_ladder.pipeline import Prepared
    from latent_ladder.request import Request
    from latent_ladder.stages.store import Store

Prompt = Annotated[str | None, typer.Argument(help="What is seen, how it moves and sounds.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Folders = Annotated[
    list[Path] | None, typer.Option("--models", help="A ComfyUI models/ folder (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The clip, .mp4, .mov or .mkv.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.")]
StoreFolder = Annotated[Path | None, typer.Option("--store", help="Where artefacts are kept.")]


@dataclass(frozen=True)
class RequestFlags:
    """What the clip shall be."""

    prompt: Prompt = None
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", help="See `ladder presets list`.")
    ] = None
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Start from the request in a clip, a .toml or a .json file."),
    ] = None
    negative: Annotated[str | None, typer.Option("--negative", help="What should not be seen.")] = (
        None
    )
    seed: Annotated[str | None, typer.Option("--seed", help="Whole number; -1 draws one.")] = None
    size: Annotated[str | None, typer.Option("--size", help="Final size, such as 1280x720.")] = None
    frames: Annotated[str | None, typer.Option("--frames", help="8k+1, such as 121.")] = None
    duration: Annotated[
        str | None, typer.Option("--duration", help="Seconds, instead of --frames.")
    ] = None
    fps: Annotated[str | None, typer.Option("--fps", help="24, 23.976, 30000/1001 ...")] = None
    audio: Annotated[
        str | None, typer.Option("--audio", help="refine, keep (stage 1's) or none.")
    ] = None
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field: --set refine.denoise=0.4 (repeatable)."),
    ] = None
    folders: Folders = None
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Checkpoint file to use.")
    ] = None
    precision: Annotated[
        str | None, typer.Option("--precision", help="stored, or fp8 for a 16-bit transformer.")
    ] = None

    def request(self, library: Library) -> Request:
        """The request these flags describe, its seed drawn. Raises :class:`RequestError`."""
        from latent_ladder.request import Request, override
        from latent_ladder.request_set import apply_sets

        fields = override(self._start(library), self._given())
        if self.checkpoint is not None or self.precision is not None:
            named = {"checkpoint": self.checkpoint, "precision": self.precision}
            chosen = {name: value for name, value in named.items() if value is not None}
            fields = override(fields, {"models": {**fields.get("models", {}), **chosen}})
        if "prompt" not in fields:
            raise RequestError(
                "there is no prompt", 'say what to show: ladder make "a red ball rolls"'
            )
        return Request.from_dict(apply_sets(fields, tuple(self.sets or ()))).resolved()

    def _start(self, library: Library) -> dict[str, Any]:
        """The fields to start from: a file's, or a preset's."""
        from latent_ladder.pipeline import default_preset, read_request
        from latent_ladder.presets import read_preset

        if self.source is not None and self.preset is not None:
            raise RequestError("--from and --preset exclude each other", "use one of them")
        if self.source is not None:
            return read_request(self.source).to_dict()
        name = self.preset or default_preset(library, self.checkpoint)
        return read_preset(name).fields

    def _given(self) -> dict[str, Any]:
        """The fields that flags name."""
        named = {
            "prompt": self.prompt,
            "seed": number(self.seed),
            "frames": number(self.frames),
            "duration_s": number(self.duration),
            "fps": self.fps,
            "audio": self.audio,
            "negative_prompt": self.negative,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return given | (_size(self.size) if self.size is not None else {})


@dataclass(frozen=True)
class MemoryFlags:
    """What may be used, and what may be given up to fit."""

    device: Device = "auto"
    vram: Annotated[
        float | None, typer.Option("--vram", help="Budget on the device, GiB (else what is free).")
    ] = None
    reserve_vram: Annotated[
        float, typer.Option("--reserve-vram", help="GiB left free for other programs.")
    ] = 0.6
    ram: Annotated[
        float | None, typer.Option("--ram", help="GiB of RAM that blocks may wait in.")
    ] = None
    offload: Annotated[
        str, typer.Option("--offload", help="auto, none, stream (from RAM) or disk.")
    ] = "auto"
    oom_policy: Annotated[
        str,
        typer.Option(
            "--oom-policy", help="What may change the picture to fit: same, tiles, fp8, tiles,fp8."
        ),
    ] = "tiles"

    def options(self) -> MemoryOptions:
        """Checked. Raises :class:`RequestError`."""
        from latent_ladder.machine import MemoryOptions

        named = frozenset(part.strip() for part in self.oom_policy.split(","))
        return MemoryOptions(
            vram=self.vram,
            reserve_vram=self.reserve_vram,
            ram=self.ram,
            offload=self.offload,
            changes=named - {"same", ""},
        )


def prepare(asked: RequestFlags, memory: MemoryFlags, store: Path | None) -> Prepared:
    """Request, models and plan; refuses before anything heavy loads."""
    from latent_ladder import pipeline
    from latent_ladder.checkpoints.library import model_folders, scan

    options = memory.options()
    library = scan(model_folders(asked.folders or ()))
    request = asked.request(library)
    return pipeline.prepare(request, library, open_store(store), options, memory.device)


def open_store(folder: Path | None) -> Store:
    """The store in ``folder``, or the user's own."""
    from latent_ladder.stages.store import Store, default_root

    return Store(folder or default_root())


def flags(command: Callable[..., None]) -> Callable[..., None]:
    """Spread parameters that are groups of flags into the command's own signature."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if kind in (RequestFlags, MemoryFlags):
            groups[name] = kind
            parameters += _fields_of(kind)
        else:
            parameters.append(parameter.replace(annotation=kind))
    names = {group: [f.name for f in fields(kind)] for group, kind in groups.items()}

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        made = {
            group: kind(**{name: given.pop(name) for name in names[group]})
            for group, kind in groups.items()
        }
        command(**made, **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    kept = [p.replace(kind=keyword) for p in parameters]
    spread.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in kept}
    return spread


def _fields_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def number(text: str | None) -> int | float | str | None:
    """A number where the text is one; else the text, for the request to refuse with a hint."""
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _size(text: str) -> dict[str, Any]:
    width, cross, height = text.lower().partition("x")
    if not cross:
        raise RequestError(f"size={text} is not WIDTHxHEIGHT", "use --size 1280x720")
    return {"width": number(width), "height": number(height)}
