"""Checks of :mod:`correctness` that use the product's own files and commands."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_report import ROOT, Campaign, Row, same, within
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.models.audio_vae.vae import load_audio_vae
from latent_ladder.models.video_vae.vae import decode_pixels, load_video_vae
from latent_ladder.models.weights import pinned_memory

GOLDENS = ROOT / "tests"
TESTS = "tests/pretended/test_runs.py"
CPU = torch.device("cpu")
PIXEL_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.01}
"""Largest root mean square of the errors of pixels (0..1); the decoders have random weights."""


def parts_of(*place: str) -> dict[str, Component]:
    return components(open_checkpoint(GOLDENS.joinpath(*place)))


def check_decoders(run: Campaign) -> Iterator[Row]:
    """Video decoders of both kinds and the audio decoder against float64 on the CPU."""
    torch.manual_seed(3)
    files = {
        "conv decoder": ("golden", "checkpoints", "tiny-ltx-2.3.safetensors"),
        "conv decoder of 2.5": ("golden-2.5", "vae", "tiny-ltx-2.5-video-vae-conv.safetensors"),
        "diffusion decoder": ("golden-2.5", "vae", "tiny-ltx-2.5-video-vae.safetensors"),
    }
    for name, place in files.items():
        part = parts_of(*place)["video_vae"]
        exact = load_video_vae(part, device=CPU, dtype=torch.float64, parts=("decoder",))
        latents = torch.randn(1, exact.latent_channels, 3, 4, 4)
        wanted = torch.cat(list(decode_pixels(latents, exact)))
        for dtype, limit in PIXEL_LIMITS.items():
            vae = load_video_vae(part, device=run.device, dtype=dtype, parts=("decoder",))
            found = torch.cat([chunk.cpu() for chunk in decode_pixels(latents, vae)])
            error = float((found.double() - wanted.double()).square().mean().sqrt())
            yield within(f"{name}, {str(dtype)[6:]}", error, limit)
    yield from _check_sound(run)


def _check_sound(run: Campaign) -> Iterator[Row]:
    parts = parts_of("golden", "checkpoints", "tiny-ltx-2.3.safetensors")
    vae = load_audio_vae(parts["audio_vae"], parts["vocoder"], device=run.device)
    on_cpu = load_audio_vae(parts["audio_vae"], parts["vocoder"], device=CPU)
    channels = vae.config.latent_channels
    latents = torch.randn(1, channels, 6, on_cpu.statistics.mean.numel() // channels)
    mean, std = (values.double() for values in on_cpu._statistics(latents))
    wanted: Tensor = copy.deepcopy(on_cpu.decoder).double()(latents.double() * std + mean)  # type: ignore[union-attr]
    error = float((vae.decode_mel(latents).cpu().double() - wanted).abs().max())
    yield within("audio decoder, float32", error, 1e-3)
    error = float((vae.decode(latents) - on_cpu.decode(latents)).abs().max())
    yield within("vocoder, float32, device against CPU", error, 1e-3)


def check_refused_registration(run: Campaign) -> Iterator[Row]:
    """Page-locking that CUDA refuses: other pinned memory is used, and the next launch works."""
    name = "refused registration"
    if run.device.type != "cuda":
        yield Row(name, "not run: needs a GPU")
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    real = runtime.cudaHostRegister

    class Twice:
        """The runtime, with a registration that has just been made by somebody else."""

        def __getattr__(self, wanted: str) -> Any:
            return getattr(runtime, wanted)

        def cudaHostRegister(self, *where: int) -> Any:
            real(*where)
            return real(*where)

    if run.pretend:
        from pretended.standins import machine

        machine().refuse_locking = True
    original = torch.cuda.cudart
    torch.cuda.cudart = lambda: runtime if run.pretend else Twice()
    try:
        memory = pinned_memory.PinnedMemory(1 << 20, run.device).flat
    finally:
        torch.cuda.cudart = original
    memory.fill_(7)
    copied = memory.to(run.device, non_blocking=True)
    torch.cuda.synchronize()
    yield same(name, bool((copied.cpu() == 7).all()))


def check_commands(run: Campaign) -> Iterator[Row]:
    """Whole commands on the device against the CPU: the tests of pretended runs, on the card."""
    words = [sys.executable, "-m", "pytest", TESTS, "-p", "no:cacheprovider", "-m", "slow or long"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
    if run.pretend or run.device.type != "cuda":
        words += ["-k", "offload and stream"]
    else:
        environment["LADDER_TESTS_ON_CARD"] = "1"
    done = subprocess.run(
        words, cwd=Path(ROOT), env=environment, capture_output=True, text=True, check=False,
        timeout=400,
    )  # fmt: skip
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(line)
    value = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or f"exit {done.returncode}"
    yield Row("commands against the CPU", value, "0 failed", done.returncode == 0, counts)
