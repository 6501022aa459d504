"""The request: all options of one clip, validated once, frozen.

Every interface (flags, TOML, JSON, HTTP, workflows) builds a request, and all code behind it trusts
the values. Wrong values raise one :class:`RequestError` that lists every problem with a hint.

A request knows no file of this machine except those named in it, no device and no output path. Its
geometry (:attr:`Request.resolved`) is computed by :mod:`latent_ladder.request.resolved`.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from latent_ladder.errors import RequestError
from latent_ladder.latents import shapes
from latent_ladder.latents.shapes import Factor, Resolution
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.request.auto_duration import AutoDuration
from latent_ladder.request.fields import (
    FileName,
    Fps,
    Real,
    RequestSeed,
    Table,
    Text,
    is_int,
)
from latent_ladder.request.inputs import Crf, Image, Video, inputs_problems
from latent_ladder.request.keyframes_first import keyframes_first_problems
from latent_ladder.request.output import Decode, Output
from latent_ladder.request.presets import read_preset
from latent_ladder.request.problems import Found, Problem, report
from latent_ladder.request.resolved import (
    ResolvedRequest,
    resolve_request,
    stage_resolutions,
    upsample_factors,
)
from latent_ladder.request.size_limits import size_problems
from latent_ladder.request.stage_rules import stage_kinds, stage_names, stages_problems
from latent_ladder.request.stages import (
    STAGE_TABLES,
    BaseStage,
    RefineStage,
    SamplingStage,
    Stage,
    UpscaleStage,
)
from latent_ladder.request.validation_errors import value_problems
from latent_ladder.request.windows import Windows, WindowsChoice
from latent_ladder.sampling.names import SAMPLER_FACTS

MAX_SIDE = 16_384
MAX_FRAMES = 100_001
MAX_DURATION_S = 3600
RANDOM_SEEDS = 2**31
"""Random seeds are below this: at most ten digits, which people can type, and every program that
takes a seed accepts them."""


def _side(value: Any) -> Any:
    if not is_int(value):
        raise Problem("is not a number of pixels", "use a whole even number such as 1280")
    nearest = min(max(shapes.round_up(value, 2), shapes.PIXELS_PER_LATENT), MAX_SIDE)
    if value < shapes.PIXELS_PER_LATENT or value > MAX_SIDE:
        raise Problem(f"is outside {shapes.PIXELS_PER_LATENT} to {MAX_SIDE}", f"use {nearest}")
    if value % 2:
        raise Problem("is odd, and video files need even sides", f"use {nearest}")
    return value


def _prompt(value: str) -> str:
    if not value.strip():
        raise Problem(
            "is empty", "describe the picture, the motion and the sound in whole sentences"
        )
    return value


def _frames(value: Any, info: ValidationInfo) -> Any:
    """Compute ``frames`` from ``duration_s``, or check it; reads fields declared before it."""
    known = info.data
    fps, stages = known.get("fps"), known.get("stages")
    factor = shapes.time_product(upsample_factors(stages)) if stages is not None else 1
    auto = known.get("auto_duration")
    if auto is not None and fps:
        return _longest_frames(value, known, auto.longest(fps, factor))
    if value is None:
        return _frames_of_duration(known, fps, factor)
    if not is_int(value):
        raise Problem("is not a number of frames", "use 8k+1 frames, such as 121")
    below, above = shapes.nearest_frames(min(max(value, 1), MAX_FRAMES), factor)
    if value > MAX_FRAMES or not shapes.is_legal_frames(value, factor):
        rule = f"{shapes.FRAMES_PER_LATENT * factor}k+1"
        wrong = f"is above {MAX_FRAMES}" if value > MAX_FRAMES else f"is not {rule}"
        seconds = (
            f" ({float(shapes.duration(below, fps)):.2f} s at {float(fps):g} fps)" if fps else ""
        )
        hint = f"use frames={below}{seconds}"
        raise Problem(wrong, hint if above == below else f"{hint} or frames={above}")
    duration_s = known.get("duration_s")
    if duration_s is not None and fps and value != shapes.frames_for(duration_s, fps, factor):
        expected = shapes.frames_for(duration_s, fps, factor)
        raise Problem(
            f"does not agree with duration_s={duration_s:g}",
            f"remove one of the two, or use frames={expected}",
        )
    return value


def _longest_frames(value: Any, known: Mapping[str, Any], longest: int) -> int:
    """The frames of an automatic duration before the prediction; they exclude other lengths."""
    if value not in (None, longest) or known.get("duration_s") is not None:
        other = "frames" if known.get("duration_s") is None else "duration_s"
        raise Problem(
            f"cannot be decided by auto_duration and {other} at once",
            f"remove auto_duration, or {other}",
        )
    return longest


def _frames_of_duration(known: Mapping[str, Any], fps: Fraction | None, factor: int) -> int:
    if fps is None or "duration_s" not in known:
        return 1  # a field that it depends on is wrong, and reported there
    if known["duration_s"] is None:
        raise Problem("is missing, and so is duration_s", "set one of them, such as frames=121")
    return shapes.frames_for(known["duration_s"], fps, factor)


Side = Annotated[int, BeforeValidator(_side)]
Prompt = Annotated[Text, AfterValidator(_prompt)]
FrameCount = Annotated[int, BeforeValidator(_frames)]


class Models(Table):
    """Model files that override the library's choice, and additional folders to search.

    A file is a path, or a name relative to a model folder as in ComfyUI.
    """

    precision: Literal["stored", "fp8"] = "stored"
    """Storage of the transformer in memory: ``stored`` keeps the precision of its file; ``fp8``
    stores a 16-bit one in half the memory, which changes the picture a little."""
    checkpoint: FileName | None = None
    """File that contains transformer, VAEs and vocoder together; unset, one is chosen among the
    files that are found."""
    transformer: FileName | None = None
    """File of the transformer alone, such as a GGUF file, instead of that of the checkpoint."""
    connectors: FileName | None = None
    """File of the small network between text encoder and transformer; set it only where your files
    have it apart."""
    text_projection: FileName | None = None
    """File of the projection of the text encoder's layers; set it only where your files have it
    apart."""
    text_encoder: FileName | None = None
    """File or folder of Gemma 3, which encodes the prompts; set it to choose among several."""
    video_vae: FileName | None = None
    """File of the network that encodes and decodes the picture, instead of that of the
    checkpoint."""
    audio_vae: FileName | None = None
    """File of the network that encodes and decodes the sound, instead of that of the checkpoint."""
    vocoder: FileName | None = None
    """File of the network that makes the waveform, instead of that of the checkpoint."""
    latent_upsampler: FileName | None = None
    """File of the latent upsampler; ``file`` of an upsample stage sets one for that stage alone."""
    distilled_lora: FileName | None = None
    """File of the LoRA that stages use under the role ``distilled``; set it to choose among
    several."""
    folders: tuple[FileName, ...] = ()
    """Model folders to search before those of the environment and the configuration."""

    @property
    def choices(self) -> dict[str, str]:
        """The named files, by role."""
        return self.model_dump(exclude_none=True, exclude={"folders", "precision"})


class Request(Table):
    """One clip: prompt, size, duration, and the stages that make it.

    ``width``, ``height``, ``frames`` and ``fps`` are those of the decoded clip; only an upscale
    stage at the end makes the file larger (``resolved.final_size``). A request sets ``frames`` or
    ``duration_s``; ``frames`` is then always the resolved 8k+1, and ``duration_s`` the requested
    duration, if there is one.
    """

    prompt: Prompt
    """Description of the clip: what is seen, how it moves and how it sounds, in whole sentences."""
    negative_prompt: Text = ""
    """Description of what to avoid; it has an effect only in stages with a CFG other than 1 or a
    CFG++ sampler."""
    preset: Text = ""
    """Name of the preset that the request started from; a record that changes nothing."""
    seed: RequestSeed = 10
    """Number that all noise starts from, 0 to 2**64-1: another one makes another clip of the same
    prompt; -1 picks a random one, which the clip records. The command line picks one
    wherever none is given; a request in Python without a seed has 10, so that scripts repeat."""
    width: Side
    """Width of the clip in pixels, an even number from 32 to 16384; stages work at multiples of 32,
    and the clip is cropped from that."""
    height: Side
    """Height of the clip in pixels, with the same rules as ``width``."""
    fps: Fps = Fraction(24)
    """Frames per second of the clip, such as 24, 23.976 or 30000/1001; more makes motion smoother
    and needs more frames for the same duration."""
    audio: Literal["refine", "keep", "none"] = "refine"
    """Use of the sound: ``refine`` denoises it again in every refine stage, ``keep`` leaves that of
    the base stage as it is, ``none`` makes a silent clip."""
    noise_order: Literal["comfyui", "ltx"] = "comfyui"
    """Order in which noise is generated from the seed: ``comfyui``, or ``ltx`` (Lightricks'
    pipelines: one generator for all stages, fixed step noise of ``res_2s``); change it to match a
    clip that was made there."""
    mask_convention: Literal["comfyui", "ltx"] = "comfyui"
    """Meaning of an image strength between 0 and 1: ``comfyui`` or ``ltx`` (Lightricks' pipelines);
    change it to match a clip that was made there."""
    image_resize: Literal["antialiased", "comfyui", "ltx"] = "antialiased"
    """Resizing of input images: ``antialiased`` keeps most detail of large photos; ``comfyui`` and
    ``ltx`` (Lightricks' pipelines) interpolate without it, each with its own crop; change it to
    match a clip that was made there."""
    image_crf: Crf = "auto"
    """H.264 compression of input images that do not say their own, 0 (none) to 51; ``auto`` is that
    of the model family. Presets have the one of their source."""
    hdr: Literal["off", "acescct", "logc3"] = "off"
    """HDR clip: the code of light that the model was trained with, ``acescct`` (LTX-2.5) or
    ``logc3`` (the HDR IC-LoRA of LTX-2.3). Pictures and videos are EXR files then; the clip is HDR
    video in H.265 or AV1, or EXR frames, with an SDR preview beside it."""
    model_convention: Literal["ltx", "comfyui", "comfyui-0.32"] = "ltx"
    """Order of the attention between picture and sound, and text encoding: ``ltx`` (Lightricks'
    code), ``comfyui`` (0.33 and later) or ``comfyui-0.32`` (before); change it to match a clip that
    was made there."""
    windows: WindowsChoice = "auto"
    """Windows in time: ``auto`` makes a clip of more than 20 s window by window, ``off`` makes it
    in one piece, a table sets their lengths."""
    models: Models = Field(default_factory=Models)
    """Model files and folders to use instead of those that are found."""
    stages: tuple[Stage, ...]
    """Stages in order: one base stage, then upsample, refine and, at the end, upscale stages."""
    decode: Decode = Field(default_factory=Decode)
    """Tiles of the video decoder, for a picture that does not fit into memory whole."""
    output: Output = Field(default_factory=Output)
    """Codec, quality and additional pictures of the file."""
    images: tuple[Image, ...] = ()
    """Pictures that the clip shows at given frames."""
    audio_in: FileName | None = None
    """Path of a sound file that drives the picture and becomes the sound of the clip; unset, the
    model makes the sound."""
    video: Video | None = None
    """Video that the clip starts from, continues or follows."""
    duration_s: Annotated[Real, Field(gt=0, le=MAX_DURATION_S)] | None = None
    """Length of the clip in seconds, instead of ``frames``; the nearest possible number of frames
    is made."""
    auto_duration: AutoDuration | None = None
    """Limits of a length that the model predicts from the prompt, instead of ``frames`` and
    ``duration_s``; LTX-2.5 with its duration head only."""
    frames: FrameCount = Field(default=None, validate_default=True)
    """Number of frames, 8k+1 such as 121 (16k+1 with a temporal upsampler), up to 100001; computed
    where ``duration_s`` is set."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_report(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if too_large := size_problems(data):
            raise report(too_large)
        raw = data.get("stages") if isinstance(data, Mapping) else None
        stages = raw if isinstance(raw, list | tuple) else ()
        problems = stages_problems(raw) if isinstance(raw, list | tuple) else []
        try:
            request = handler(data)
        except ValidationError as error:
            names = stage_names(stage_kinds(stages))
            problems += value_problems(error, cls, STAGE_TABLES, names)
        else:
            problems += request._combined_problems() if not problems else []
        if problems:
            raise report(problems)
        return request

    def _combined_problems(self) -> list[Found]:
        """Problems that show only when all values are known."""
        problems: list[Found] = []
        try:
            canvas = self.resolved.canvas
        except RequestError as error:
            problems += error.problems
            canvas = self.resolutions[-1]
        if self.upscale is not None:
            problems += self.upscale.problems((self.width, self.height))
        problems += self.decode.problems(canvas.width, canvas.height)
        problems += inputs_problems(self.images, self.video, self.frames, self.fps)
        problems += self._hdr_problems()
        problems += keyframes_first_problems(self)
        if isinstance(self.windows, Windows):
            problems += self.windows.problems(self.fps, shapes.time_product(self.factors))
        if self.audio_in is not None and self.audio == "none":
            hint = "remove --audio none, or remove --audio-in"
            problems.append(("audio_in is set, and audio=none makes a silent clip", hint))
        return problems

    def _hdr_problems(self) -> list[Found]:
        """Pictures and videos whose light the model would misread."""
        exr = [f"image {image.file}" for image in self.images if image.is_exr]
        if self.video is not None and self.video.is_exr:
            exr.append(f"video {self.video.file}")
        if self.hdr == "off":
            hint = "set hdr=acescct for LTX-2.5, or hdr=logc3 for the HDR IC-LoRA of LTX-2.3"
            return [(f"{name} is HDR, and hdr=off", hint) for name in exr[:1]]
        found: list[Found] = []
        others = [image.file for image in self.images if not image.is_exr]
        if others:
            text = f"hdr={self.hdr}: image {others[0]} is not HDR"
            found.append((text, "use EXR files, or hdr=off"))
        video = self.video
        if video is not None and video.mode != "reference" and not video.is_exr:
            text = f"hdr={self.hdr}: video {video.file} is not HDR"
            found.append((text, "use EXR files such as shot/%05d.exr, mode reference, or hdr=off"))
        return found

    # -- making one ---------------------------------------------------------------------------

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The preset with some top-level fields replaced: ``from_preset("balanced", prompt=...)``.

        To change fields inside stages use :func:`latent_ladder.request.overrides.apply_sets`.
        """
        return cls.from_dict(override(read_preset(name).fields, overrides))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """A request from plain values. Raises RequestError with all problems."""
        return cls.model_validate(dict(table))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """A request from TOML text. Raises RequestError."""
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also for a number of 5000 digits
            raise RequestError(f"the request is not TOML: {error}", "correct the file") from error
        return cls.from_dict(table)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A request from JSON text. Raises RequestError."""
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the request is not JSON: {error}", "correct the file") from error
        if not isinstance(table, dict):
            raise RequestError("the request is not a JSON object")
        return cls.from_dict(table)

    def pick_seed(self) -> Self:
        """The same request, with a random seed below :data:`RANDOM_SEEDS` in place of -1."""
        if self.seed != -1:
            return self
        return self.model_copy(update={"seed": secrets.randbelow(RANDOM_SEEDS)})

    def with_length(self, frames: int) -> Self:
        """The same request with a fixed length in place of an automatic one."""
        return self.from_dict(override(self.to_dict(), {"frames": frames}))

    # -- writing it ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values (str, int, float, bool, list, dict), without unset fields."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """TOML text that :meth:`from_toml` reads back to an equal request."""
        import tomli_w  # imported here: only needed for writing

        return tomli_w.dumps(self.to_dict())

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal requests give equal text."""
        return sorted_json(self.to_dict())

    # -- geometry -----------------------------------------------------------------------------

    @cached_property
    def resolutions(self) -> tuple[Resolution, ...]:
        """The resolution of each stage's output; that of an upsample stage is the larger one."""
        return stage_resolutions(self)

    @cached_property
    def resolved(self) -> ResolvedRequest:
        """Sizes, sigmas, windows, tiles and seeds of all stages, computed once."""
        return resolve_request(self, self.resolutions)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced; its geometry is computed again."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("resolutions", "resolved"):
            copied.__dict__.pop(name, None)
        return copied

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factor of each upsample stage, in order."""
        return upsample_factors(self.stages)

    @property
    def encoder_settings(self) -> EncoderSettings:
        """The options of the encoder, with the signal of an HDR clip."""
        settings = self.output.settings
        if self.hdr == "off":
            return settings
        return dataclasses.replace(settings, transfer=self.output.transfer)

    @property
    def upscale(self) -> UpscaleStage | None:
        """The stage that enlarges decoded frames, if there is one."""
        last = self.stages[-1]
        return last if isinstance(last, UpscaleStage) else None

    def sampling_stages(self) -> Iterator[tuple[int, BaseStage | RefineStage]]:
        """The base and refine stages with their positions."""
        for i, stage in enumerate(self.stages):
            if isinstance(stage, BaseStage | RefineStage):
                yield i, stage

    @property
    def active_images(self) -> tuple[Image, ...]:
        """The images with a strength above 0."""
        return tuple(image for image in self.images if image.strength > 0)

    @property
    def needs_negative(self) -> bool:
        """True where the negative prompt has an effect."""
        return any(stage.needs_negative for _, stage in self.sampling_stages())

    def stage_seed(self, index: int) -> int:
        """The seed of a stage.

        Raises RequestError where the request asks for a random seed: call :meth:`pick_seed` first.
        """
        seed = self.resolved.stages[index].seed
        if seed is None:
            raise RequestError("seed=-1 is not resolved yet", "call request.pick_seed() first")
        return seed

    # -- fields of artefact keys ---------------------------------------------------------------

    def prompt_fields(self) -> dict[str, Any]:
        """The values that decide the encoded prompts."""
        negative = {"negative_prompt": self.negative_prompt} if self.needs_negative else {}
        return {"prompt": self.prompt} | negative

    def stage_fields(self, index: int) -> dict[str, Any]:
        """The plain values that decide the output of stage ``index`` for its inputs.

        The basis of artefact keys; its inputs (encoded prompts, the stage before) and model files
        have keys of their own. The requested size is included only as the stage's canvas, the
        preset's name and ``batch_passes`` are left out.
        """
        stage, resolution = self.stages[index], self.resolutions[index]
        fields = stage.model_dump(mode="json", exclude_none=True)
        fields |= {
            "width": resolution.width,
            "height": resolution.height,
            "frames": resolution.frames,
        }
        if self.resolved.windows is not None and stage.kind != "upscale":
            fields["windows"] = self.resolved.windows.model_dump()
        if not isinstance(stage, SamplingStage):
            return fields
        for name in ("batch_passes", "tiles", "schedule", "denoise"):  # the last two: see sigmas
            fields.pop(name, None)
        if not fields.get("generated_keyframes"):  # left out, as in older keys
            fields.pop("generated_keyframes", None)
        if fields.get("keyframes") in ("even", "none"):
            del fields["keyframes"]
        tiles = stage.tiles_for(resolution) if isinstance(stage, RefineStage) else None
        if tiles is not None:
            fields["tiles"] = tiles.model_dump()
        fields |= {
            # nine digits: the last bits of exp differ between machines
            "sigmas": [float(f"{sigma:.9g}") for sigma in self.resolved.stages[index].sigmas],
            "seed": self.stage_seed(index),
            "fps": shapes.format_fps(resolution.fps),
            "audio_latents": resolution.audio_latents,
            "audio": self._audio,
            "noise_order": self.noise_order,
            "mask_convention": self.mask_convention,
        }
        if self.noise_order == "ltx":
            fields |= self._official_noise(index, stage)
        if self.model_convention == "comfyui":  # before 0.33 sampling was that of the official code
            fields["model_convention"] = self.model_convention
        if self.video is not None and self.video.keeps:
            fields["anew"] = list(self.video.generated_span(float(self.frames / self.fps)))
        if self.video is not None and self.video.mode == "reference" and index == 0:
            fields["reference_strength"] = self.video.strength
            if any(n % 2 for n in (resolution.latent_width, resolution.latent_height)):
                fields["reference_positions"] = "exact"  # earlier ones were scaled by grid sizes
        if self.active_images:
            at = [shapes.duration(i.index(self.frames), self.fps) for i in self.active_images]
            strengths = [i.strength for i in self.active_images]
            fields["images"] = [[str(t), s] for t, s in zip(at, strengths, strict=True)]
        if self.models.precision != "stored":
            fields["precision"] = self.models.precision
        return fields

    def _official_noise(self, index: int, stage: SamplingStage) -> dict[str, Any]:
        """Marks of noise that earlier versions took from another generator or seed."""
        before = zip(self.stages[:index], self.resolved.stages, strict=False)
        shared = any(
            isinstance(other, SamplingStage) and other.seed == "same" and resolved.sigmas
            for other, resolved in before
        )
        fields: dict[str, Any] = {}
        if shared and stage.seed == "same":
            fields["noise"] = "continued"
        if SAMPLER_FACTS[stage.sampler].standardised:
            fields["step_noise"] = "fixed"
        return fields

    @property
    def _audio(self) -> str:
        """Sampling is the same for "refine" and "keep": only the use of the sound differs."""
        return "none" if self.audio == "none" else "make"

    def clip_fields(self) -> dict[str, Any]:
        """The plain values that decide how the last latents become a file."""
        fields = {
            "decode": self.decode.fields(),
            "output": self.output.fields(),
            "crop": list(self.resolved.crop),
            "frames": self.frames,
            "fps": shapes.format_fps(self.fps),
            "sound": self.audio != "none",
        }
        if self.hdr != "off":
            fields["hdr"] = self.hdr
        own_seed = any(stage.seed != "same" for _, stage in self.sampling_stages())
        reference = self.video is not None and self.video.mode == "reference"
        if self.decode.noise == "ltx" and (own_seed or reference):
            fields["decode_noise"] = 2  # earlier versions counted other noise before it
        if self.upscale is not None:
            fields["upscale"] = self.upscale.model_dump(mode="json", exclude_none=True)
        return fields


def sorted_json(table: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(
        table, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def override(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``table`` with top-level fields replaced, without the fields that depend on them.

    A new ``duration_s`` removes ``frames``, new ``frames`` remove ``duration_s``; a new ``fps``
    keeps a requested duration and removes the frames that were computed from it. An automatic
    duration removes both, and they remove it.
    """
    out = dict(table) | dict(overrides)
    lengths = {"frames", "duration_s"}
    if overrides.get("auto_duration") is not None:
        return {name: value for name, value in out.items() if name not in lengths}
    if lengths & set(overrides):
        out.pop("auto_duration", None)
    if out.get("auto_duration") is not None:
        out.pop("frames", None)
        return out
    if "frames" in overrides and "duration_s" not in overrides:
        out.pop("duration_s", None)
    elif "frames" not in overrides and out.get("duration_s") is not None:
        out.pop("frames", None)
    return out
