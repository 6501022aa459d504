"""Start values of the vocoder in closed form: 17 dB before the first gradient step.

The stages at mel rate are read as boosting. Channels [0, CHANNELS) carry the estimate of the
wavelet weights, the others the principal components of the mel; the input convolution makes the
best linear estimate of seven frames, and every residual block adds what a ridge regression on
random sinusoidal features (a snake is x + sin^2) of its own input still finds.
"""

from __future__ import annotations

import torch
import worlds
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE
from sound_nets import LINEAR
from torch import Tensor, nn
from torch.nn import functional as F

sound = worlds.module("sound")

COMPONENTS = 12
WHITEN_FLOOR = 0.15
BANDWIDTH = 0.5  # radians per standard deviation of a random feature's argument
ESTIMATE_SCALE = 3.0  # how much more the estimate counts in it than the components
RIDGE = 1e-4


def ridge(rows: Tensor, want: Tensor) -> tuple[Tensor, Tensor]:
    """(map (in, out), offset (out,)) of the regularised regression from rows to want."""
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
    gram = rows.T @ rows
    gram.diagonal().add_(RIDGE * gram.diagonal()[:-1].mean())
    solution = torch.linalg.solve(gram, rows.T @ want.double()).float()
    return solution[:-1], solution[-1]


def _rows(x: Tensor) -> Tensor:
    """(B, C, M) -> (B * M, C)."""
    return x.transpose(1, 2).flatten(0, 1)


def _windows(x: Tensor, kernel: int) -> Tensor:
    """Rows (B * M, C * kernel) of what a convolution with that kernel sees."""
    side = (kernel - 1) // 2
    padded = F.pad(x, (side, side))
    shifted = [padded[..., k : k + x.shape[2]] for k in range(kernel)]
    return _rows(torch.stack(shifted, dim=2).flatten(1, 2))


def _set(conv: nn.Module, solution: tuple[Tensor, Tensor]) -> None:
    """Write a regression on windows to the first outputs of a convolution, zero to the others."""
    weights, offset = solution
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[: len(offset)] = weights.T.unflatten(1, (-1, conv.kernel_size[0]))
    conv.bias[: len(offset)] = offset


def _pass_on(upsampler: nn.Module) -> None:
    """A rate-1 upsampler that keeps its first channels."""
    upsampler.weight.zero_()
    upsampler.bias.zero_()
    for channel in range(upsampler.weight.shape[1]):
        upsampler.weight[channel, channel, 0] = 1


def _solve_input(conv: nn.Module, mels: Tensor, want: Tensor) -> None:
    """Linear estimate of seven frames, and whitened principal components of one."""
    mean, std = mels.mean((0, 2)), mels.std((0, 2)).clamp(min=0.5)
    even = (mels - mean[:, None]) / std[:, None]
    _set(conv, ridge(_windows(even, conv.kernel_size[0]), want))
    _, sizes, basis = torch.linalg.svd(_rows(even)[::4], full_matrices=False)
    spread = sizes / (len(want) / 4) ** 0.5
    first, last = sound.CHANNELS, sound.CHANNELS + COMPONENTS
    components = basis[:COMPONENTS] / spread[:COMPONENTS, None].clamp(min=WHITEN_FLOOR)
    conv.weight[first:last, :, conv.kernel_size[0] // 2] = components
    conv.weight.div_(std[:, None])  # from the even inputs back to log mels
    conv.bias.sub_(conv.weight.sum(-1) @ mean)


def _solve_block(block: nn.Module, layer: int, h: Tensor, want: Tensor) -> Tensor:
    """Set one layer of a residual block to what is still missing; returns its output."""
    gate, first, wave, second = (
        part[layer] for part in (block.acts1, block.convs1, block.acts2, block.convs2)
    )
    gate.act.alpha.fill_(LINEAR)
    gate.act.beta.zero_()
    wave.act.alpha.zero_()
    wave.act.beta.zero_()
    first.weight.normal_()
    first.weight.div_(gate(h).std((0, 2)).clamp(min=0.05)[:, None])
    first.weight[:, : sound.CHANNELS] *= ESTIMATE_SCALE if h.shape[1] > sound.CHANNELS else 1.0
    first.bias.zero_()
    argument = first(gate(h))
    scale = BANDWIDTH / argument.std((0, 2))
    first.weight.mul_(scale[:, None, None])
    first.bias.uniform_(0, 6.28).sub_(argument.mean((0, 2)) * scale)
    features = wave(first(gate(h)))
    missing = want - _rows(h[:, : sound.CHANNELS])
    _set(second, ridge(_windows(features, second.kernel_size[0]), missing))
    return h + second(features)


@torch.no_grad()
def solve(net: LTX2VocoderWithBWE, mel: Tensor, controls: Tensor) -> None:
    """Fit the stages at mel rate to (mel (B, 2, M, 64), controls (B, CHANNELS, M))."""
    main = net.vocoder
    mels = mel.transpose(2, 3).flatten(1, 2)
    want = _rows(controls) / sound.LOUDNESS
    _solve_input(main.conv_in, mels, want)
    h = main.conv_in(mels)
    for upsampler, block in zip(main.upsamplers[:-1], main.resnets[:-1], strict=True):
        _pass_on(upsampler)
        h = upsampler(h)
        for layer in range(len(block.convs1)):
            h = _solve_block(block, layer, h, want)
