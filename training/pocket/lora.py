"""The distilled LoRA: one-pass refinement at 512 px of what the upsampler gives.

    python training/pocket/lora.py --seconds 900

The transformer stays frozen. The adapters learn, at the noise levels of the refine stage, to
see through the noise on *upsampled* latents to the true 512 px latents of the same scene, without
guidance: target and input come from different pictures, so the second stage adds true detail. In
part of the batches the small latents are first made imperfect, as generated ones are. State:
runs/lora.pt.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import dit
import torch
import upsampler
import world
from cache import Twins
from torch import Tensor, nn
from vae import denormalize, normalize, transform
from vae_train import RUNS, load, log, save

from latent_ladder.models.rope import audio_positions, video_positions
from latent_ladder.models.streams import StreamInput, stream_stage

STATE = RUNS / "lora.pt"
RANK = 16
SIGMAS = (0.725, 0.421875, 0.421875)  # from .909 on, the short training could not keep the picture


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


class Pairs:
    """Upsampled and true 512 px latents of the same freshly coloured scene."""

    def __init__(self, seed: int) -> None:
        self.vae = load()
        self.twins = Twins(transform(self.vae, normalized=True))
        self.zoom = upsampler.trained()
        self.sounds = dit.Sounds(33)
        self.rng = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)

    @torch.no_grad()
    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor, list[world.Scene]]:
        """(upsampled tokens, true tokens, audio tokens, scenes)."""
        small, high, scenes = self.twins.sample(self.random, count)
        rough = (torch.rand(count, 1, 1, 1, 1, generator=self.rng) - 0.3).clamp(min=0) * 0.5
        small = small + rough * torch.randn(small.shape, generator=self.rng)
        up = normalize(self.vae, self.zoom(denormalize(self.vae, small)))
        audio = self.sounds(scenes, 25)
        return dit.video_tokens(up), dit.video_tokens(high), audio, scenes


def train(options: argparse.Namespace) -> None:
    """Train the adapters for a time; resumable."""
    torch.manual_seed(options.seed)
    trainee = dit.trained()
    for weight in trainee.parameters():
        weight.requires_grad_(False)
    adapters = adapt(trainee.net)
    step = 0
    if STATE.exists():
        state = torch.load(STATE, weights_only=True)
        restore(adapters, state["lora"])
        step = state["step"]
    weights = [p for m in adapters.values() for p in (m.lora_A, m.lora_B)]
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    source = Pairs(options.seed + step)
    grid = (4, 16, 16)
    config = trainee.net.config
    places, places_a = video_positions(*grid, dit.FPS), None
    start, saved, sums = time.time(), time.time(), []
    while (gone := time.time() - start) < options.seconds:
        lr = (
            options.lr
            * min(1.0, (step + 1) / 50)
            * min(1.0, 2 * (1 - gone / options.seconds) + 0.02)
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        up, high, audio, scenes = source.sample(options.batch)
        prompts = [world.caption(s, source.random) for s in scenes]
        with torch.no_grad():
            contexts = trainee.tower(prompts)
        places_a = audio_positions(audio.shape[1])
        pick = torch.randint(len(SIGMAS), (options.batch,), generator=source.rng)
        sigma = torch.tensor(SIGMAS)[pick]
        level = sigma[:, None, None]
        mix = torch.rand(options.batch, 1, 1, generator=source.rng) * (level < 0.9)
        clean = (1 - mix) * up + mix * high  # later steps start from partly refined latents
        x = (1 - level) * clean + level * torch.randn(up.shape, generator=source.rng)
        x_a = (1 - level) * audio + level * torch.randn(audio.shape, generator=source.rng)
        stage_v = stream_stage(config, places, contexts[0])
        stage_a = stream_stage(config, places_a, contexts[1])
        v, a = trainee.net(StreamInput(stage_v, x, sigma), StreamInput(stage_a, x_a, sigma))
        error = (x - level * v - high).square().mean()
        error_a = (x_a - level * a - audio).square().mean()
        optimizer.zero_grad()
        (error + 0.3 * error_a).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        base = float((up - high).square().mean())
        sums.append((float(error.detach()), base))
        if step % 20 == 0:
            got, before = (sum(v) / len(v) for v in zip(*sums[-60:], strict=True))
            log("lora", step=step, error=got, upsampled_error=before, lr=lr)
        if time.time() - saved > 90:
            saved = time.time()
            save({"lora": tensors(adapters), "step": step}, STATE)
    save({"lora": tensors(adapters), "step": step}, STATE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
