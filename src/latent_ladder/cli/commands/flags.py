"""Groups of options that several commands share, and the request and memory options they make."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.cli.commands.flag_values import (
    frames_for_input,
    parse_image,
    parse_number,
    parse_region,
    parse_seconds,
    parse_size,
    parse_windows,
)
from latent_ladder.cli.commands.options import (
    DEFAULT_DENOISE,
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
from latent_ladder.errors import RequestError

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
        """The request that these options describe, with its seed resolved.

        ``start`` are the fields to start from, in place of a preset or a file. Raises
        :class:`RequestError`.
        """
        from latent_ladder.request.model import Request, override
        from latent_ladder.request.overrides import apply_sets

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
        return Request.from_dict(apply_sets(fields, tuple(self.sets or ()))).pick_seed()

    def _start_fields(self, library: Library) -> dict[str, Any]:
        """The fields of ``--from``, ``--preset`` or the default preset."""
        from latent_ladder.pipeline.run import default_preset
        from latent_ladder.request.files import read_request
        from latent_ladder.request.presets import read_preset

        if self.source is not None and self.preset is not None:
            raise RequestError("--from and --preset cannot be combined", "use one of them")
        if self.source is not None:
            return read_request(self.source).to_dict()
        name = self.preset or default_preset(library, self.checkpoint)
        return read_preset(name).fields

    def _fields(self) -> dict[str, Any]:
        """The top-level fields of the request that options set."""
        named = {
            "prompt": self.prompt,
            "seed": parse_number(self.seed),
            "frames": parse_number(self.frames),
            "duration_s": parse_number(self.duration),
            "fps": self.fps,
            "audio": self._audio_mode(),
            "negative_prompt": self.negative,
            "windows": None if self.windows is None else parse_windows(self.windows),
        }
        return _without_none(named) | ({} if self.size is None else parse_size(self.size))

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
            if self.to is not None or self.by is not None:
                raise RequestError("--to and --by need --upscale", "add --upscale lanczos")
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
        if self.no_audio and self.audio not in (None, "none"):
            raise RequestError(
                f"--audio {self.audio} and --no-audio cannot be combined",
                "use one of them",
            )
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

            video = check_video(self.video)
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
        )


def prepare(
    request_flags: RequestFlags,
    memory: MemoryFlags,
    store: Path | None,
    inputs: InputFlags | None = None,
) -> Prepared:
    """The checked request with its models, stages and memory plan; nothing heavy is loaded.

    Raises a :class:`LadderError` for whatever makes the request impossible.
    """
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.pipeline import run as pipeline

    options = memory.to_options()
    library = scan(model_folders(request_flags.folders or ()))
    request = request_flags.build_request(library, inputs)
    return pipeline.prepare(request, library, open_store(store), options, memory.device)


def open_store(folder: Path | None) -> Store:
    """The store in ``folder``, or the user's own."""
    from latent_ladder.storage.artifact_store import Store, default_root

    return Store(folder or default_root())


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
