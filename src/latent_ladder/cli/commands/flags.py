"""Flags that several commands share, and how they become a request and memory options.

A group of flags is a frozen dataclass; :func:`flags` spreads its fields into a command's own
signature, so that each flag is written once.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from latent_ladder.errors import RequestError

if TYPE_CHECKING:
    from latent_ladder.checkpoints.selection import Library
    from latent_ladder.memory.hardware import MemoryOptions
    from latent_ladder.pipeline.run import Prepared
    from latent_ladder.request.model import Request
    from latent_ladder.storage.artifact_store import Store

Prompt = Annotated[str | None, typer.Argument(help="What is seen, how it moves and sounds.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Folders = Annotated[
    list[Path] | None, typer.Option("--models", help="A ComfyUI models/ folder (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Measure = Annotated[
    bool,
    typer.Option("--measure/--no-measure", help="Keep the clip's metrics in the run's record."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="The clip: .mp4 .mov .mkv .webm .gif .webp .wav, dir/%05d.png ..."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.")]
Watch = Annotated[
    bool, typer.Option("--preview", help="Keep a strip of the picture while it is made.")
]
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
    upscale: Annotated[
        str | None,
        typer.Option("--upscale", help="lanczos, rtx, or a model of upscale_models/: stage 3."),
    ] = None
    to: Annotated[str | None, typer.Option("--to", help="Size to upscale to: 3840x2160.")] = None
    by: Annotated[str | None, typer.Option("--by", help="Factor to upscale by (else 2).")] = None
    codec: Annotated[
        str | None, typer.Option("--codec", help="h264, h265, av1 or prores (else by the name).")
    ] = None
    crf: Annotated[str | None, typer.Option("--crf", help="Quality: 0 best, 51 worst.")] = None
    poster: Annotated[
        bool, typer.Option("--poster", help="Also write a picture of the middle frame.")
    ] = False
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also write a contact sheet of the clip.")
    ] = False
    windows: Annotated[
        str | None,
        typer.Option(
            "--windows",
            help="Windows of time: FRAMES or FRAMES:OVERLAP, off, auto (where longer than 20 s).",
        ),
    ] = None
    no_audio: Annotated[bool, typer.Option("--no-audio", help="Short for --audio none.")] = False
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

    def request(
        self,
        library: Library,
        inputs: InputFlags | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> Request:
        """The request these flags describe, its seed drawn. Raises :class:`RequestError`.

        ``start`` are fields to begin with instead of a preset's or a file's.
        """
        from latent_ladder.request.model import Request, override
        from latent_ladder.request.overrides import apply_sets

        fields = override(self._start(library) if start is None else start, self._given())
        if inputs is not None:
            fields = override(fields, inputs.given())
            if not self._has_length():
                fields = override(fields, inputs.length(fields))
        if self.checkpoint is not None or self.precision is not None:
            named = {"checkpoint": self.checkpoint, "precision": self.precision}
            chosen = {name: value for name, value in named.items() if value is not None}
            fields = override(fields, {"models": {**fields.get("models", {}), **chosen}})
        output = self._output()
        if output:
            fields = override(fields, {"output": {**fields.get("output", {}), **output}})
        fields = self._with_upscale(fields)
        if "prompt" not in fields:
            raise RequestError(
                "there is no prompt", 'say what to show: ladder make "a red ball rolls"'
            )
        return Request.from_dict(apply_sets(fields, tuple(self.sets or ()))).pick_seed()

    def _start(self, library: Library) -> dict[str, Any]:
        """The fields to start from: a file's, or a preset's."""
        from latent_ladder.pipeline.run import default_preset
        from latent_ladder.request.files import read_request
        from latent_ladder.request.presets import read_preset

        if self.source is not None and self.preset is not None:
            raise RequestError("--from and --preset exclude each other", "use one of them")
        if self.source is not None:
            return read_request(self.source).to_dict()
        name = self.preset or default_preset(library, self.checkpoint)
        return read_preset(name).fields

    def _output(self) -> dict[str, Any]:
        """The fields of the output that flags name."""
        named = {
            "codec": self.codec,
            "crf": number(self.crf),
            "poster": self.poster or None,
            "sheet": self.sheet or None,
        }
        return {name: value for name, value in named.items() if value is not None}

    def _with_upscale(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The request with its upscale stage replaced or added."""
        from latent_ladder.request.model import override

        if self.upscale is None:
            if self.to is not None or self.by is not None:
                raise RequestError("--to and --by say how far to upscale", "add --upscale lanczos")
            return fields
        stage: dict[str, Any] = {"kind": "upscale", "name": self.upscale}
        stage |= _size(self.to, "to", "3840x2160") if self.to is not None else {}
        factor = number(self.by)
        stage |= {"factor": factor} if factor is not None else {}
        kept = [s for s in fields.get("stages", ()) if s.get("kind") != "upscale"]
        return override(fields, {"stages": [*kept, stage]})

    def _audio(self) -> str | None:
        if self.no_audio and self.audio not in (None, "none"):
            raise RequestError(f"--audio {self.audio} and --no-audio exclude each other", "use one")
        return "none" if self.no_audio else self.audio

    def _has_length(self) -> bool:
        """Whether the length of the clip was asked for."""
        named = (text.partition("=")[0].strip() for text in self.sets or ())
        asked = self.frames is not None or self.duration is not None
        return asked or not {"frames", "duration_s"}.isdisjoint(named)

    def _given(self) -> dict[str, Any]:
        """The fields that flags name."""
        named = {
            "prompt": self.prompt,
            "seed": number(self.seed),
            "frames": number(self.frames),
            "duration_s": number(self.duration),
            "fps": self.fps,
            "audio": self._audio(),
            "negative_prompt": self.negative,
            "windows": None if self.windows is None else windows_field(self.windows),
        }
        given = {name: value for name, value in named.items() if value is not None}
        return given | (_size(self.size) if self.size is not None else {})


@dataclass(frozen=True)
class InputFlags:
    """Files to start from."""

    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            help="Picture to show, FILE, FILE:FRAME or FILE:FRAME:STRENGTH; frame 0 is the first, "
            "last the last (repeatable).",
        ),
    ] = None
    fit: Annotated[
        str | None, typer.Option("--fit", help="Pictures of another shape: cover or letterbox.")
    ] = None

    audio_in: Annotated[
        Path | None,
        typer.Option("--audio-in", help="Sound that drives the picture and is the clip's own."),
    ] = None

    video: Annotated[
        Path | None, typer.Option("--video", help="Video to start from; see --mode.")
    ] = None
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="What for: v2v, retake, extend or reference (IC-LoRA)."),
    ] = None
    denoise: Annotated[
        float | None,
        typer.Option("--denoise", help="v2v: noise level it starts from, 0 to 1 (0.6)."),
    ] = None
    region: Annotated[
        str | None, typer.Option("--region", help="retake: seconds to make anew, such as 1.5-3.0.")
    ] = None
    extend: Annotated[
        str | None, typer.Option("--extend", help="extend: by 2s, or before the start by -2s.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that these flags name. Raises :class:`RequestError`."""
        fields: dict[str, Any] = {}
        if self.images is not None:
            fit = {} if self.fit is None else {"fit": self.fit}
            fields["images"] = [{**_image(text), **fit} for text in self.images]
        if self.audio_in is not None:
            fields["audio_in"] = str(self.audio_in)
        if self.video is not None:
            fields["video"] = self._video(str(self.video))
        return fields

    def _video(self, file: str) -> dict[str, Any]:
        modes = {"retake": self.region, "extend": self.extend}
        mode = self.mode or next((m for m, given in modes.items() if given is not None), "v2v")
        values = {
            "fit": self.fit,
            "denoise": DENOISE if self.denoise is None and mode == "v2v" else self.denoise,
            "region": None if self.region is None else _region(self.region),
            "extend": None if self.extend is None else _seconds(self.extend),
        }
        return {"file": file, "mode": mode} | {k: v for k, v in values.items() if v is not None}

    def length(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The frames of a clip as long as its inputs, where nobody asked for a length.

        The 8k+1 that is nearest to them. Raises :class:`RequestError`.
        """
        if self.video is not None:
            from latent_ladder.media.video_input import check_video

            found = check_video(self.video)
            extra = 0.0 if self.extend is None else abs(_seconds(self.extend))
            return _frames_of(found.duration_s + extra, self.video, fields)
        if self.audio_in is None:
            return {}
        from latent_ladder.media.audio_input import check_sound

        return _frames_of(check_sound(self.audio_in).duration_s, self.audio_in, fields)


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
        from latent_ladder.memory.hardware import MemoryOptions

        named = frozenset(part.strip() for part in self.oom_policy.split(","))
        return MemoryOptions(
            vram=self.vram,
            reserve_vram=self.reserve_vram,
            ram=self.ram,
            offload=self.offload,
            changes=named - {"same", ""},
        )


def prepare(
    asked: RequestFlags,
    memory: MemoryFlags,
    store: Path | None,
    inputs: InputFlags | None = None,
) -> Prepared:
    """Request, models and plan; refuses before anything heavy loads."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.pipeline import run as pipeline

    options = memory.options()
    library = scan(model_folders(asked.folders or ()))
    request = asked.request(library, inputs)
    return pipeline.prepare(request, library, open_store(store), options, memory.device)


def open_store(folder: Path | None) -> Store:
    """The store in ``folder``, or the user's own."""
    from latent_ladder.storage.artifact_store import Store, default_root

    return Store(folder or default_root())


def flags(command: Callable[..., None]) -> Callable[..., None]:
    """Spread parameters that are groups of flags into the command's own signature."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if kind in (RequestFlags, InputFlags, MemoryFlags):
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


def _size(text: str, flag: str = "size", example: str = "1280x720") -> dict[str, Any]:
    width, cross, height = text.lower().partition("x")
    if not cross:
        raise RequestError(f"{flag}={text} is not WIDTHxHEIGHT", f"use --{flag} {example}")
    return {"width": number(width), "height": number(height)}


_PLACED = re.compile(r"(?P<file>.+?):(?P<frame>-?\d+|first|last)(?::(?P<strength>\d*\.?\d+))?")
_FRAMES = {"first": 0, "last": -1}


def _image(text: str) -> dict[str, Any]:
    """``FILE``, ``FILE:FRAME`` or ``FILE:FRAME:STRENGTH``; a file of that whole name wins."""
    found = None if Path(text).exists() else _PLACED.fullmatch(text)
    if found is None:
        return {"file": text}
    frame = found["frame"]
    image = {"file": found["file"], "frame": _FRAMES[frame] if frame in _FRAMES else int(frame)}
    return image if found["strength"] is None else {**image, "strength": float(found["strength"])}


def _frames_of(seconds: float, path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The frames of a clip as long as an input file of so many ``seconds``."""
    from latent_ladder.latents import shapes

    if seconds > LONGEST_UNASKED_S:
        raise RequestError(
            f"{path.name} lasts {seconds:.1f} s, and unasked no clip gets longer than "
            f"{LONGEST_UNASKED_S} s",
            f"say how long: --duration {LONGEST_UNASKED_S} for its beginning",
        )
    stages = fields.get("stages", ())
    doubled = sum(s.get("axis") == "temporal" for s in stages if isinstance(s, dict))
    fps = shapes.parse_fps(fields.get("fps", 24))
    return {"frames": shapes.frames_for(seconds, fps, 2**doubled)}


def windows_field(text: str) -> str | dict[str, Any]:
    """The field that ``--windows`` means: ``241``, ``241:24``, ``off`` or ``auto``."""
    if text in ("off", "auto"):
        return text
    frames, colon, overlap = text.partition(":")
    return {"frames": number(frames)} | ({"overlap_frames": number(overlap)} if colon else {})


DENOISE = 0.6
"""Where v2v starts if nobody says: layout and motion stay, surfaces are made anew."""
LONGEST_UNASKED_S = 300
"""A clip takes its length from a file up to here; beyond, somebody has to mean it."""


def _region(text: str) -> list[float]:
    start, dash, end = text.strip().removesuffix("s").partition("-")
    if not dash:
        raise RequestError(f"region={text} is not START-END", "use --region 1.5-3.0")
    return [_seconds(start), _seconds(end)]


def _seconds(text: str) -> float:
    try:
        return float(text.strip().removesuffix("s"))
    except ValueError:
        raise RequestError(f"{text!r} is not a number of seconds", "use 2s or 2.5") from None
