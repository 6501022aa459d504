"""Sound stage: the waveform of a clip, decoded from audio latents or copied from an input file."""

from __future__ import annotations

import torch

from latent_ladder.latents.shapes import duration
from latent_ladder.media.audio_input import read_audio_input
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.memory.planner import StageMemory
from latent_ladder.models.audio_vae.vae import load_audio_vae
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult

SAMPLE_RATE_KEY = "sample_rate"
"""Name of the sample rate in an artefact that has a ``waveform``."""


def make_sound(job: StageJob, _: StageMemory) -> StageResult:
    """``waveform`` (channels, samples) and its sample rate, from a file where one was requested.

    Raises :class:`MediaError` for a file that changed since it was planned.
    """
    return copy_sound(job) if job.stage.files else decode_sound(job)


def decode_sound(job: StageJob) -> StageResult:
    """Waveform of the audio latents (1, C, T, M) of the input artefact."""
    audio_vae, vocoder = job.plan.models.audio_vae, job.plan.models.vocoder
    if audio_vae is None or vocoder is None:
        raise TypeError("a sound stage was planned without an audio VAE")
    decoder = load_audio_vae(audio_vae, vocoder, device=job.runner.device, parts=("decoder",))
    waveform = decoder.decode(job.inputs[0]["audio"])
    return {"waveform": waveform, SAMPLE_RATE_KEY: torch.tensor(decoder.sample_rate)}, {}


def copy_sound(job: StageJob) -> StageResult:
    """Waveform of the input file, cut to the length of the clip, stereo at 48 kHz."""
    (file,), request = job.stage.files, job.plan.request
    file.check_unchanged()
    samples = read_audio_input(file.path, duration(request.frames, request.fps), SAMPLE_RATE)
    tensors = {
        "waveform": torch.from_numpy(samples),
        SAMPLE_RATE_KEY: torch.tensor(SAMPLE_RATE),
    }
    return tensors, {"files": [file.path.name]}
