"""Solve and train the x2 latent upsampler of the pocket model.

    python training/pocket/upsampler.py solve
    python training/pocket/upsampler.py train --seconds 500

`solve` sets the network to the ridge regression from 3 x 3 small latents to 2 x 2 large ones, which
is possible because constant channels keep the group norms and activations nearly linear. `train`
then trains the residual blocks to add the nonlinear part; the solved layers stay fixed. Like the
official upsampler it works on raw (not normalised) latents.
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
CONSTANT = 30.0  # value of the constant channels: keeps the group norms nearly linear
GAIN = 0.02  # of the x2 convolution: keeps the later activations nearly linear
HELD_OUT_SEED = 555


def build() -> LTX2LatentUpsamplerModel:
    """The x2 upsampler of LTX-2.3 with one block per stage, random weights."""
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


def pairs(vae: Any, paired_cache: Any, count: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Raw latents (N, C, 4, 8, 8) and (N, C, 4, 16, 16) of the same scenes."""
    rng = random.Random(HELD_OUT_SEED if held_out else 11)
    low, high, _ = paired_cache.sample(rng, count, held_out)
    return denormalize(vae, low), denormalize(vae, high)


def _signal_channels() -> Tensor:
    """Indices of the channels that carry latents: two of every group norm's four."""
    return torch.tensor([c for c in range(MID) if c % 4 < 2])


def _set_constant_channels(bias: Tensor) -> None:
    """Set the other two channels of every group to +`CONSTANT` and -`CONSTANT`."""
    bias[2::4], bias[3::4] = CONSTANT, -CONSTANT


def _identity_norm(norm: nn.Module) -> None:
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


@torch.no_grad()
def solve(net: LTX2LatentUpsamplerModel, low: Tensor, high: Tensor) -> None:
    """Set all weights to the closed-form solution; residual blocks add nothing."""
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
    signal = _signal_channels()
    first.weight[signal, torch.arange(LATENT_CHANNELS), 1, 1, 1] = 1.0
    _set_constant_channels(first.bias)
    captured: list[Tensor] = []
    hook = up.register_forward_pre_hook(lambda _m, inputs: captured.append(inputs[0]))
    net(low)
    hook.remove()
    x = captured[0]
    count, channels, frames, height, width = low.shape
    x = x.reshape(count * frames, MID, height, width)
    inside = nn.functional.unfold(x[:, signal], 3, padding=1).transpose(1, 2).flatten(0, 1)
    inside = torch.cat([inside, torch.ones(len(inside), 1)], dim=1)
    target = high.transpose(1, 2).flatten(0, 1)
    target = nn.functional.pixel_unshuffle(target, 2)  # (N, C * 4, h, w)
    target = target.flatten(2).transpose(1, 2).flatten(0, 1)
    solution = _ridge(inside, target, 1e-6)
    weight = GAIN * solution[:-1].T.reshape(channels, 4, channels, 3, 3)
    up.weight.view(MID, 4, MID, 3, 3)[signal[:, None], :, signal[None]] = GAIN * weight.permute(
        0, 2, 1, 3, 4
    )
    up.bias.view(MID, 4)[signal] = GAIN * solution[-1].view(channels, 4)
    last.weight[torch.arange(LATENT_CHANNELS), signal, 1, 1, 1] = 1.0
    _match_output(net, last, signal, low, high)


def _match_output(
    net: LTX2LatentUpsamplerModel, last: nn.Module, signal: Tensor, low: Tensor, high: Tensor
) -> None:
    """Set final_conv to a per-pixel regression from its actual input to the large latents."""
    captured: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _m, inputs: captured.append(inputs[0]))
    net(low)
    hook.remove()
    rows = captured[0][:, signal].movedim(1, -1).flatten(0, -2)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    solution = _ridge(rows, high.movedim(1, -1).flatten(0, -2), 1e-9)
    last.weight.zero_()
    last.weight[:, signal, 1, 1, 1] = solution[:-1].T
    last.bias.copy_(solution[-1])


def load_upsampler() -> LTX2LatentUpsamplerModel:
    """The upsampler of runs/upsampler.pt, frozen; random weights without that file."""
    net = build().eval().requires_grad_(False).to(DEVICE)
    if STATE.exists():
        net.load_state_dict(read(STATE)["net"])
    return net


def explained_variance(net: LTX2LatentUpsamplerModel, low: Tensor, high: Tensor) -> float:
    """Share of the variance of the large latents that the network predicts."""
    with torch.no_grad():
        error = (net(low) - high).square().mean((0, 2, 3, 4))
    return 1 - float((error / high.var((0, 2, 3, 4))).mean())


class ResidualBranches:
    """The trainable residual blocks, before and after the x2 step, and their learning rates.

    Group norms make the scale of the convolutions irrelevant. The weights of a block's last norm
    set the size of its output, so their learning rate is proportional to the RMS of the solved
    path. Nothing is added to the constant channels, and the first convolution ignores them, since
    they are far larger than the signal.
    """

    def __init__(self, net: LTX2LatentUpsamplerModel, low: Tensor) -> None:
        self.before, self.after = net.res_blocks[0], net.post_upsample_res_blocks[0]
        self.sizes = {block: _size(net, block, low) for block in (self.before, self.after)}
        self.constant = torch.ones(MID, dtype=torch.bool)
        self.constant[_signal_channels()] = False

    def initialise(self) -> None:
        """Set random convolution weights, before the first training step."""
        for block in self.sizes:
            nn.init.normal_(block.conv1.weight, std=(27 * MID / 2) ** -0.5)
            block.conv1.weight.data[:, self.constant] = 0
            nn.init.normal_(block.conv2.weight, std=(27 * MID) ** -0.5)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; `full` is the learning rate before the schedule."""
        out: list[dict[str, Any]] = []
        for block, size in self.sizes.items():
            block.requires_grad_(True)
            last = [block.norm2.weight, block.norm2.bias]
            first = [p for n, p in block.named_parameters() if not n.startswith("norm2")]
            out += [{"params": first, "full": lr}, {"params": last, "full": 10 * lr * size}]
        return out

    def clear_constant_channels(self) -> None:
        """Zero the weights from and to the constant channels; to call after every step."""
        with torch.no_grad():
            for block in self.sizes:
                block.norm2.weight[self.constant] = 0
                block.norm2.bias[self.constant] = 0
                block.conv1.weight[:, self.constant] = 0


def _size(net: LTX2LatentUpsamplerModel, block: nn.Module, low: Tensor) -> float:
    """RMS of a block's input in the channels that carry latents."""
    captured: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _m, inputs: captured.append(inputs[0]))
    with torch.no_grad():
        net(low)
    hook.remove()
    x = captured[0][:, _signal_channels()]
    return float((x - x.mean((0, 2, 3, 4), keepdim=True)).square().mean().sqrt())


def channel_weights(vae: Any) -> Tensor:
    """Weights (C, 1, 1, 1) of the squared errors of normalised latents.

    Half is equal for all channels, half proportional to the pixel error that a latent error causes;
    see `vae._solve_latents`, after which the statistics have the pixel share to the power 1/8.
    """
    pixel_error = (vae.latents_std.view(-1, 1, 1, 1) ** 6).clone()
    return 0.5 + 0.5 * pixel_error / pixel_error.mean()


def train(options: argparse.Namespace, team: Team) -> None:
    """Train the residual blocks for `--seconds` on true pairs, with some noise on the small one."""
    torch.manual_seed(options.seed)
    vae, net = vae_train.load(), load_upsampler().eval()
    paired_cache = cache.open_paired_cache()
    state = read(STATE)
    step = state.get("step", 0)
    rng = random.Random(f"{options.seed}/{team.rank}/{time.time()}")
    test = pairs(vae, paired_cache, 32, held_out=True)
    blocks = ResidualBranches(net, test[0])
    if step == 0:
        blocks.initialise()
    groups = blocks.groups(options.lr)
    weights = [p for g in groups for p in g["params"]]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    share, recent_losses, last_save = channel_weights(vae), [], time.time()
    start, steps_done, running = last_save, 0, True
    team.broadcast(dict(net.state_dict()))
    while running:
        low, high, _ = paired_cache.sample(rng, options.batch // team.size)
        low = low + 0.1 * rng.random() * torch.randn_like(low)
        error = (normalize(vae, net(denormalize(vae, low))) - high).square()
        (error * share).mean().backward()
        elapsed = (time.time() - start) / options.seconds
        rate = min(1.0, (steps_done + 1) / 20) * max(0.0, min(1.0, 2 * (1 - elapsed) + 0.02))
        message = team.average_gradients(weights, torch.tensor([rate, float(elapsed < 1)]))
        rate, running = float(message[0]), bool(message[1])
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * rate
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        blocks.clear_constant_channels()
        step, steps_done = step + 1, steps_done + 1
        recent_losses.append(float(error.detach().mean()))
        if team.rank:
            continue
        if step % 50 == 0 or not running:
            now = sum(recent_losses[-50:]) / len(recent_losses[-50:])
            log(
                "upsampler",
                step=step,
                error=now,
                held_out=explained_variance(net, *test),
                rate=rate,
            )
        if time.time() - last_save > 60 or not running:
            last_save = time.time()
            save({"net": net.state_dict(), "step": step}, STATE)


def run_solve(options: argparse.Namespace) -> None:
    """Solve the upsampler in closed form and write runs/upsampler.pt."""
    prepare(options.threads)
    torch.manual_seed(0)
    vae = vae_train.load()
    paired_cache = cache.open_paired_cache()
    low, high = pairs(vae, paired_cache, options.count, held_out=False)
    test = pairs(vae, paired_cache, 32, held_out=True)
    net = build().eval().to(DEVICE)
    solve(net, low, high)
    save({"net": net.state_dict(), "step": 0}, STATE)
    log(
        "upsampler_solve",
        train=explained_variance(net, low, high),
        held_out=explained_variance(net, *test),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("solve", "train"))
    parser.add_argument("--count", type=int, default=500, help="number of pairs for `solve`")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "solve":
        run_solve(options)
    else:
        launch(train, options)


if __name__ == "__main__":
    main()
