"""The x2 latent upsampler of the pocket model.

    python training/pocket/upsampler.py solve

Solved first: constant channels keep the group norms and activations nearly linear, so the network
can start as the ridge regression from 3 x 3 small latents to 2 x 2 large ones. It works on raw
(not normalised) latents like the official one.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from cache import Twins
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from torch import Tensor, nn
from vae import LATENT_CHANNELS, _ridge, denormalize, transform
from vae_train import RUNS, load, log, save

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


def pairs(vae: Any, twins: Twins, count: int, held_out: bool) -> tuple[Tensor, Tensor]:
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
    net = build().eval().requires_grad_(False)
    if STATE.exists():
        net.load_state_dict(torch.load(STATE, weights_only=True)["net"])
    return net


def explained(net: LTX2LatentUpsamplerModel, low: Tensor, high: Tensor) -> float:
    """Share of the large latents' variance that the network predicts."""
    with torch.no_grad():
        error = (net(low) - high).square().mean((0, 2, 3, 4))
    return 1 - float((error / high.var((0, 2, 3, 4))).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("solve",))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae = load()
    twins = Twins(transform(vae, normalized=True))
    low, high = pairs(vae, twins, options.count, held_out=False)
    test = pairs(vae, twins, 32, held_out=True)
    net = build().eval()
    solve(net, low, high)
    save({"net": net.state_dict()}, STATE)
    log("upsampler_solve", train=explained(net, low, high), held_out=explained(net, *test))


if __name__ == "__main__":
    main()
