"""Groups of options that several commands share, and the request and memory options they make."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.cli.commands.flag_terms import in_flag_terms
from latent_ladder.cli.commands.flag_values import (
    frames_for_input,
    parse_duration,
    parse_image,
    parse_number,
    parse_region,
    parse_seconds,
    parse_size,
    parse_windows,
)
from latent_ladder.cli.commands.options import (
    DEFAULT_DENOISE,
    AllowPaths,
    AudioInput,
    AudioMode,
    Checkpoint,
    CodecName,
    ContactSheet,
    Crf,
    Denoise,
    Device,
    Duration,
    Extend,
    Fast,
    Fit,
    Folders,
    Fps,
    Frames,
    Images,
    NagScale,
    Negative,
    NoAudio,
    Offload,
    OomPolicy,
    Poster,
    Precision,
    PresetName,
    Prompt,
    Ram,
    Region,
    ReserveVram,
    Seed,
    Sets,
    Size,
    SourceRequest,
    UpscaleFactor,
    Upscaler,
    UpscaleSize,
    VideoInput,
    VideoMode,
    Vram,
    Windows,
)
from latent_ladder.errors import RequestError, StoreError
from latent_ladder.latents.shapes import parse_fps
from latent_ladder.storage.read_file import is_text

if TYPE_CHECKING:
    from latent_ladder.checkpoints.selection import Library
    from latent_ladder.memory.hardware import MemoryOptions
    from latent_ladder.pipeline.run import Prepared
    from latent_ladder.request.model import Request
    from latent_ladder.storage.artifact_store import Store


@dataclass(frozen=True)
class RequestFlags:
    """Options that describe the clip."""

    prompt: Prompt = None
    preset: PresetName = None
    source: SourceRequest = None
    allow_paths: AllowPaths = False
    negative: Negative = None
    nag_scale: NagScale = None
    seed: Seed = None
    size: Size = None
    frames: Frames = None
    duration: Duration = None
    fps: Fps = None
    audio: AudioMode = None
    upscale: Upscaler = None
    to: UpscaleSize = None
    by: UpscaleFactor = None
    codec: CodecName = None
    crf: Crf = None
    poster: Poster = False
    sheet: ContactSheet = False
    windows: Windows = None
    no_audio: NoAudio = False
    sets: Sets = None
    folders: Folders = None
    checkpoint: Checkpoint = None
    precision: Precision = None

    def build_request(
        self,
        library: Library,
        inputs: InputFlags | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> Request:
        """The request that these options describe.

        Its seed is -1 where nobody gave one. ``start`` are the fields to start from, in place of a
        preset or a file. Raises :class:`RequestError`.
        """
        from latent_ladder.request.model import override

        fields = override(self._start_fields(library) if start is None else start, self._fields())
        if inputs is not None:
            fields = override(fields, inputs.to_fields())
            if not self._sets_length():
                fields = override(fields, inputs.length_fields(fields))
        models = _without_none({"checkpoint": self.checkpoint, "precision": self.precision})
        if models:
            fields = override(fields, {"models": {**fields.get("models", {}), **models}})
        output = self._output_fields()
        if output:
            fields = override(fields, {"output": {**fields.get("output", {}), **output}})
        fields = self._add_nag(self._add_upscale_stage(fields))
        if "prompt" not in fields:
            raise RequestError(
                "there is no prompt", 'say what to show: ladder make "a red ball rolls"'
            )
        request = request_of_fields(fields, self.sets or ())
        self._check_paths(request, inputs)
        if self.negative is not None and not request.needs_negative:
            raise RequestError(
                f"--negative has no effect: no stage of preset {request.preset or '-'} has a CFG",
                "leave it out, or add guidance: --set base.guidance.video.cfg=3",
            )
        return request

    def _check_paths(self, request: Request, inputs: InputFlags | None) -> None:
        """Raise :class:`RequestError` if ``request`` has paths of this machine from a clip."""
        from latent_ladder.request.files import READERS, read_request
        from latent_ladder.request.outside_paths import check_outside_paths, named_paths
        from latent_ladder.request.presets import read_preset

        foreign: Mapping[str, Any] = {}
        if self.source is not None and self.source.suffix.lower() not in READERS:
            foreign, name = read_request(self.source).to_dict(), self.source.name
        elif self.preset is not None and Path(self.preset).suffix:  # a file that somebody shared
            foreign, name = read_preset(self.preset).fields, Path(self.preset).name
        if not foreign or self.allow_paths:
            return
        named = set() if inputs is None else named_paths(inputs.to_fields())
        named |= {text.partition("=")[2].strip("\"' ") for text in self.sets or ()}
        named |= {each for each in (self.checkpoint, self.upscale) if each is not None}
        check_outside_paths(request.to_dict(), foreign, named, name)

    def _start_fields(self, library: Library) -> dict[str, Any]:
        """The fields of ``--from``, ``--preset`` or the default preset."""
        from latent_ladder.request.files import read_request

        if self.source is not None:
            request = read_request(self.source)
            fields = request.to_dict()
            if "seed" not in request.model_fields_set:
                del fields["seed"]  # a file without a seed leaves it open, as a preset does
            return fields
        from latent_ladder.pipeline.preset_choice import preset_fields

        return preset_fields(self.preset, library, self.checkpoint)

    def _fields(self) -> dict[str, Any]:
        """The top-level fields of the request that options set."""
        named = {
            "prompt": self.prompt,
            "seed": parse_number(self.seed),
            "frames": parse_number(self.frames),
            "fps": self.fps,
            "audio": self._audio_mode(),
            "negative_prompt": self.negative,
            "windows": None if self.windows is None else parse_windows(self.windows),
        }
        size = {} if self.size is None else parse_size(self.size)
        return _without_none(named) | parse_duration(self.duration) | size

    def _output_fields(self) -> dict[str, Any]:
        """The fields of the request's ``output`` that options set."""
        return _without_none(
            {
                "codec": self.codec,
                "crf": parse_number(self.crf),
                "poster": self.poster or None,
                "sheet": self.sheet or None,
            }
        )

    def _add_upscale_stage(self, fields: dict[str, Any]) -> dict[str, Any]:
        """``fields`` with the stage of ``--upscale`` at the end, in place of another one."""
        from latent_ladder.request.model import override

        if self.upscale is None:
            return fields
        stage: dict[str, Any] = {"kind": "upscale", "name": self.upscale}
        stage |= {} if self.to is None else parse_size(self.to, "to", "3840x2160")
        stage |= _without_none({"factor": parse_number(self.by)})
        others = [s for s in fields.get("stages", ()) if s.get("kind") != "upscale"]
        return override(fields, {"stages": [*others, stage]})

    def _add_nag(self, fields: dict[str, Any]) -> dict[str, Any]:
        """``fields`` with ``--nag-scale`` for video and audio of all sampled stages."""
        if self.nag_scale is None:
            return fields
        scale = parse_number(self.nag_scale)
        stages = copy.deepcopy(list(fields.get("stages", ())))
        for stage in stages:
            if stage.get("kind") in ("base", "refine"):
                guidance = stage.setdefault("guidance", {})
                for stream in ("video", "audio"):
                    terms = guidance.setdefault(stream, {})
                    terms["nag"] = {**terms.get("nag", {}), "scale": scale}
        return {**fields, "stages": stages}

    def _audio_mode(self) -> str | None:
        return "none" if self.no_audio else self.audio

    def _sets_length(self) -> bool:
        """True if an option or a ``--set`` gives the length of the clip."""
        names = {text.partition("=")[0].strip() for text in self.sets or ()}
        has_option = self.frames is not None or self.duration is not None
        return has_option or not names.isdisjoint({"frames", "duration_s"})


@dataclass(frozen=True)
class InputFlags:
    """Options for pictures, sound and video to start from."""

    images: Images = None
    fit: Fit = None
    audio_in: AudioInput = None
    video: VideoInput = None
    mode: VideoMode = None
    denoise: Denoise = None
    region: Region = None
    extend: Extend = None

    def to_fields(self) -> dict[str, Any]:
        """The fields of the request that these options set. Raises :class:`RequestError`."""
        fields: dict[str, Any] = {}
        if self.images is not None:
            fit = _without_none({"fit": self.fit})
            fields["images"] = [{**parse_image(text), **fit} for text in self.images]
        if self.audio_in is not None:
            fields["audio_in"] = str(self.audio_in)
        if self.video is not None:
            fields["video"] = self._video_fields(str(self.video))
        return fields

    def _video_fields(self, file: str) -> dict[str, Any]:
        implied = {"retake": self.region, "extend": self.extend}
        mode = self.mode or next((m for m, value in implied.items() if value is not None), "v2v")
        values = {
            "fit": self.fit,
            "denoise": DEFAULT_DENOISE if self.denoise is None and mode == "v2v" else self.denoise,
            "region": None if self.region is None else parse_region(self.region),
            "extend": None if self.extend is None else parse_seconds(self.extend),
        }
        return {"file": file, "mode": mode, **_without_none(values)}

    def length_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The number of frames of a clip as long as its input, for a request without a length.

        ``fields`` is the request so far. Raises :class:`RequestError`.
        """
        if self.video is not None:
            from latent_ladder.media.video_input import check_video

            given = fields.get("fps")
            video = check_video(self.video, None if given is None else parse_fps(given))
            added_s = 0.0 if self.extend is None else abs(parse_seconds(self.extend))
            return frames_for_input(video.duration_s + added_s, self.video, fields)
        if self.audio_in is None:
            return {}
        from latent_ladder.media.audio_input import check_audio

        return frames_for_input(check_audio(self.audio_in).duration_s, self.audio_in, fields)


@dataclass(frozen=True)
class MemoryFlags:
    """Options for the device and its memory."""

    device: Device = "auto"
    vram: Vram = None
    reserve_vram: ReserveVram = 0.6
    ram: Ram = None
    offload: Offload = "auto"
    oom_policy: OomPolicy = "tiles"
    fast: Fast = ""

    def to_options(self) -> MemoryOptions:
        """The checked memory options. Raises :class:`RequestError`."""
        from latent_ladder.memory.hardware import MemoryOptions

        named = frozenset(part.strip() for part in self.oom_policy.split(","))
        return MemoryOptions(
            vram=self.vram,
            reserve_vram=self.reserve_vram,
            ram=self.ram,
            offload=self.offload,
            changes=named - {"same", ""},
            fast=frozenset(part.strip() for part in self.fast.split(",")) - {""},
        )


def prepare(
    request_flags: RequestFlags,
    memory: MemoryFlags,
    store: Path | None,
    inputs: InputFlags | None = None,
    kind: str = "clip",
) -> Prepared:
    """The checked request with its models, stages and memory plan; nothing heavy is loaded.

    ``kind`` is that of the run's record. Raises a :class:`LadderError` for whatever makes the
    request impossible.
    """
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.pipeline import run as pipeline
    from latent_ladder.request.auto_duration import auto_not_here

    options = memory.to_options()
    library = scan(model_folders(request_flags.folders or ()))
    request = request_flags.build_request(library, inputs)
    if request.auto_duration is not None and kind != "clip":
        raise auto_not_here(f"`ladder {kind}`")
    return pipeline.prepare(request, library, open_store(store), options, memory.device, kind)


def request_of_fields(fields: Mapping[str, Any], sets: Sequence[str] = ()) -> Request:
    """The request of these fields, changed by ``sets``, with seed -1 where they have none.

    A seed of -1 that was asked for becomes a random one here. Raises :class:`RequestError` in the
    words of the command line.
    """
    from latent_ladder.request.model import Request
    from latent_ladder.request.overrides import apply_sets

    table: Mapping[str, Any] = fields
    try:
        table = apply_sets(fields, tuple(sets))
        if "seed" in table:
            return Request.from_dict(table).pick_seed()
        return Request.from_dict({**table, "seed": -1})
    except RequestError as error:
        raise in_flag_terms(error, table) from error


def open_store(folder: Path | None) -> Store:
    """The store in ``folder``, or the user's own. Raises :class:`StoreError` for a bad name."""
    from latent_ladder.storage.artifact_store import Store, default_root

    root = folder or default_root()
    if not is_text(str(root)):
        raise StoreError(f"the store {root} has a name that is not UTF-8", "use another --store")
    return Store(root)


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
