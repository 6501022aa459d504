"""Solve the video VAE of the second world like the first one's, then train encoder and decoder.

    python training/pocket/scenery_vae.py solve
    python training/pocket/scenery_vae.py train --seconds 3600 [--bf16]
    python training/pocket/scenery_vae.py score

The closed form (`vae.py`) gives an affine encoder and its inverse. Training changes both (only the
decoder with `--freeze`), so that a latent also depends on pixels of neighbouring blocks. State
lives in runs/scenery_vae.pt (`vae`, `average`, `optimizer`, `step`, with `--adversary` also
`critic`), so that a run can resume.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import measures
import torch
import vae as video_vae
from scenery import Scene, random_scene, trajectory
from scenery_render import render
from state import DEVICE, RUNS, log, prepare, read, save
from torch import Tensor, nn

STATE = RUNS / "scenery_vae.pt"
HELD_OUT_SEED = 777
WINDOW, LENGTH = 128, 17
CANVASES: tuple[tuple[int, int], ...] = (
    (256, 256), (256, 448), (448, 256), (512, 512), (512, 512), (512, 896), (896, 512),
)  # fmt: skip
SECONDS = 5.0  # length of the longest clips that windows are cut from
WARM_STEPS, MSE_STEPS, SAVE_S = 50, 150, 180.0
NOISE = 0.05  # on the decoder's input, in standard deviations of the latents


def draw_window(rng: random.Random, grounds: str = "") -> Tensor:
    """A random window, uint8 (LENGTH, WINDOW, WINDOW, 3); half are near the first object."""
    scene = random_scene(rng, rng.choice((1.0, 2.0, SECONDS)))
    if grounds:
        scene = dataclasses.replace(scene, ground=rng.choice(grounds.split(",")))
    height, width = rng.choice(CANVASES)
    first = rng.randrange(0, 24) if rng.random() < 0.5 else rng.randrange(0, 104)
    top, left = rng.randrange(height - WINDOW + 1), rng.randrange(width - WINDOW + 1)
    if rng.random() < 0.5:
        x, y, radius = (float(v) for v in trajectory(scene.first, torch.tensor(first / 24)))
        pixel = 2 / min(height, width)
        row = (height / 2 - (y + rng.uniform(-1, 1) * radius) / pixel) - WINDOW / 2
        column = (width / 2 + (x + rng.uniform(-1, 1) * radius) / pixel) - WINDOW / 2
        top = max(0, min(height - WINDOW, round(row)))
        left = max(0, min(width - WINDOW, round(column)))
    crop = (top, left, WINDOW, WINDOW)
    return render([scene], LENGTH, (height, width), 24, first, crop)[0]


class Pool:
    """Training windows in memory, of which every batch replaces the `new_windows` oldest.

    A window takes longer to render on a CPU than a training step on it, so it is used repeatedly.
    """

    def __init__(
        self, rng: random.Random, draw: Callable[[random.Random], Tensor], size: int, new: int
    ) -> None:
        self.rng, self.draw, self.size, self.new_windows = rng, draw, size, new
        self.windows: list[Tensor] = []
        self.next = 0

    def batch(self, count: int) -> Tensor:
        """Signals (count, 3, F, S, S): 9 frames of 128 px or 17 of 96 px, half of them mirrored."""
        for _ in range(count if len(self.windows) < self.size else self.new_windows):
            if len(self.windows) < self.size:
                self.windows.append(self.draw(self.rng))
            else:
                self.windows[self.next] = self.draw(self.rng)
                self.next = (self.next + 1) % self.size
        frames, side = self.rng.choice(((9, 128), (9, 128), (17, 96)))
        out = []
        for _ in range(count):
            window = self.rng.choice(self.windows)
            first = self.rng.randrange(LENGTH - frames + 1)
            top, left = (self.rng.randrange(WINDOW - side + 1) for _ in range(2))
            cut = window[first : first + frames, top : top + side, left : left + side]
            out.append(cut.flip(2) if self.rng.random() < 0.5 else cut)
        return video_vae.to_signal(torch.stack(out))


def solve(options: argparse.Namespace) -> None:
    """Solve encoder and decoder in closed form from `--windows` windows."""
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    vae = video_vae.build().eval().requires_grad_(False)
    windows = [draw_window(rng, options.grounds) for _ in range(options.windows)]
    clips = [
        video_vae.to_signal(torch.stack(windows[i : i + 40])) for i in range(0, len(windows), 40)
    ]
    video_vae.solve_encoder(vae, clips)
    video_vae.solve_decoder(vae, clips[: max(1, len(clips) * 3 // 4)])
    save({"vae": vae.state_dict(), "average": vae.state_dict(), "step": 0, "affine": True}, STATE)
    log("scenery_vae_solve", windows=options.windows)


def encode(vae: Any, video: Tensor) -> Tensor:
    """Latent means (B, C, F', H/32, W/32) of signals."""
    return vae.encoder(video, causal=True)[:, : video_vae.LATENT_CHANNELS]


class Critic(nn.Module):
    """A patch discriminator of frames and their differences, with a stride of 8 pixels."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes = (6, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(sizes):
            layers += [nn.utils.spectral_norm(nn.Conv2d(i, o, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 3, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        """Scores (B * (F - 1), 1, H / 8, W / 8) of signals (B, 3, F, H, W)."""
        change = video[:, :, 1:] - video[:, :, :-1]
        pairs = torch.cat([video[:, :, 1:], 4 * change], dim=1)
        return self.layers(pairs.transpose(1, 2).flatten(0, 1))


@dataclasses.dataclass
class Adversary:
    """Critic, its optimizer, and the weight of the adversarial term in the decoder's loss."""

    critic: Critic
    optimizer: torch.optim.Optimizer
    weight: float

    def train_critic(self, out: Tensor, video: Tensor) -> None:
        """One optimizer step of the critic, with the hinge loss."""
        real, fake = self.critic(video), self.critic(out.detach())
        loss = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def decoder_loss(self, out: Tensor) -> Tensor:
        """The adversarial term of the decoder's loss."""
        return -self.weight * self.critic(out).mean()


@dataclasses.dataclass
class Run:
    """The state that a training run changes."""

    vae: Any
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int
    adversary: Adversary | None
    affine: video_vae.Transform | None  # the solved encoder, as long as it is frozen

    def encode(self, video: Tensor) -> Tensor:
        """Latent means of signals."""
        return encode(self.vae, video) if self.affine is None else self.affine(video)

    def save(self) -> None:
        """Write runs/scenery_vae.pt."""
        whole = {n: v.cpu() for n, v in self.vae.state_dict().items()}
        average = whole | {n: v.cpu() for n, v in self.average.items()}
        state = {"vae": whole, "average": average, "step": self.step,
                 "affine": self.affine is not None,
                 "optimizer": self.optimizer.state_dict()}  # fmt: skip
        if self.adversary is not None:
            state["critic"] = self.adversary.critic.state_dict()
            state["critic_optimizer"] = self.adversary.optimizer.state_dict()
        save(state, STATE)


def resume_training(options: argparse.Namespace) -> Run:
    """The state of runs/scenery_vae.pt, with an optimizer."""
    state = read(STATE)
    vae = video_vae.build().requires_grad_(False)
    vae.load_state_dict(state["vae"])
    vae.to(DEVICE)
    vae.decoder.requires_grad_(True)
    vae.encoder.requires_grad_(not options.freeze)
    named = [(n, p) for n, p in vae.named_parameters() if p.requires_grad]
    groups = [{"params": [p], "fan": p[0].numel() if p.dim() > 1 else 1,
               "share": 1.0 if n.startswith("decoder.") else options.encoder_share}
              for n, p in named]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    if "optimizer" in state and len(state["optimizer"]["param_groups"]) == len(groups):
        optimizer.load_state_dict(state["optimizer"])
    average = {n: state["average"][n].clone() for n, _ in named}
    adversary = None
    if options.adversary:
        critic = Critic().to(DEVICE)
        critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-4, betas=(0.5, 0.9))
        adversary = Adversary(critic, critic_optimizer, options.adversary)
        if "critic" in state:
            critic.load_state_dict(state["critic"])
            critic_optimizer.load_state_dict(state["critic_optimizer"])
    affine = None
    if options.freeze and state["affine"]:
        solved = video_vae.transform(vae)
        affine = video_vae.Transform(solved.weight.detach(), solved.bias.detach())
    return Run(vae, average, optimizer, state["step"], adversary, affine)


def take_step(run: Run, video: Tensor, options: argparse.Namespace, rate: float) -> Tensor:
    """One optimizer step at `rate` times the full rates; returns the mean squared error."""
    for group in run.optimizer.param_groups:
        group["lr"] = options.lr * rate * group["share"] * min(1.0, 500 / group["fan"])
    kind = torch.device(DEVICE).type
    with torch.autocast(kind, torch.bfloat16, enabled=options.bf16):
        std = run.vae.latents_std.view(1, -1, 1, 1, 1)
        latents = run.encode(video)
        noisy = latents + NOISE * std * torch.randn_like(latents)
        out = run.vae.decoder(noisy)
    out = out.float()
    loss = video_vae.reconstruction_loss(out, video, run.step < MSE_STEPS)
    if not options.freeze:  # otherwise latents grow to make the added noise irrelevant
        loss = loss + 1e-4 * (latents.float() / std).square().mean()
    if run.adversary is not None:
        run.adversary.train_critic(out, video)
        loss = loss + run.adversary.decoder_loss(out)
    run.optimizer.zero_grad()
    loss.backward()
    weights = [p for group in run.optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(weights, 1.0)
    run.optimizer.step()
    run.step += 1
    decay = min(0.998, (run.step + 1) / (run.step + 20))
    with torch.no_grad():
        values = dict(run.vae.named_parameters())
        for name, value in run.average.items():
            value.lerp_(values[name], 1 - decay)
    return (out - video).detach().square().mean()


def train(options: argparse.Namespace) -> None:
    """Train for `--seconds`, from runs/scenery_vae.pt; the rates fall over the last part."""
    run = resume_training(options)
    rng = random.Random(options.seed + 7919 * run.step)
    torch.manual_seed(options.seed + run.step)
    pool = Pool(
        rng,
        lambda r: draw_window(r, options.grounds),
        options.pool,
        options.fresh or options.batch,
    )
    clock = time.process_time if options.cpu_clock else time.time
    start, saved = clock(), time.time()
    first, errors = run.step, []
    while (elapsed := (clock() - start) / options.seconds) < 1:
        rate = min(1.0, (run.step - first + 1) / WARM_STEPS)
        rate *= min(1.0, 0.05 + (1 - elapsed) / options.decay)
        errors.append(take_step(run, pool.batch(options.batch), options, rate))
        if run.step % 50 == 0:
            mse = float(torch.stack(errors[-50:]).mean())
            log("scenery_vae", step=run.step, psnr=signal_psnr(mse), elapsed=clock() - start)
        if time.time() - saved > SAVE_S:
            run.save()
            saved = time.time()
    measure_statistics(run, pool)
    run.save()


@torch.no_grad()
def measure_statistics(run: Run, pool: Pool) -> None:
    """Store means of the latents, and standard deviations drawn halfway (in log) to their RMS."""
    vae = copy.deepcopy(run.vae)
    vae.load_state_dict(vae.state_dict() | run.average)
    count = 16 if pool.size > 64 else 2
    latents = [encode(vae, pool.batch(8)).float().transpose(0, 1).flatten(1) for _ in range(count)]
    rows = torch.cat(latents, dim=1)
    std = rows.std(1)
    run.vae.latents_mean.copy_(rows.mean(1))
    run.vae.latents_std.copy_((std * std.square().mean().sqrt()).sqrt())


def signal_psnr(mse: float) -> float:
    """PSNR in dB for a mean squared error of signals in [-1, 1]."""
    return float(10 * torch.log10(torch.tensor(4 / mse)))


def load(average: bool = True) -> Any:
    """The VAE of runs/scenery_vae.pt, frozen; by default with its averaged weights."""
    vae = video_vae.build().eval().requires_grad_(False)
    vae.load_state_dict(read(STATE)["average" if average else "vae"])
    vae.decoder.to(memory_format=torch.channels_last_3d)
    return vae.to(DEVICE)


def held_out(count: int, grounds: str = "") -> list[Scene]:
    """Test scenes, from a seed that no training run uses."""
    rng = random.Random(HELD_OUT_SEED)
    scenes = [random_scene(rng) for _ in range(count)]
    if grounds:
        names = grounds.split(",")
        scenes = [dataclasses.replace(s, ground=names[i % len(names)])
                  for i, s in enumerate(scenes)]  # fmt: skip
    return scenes


@torch.no_grad()
def reconstruct(vae: Any, pixels: Tensor) -> Tensor:
    """Encode and decode uint8 clips (B, F, H, W, 3)."""
    return torch.cat([
        video_vae.decode(vae, encode(vae, video_vae.to_signal(p[None])))
        for p in pixels
    ])  # fmt: skip


def score(vae: Any, scenes: list[Scene], size: int, frames: int = 17) -> dict[str, float]:
    """Means over scenes of PSNR, edges, high band, halo and stains of clips through the VAE."""
    rows = []
    for scene in scenes:
        true = render([scene], frames, size)[0]
        reconstructed = reconstruct(vae, true[None])[0]
        got, reference = measures.detail(reconstructed), measures.detail(true)
        rows.append({
            "psnr": measures.psnr(reconstructed, true),
            "edges": got["edges"],
            "edges true": reference["edges"],
            "high kept": got["high"] - reference["high"],
            "halo": measures.halo(reconstructed, true),
            "stains": measures.flat_region_error(reconstructed, true),
        })  # fmt: skip
    return measures.averages(rows)


def report(options: argparse.Namespace) -> None:
    """Log `score` at both sizes."""
    torch.set_grad_enabled(False)
    vae = load()
    scenes = held_out(options.score, options.grounds)
    for size in (256, 512):
        log("scenery_vae_score", size=size, clips=len(scenes), **score(vae, scenes, size))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("solve", "train", "score"))
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--decay", type=float, default=0.4, help="last part of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--freeze", action="store_true", help="train the decoder alone")
    parser.add_argument("--encoder-share", type=float, default=0.5, help="of the rates")
    parser.add_argument("--cpu-clock", action="store_true", help="count processor time")
    parser.add_argument("--adversary", type=float, default=0.0, help="weight; 0 means none")
    parser.add_argument("--grounds", default="", help="only these, such as wood,water")
    parser.add_argument("--windows", type=int, default=320, help="to solve from")
    parser.add_argument("--pool", type=int, default=600)
    parser.add_argument("--fresh", type=int, default=3, help="new windows per step; 0: all")
    parser.add_argument("--score", type=int, default=12, help="clips")
    options = parser.parse_args()
    prepare(options.threads)
    {"solve": solve, "train": train, "score": report}[options.command](options)


if __name__ == "__main__":
    main()
