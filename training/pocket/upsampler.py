"""The x2 latent upsampler of the pocket model.

    python training/pocket/upsampler.py solve
    python training/pocket/upsampler.py train --seconds 500

Solved first: constant channels keep the group norms and activations nearly linear, so the network
can start as the ridge regression from 3 x 3 small latents to 2 x 2 large ones. Then its residual
blocks learn what is not linear, beside the solved path, which stays. It works on raw (not
normalised) latents like the official one.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch
import worlds
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from state import DEVICE, RUNS, log, prepare, read, save
from team import Team, launch
from torch import Tensor, nn
from vae import LATENT_CHANNELS, _ridge, denormalize, normalize

cache, vae_train = worlds.module("cache"), worlds.module("vae_train")
STATE = RUNS / "upsampler.pt"
MID = 128
CONSTANT = 30.0  # keeps group norms linear
GAIN = 0.02  # keeps the later activations linear
HELD_OUT_SEED = 555


def build() -> LTX2LatentUpsamplerModel:
    """The 2.3 x2 structure, one block per stage."""
    return LTX2LatentUpsamplerModel(
        in_channels=LATENT_CHANNELS,
        mid_channels=MID,
        num_blocks_per_stage=1,
        dims=3,
        spatial_upsample=True,
        temporal_upsample=False,
        rational_spatial_scale=2.0,
        use_rational_resampler=False,
    )


def config() -> dict[str, Any]:
    """The header `config` of the upsampler file."""
    return {
        "_class_name": "LatentUpsampler",
        "in_channels": LATENT_CHANNELS,
        "mid_channels": MID,
        "num_blocks_per_stage": 1,
        "dims": 3,
        "spatial_upsample": True,
        "temporal_upsample": False,
        "spatial_scale": 2.0,
        "rational_resampler": False,
    }


def pairs(vae: Any, twins: Any, count: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Raw latents (N, C, 4, 8, 8) and (N, C, 4, 16, 16) of the same scenes."""
    rng = random.Random(HELD_OUT_SEED if held_out else 11)
    low, high, _ = twins.sample(rng, count, held_out)
    return denormalize(vae, low), denormalize(vae, high)


def _signal() -> Tensor:
    """Indices of the channels that carry latents: two of every group of four."""
    return torch.tensor([c for c in range(MID) if c % 4 < 2])


def _constants(bias: Tensor) -> None:
    """The other two of every group are +K and -K."""
    bias[2::4], bias[3::4] = CONSTANT, -CONSTANT


def _identity_norm(norm: nn.Module) -> None:
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


@torch.no_grad()
def solve(net: LTX2LatentUpsamplerModel, low: Tensor, high: Tensor) -> None:
    """Set all weights; residual blocks pass their input."""
    for block in (*net.res_blocks, *net.post_upsample_res_blocks):
        nn.init.normal_(block.conv1.weight, std=(27 * MID) ** -0.5)
        nn.init.zeros_(block.conv1.bias)
        nn.init.normal_(block.conv2.weight, std=(27 * MID) ** -0.5)
        nn.init.zeros_(block.conv2.bias)
        _identity_norm(block.norm1)
        nn.init.zeros_(block.norm2.weight)  # the branch starts at zero
        nn.init.zeros_(block.norm2.bias)
    first, norm, last = net.initial_conv, net.initial_norm, net.final_conv
    up = next(m for m in net.upsampler.modules() if isinstance(m, nn.Conv2d))
    for conv in (first, last, up):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    _identity_norm(norm)
    at = _signal()
    first.weight[at, torch.arange(LATENT_CHANNELS), 1, 1, 1] = 1.0
    _constants(first.bias)
    seen: list[Tensor] = []
    hook = up.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    net(low)
    hook.remove()
    x = seen[0]
    count, channels, frames, height, width = low.shape
    x = x.reshape(count * frames, MID, height, width)
    inside = nn.functional.unfold(x[:, at], 3, padding=1).transpose(1, 2).flatten(0, 1)
    inside = torch.cat([inside, torch.ones(len(inside), 1)], dim=1)
    target = high.transpose(1, 2).flatten(0, 1)
    target = nn.functional.pixel_unshuffle(target, 2)  # (N, C * 4, h, w)
    target = target.flatten(2).transpose(1, 2).flatten(0, 1)
    solution = _ridge(inside, target, 1e-6)
    weight = GAIN * solution[:-1].T.reshape(channels, 4, channels, 3, 3)
    up.weight.view(MID, 4, MID, 3, 3)[at[:, None], :, at[None]] = GAIN * weight.permute(
        0, 2, 1, 3, 4
    )
    up.bias.view(MID, 4)[at] = GAIN * solution[-1].view(channels, 4)
    last.weight[torch.arange(LATENT_CHANNELS), at, 1, 1, 1] = 1.0
    _match_output(net, last, at, low, high)


def _match_output(
    net: LTX2LatentUpsamplerModel, last: nn.Module, at: Tensor, low: Tensor, high: Tensor
) -> None:
    """final_conv: per-pixel regression from what really arrives there."""
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    net(low)
    hook.remove()
    rows = seen[0][:, at].movedim(1, -1).flatten(0, -2)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    solution = _ridge(rows, high.movedim(1, -1).flatten(0, -2), 1e-9)
    last.weight.zero_()
    last.weight[:, at, 1, 1, 1] = solution[:-1].T
    last.bias.copy_(solution[-1])


def trained() -> LTX2LatentUpsamplerModel:
    """The last state, frozen; random weights where there is none."""
    net = build().eval().requires_grad_(False).to(DEVICE)
    if STATE.exists():
        net.load_state_dict(read(STATE)["net"])
    return net


def explained(net: LTX2LatentUpsamplerModel, low: Tensor, high: Tensor) -> float:
    """Share of the large latents' variance that the network predicts."""
    with torch.no_grad():
        error = (net(low) - high).square().mean((0, 2, 3, 4))
    return 1 - float((error / high.var((0, 2, 3, 4))).mean())


class Blocks:
    """The residual blocks as trained branches beside the solved path, with rates that suit them.

    Their group norms make the convolutions free of scale; what they add is as large as their last
    norm's weights, whose unit is the size of the signal on the solved path. Constant channels stay
    constant: nothing is added to them, and before the x2 step the first convolution does not see
    them, or it would see little else.
    """

    def __init__(self, net: LTX2LatentUpsamplerModel, low: Tensor) -> None:
        self.before, self.after = net.res_blocks[0], net.post_upsample_res_blocks[0]
        self.sizes = {block: _size(net, block, low) for block in (self.before, self.after)}
        self.constant = torch.ones(MID, dtype=torch.bool)
        self.constant[_signal()] = False

    def prime(self) -> None:
        """Before the first step."""
        for block in self.sizes:
            nn.init.normal_(block.conv1.weight, std=(27 * MID / 2) ** -0.5)
            block.conv1.weight.data[:, self.constant] = 0
            nn.init.normal_(block.conv2.weight, std=(27 * MID) ** -0.5)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimizer."""
        out: list[dict[str, Any]] = []
        for block, size in self.sizes.items():
            block.requires_grad_(True)
            last = [block.norm2.weight, block.norm2.bias]
            first = [p for n, p in block.named_parameters() if not n.startswith("norm2")]
            out += [{"params": first, "full": lr}, {"params": last, "full": 10 * lr * size}]
        return out

    def quiet(self) -> None:
        """After every step: constants stay as they are and unseen."""
        with torch.no_grad():
            for block in self.sizes:
                block.norm2.weight[self.constant] = 0
                block.norm2.bias[self.constant] = 0
                block.conv1.weight[:, self.constant] = 0


def _size(net: LTX2LatentUpsamplerModel, block: nn.Module, low: Tensor) -> float:
    """Root mean square of the signal channels that enter a block."""
    seen: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(low)
    hook.remove()
    x = seen[0][:, _signal()]
    return float((x - x.mean((0, 2, 3, 4), keepdim=True)).square().mean().sqrt())


def channel_weights(vae: Any) -> Tensor:
    """(C, 1, 1, 1) weights of squared errors of normalised latents: half alike, half by what an
    error costs in pixels (see `_solve_latents`: a normalised latent's size is its share ** 1/8)."""
    pixels = (vae.latents_std.view(-1, 1, 1, 1) ** 6).clone()
    return 0.5 + 0.5 * pixels / pixels.mean()


def train(options: argparse.Namespace, team: Team) -> None:
    """Train the residual blocks for a time, on true pairs whose small half is a little noisy."""
    torch.manual_seed(options.seed)
    vae, net = vae_train.load(), trained().eval()
    twins = cache.open_twins()
    state = read(STATE)
    step = state.get("step", 0)
    rng = random.Random(f"{options.seed}/{team.rank}/{time.time()}")
    test = pairs(vae, twins, 32, held_out=True)
    blocks = Blocks(net, test[0])
    if step == 0:
        blocks.prime()
    groups = blocks.groups(options.lr)
    weights = [p for g in groups for p in g["params"]]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    share, sums, saved = channel_weights(vae), [], time.time()
    start, taken, going = saved, 0, True
    team.same(dict(net.state_dict()))
    while going:
        low, high, _ = twins.sample(rng, options.batch // team.size)
        low = low + 0.1 * rng.random() * torch.randn_like(low)
        error = (normalize(vae, net(denormalize(vae, low))) - high).square()
        (error * share).mean().backward()
        gone = (time.time() - start) / options.seconds
        rate = min(1.0, (taken + 1) / 20) * max(0.0, min(1.0, 2 * (1 - gone) + 0.02))
        note = team.average(weights, torch.tensor([rate, float(gone < 1)]))
        rate, going = float(note[0]), bool(note[1])
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * rate
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        blocks.quiet()
        step, taken = step + 1, taken + 1
        sums.append(float(error.detach().mean()))
        if team.rank:
            continue
        if step % 50 == 0 or not going:
            now = sum(sums[-50:]) / len(sums[-50:])
            log("upsampler", step=step, error=now, held_out=explained(net, *test), rate=rate)
        if time.time() - saved > 60 or not going:
            saved = time.time()
            save({"net": net.state_dict(), "step": step}, STATE)


def run_solve(options: argparse.Namespace) -> None:
    """The closed form."""
    prepare(options.threads)
    torch.manual_seed(0)
    vae = vae_train.load()
    twins = cache.open_twins()
    low, high = pairs(vae, twins, options.count, held_out=False)
    test = pairs(vae, twins, 32, held_out=True)
    net = build().eval().to(DEVICE)
    solve(net, low, high)
    save({"net": net.state_dict(), "step": 0}, STATE)
    log("upsampler_solve", train=explained(net, low, high), held_out=explained(net, *test))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("solve", "train"))
    parser.add_argument("--count", type=int, default=500, help="pairs to solve from")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "solve":
        run_solve(options)
    else:
        launch(train, options)


if __name__ == "__main__":
    main()
