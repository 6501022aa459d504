"""A whole clip of 1920x1088, 121 frames, 8 + 3 steps, on the first GPU, in less than ten minutes.

    python benchmarks/gpu/end_to_end.py                  # a CUDA device with 80 GB
    python benchmarks/gpu/end_to_end.py --tiny           # a rehearsal on the CPU
    python benchmarks/gpu/end_to_end.py --pretend twin   # the same on a pretended GPU

From encoded prompts to the file, twice, with random weights: both sampling stages, doubling of the
latents (without the upsampler's network), decoding and encoding. Then the 8 + 3 forwards of
diffusers' transformer on the same weights. No network. Wheels: torch (a CUDA build), numpy, av,
diffusers 0.42.1 and transformers for the other side (left out where they are missing).
ltx-pipelines needs the published files, so it is not part of this.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import torch
from caps import decoder, distilled_request
from forwards import REAL, TINY, Stage, build, config, workload
from gpu_report import Campaign, Row, campaign
from rival import Workload, build_rival, rival_forward
from torch import Tensor

from latent_ladder.latents.tokens import tokens_to_video, video_to_tokens
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.models.accelerator import synchronize
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.video_vae.vae import decode_video
from latent_ladder.sampling.denoise import LatentState, Noises, SamplingPlan, sample

SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINE_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
GOAL_S = 12.5
"""Goal on an H200 in bf16."""


class Clock:
    """Seconds of the parts of a job, each until the device has finished it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.parts = device, dict[str, float]()
        self._last = time.perf_counter()

    def part(self, name: str) -> None:
        """End of a part."""
        synchronize(self._device)
        now = time.perf_counter()
        self.parts[name], self._last = now - self._last, now

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self.parts.values())


def denoise(
    model: Transformer, work: Workload, sigmas: tuple[float, ...], video: Tensor, audio: Tensor
) -> tuple[Tensor, Tensor]:
    """Sample both streams from tokens (1, N, C)."""
    denoiser = Denoiser(
        model,
        DenoiserStream(work.video_positions, work.video_context),
        DenoiserStream(work.audio_positions, work.audio_context),
    )
    noises = Noises(torch.randn(video.shape), torch.randn(audio.shape))
    made = sample(
        denoiser, LatentState.of(video), LatentState.of(audio), noises, SamplingPlan(sigmas)
    )
    assert made[0] is not None
    assert made[1] is not None
    return made[0], made[1]


def whole_job(run: Campaign, model: Transformer, stages: tuple[Stage, ...], file: Path) -> Clock:
    """Encoded prompt to file."""
    works = [workload(stage, model.config, run.device) for stage in stages]
    vae, clock = decoder(run.tiny, run.device), Clock(run.device)
    first, second = stages
    video, audio = denoise(model, works[0], SIGMAS, works[0].video, works[0].audio)
    clock.part("stage 1")
    latents = tokens_to_video(video, first.frames, first.height, first.width)
    doubled = latents.repeat_interleave(2, 3).repeat_interleave(2, 4)
    video, _ = denoise(model, works[1], REFINE_SIGMAS, video_to_tokens(doubled), audio)
    clock.part("stage 2")
    grid = (second.frames, second.height, second.width)
    plan = distilled_request(run.tiny).decode.tiles(grid)
    frames = decode_video(tokens_to_video(video, *grid), vae, plan)
    size = (second.width * 32, second.height * 32)
    write_video(file, frames, VideoSpec(size, Fraction(24)), overwrite=True)
    clock.part("decode and encode")
    return clock


def ours(run: Campaign, model: Transformer, stages: tuple[Stage, ...]) -> Iterator[Row]:
    """The whole job, twice."""
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            clock = whole_job(run, model, stages, Path(folder) / "clip.mp4")
            for name, seconds in clock.parts.items():
                yield Row(f"run {number}, {name}", f"{seconds:.2f} s", numbers={"seconds": seconds})
            judged = None if run.tiny or number == 1 else clock.total <= GOAL_S
            yield Row(f"run {number}, whole", f"{clock.total:.2f} s", f"<= {GOAL_S:g} s", judged,
                      {"seconds": clock.total, **clock.parts})  # fmt: skip


def theirs(run: Campaign, model: Transformer, stages: tuple[Stage, ...]) -> Iterator[Row]:
    """The forwards of diffusers' transformer in both stages."""
    if find_spec("diffusers") is None:
        yield Row("diffusers, sampling", "not run: not installed")
        return
    rival = build_rival(model)
    for stage, sigmas in zip(stages, (SIGMAS, REFINE_SIGMAS), strict=True):
        work, clock = workload(stage, model.config, run.device), Clock(run.device)
        rival_forward(rival, work)
        clock.part("first")
        for _ in sigmas[1:]:
            rival_forward(rival, work)
        clock.part("steps")
        seconds = clock.parts["steps"]
        yield Row(f"diffusers, {stage.name}", f"{seconds:.2f} s", numbers={"seconds": seconds})


def main() -> None:
    with campaign("end_to_end", __doc__.splitlines()[0]) as run, torch.inference_mode():
        stages = TINY if run.tiny else REAL
        model = build(config(run.tiny), run.device)
        run.check("ours", lambda: ours(run, model, stages))
        run.check("diffusers", lambda: theirs(run, model, stages))


if __name__ == "__main__":
    main()
