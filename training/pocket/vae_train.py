"""Solve the video VAE, then train its decoder against the frozen encoder.

    python training/pocket/vae_train.py solve
    python training/pocket/vae_train.py train --seconds 3600 [--threads 1]

State lives in runs/vae.pt (`vae`, `average`, `optimizer`, `step`); progress in runs/progress.jsonl.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch
import vae as video_vae
from state import RUNS, log, read, save
from torch import Tensor
from world import random_scene, render

STATE = RUNS / "vae.pt"
HELD_OUT_SEED = 777
WARM_STEPS = 50
MSE_STEPS = 120


def solve(small: int, large: int, seed: int, score: int = 3) -> None:
    """Solve encoder and decoder from `small` windows of 256 px clips and `large` of 512 px."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = video_vae.build().eval().requires_grad_(False)
    clips = video_vae.sample_clips(rng, {256: small, 512: large})
    video_vae.solve_encoder(vae, clips)
    log("vae_solve", part="encoder")
    video_vae.solve_decoder(vae, [c[: len(c) * 3 // 4] for c in clips])
    save({"vae": vae.state_dict(), "average": vae.state_dict(), "step": 0}, STATE)
    log("vae_solve", part="decoder", **_scores(vae, score))


def _scores(vae: Any, count: int) -> dict[str, float]:
    rng = random.Random(HELD_OUT_SEED)
    scenes = [random_scene(rng) for _ in range(count)]
    return {f"psnr_{size}": video_vae.score(vae, scenes, size, 17) for size in (256, 512)}


def load(average: bool = True) -> Any:
    """The VAE of runs/vae.pt, frozen; by default with its averaged weights."""
    vae = video_vae.build().eval().requires_grad_(False)
    vae.load_state_dict(read(STATE)["average" if average else "vae"])
    vae.decoder.to(memory_format=torch.channels_last_3d)  # half the time on a CPU
    return vae


def batch(rng: random.Random, encode: video_vae.Transform, count: int) -> tuple[Tensor, Tensor]:
    """Raw latents and signals of `count` random windows of 96 or 128 px and 17 or 9 frames.

    Windows are more often near the middle of the picture, where the object is.
    """
    frames, window = rng.choice(((9, 128), (9, 128), (17, 96)))
    crops = []
    for _ in range(count):
        size = rng.choice((256, 512, 512))
        top, left = (32 * round(rng.betavariate(2, 2) * ((size - window) // 32)) for _ in range(2))
        crops.append(render([random_scene(rng)], frames, size, crop=(top, left, window, window)))
    video = video_vae.to_signal(torch.cat(crops))
    return encode(video), video


def train(seconds: float, count: int, base_lr: float, seed: int, score: int = 6) -> None:
    """Train the decoder for `seconds`, from runs/vae.pt."""
    state = read(STATE)
    vae = video_vae.build().requires_grad_(False)
    vae.load_state_dict(state["vae"])
    encode = video_vae.transform(vae)
    average = {n: v.clone() for n, v in state["average"].items() if n.startswith("decoder.")}
    decoder = vae.decoder.requires_grad_(True)
    groups = [{"params": [p], "fan": p[0].numel() if p.dim() > 1 else 1} for p in
              decoder.parameters()]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=base_lr, betas=(0.9, 0.98), weight_decay=0.0)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    step, start, saved, sums = state["step"], time.time(), time.time(), []
    rng = random.Random(seed + step)
    while time.time() - start < seconds:
        latents, video = batch(rng, encode, count)
        latents = latents + 0.05 * vae.latents_std.view(1, -1, 1, 1, 1) * torch.randn_like(latents)
        left = 1 - (time.time() - start) / seconds
        lr = base_lr * min(1.0, (step + 1) / WARM_STEPS) * min(1.0, 0.1 + 3 * left)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 500 / group["fan"])
        out = decoder(latents)
        loss = video_vae.reconstruction_loss(out, video, step < MSE_STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        sums.append(float((out - video).detach().square().mean()))
        decay = min(0.995, (step + 1) / (step + 20))
        for name, value in decoder.state_dict().items():
            average[f"decoder.{name}"].lerp_(value, 1 - decay)
        if step % 25 == 0:
            mse = sum(sums[-25:]) / len(sums[-25:])
            log("vae", step=step, loss=float(loss.detach()), psnr=signal_psnr(mse), lr=lr)
        if time.time() - saved > 240 or time.time() - start >= seconds:
            saved = time.time()
            whole = vae.state_dict()
            save({"vae": whole, "average": whole | average, "step": step,
                  "optimizer": optimizer.state_dict()}, STATE)  # fmt: skip
    log("vae_done", step=step, **_scores(load(), score))


def signal_psnr(mse: float) -> float:
    """PSNR in dB for a mean squared error of signals in [-1, 1]."""
    return float(10 * torch.log10(torch.tensor(4 / mse)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("solve", "train"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--small", type=int, default=160, help="windows of 256 px clips for `solve`"
    )
    parser.add_argument("--large", type=int, default=80, help="windows of 512 px clips for `solve`")
    parser.add_argument("--score", type=int, default=6, help="number of clips for the final PSNR")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "solve":
        solve(options.small, options.large, options.seed, options.score)
    else:
        train(options.seconds, options.batch, options.lr, options.seed, options.score)


if __name__ == "__main__":
    main()
