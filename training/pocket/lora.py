"""Train the distilled LoRA, which refines upsampled latents at 512 px in two or three steps.

    python training/pocket/lora.py --seconds 900

The transformer stays frozen. At the noise levels of the refine stage the adapters learn to predict
the true 512 px latents of a scene from its noisy *upsampled* latents, without guidance. Input and
target differ in detail, so the second stage learns to add detail. Generated drafts are imperfect;
to imitate them, most of the small latents are degraded first: some by noise, some by the
transformer itself (partly noised and denoised under guidance, which keeps the scene and adds the
transformer's own errors). State: runs/lora.pt.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from typing import Any

import dit
import sampling
import torch
import upsampler
import worlds
from state import RUNS, generator, log, read, save
from team import Team, launch
from torch import Tensor, nn
from vae import denormalize, normalize

from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream

world, cache = worlds.module("world"), worlds.module("cache")
vae_train = worlds.module("vae_train")

STATE = RUNS / "lora.pt"
RANK = 16
LEVELS = (0.909375, 0.725, 0.421875)  # sigmas of the distilled schedule
SPAN = (0.15, 0.9)  # range of the uniform sigmas, which most samples use
DRAFT_SHARE = 0.7  # share of samples whose small latents come from a draft
DRAFTS = 384  # drafts that each process generates before training
DRAFT_SIGMAS = ((0.85, 0.65, 0.4, 0.15, 0.0), (0.7, 0.45, 0.2, 0.0), (0.5, 0.25, 0.0))


class LoraLinear(nn.Module):
    """A frozen Linear plus a trainable low-rank branch, B A x."""

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


def add_adapters(net: nn.Module, rank: int = RANK) -> dict[str, LoraLinear]:
    """Replace every Linear of the network by a `LoraLinear`; returns those by module name."""
    linears = [
        (n, m) for n, m in net.named_modules() if getattr(m, "weight", None) is not None
        and m.weight.dim() == 2
    ]  # fmt: skip
    out = {}
    for name, module in linears:
        parent, _, leaf = name.rpartition(".")
        out[name] = LoraLinear(module, rank)
        parent_module = net.get_submodule(parent) if parent else net
        parent_module._modules[leaf] = out[name]
    return out


def adapter_tensors(adapters: dict[str, LoraLinear]) -> dict[str, Tensor]:
    """The adapters' weights under the names of the LoRA file."""
    out = {}
    for name, module in adapters.items():
        out[f"diffusion_model.{name}.lora_A.weight"] = module.lora_A.detach().clone()
        out[f"diffusion_model.{name}.lora_B.weight"] = module.lora_B.detach().clone()
    return out


def restore(adapters: dict[str, LoraLinear], state: dict[str, Tensor]) -> None:
    """Copy the weights of `adapter_tensors` into adapters."""
    with torch.no_grad():
        for name, module in adapters.items():
            module.lora_A.copy_(state[f"diffusion_model.{name}.lora_A.weight"])
            module.lora_B.copy_(state[f"diffusion_model.{name}.lora_B.weight"])


@dataclasses.dataclass
class Sample:
    """Tokens of one batch: upsampled and true video, true audio, and the captions."""

    up: Tensor
    high: Tensor
    audio: Tensor
    prompts: list[str]


class RefineSource:
    """Random training batches: upsampled and true 512 px latents of the same scenes."""

    def __init__(self, seed: int) -> None:
        self.vae = vae_train.load()
        self.paired_cache = cache.open_paired_cache()
        self.latent_upsampler = upsampler.load_upsampler()
        self.sounds = dit.SoundCache(8 * dit.LENGTH - 7)
        self.noise = generator(seed)
        self.random = random.Random(seed)
        self.drafts: list[tuple[Tensor, Tensor, Any]] = []

    @torch.no_grad()
    def make_drafts(self, model: dit.PocketModel, count: int, batch: int = 16) -> None:
        """Add `count` scenes whose small latents are degraded by the transformer."""
        for number in range(count // batch):
            small, high, scenes = self.paired_cache.sample(self.random, batch)
            prompts = [world.caption(s, self.random) for s in scenes]
            grid = tuple(small.shape[2:])
            sigmas = list(DRAFT_SIGMAS[number % len(DRAFT_SIGMAS)])
            denoise = sampling.GuidedDenoiser.from_prompts(model, prompts, grid, 3.0)
            video = self.add_noise(dit.video_tokens(small), sigmas[0])
            audio = self.add_noise(self.sounds(scenes, 25), sigmas[0])
            video, _ = sampling.euler(denoise, video, audio, sigmas)
            drafts = video.transpose(1, 2).unflatten(2, grid).half()
            self.drafts.extend(zip(drafts, high.half(), scenes, strict=True))

    def add_noise(self, x: Tensor, sigma: float) -> Tensor:
        """(1 - sigma) x + sigma noise, with new noise."""
        return (1 - sigma) * x + sigma * torch.randn(x.shape, generator=self.noise)

    @torch.no_grad()
    def sample(self, count: int) -> Sample:
        """A batch of which `DRAFT_SHARE` use drafts and the rest true latents, some with noise."""
        small, high, scenes = self.paired_cache.sample(self.random, count)
        noise_scale = (torch.rand(count, 1, 1, 1, 1, generator=self.noise) - 0.4).clamp(min=0) * 0.4
        small = small + noise_scale * torch.randn(small.shape, generator=self.noise)
        for i in range(count if self.drafts else 0):
            if self.random.random() < DRAFT_SHARE:
                low, large, scenes[i] = self.random.choice(self.drafts)
                small[i], high[i] = low.float(), large.float()
        up = normalize(self.vae, self.latent_upsampler(denormalize(self.vae, small)))
        prompts = [world.caption(s, self.random) for s in scenes]
        audio = self.sounds(scenes, 25)
        return Sample(dit.video_tokens(up), dit.video_tokens(high), audio, prompts)


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Random sigmas (count,): 70 % uniform in `SPAN`, the rest from `LEVELS`."""
    low, high = SPAN
    uniform = low + (high - low) * torch.rand(count, generator=generator)
    schedule_levels = torch.tensor(LEVELS)[
        torch.randint(len(LEVELS), (count,), generator=generator)
    ]
    return torch.where(torch.rand(count, generator=generator) < 0.7, uniform, schedule_levels)


def compute_losses(
    model: dit.PocketModel, batch: Sample, generator: torch.Generator
) -> dict[str, Tensor]:
    """`loss`: squared errors of x0 over sigma, both streams; `video`: the video's, unweighted."""
    count = len(batch.up)
    sigma = noise_levels(count, generator)
    level = sigma[:, None, None]
    with torch.no_grad():
        contexts = model.tower(batch.prompts)
    # at low sigma the refine stage sees partly refined latents
    mix = torch.rand(count, 1, 1, generator=generator) * (level < 0.7)
    clean = (1 - mix) * batch.up + mix * batch.high
    x = (1 - level) * clean + level * torch.randn(clean.shape, generator=generator)
    noise = torch.randn(batch.audio.shape, generator=generator)
    x_a = (1 - level) * batch.audio + level * noise
    config = model.net.config
    prepared_video = prepare_stream(config, video_positions(4, 16, 16, dit.FPS), contexts[0])
    prepared_audio = prepare_stream(config, audio_positions(x_a.shape[1]), contexts[1])
    v, a = model.net(StreamInput(prepared_video, x, sigma), StreamInput(prepared_audio, x_a, sigma))
    error = (x - level * v - batch.high).square()
    error_a = (x_a - level * a - batch.audio).square()
    return {
        "loss": (error / level).mean() + 0.3 * (error_a / level).mean(),
        "video": error.mean().detach(),
    }


def train(options: argparse.Namespace, team: Team) -> None:
    """Train the adapters for `--seconds`, from runs/lora.pt where it exists."""
    torch.manual_seed(options.seed)
    model = dit.load_model()
    source = RefineSource(options.seed + int(time.time()) % 1000 + 1000 * team.rank)
    source.make_drafts(model, options.drafts)
    for weight in model.parameters():
        weight.requires_grad_(False)
    adapters = add_adapters(model.net)
    step = 0
    if STATE.exists():
        state = read(STATE)
        restore(adapters, state["lora"])
        step = state["step"]
    weights = [p for m in adapters.values() for p in (m.lora_A, m.lora_B)]
    if options.compile:
        dit.compile_blocks(model.net)
    with torch.no_grad():
        team.broadcast({str(i): w.data for i, w in enumerate(weights)})
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    last_save = time.time()
    start = options.until - options.seconds if options.until else last_save
    recent_losses: list[tuple[float, float]] = []
    steps_done, running = 0, True
    while running:
        batch = source.sample(options.batch // team.size)
        losses = compute_losses(model, batch, source.noise)
        losses["loss"].backward()
        elapsed = (time.time() - start) / options.seconds
        rate = min(1.0, (steps_done + 1) / 40) * max(0.0, min(1.0, 2 * (1 - elapsed) + 0.02))
        message = team.average_gradients(weights, torch.tensor([rate, float(elapsed < 1)]))
        rate, running = float(message[0]), bool(message[1])
        optimizer.param_groups[0]["lr"] = options.lr * rate
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, steps_done = step + 1, steps_done + 1
        if team.rank:
            continue
        base = float((batch.up - batch.high).square().mean())
        recent_losses.append((float(losses["video"]), base))
        if step % 20 == 0:
            got, before = (sum(v) / len(v) for v in zip(*recent_losses[-100:], strict=True))
            log("lora", step=step, error=got, upsampled_error=before, rate=rate)
        if time.time() - last_save > 90 or not running:
            last_save = time.time()
            save({"lora": adapter_tensors(adapters), "step": step}, STATE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--until", type=float, default=0.0, help="as in dit.py")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--drafts", type=int, default=DRAFTS)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="as in dit.py")
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
