"""Input stages: image, video and sound files become latents at a sampling stage's size.

Every function raises :class:`MediaError` for a file that changed since it was planned.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.latents.shapes import (
    AUDIO_LATENTS_PER_SECOND,
    Resolution,
)
from latent_ladder.media.audio_input import read_audio_input
from latent_ladder.media.exr_sequence import Colours, find_exr_sequence
from latent_ladder.media.hdr import codes_of_exr, load_exr
from latent_ladder.media.image_input import compress_like_video, load_image
from latent_ladder.media.image_resize import fit_image
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.media.video_input import IMAGE_FPS, sample_frames
from latent_ladder.memory.planner import StageMemory
from latent_ladder.models.audio_vae.vae import AudioVae, load_audio_vae
from latent_ladder.models.video_vae.vae import VideoVae, load_video_vae
from latent_ladder.pipeline.input_files import InputFile, reference_resolution, visible_size
from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult, Tensors

SPAN, CONTEXT, LOOKAHEAD = 750, 50, 2
"""Audio latents that are encoded at once (30 s), and those before and after that they depend on."""


@torch.inference_mode()
def encode_images(job: StageJob, _: StageMemory) -> StageResult:
    """Every image at the stage's resolution, as latents ``image.0`` ... (1, C, 1, H, W)."""
    resolution, request = _resolution(job.stage), job.plan.request
    vae = _video_encoder(job)
    tensors: Tensors = {}
    for i, file in enumerate(job.stage.files):
        file.check_unchanged()
        pixels = _pixels(file)
        frame = fit_image(
            pixels,
            (resolution.width, resolution.height),
            visible_size(request, resolution),
            str(file.options["fit"]),
            request.image_resize,
        )
        tensors[f"image.{i}"] = vae.encode(frame[None]).float().cpu()
    return tensors, _file_names(job.stage)


def _pixels(file: InputFile) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The pixels (H, W, 3) of an input image, 0..255; of an EXR file, the model's codes."""
    if "curve" in file.options:
        options = file.options
        codes = codes_of_exr(load_exr(file.path), options["space"], options["curve"])
        return codes * np.float32(255)
    return compress_like_video(load_image(file.path), int(file.options["crf"]))


@torch.inference_mode()
def encode_audio(job: StageJob, _: StageMemory) -> StageResult:
    """The sound that drives the video, as latents ``given_sound`` (1, C, T, M) of its length.

    A sound that ends before the clip is followed by silence.
    """
    (file,) = job.stage.files
    file.check_unchanged()
    return {"given_sound": _audio_latents(file, Fraction(0), job)}, _file_names(job.stage)


@torch.inference_mode()
def encode_video(job: StageJob, _: StageMemory) -> StageResult:
    """The clip's part of a video as ``video_in`` (1, C, F, H, W), its sound as ``sound_in``.

    A reference is smaller and slower by the factors of its LoRA. A video without sound is silent.
    """
    return _video_latents(job), _file_names(job.stage)


@torch.inference_mode()
def encode_source_video(job: StageJob, _: StageMemory) -> StageResult:
    """A video in place of the base stage's result: ``video`` and ``audio`` latents."""
    found, files = _video_latents(job), job.stage.files
    tensors = {"video": found["video_in"]}
    if "sound_in" in found:
        own = found["sound_in"]
        tensors["audio"] = _audio_latents(files[1], Fraction(0), job) if files[1:] else own
    return tensors, _file_names(job.stage)


def _video_latents(job: StageJob) -> Tensors:
    resolution, file, request = _resolution(job.stage), job.stage.files[0], job.plan.request
    file.check_unchanged()
    options = file.options
    smaller, part = int(options.get("smaller", 1)), reference_resolution(resolution, options)
    start, size = Fraction(options["start"]).limit_denominator(10**6), (part.width, part.height)
    shown = tuple(
        min(side // smaller, most)
        for side, most in zip(visible_size(request, resolution), size, strict=True)
    )
    hdr = "curve" in options
    pixels = sample_frames(
        file.path,
        [start + Fraction(i) / part.fps for i in range(part.frames)],
        size,
        (shown[0], shown[1]),
        str(options["fit"]),
        fps=Fraction(options["fps"]) if hdr else IMAGE_FPS,
        colours=Colours(options["space"], options["curve"]) if hdr else None,
    )
    tensors = {"video_in": _video_encoder(job).encode_stream(pixels).float().cpu()}
    models = job.plan.models
    if file.role != "reference" and request.resolved.has_sound and models.audio_vae is not None:
        tensors["sound_in"] = _audio_latents(file, start, job)
    return tensors


def _video_encoder(job: StageJob) -> VideoVae:
    runtime, component = job.runner.runtime, job.plan.models.video_vae
    return load_video_vae(component, device=runtime.device, dtype=runtime.dtype, parts=("encoder",))


def _audio_latents(file: InputFile, start: Fraction, job: StageJob) -> Tensor:
    """As many latents as the clip has, of a file's sound from ``start`` seconds on."""
    component = job.plan.models.audio_vae
    if component is None:
        raise TypeError("a sound was planned without an audio VAE")
    steps = job.plan.request.resolutions[-1].audio_latents
    vae = load_audio_vae(component, None, device=job.runner.device, parts=("encoder",))
    length = Fraction(steps + 1, AUDIO_LATENTS_PER_SECOND)  # the last latent reaches one further
    samples = torch.zeros(2, 0)
    if file.options.get("has_sound", True) and start + length > 0:
        sequence = find_exr_sequence(file.path)
        source = file.path if sequence is None else sequence.sound or file.path
        samples = torch.from_numpy(read_audio_input(source, start + length, SAMPLE_RATE))
    first = round(start * SAMPLE_RATE)
    samples = samples[:, first:] if first > 0 else F.pad(samples, (-first, 0))
    padded = F.pad(samples, (0, max(round(length * SAMPLE_RATE) - samples.shape[-1], 0)))
    return encode_in_spans(vae, padded, steps).float().cpu()


def encode_in_spans(vae: AudioVae, samples: Tensor, steps: int, span: int = SPAN) -> Tensor:
    """The first ``steps`` latents of samples (2, S) at 48 kHz, ``span`` of them at a time.

    The encoder is causal, so a span with :data:`CONTEXT` latents before it gives the same numbers
    as the whole; its spectra need :data:`LOOKAHEAD` more at the end. Memory is that of one span.
    ``samples`` must reach past the last latent.
    """
    per_latent = SAMPLE_RATE // AUDIO_LATENTS_PER_SECOND
    found = []
    for first in range(0, steps, span):
        begin, count = max(first - CONTEXT, 0), min(span, steps - first)
        end = (first + count + LOOKAHEAD) * per_latent
        latents = vae.encode(samples[:, begin * per_latent : end], SAMPLE_RATE)
        found.append(latents[:, :, first - begin : first - begin + count])
    return torch.cat(found, 2)


def _file_names(stage: PlannedStage) -> dict[str, list[str]]:
    """Meta data: the names of the input files, without their folders."""
    return {"files": [file.path.name for file in stage.files]}


def _resolution(stage: PlannedStage) -> Resolution:
    if stage.resolution is None:
        raise TypeError(f"{stage.name} is not a planned input stage")
    return stage.resolution
