"""Solve the video VAE, then train its decoder against the frozen encoder.

    python training/pocket/vae_train.py solve
    python training/pocket/vae_train.py train --seconds 3600 [--threads 1]

State lives in runs/vae.pt (`vae`, `average`, `optimizer`, `step`); progress in runs/progress.jsonl.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from typing import Any

import torch
import vae as video_vae
from state import RUNS, log, save
from team import Team, launch
from torch import Tensor, nn
from world import Scene, random_scene, render, trajectory

STATE = RUNS / "vae.pt"
HELD_OUT_SEED = 777
WARM_STEPS = 50
MSE_STEPS = 120
KINDS = ((4, 9, 128), (2, 17, 128), (2, 9, 192), (1, 17, 192), (1, 25, 160), (1, 9, 256))
"""(windows, frames, size of the window) of a process's share of a step: alike in cost."""
MARGIN, MARGIN_WEIGHT = 24, 0.25
OWN_DRAFTS = 0.3  # share of the steps on the transformer's own drafts, where there are some
Drafts = list[tuple[Tensor, Scene]]


def solve(small: int, large: int, seed: int, score: int = 3) -> None:
    """Closed-form encoder and decoder from so many windows of clips of 256 and of 512 px."""
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
    """The VAE of the last checkpoint, frozen."""
    vae = video_vae.build().eval().requires_grad_(False)
    vae.load_state_dict(torch.load(STATE, weights_only=True)["average" if average else "vae"])
    vae.decoder.to(memory_format=torch.channels_last_3d)  # half the time on a CPU
    return vae


def _corner(rng: random.Random, scene: Scene, size: int, window: int) -> tuple[int, int]:
    """(top, left) of a window, multiples of 32: mostly on the outline of the object, where there is
    something to learn, else anywhere."""
    if rng.random() < 0.25:
        return tuple(32 * rng.randrange((size - window) // 32 + 1) for _ in range(2))  # type: ignore[return-value]
    x, y, radius = (float(v) for v in trajectory(scene, torch.tensor(rng.random())))
    angle, reach = rng.uniform(0, 2 * math.pi), radius * rng.uniform(0.5, 1.2)
    row, column = 1 - y - reach * math.sin(angle), x + reach * math.cos(angle) + 1
    places = ((v / 2 * size - rng.uniform(0.25, 0.75) * window) / 32 for v in (row, column))
    return tuple(32 * min(max(round(v), 0), (size - window) // 32) for v in places)  # type: ignore[return-value]


def batch(
    rng: random.Random, encode: video_vae.Transform, kind: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(raw latents, signals, weights (B, 1, 1, H, W)) of the windows of `KINDS[kind]`.

    A pixel near a border of the window that is none of the picture lacks its neighbours, which the
    decoder has when it is used; such pixels weigh little.
    """
    count, frames, window = KINDS[kind]
    crops, weights = [], []
    for _ in range(count):
        size, scene = rng.choice((256, 256, 512, 512, 512)), random_scene(rng)
        top, left = _corner(rng, scene, size, window)
        crops.append(render([scene], frames, size, crop=(top, left, window, window)))
        sides = [
            (0 if at == 0 else MARGIN, window - (0 if at + window == size else MARGIN))
            for at in (top, left)
        ]
        weight = torch.full((window, window), MARGIN_WEIGHT)
        weight[sides[0][0] : sides[0][1], sides[1][0] : sides[1][1]] = 1.0
        weights.append(weight / weight.mean())
    video = video_vae.to_signal(torch.cat(crops))
    return encode(video), video, torch.stack(weights)[:, None, None]


def draft_batch(
    rng: random.Random, vae: Any, known: Drafts, kind: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """As `batch`, of the transformer's own drafts and of the clips that they mean (drafts.py)."""
    count, frames, window = KINDS[kind]
    latents, crops = [], []
    for _ in range(count):
        small, scene = rng.choice(known)
        size = 32 * small.shape[-1]
        top, left = _corner(rng, scene, size, window)
        rows, columns = (slice(at // 32, (at + window) // 32) for at in (top, left))
        latents.append(small[:, : 1 + frames // 8, rows, columns])
        crops.append(render([scene], frames, size, crop=(top, left, window, window)))
    video = video_vae.to_signal(torch.cat(crops))
    return (
        video_vae.denormalize(vae, torch.stack(latents)),
        video,
        torch.ones(count, 1, 1, window, window),
    )


def rough(latents: Tensor, scale: Tensor) -> Tensor:
    """Latents with noise: a little on all, much on half of them, as the transformer's own have."""
    much = (0.5 - torch.rand(len(latents), 1, 1, 1, 1)).clamp(min=0) * 0.5
    return latents + (0.03 + much) * scale.view(1, -1, 1, 1, 1) * torch.randn_like(latents)


def loss_of(out: Tensor, video: Tensor, weight: Tensor, step: int) -> Tensor:
    """MSE first; later L1 + 2 MSE + 0.7 x the error of the gradients along x, y and t."""
    error = out - video
    mse = (weight * error.square()).mean()
    if step < MSE_STEPS:
        return mse
    gradients = (
        (weight * error.diff(dim=2).abs()).mean()
        + (weight[..., 1:, :] * error.diff(dim=3).abs()).mean()
        + (weight[..., 1:] * error.diff(dim=4).abs()).mean()
    )
    return (weight * error.abs()).mean() + 2 * mse + 0.7 * gradients


def _rates(base_lr: float, step: int, gone: float) -> float:
    """Learning rate: risen over the first steps, falling to 0 over the last two thirds."""
    return base_lr * min(1.0, (step + 1) / WARM_STEPS) * max(0.0, min(1.0, 1.5 * (1 - gone)))


def _known_drafts() -> Drafts:
    """What drafts.py made, if anything: that needs a transformer, which needs this VAE first."""
    import drafts

    return drafts.explained()


def begin(team: Team, lr: float) -> tuple[Any, dict[str, Tensor], torch.optim.Optimizer, int]:
    """(VAE with a trainable decoder, running average of it, optimizer, step) of the last state."""
    state = torch.load(STATE, weights_only=True)
    vae = video_vae.build().requires_grad_(False)
    vae.load_state_dict(state["vae"])
    decoder = vae.decoder.to(memory_format=torch.channels_last_3d).requires_grad_(True)
    average = {n: v.clone() for n, v in state["average"].items() if n.startswith("decoder.")}
    groups = [{"params": [p], "fan": p[0].numel() if p.dim() > 1 else 1} for p in
              decoder.parameters()]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        team.same({n: v.data for n, v in decoder.named_parameters()})
    return vae, average, optimizer, state["step"]


def train(options: argparse.Namespace, team: Team) -> None:
    """Train the decoder for a time; resumable."""
    torch.manual_seed(1000 * team.rank + int(time.time()) % 1000)
    vae, average, optimizer, step = begin(team, options.lr)
    encode = video_vae.transform(vae)
    weights = list(vae.decoder.parameters())
    saved = time.time()
    start = options.until - options.seconds if options.until else saved
    rng = random.Random(f"{options.seed}/{step}/{team.rank}")
    sums: list[float] = []
    known = _known_drafts()
    going = True
    while going:
        kind = random.Random(f"{options.seed}/{step}").randrange(len(KINDS))  # alike in all
        if known and rng.random() < OWN_DRAFTS:
            latents, video, weight = draft_batch(rng, vae, known, kind)
        else:
            latents, video, weight = batch(rng, encode, kind)
            latents = rough(latents, vae.latents_std)
        out = vae.decoder(latents)
        loss_of(out, video, weight, step + options.past_mse).backward()
        gone = (time.time() - start) / options.seconds
        note = torch.tensor([_rates(options.lr, step, gone), float(gone < 1)])
        note = team.average(weights, note)
        going = bool(note[1])
        for group in optimizer.param_groups:
            group["lr"] = float(note[0]) * min(1.0, 500 / group["fan"])
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if team.rank:
            continue
        sums.append(float((weight * (out - video).detach().square()).mean()))
        decay = min(0.995, (step + 1) / (step + 20))
        for name, value in vae.decoder.state_dict().items():
            average[f"decoder.{name}"].lerp_(value, 1 - decay)
        if step % 25 == 0:
            log(
                "vae",
                step=step,
                psnr=psnr_of(sum(sums[-100:]) / len(sums[-100:])),
                lr=float(note[0]),
            )
        if time.time() - saved > 120 or not going:
            saved = time.time()
            whole = {n: v.contiguous() for n, v in vae.state_dict().items()}
            save({"vae": whole, "average": whole | average, "step": step,
                  "optimizer": optimizer.state_dict()}, STATE)  # fmt: skip
    if not team.rank and options.score:
        log("vae_done", step=step, **_scores(load(), options.score))


def psnr_of(mse: float) -> float:
    """PSNR of signals in [-1, 1]."""
    return float(10 * torch.log10(torch.tensor(4 / mse)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("solve", "train"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--until", type=float, default=0.0, help="as in dit.py")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--past-mse", type=int, default=0, help="steps to count as done before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", type=int, default=160, help="windows to solve from, 256 px")
    parser.add_argument("--large", type=int, default=80, help="the same, 512 px")
    parser.add_argument("--score", type=int, default=6, help="clips to measure at the end")
    options = parser.parse_args()
    if options.command == "solve":
        torch.set_num_threads(options.threads)
        solve(options.small, options.large, options.seed, options.score)
    else:
        launch(train, options)


if __name__ == "__main__":
    main()
