"""The distilled LoRA: refinement at 512 px of what the upsampler gives, in two to four steps.

    python training/pocket/lora.py --seconds 900

The transformer stays frozen. The adapters learn to make true 512 px latents of noised *upsampled*
ones without guidance, at the places of the step lists that `refine.denoise` gives: the steps before
such a place are walked first, so that training sees what sampling will see. Half of the small
latents are drafts of the transformer's own, whose true clip was solved for (drafts.py); the others
are true, some a little noisy. Squared errors alone would shrink what is uncertain, so the size of
every channel in every neighbourhood counts too. State: runs/lora.pt.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time

import dit
import drafts
import torch
import upsampler
import world
from cache import Twins
from state import RUNS, log, save
from team import Team, launch
from torch import Tensor, nn
from vae import denormalize, normalize, transform
from vae_train import load

from latent_ladder.models.rope import audio_positions, video_positions
from latent_ladder.models.streams import StreamInput, stream_stage
from latent_ladder.sampling.schedules import shifted, unshifted

STATE = RUNS / "lora.pt"
RANK = 16
STARTS = ((0.25, 0.88, 0.7), (0.88, 0.97, 0.22), (1.0, 1.0, 0.08))
"""(lowest, highest, share) of the noise levels from which a step list starts."""
SHIFTS = (0.95, 0.95, 2.37)  # of the lists: the pocket preset's and ComfyUI's for LTX
STEPS = (2, 3, 3, 4)
POWER = 0.3  # weight of the size of channels beside squared errors


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
    """Upsampled and true 512 px latents of the same scenes."""

    def __init__(self, seed: int) -> None:
        self.vae = load()
        self.twins = Twins(transform(self.vae, normalized=True))
        self.zoom = upsampler.trained()
        self.sounds = dit.Sounds(33)
        self.noise = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)
        self.drafts = drafts.kept()
        self.share = upsampler.channel_weights(self.vae).flatten()

    @torch.no_grad()
    def sample(self, count: int) -> Sample:
        """Half of the batch (rounded down) from drafts, the rest from true latents, part noisy."""
        small, high, scenes = self.twins.sample(self.random, count)
        rough = (torch.rand(count, 1, 1, 1, 1, generator=self.noise) - 0.4).clamp(min=0) * 0.4
        small = small + rough * torch.randn(small.shape, generator=self.noise)
        for i in range(count // 2 if self.drafts else 0):
            low, large, scenes[i] = self.random.choice(self.drafts)
            small[i], high[i] = low.float(), large.float()
        up = normalize(self.vae, self.zoom(denormalize(self.vae, small)))
        prompts = [world.caption(s, self.random) for s in scenes]
        audio = self.sounds(scenes, 25)
        return Sample(dit.video_tokens(up), dit.video_tokens(high), audio, prompts)


def step_lists(count: int, rng: random.Random) -> tuple[Tensor, int]:
    """Sigmas (count, steps + 1) of lists of one length, and the place that is trained."""
    steps = rng.choice(STEPS)
    lists = []
    for _ in range(count):
        low, high, _ = rng.choices(STARTS, [share for _, _, share in STARTS])[0]
        shift = rng.choice(SHIFTS)
        first = unshifted(rng.uniform(low, high), shift)
        lists.append([shifted(first * (1 - i / steps), shift) for i in range(steps + 1)])
    return torch.tensor(lists), rng.randrange(steps)


def power(tokens: Tensor) -> Tensor:
    """Size (B, C, 8, 8) of every channel in 2 x 2 neighbours of all frames; tokens (B, 1024, C)."""
    squares = tokens.transpose(1, 2).unflatten(2, (4, 16, 16)).square().mean(2)
    return (nn.functional.avg_pool2d(squares, 2) + 1e-3).sqrt()


def loss_of(trainee: dit.Trainee, batch: Sample, source: Pairs) -> dict[str, Tensor]:
    """`loss` (errors of x0 over sigma, both streams) and the plain error of the video."""
    sigmas, place = step_lists(len(batch.up), source.random)
    level = sigmas[:, 0, None, None]
    with torch.no_grad():
        contexts = trainee.tower(batch.prompts)
    x, x_a = (
        (1 - level) * clean + level * torch.randn(clean.shape, generator=source.noise)
        for clean in (batch.up, batch.audio)
    )
    config = trainee.net.config
    stage_v = stream_stage(config, video_positions(4, 16, 16, dit.FPS), contexts[0])
    stage_a = stream_stage(config, audio_positions(x_a.shape[1]), contexts[1])
    for i in range(place + 1):
        sigma, level = sigmas[:, i], sigmas[:, i, None, None]
        with torch.set_grad_enabled(i == place):
            v, a = trainee.net(StreamInput(stage_v, x, sigma), StreamInput(stage_a, x_a, sigma))
        if i < place:
            change = sigmas[:, i + 1, None, None] - level
            x, x_a = x + change * v, x_a + change * a
    x0 = x - level * v
    error = (x0 - batch.high).square()
    error_a = (x_a - level * a - batch.audio).square()
    sizes = (power(x0) - power(batch.high)).square() * source.share.view(1, -1, 1, 1)
    return {
        "loss": (error * source.share / level).mean()
        + POWER * (sizes / level[..., None]).mean()
        + 0.3 * (error_a / level).mean(),
        "video": error.mean().detach(),
    }


def train(options: argparse.Namespace, team: Team) -> None:
    """Train the adapters for a time; resumable."""
    torch.manual_seed(options.seed)
    trainee = dit.trained()
    source = Pairs(options.seed + int(time.time()) % 1000 + 1000 * team.rank)
    for weight in trainee.parameters():
        weight.requires_grad_(False)
    adapters = adapt(trainee.net)
    step = 0
    if STATE.exists():
        state = torch.load(STATE, weights_only=True)
        restore(adapters, state["lora"])
        step = state["step"]
    weights = [p for m in adapters.values() for p in (m.lora_A, m.lora_B)]
    with torch.no_grad():
        team.same({str(i): w.data for i, w in enumerate(weights)})
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)
    saved = time.time()
    start = options.until - options.seconds if options.until else saved
    sums: list[tuple[float, float]] = []
    taken, going = 0, True
    while going:
        batch = source.sample(options.batch // team.size)
        losses = loss_of(trainee, batch, source)
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
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
