"""The distilled LoRA: refinement at 512 px of what the upsampler gives, in two or three steps.

    python training/pocket/lora.py --seconds 900

The transformer stays frozen. The adapters learn, at the noise levels of the refine stage, to
see through the noise on *upsampled* latents to the true 512 px latents of the same scene, without
guidance: target and input come from different pictures, so the second stage adds true detail.
Drafts are imperfect, so most of the small latents are made so first: some by noise, some by the
transformer itself (true latents noised half way and denoised again under guidance, which keeps the
scene and puts the transformer's own faults in). State: runs/lora.pt.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time

import dit
import sampling
import torch
import upsampler
import world
from cache import Twins
from state import RUNS, log, save
from team import Team, launch
from torch import Tensor, nn
from vae import denormalize, normalize, transform
from vae_train import load

from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream

STATE = RUNS / "lora.pt"
RANK = 16
LEVELS = (0.909375, 0.725, 0.421875)  # of the distilled schedule; most steps draw from SPAN
SPAN = (0.15, 0.9)
DRAFTED = 0.7
DRAFTS = 384  # imperfect drafts that every process makes before it starts
DRAFT_LEVELS = ((0.85, 0.65, 0.4, 0.15, 0.0), (0.7, 0.45, 0.2, 0.0), (0.5, 0.25, 0.0))


class Adapted(nn.Module):
    """A Linear with a low-rank branch beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        out, inner = base.weight.shape
        rank = min(rank, out, inner)
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(rank, inner) * inner**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(out, rank))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.base.weight.dtype

    @property
    def in_features(self) -> int:
        return self.base.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.base.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + nn.functional.linear(
            nn.functional.linear(x, self.lora_A), self.lora_B
        )


def adapt(net: nn.Module, rank: int = RANK) -> dict[str, Adapted]:
    """Replace every Linear of the network; the adapters by module name."""
    found = [
        (n, m) for n, m in net.named_modules() if getattr(m, "weight", None) is not None
        and m.weight.dim() == 2
    ]  # fmt: skip
    out = {}
    for name, module in found:
        parent, _, leaf = name.rpartition(".")
        out[name] = Adapted(module, rank)
        holder = net.get_submodule(parent) if parent else net
        holder._modules[leaf] = out[name]
    return out


def tensors(adapters: dict[str, Adapted]) -> dict[str, Tensor]:
    """Under the names of the LoRA file."""
    out = {}
    for name, module in adapters.items():
        out[f"diffusion_model.{name}.lora_A.weight"] = module.lora_A.detach().clone()
        out[f"diffusion_model.{name}.lora_B.weight"] = module.lora_B.detach().clone()
    return out


def restore(adapters: dict[str, Adapted], state: dict[str, Tensor]) -> None:
    """Fill adapters from `tensors`."""
    with torch.no_grad():
        for name, module in adapters.items():
            module.lora_A.copy_(state[f"diffusion_model.{name}.lora_A.weight"])
            module.lora_B.copy_(state[f"diffusion_model.{name}.lora_B.weight"])


@dataclasses.dataclass
class Sample:
    """Tokens of one batch: upsampled and true video, true sound, and the captions."""

    up: Tensor
    high: Tensor
    audio: Tensor
    prompts: list[str]


class Pairs:
    """Upsampled and true 512 px latents of the same freshly coloured scenes."""

    def __init__(self, seed: int) -> None:
        self.vae = load()
        self.twins = Twins(transform(self.vae, normalized=True))
        self.zoom = upsampler.trained()
        self.sounds = dit.Sounds(33)
        self.noise = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)
        self.drafts: list[tuple[Tensor, Tensor, world.Scene]] = []

    @torch.no_grad()
    def draft(self, trainee: dit.Trainee, count: int, batch: int = 16) -> None:
        """Add `count` scenes whose small latents went through the transformer."""
        for number in range(count // batch):
            small, high, scenes = self.twins.sample(self.random, batch)
            prompts = [world.caption(s, self.random) for s in scenes]
            grid = tuple(small.shape[2:])
            sigmas = list(DRAFT_LEVELS[number % len(DRAFT_LEVELS)])
            denoise = sampling.Guided.of(trainee, prompts, grid, 3.0)
            video = self.noised(dit.video_tokens(small), sigmas[0])
            audio = self.noised(self.sounds(scenes, 25), sigmas[0])
            video, _ = sampling.euler(denoise, video, audio, sigmas)
            rough = video.transpose(1, 2).unflatten(2, grid).half()
            self.drafts.extend(zip(rough, high.half(), scenes, strict=True))

    def noised(self, x: Tensor, sigma: float) -> Tensor:
        """The flow's mixture with fresh noise."""
        return (1 - sigma) * x + sigma * torch.randn(x.shape, generator=self.noise)

    @torch.no_grad()
    def sample(self, count: int) -> Sample:
        """A share of `DRAFTED` from drafts, the rest from true latents, part of them noisy."""
        small, high, scenes = self.twins.sample(self.random, count)
        rough = (torch.rand(count, 1, 1, 1, 1, generator=self.noise) - 0.4).clamp(min=0) * 0.4
        small = small + rough * torch.randn(small.shape, generator=self.noise)
        for i in range(count if self.drafts else 0):
            if self.random.random() < DRAFTED:
                low, large, scenes[i] = self.random.choice(self.drafts)
                small[i], high[i] = low.float(), large.float()
        up = normalize(self.vae, self.zoom(denormalize(self.vae, small)))
        prompts = [world.caption(s, self.random) for s in scenes]
        audio = self.sounds(scenes, 25)
        return Sample(dit.video_tokens(up), dit.video_tokens(high), audio, prompts)


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Sigmas (count,) of a batch."""
    low, high = SPAN
    even = low + (high - low) * torch.rand(count, generator=generator)
    named = torch.tensor(LEVELS)[torch.randint(len(LEVELS), (count,), generator=generator)]
    return torch.where(torch.rand(count, generator=generator) < 0.7, even, named)


def loss_of(trainee: dit.Trainee, batch: Sample, generator: torch.Generator) -> dict[str, Tensor]:
    """`loss` (squared errors of x0 over sigma, both streams) and the plain error of the video."""
    count = len(batch.up)
    sigma = noise_levels(count, generator)
    level = sigma[:, None, None]
    with torch.no_grad():
        contexts = trainee.tower(batch.prompts)
    # later steps start from partly refined latents
    mix = torch.rand(count, 1, 1, generator=generator) * (level < 0.7)
    clean = (1 - mix) * batch.up + mix * batch.high
    x = (1 - level) * clean + level * torch.randn(clean.shape, generator=generator)
    noise = torch.randn(batch.audio.shape, generator=generator)
    x_a = (1 - level) * batch.audio + level * noise
    config = trainee.net.config
    stage_v = prepare_stream(config, video_positions(4, 16, 16, dit.FPS), contexts[0])
    stage_a = prepare_stream(config, audio_positions(x_a.shape[1]), contexts[1])
    v, a = trainee.net(StreamInput(stage_v, x, sigma), StreamInput(stage_a, x_a, sigma))
    error = (x - level * v - batch.high).square()
    error_a = (x_a - level * a - batch.audio).square()
    return {
        "loss": (error / level).mean() + 0.3 * (error_a / level).mean(),
        "video": error.mean().detach(),
    }


def train(options: argparse.Namespace, team: Team) -> None:
    """Train the adapters for a time; resumable."""
    torch.manual_seed(options.seed)
    trainee = dit.trained()
    source = Pairs(options.seed + int(time.time()) % 1000 + 1000 * team.rank)
    source.draft(trainee, options.drafts)
    for weight in trainee.parameters():
        weight.requires_grad_(False)
    adapters = adapt(trainee.net)
    step = 0
    if STATE.exists():
        state = torch.load(STATE, weights_only=True)
        restore(adapters, state["lora"])
        step = state["step"]
    weights = [p for m in adapters.values() for p in (m.lora_A, m.lora_B)]
    if options.compile:
        dit.compile_blocks(trainee.net)
    with torch.no_grad():
        team.same({str(i): w.data for i, w in enumerate(weights)})
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    saved = time.time()
    start = options.until - options.seconds if options.until else saved
    sums: list[tuple[float, float]] = []
    taken, going = 0, True
    while going:
        batch = source.sample(options.batch // team.size)
        losses = loss_of(trainee, batch, source.noise)
        losses["loss"].backward()
        gone = (time.time() - start) / options.seconds
        rate = min(1.0, (taken + 1) / 40) * max(0.0, min(1.0, 2 * (1 - gone) + 0.02))
        note = team.average(weights, torch.tensor([rate, float(gone < 1)]))
        rate, going = float(note[0]), bool(note[1])
        optimizer.param_groups[0]["lr"] = options.lr * rate
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, taken = step + 1, taken + 1
        if team.rank:
            continue
        base = float((batch.up - batch.high).square().mean())
        sums.append((float(losses["video"]), base))
        if step % 20 == 0:
            got, before = (sum(v) / len(v) for v in zip(*sums[-100:], strict=True))
            log("lora", step=step, error=got, upsampled_error=before, rate=rate)
        if time.time() - saved > 90 or not going:
            saved = time.time()
            save({"lora": tensors(adapters), "step": step}, STATE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--until", type=float, default=0.0, help="as in dit.py")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--drafts", type=int, default=DRAFTS)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="as in dit.py")
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
