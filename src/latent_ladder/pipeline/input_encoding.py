"""Input files on their way into a stage: prepared at its size, encoded, and held while it samples.

The first frame is replaced in the latent, any other picture is appended as guide tokens with a
place in time of its own; what is appended is dropped when tokens become latents again. Source of
both: LTX-2 ``VideoConditionByLatentIndex`` and ``VideoConditionByKeyframeIndex``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.latents.shapes import (
    AUDIO_LATENTS_PER_SECOND,
    PIXELS_PER_LATENT,
    Resolution,
    duration,
    nearest_frames,
)
from latent_ladder.latents.tokens import audio_to_tokens, video_to_tokens
from latent_ladder.media.audio_input import RATE, read_sound
from latent_ladder.media.image_input import fitted, like_video, load_image
from latent_ladder.media.video_input import read_footage
from latent_ladder.models.audio_vae.vae import AudioDecoder, load_audio
from latent_ladder.models.device import Runtime
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.video_vae.vae import load_video_vae
from latent_ladder.pipeline.input_files import GivenFile, window
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, has_sound
from latent_ladder.request.model import Request
from latent_ladder.sampling.denoise import LatentState

Tensors = dict[str, Tensor]
Held = Mapping[str, Tensor]
TIME_EPS = 1e-4
"""Seconds by which a token may reach into a region without being of it: rounding."""
SPAN, CONTEXT, AHEAD = 750, 50, 2
"""Latents of sound that are encoded at once (30 s), those before and after that they depend on."""
SAMPLE_RATE_KEY = "sample_rate"
"""The name of the sample rate beside a waveform, as in :mod:`latent_ladder.pipeline.output`."""


@dataclass(frozen=True)
class Start:
    """Both streams before sampling, and the places ``(1, 3, N, 2)`` of all video tokens.

    ``audio_positions`` (1, 1, T, 2) are those of the sound. ``extra`` video tokens lie behind those
    of the clip.
    """

    video: LatentState
    audio: LatentState | None
    positions: Tensor
    audio_positions: Tensor
    extra: int = 0
    frozen_audio: bool = False

    @property
    def video_mask(self) -> Tensor | None:
        """Noise levels of the video tokens, ``None`` where all are generated."""
        return _levels(self.video)

    @property
    def audio_mask(self) -> Tensor | None:
        """Noise levels of the audio tokens, ``None`` where all are generated or none."""
        return None if self.audio is None or self.frozen_audio else _levels(self.audio)


def plain_start(video: LatentState, audio: LatentState | None, resolution: Resolution) -> Start:
    """Nothing held: every token is one of the clip."""
    grid = (resolution.latent_frames, resolution.latent_height, resolution.latent_width)
    sound = audio_positions(resolution.audio_latents)
    return Start(video, audio, video_positions(*grid, resolution.fps), sound)


def conditioned(
    start: Start, held: Mapping[str, Tensor], request: Request, resolution: Resolution
) -> Start:
    """The start of a sampling stage with everything held that its input artefacts give."""
    if "video_in" in held and request.video is not None:
        start = USES[request.video.mode](start, held, request, resolution)
    if "given_sound" in held and start.audio is not None:
        start = _with_sound(start, start.audio, held["given_sound"])
    return hold_images(start, held, request, resolution)


# --- files to latents ---------------------------------------------------------------------------


def encode_images(stage: PlannedStage, plan: RunPlan, runtime: Runtime) -> Tensors:
    """Every image at the size of the stage's rung, as latents ``image.0`` ... (1, C, 1, H, W)."""
    resolution = _resolution(stage)
    vae = load_video_vae(
        plan.models.video_vae, device=runtime.device, dtype=runtime.dtype, parts=("encoder",)
    )
    found: Tensors = {}
    for i, file in enumerate(stage.files):
        file.check_unchanged()
        pixels = like_video(load_image(file.path), int(file.options["crf"]))
        frame = fitted(
            pixels,
            (resolution.width, resolution.height),
            window(plan.request, resolution),
            str(file.options["fit"]),
        )
        found[f"image.{i}"] = vae.encode(frame[None]).float().cpu()
    return found


def encode_sound(stage: PlannedStage, plan: RunPlan, runtime: Runtime) -> Tensors:
    """The sound that drives the picture, as latents ``given_sound`` (1, C, T, M) of its length.

    Silence follows a sound that ends before the clip.
    """
    (file,) = stage.files
    file.check_unchanged()
    return {"given_sound": _encoded_sound(file, Fraction(0), plan, runtime)}


def given_waveform(stage: PlannedStage, plan: RunPlan, _: Runtime) -> Tensors:
    """The given sound itself, as long as the clip at most, stereo at 48 kHz."""
    (file,) = stage.files
    file.check_unchanged()
    samples = read_sound(file.path, duration(plan.request.frames, plan.request.fps), RATE)
    return {"waveform": torch.from_numpy(samples), SAMPLE_RATE_KEY: torch.tensor(RATE)}


def encode_video(stage: PlannedStage, plan: RunPlan, runtime: Runtime) -> Tensors:
    """The clip's part of a video at the stage's size, as ``video_in``, its sound as ``sound_in``.

    A reference is as much smaller and slower as its LoRA says. A video without sound is silent.
    """
    resolution, file = _resolution(stage), stage.files[0]
    file.check_unchanged()
    options = file.options
    smaller, slower = int(options.get("smaller", 1)), int(options.get("slower", 1))
    start, fps = Fraction(options["start"]).limit_denominator(10**6), resolution.fps / slower
    frames = nearest_frames(Fraction(resolution.frames - 1, slower) + 1)[0]
    size = (_smaller(resolution.width, smaller), _smaller(resolution.height, smaller))
    shown = tuple(
        min(side // smaller, most)
        for side, most in zip(window(plan.request, resolution), size, strict=True)
    )
    pixels = read_footage(
        file.path,
        [start + Fraction(i) / fps for i in range(frames)],
        size,
        (shown[0], shown[1]),
        str(options["fit"]),
    )
    vae = load_video_vae(
        plan.models.video_vae, device=runtime.device, dtype=runtime.dtype, parts=("encoder",)
    )
    found = {"video_in": vae.encode_stream(pixels).float().cpu()}
    if file.role != "reference" and has_sound(plan.request) and plan.models.audio_vae is not None:
        found["sound_in"] = _encoded_sound(file, start, plan, runtime)
    return found


def encode_source(stage: PlannedStage, plan: RunPlan, runtime: Runtime) -> Tensors:
    """A video in the place of the base stage's result: ``video`` and ``audio`` latents."""
    found = encode_video(stage, plan, runtime)
    out = {"video": found["video_in"]}
    if "sound_in" in found:
        given = stage.files[1:]
        out["audio"] = (
            _encoded_sound(given[0], Fraction(0), plan, runtime) if given else found["sound_in"]
        )
    return out


def _encoded_sound(file: GivenFile, start: Fraction, plan: RunPlan, runtime: Runtime) -> Tensor:
    """As many latents as the clip has, of a file's sound from ``start`` seconds on."""
    if plan.models.audio_vae is None:
        raise TypeError("a sound was planned without an audio VAE")
    steps = plan.request.resolutions[-1].audio_latents
    vae = load_audio(plan.models.audio_vae, None, device=runtime.device, parts=("encoder",))
    length = Fraction(steps + 1, AUDIO_LATENTS_PER_SECOND)  # one more: what the last one reaches
    samples = torch.zeros(2, 0)
    if file.options.get("has_sound", True) and start + length > 0:
        samples = torch.from_numpy(read_sound(file.path, start + length, RATE))
    first = round(start * RATE)
    samples = samples[:, first:] if first > 0 else F.pad(samples, (-first, 0))
    padded = F.pad(samples, (0, max(round(length * RATE) - samples.shape[-1], 0)))
    return encoded_in_spans(vae, padded, steps).float().cpu()


def encoded_in_spans(vae: AudioDecoder, samples: Tensor, steps: int, span: int = SPAN) -> Tensor:
    """The first ``steps`` latents of samples (2, S) at :data:`RATE`, ``span`` of them at a time.

    The encoder looks back only, so latents with :data:`CONTEXT` before them are those of the whole;
    its spectra look a little ahead. Memory is that of a span. ``samples`` reach past the end.
    """
    per_latent = RATE // AUDIO_LATENTS_PER_SECOND
    found = []
    for first in range(0, steps, span):
        begin, count = max(first - CONTEXT, 0), min(span, steps - first)
        end = (first + count + AHEAD) * per_latent
        latents = vae.encode(samples[:, begin * per_latent : end], RATE)
        found.append(latents[:, :, first - begin : first - begin + count])
    return torch.cat(found, 2)


def _smaller(side: int, factor: int) -> int:
    """A side of a reference: a whole number of latent pixels, at least one."""
    return max(round(side / factor / PIXELS_PER_LATENT), 1) * PIXELS_PER_LATENT


MAKERS: Mapping[str, Callable[[PlannedStage, RunPlan, Runtime], Tensors]] = {
    "images": encode_images,
    "audio_in": encode_sound,
    "video_in": encode_video,
    "source": encode_source,
    "sound": given_waveform,
}
"""How each kind of stage that reads files is made."""
INPUT_KINDS = frozenset(MAKERS) - {"sound", "source"}
"""Stages whose artefacts a sampling stage holds."""


@torch.inference_mode()
def make_input(stage: PlannedStage, plan: RunPlan, runtime: Runtime) -> Tensors:
    """The tensors of an input stage. Raises :class:`MediaError` for a file that changed."""
    return MAKERS[stage.kind](stage, plan, runtime)


# --- latents into the start of a stage ----------------------------------------------------------


def hold_images(
    start: Start, latents: Mapping[str, Tensor], request: Request, resolution: Resolution
) -> Start:
    """The start with every image of the request held, in their order."""
    for i, image in enumerate(request.active_images):
        tokens = video_to_tokens(latents[f"image.{i}"]).to(start.video.tokens)
        at = image.index(request.frames)
        if at == 0:
            start = replace(start, video=start.video.with_content(0, tokens, image.strength))
        else:
            time = duration(at, request.fps)
            places = keyframe_positions(time, resolution)
            start = _appended(start, tokens, places, image.strength)
    return start


def _begun_on_video(start: Start, held: Held, _request: Request, _resolution: Resolution) -> Start:
    """Nothing is kept: the noise of the first sigma lies on the video and its sound."""
    audio = start.audio
    if audio is not None and "sound_in" in held:
        audio = LatentState.of(audio_to_tokens(held["sound_in"]).to(audio.tokens))
    video = LatentState.of(video_to_tokens(held["video_in"]).to(start.video.tokens))
    return replace(start, video=video, audio=audio)


def _kept_but_for(start: Start, held: Held, request: Request, _resolution: Resolution) -> Start:
    """Tokens outside the region are kept. Source: LTX-2 ``TemporalRegionMask``.

    A token is made anew where it reaches into the region.
    """
    if request.video is None:
        raise TypeError("a part of a video was held without one")
    region = request.video.generated_span(float(duration(request.frames, request.fps)))
    video = _masked(start.video, video_to_tokens(held["video_in"]), start.positions, region)
    audio = start.audio
    if audio is not None and "sound_in" in held:
        sound = audio_to_tokens(held["sound_in"])
        audio = _masked(audio, sound, start.audio_positions, region)
    return replace(start, video=video, audio=audio)


def _masked(
    state: LatentState, content: Tensor, places: Tensor, region: tuple[float, float]
) -> LatentState:
    starts, ends = places[0, 0, :, 0], places[0, 0, :, 1]
    anew = (ends > region[0] + TIME_EPS) & (starts < region[1] - TIME_EPS)
    mask = anew.to(state.mask).reshape(1, -1, 1)
    return replace(state, clean=content.to(state.tokens), mask=mask)


def _guided_by(start: Start, held: Held, request: Request, resolution: Resolution) -> Start:
    """The reference as tokens behind the clip. Source: LTX-2 ``VideoConditionByReferenceLatent``.

    Its positions are those of the part of the clip that each token stands for: sides by the
    factor that it is smaller, time by the one that it is slower, the first frame kept in place.
    """
    if request.video is None:
        raise TypeError("a reference was held without a video")
    latents = held["video_in"]
    frames, height, width = latents.shape[2:]
    slower = max(round((resolution.latent_frames - 1) / max(frames - 1, 1)), 1)
    places = video_positions(frames, height, width, resolution.fps / slower)
    places[:, 0] = (places[:, 0] - (slower - 1) / float(resolution.fps)).clamp_min(0)
    places[:, 1] *= resolution.latent_height / height
    places[:, 2] *= resolution.latent_width / width
    tokens = video_to_tokens(latents).to(start.video.tokens)
    return _appended(start, tokens, places, request.video.strength)


USES: Mapping[str, Callable[[Start, Held, Request, Resolution], Start]] = {
    "v2v": _begun_on_video,
    "retake": _kept_but_for,
    "extend": _kept_but_for,
    "reference": _guided_by,
}
"""What each mode does with a video."""


def _with_sound(start: Start, audio: LatentState, latents: Tensor) -> Start:
    """The start with its whole sound given: it conditions the picture and does not change."""
    tokens = audio_to_tokens(latents).to(audio.tokens)
    return replace(start, audio=audio.with_content(0, tokens), frozen_audio=True)


def keyframe_positions(time: Fraction, resolution: Resolution) -> Tensor:
    """Bounds (1, 3, H*W, 2) of one frame shown from ``time`` seconds on: one frame wide."""
    places = video_positions(1, resolution.latent_height, resolution.latent_width, resolution.fps)
    start, end = (float(t) for t in (time, time + 1 / resolution.fps))
    places[:, 0] = torch.tensor([start, end], dtype=torch.float32)
    return places


def _appended(start: Start, tokens: Tensor, places: Tensor, strength: float) -> Start:
    return replace(
        start,
        video=start.video.with_appended(tokens, strength),
        positions=torch.cat([start.positions, places], dim=2),
        extra=start.extra + tokens.shape[1],
    )


def _levels(state: LatentState) -> Tensor | None:
    return state.mask if bool((state.mask < 1).any()) else None


def _resolution(stage: PlannedStage) -> Resolution:
    if stage.resolution is None:
        raise TypeError(f"{stage.name} is not a planned stage of inputs")
    return stage.resolution
