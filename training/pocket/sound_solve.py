"""Closed-form initial weights of the vocoder, worth 17 dB SNR before the first gradient step.

The stages at mel rate are solved one after another, as in boosting. Channels [0, CHANNELS) hold the
estimate of the wavelet weights, the others principal components of the log mels. The input
convolution is the best linear estimate from seven frames. Each layer of the residual blocks adds a
ridge regression of the remaining error on random sinusoidal features of its input (a snake
activation is x + sin^2).
"""

from __future__ import annotations

import torch
import worlds
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE
from sound_nets import LINEAR_LOG_ALPHA
from torch import Tensor, nn
from torch.nn import functional as F

sound = worlds.module("sound")

COMPONENTS = 12
WHITEN_FLOOR = 0.15
BANDWIDTH = 0.5  # standard deviation of a random feature's argument, in radians
ESTIMATE_SCALE = 3.0  # weight of the estimate relative to the components in it
RIDGE = 1e-4


def ridge(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression from `rows` to `target`: matrix (in, out) and offset (out,)."""
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
    gram = rows.T @ rows
    gram.diagonal().add_(RIDGE * gram.diagonal()[:-1].mean())
    solution = torch.linalg.solve(gram, rows.T @ target.double()).float()
    return solution[:-1], solution[-1]


def _rows(x: Tensor) -> Tensor:
    """(B, C, M) -> (B * M, C)."""
    return x.transpose(1, 2).flatten(0, 1)


def _windows(x: Tensor, kernel: int) -> Tensor:
    """Input windows (B * M, C * kernel) of a convolution of width `kernel`."""
    side = (kernel - 1) // 2
    padded = F.pad(x, (side, side))
    shifted = [padded[..., k : k + x.shape[2]] for k in range(kernel)]
    return _rows(torch.stack(shifted, dim=2).flatten(1, 2))


def _set_convolution(conv: nn.Module, solution: tuple[Tensor, Tensor]) -> None:
    """Set the first outputs of a convolution to a regression on windows, the others to zero."""
    weights, offset = solution
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[: len(offset)] = weights.T.unflatten(1, (-1, conv.kernel_size[0]))
    conv.bias[: len(offset)] = offset


def _copy_channels(upsampler: nn.Module) -> None:
    """Set a rate-1 upsampler to copy its first channels."""
    upsampler.weight.zero_()
    upsampler.bias.zero_()
    for channel in range(upsampler.weight.shape[1]):
        upsampler.weight[channel, channel, 0] = 1


def _solve_input(conv: nn.Module, mels: Tensor, target: Tensor) -> None:
    """Set the input convolution: linear estimate from seven frames, and components of one frame."""
    mean, std = mels.mean((0, 2)), mels.std((0, 2)).clamp(min=0.5)
    standard = (mels - mean[:, None]) / std[:, None]
    _set_convolution(conv, ridge(_windows(standard, conv.kernel_size[0]), target))
    _, singular_values, basis = torch.linalg.svd(_rows(standard)[::4], full_matrices=False)
    deviations = singular_values / (len(target) / 4) ** 0.5
    first, last = sound.CHANNELS, sound.CHANNELS + COMPONENTS
    components = basis[:COMPONENTS] / deviations[:COMPONENTS, None].clamp(min=WHITEN_FLOOR)
    conv.weight[first:last, :, conv.kernel_size[0] // 2] = components
    conv.weight.div_(std[:, None])  # from standardised inputs to log mels
    conv.bias.sub_(conv.weight.sum(-1) @ mean)


def _solve_block(block: nn.Module, layer: int, h: Tensor, target: Tensor) -> Tensor:
    """Set one layer of a residual block to predict the remaining error; returns its output."""
    gate, first, wave, second = (
        part[layer] for part in (block.acts1, block.convs1, block.acts2, block.convs2)
    )
    gate.act.alpha.fill_(LINEAR_LOG_ALPHA)
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
    residual = target - _rows(h[:, : sound.CHANNELS])
    _set_convolution(second, ridge(_windows(features, second.kernel_size[0]), residual))
    return h + second(features)


@torch.no_grad()
def solve(net: LTX2VocoderWithBWE, mel: Tensor, controls: Tensor) -> None:
    """Set the stages at mel rate to predict controls (B, CHANNELS, M) from mel (B, 2, M, 64)."""
    main = net.vocoder
    mels = mel.transpose(2, 3).flatten(1, 2)
    target = _rows(controls) / sound.LOUDNESS
    _solve_input(main.conv_in, mels, target)
    h = main.conv_in(mels)
    for upsampler, block in zip(main.upsamplers[:-1], main.resnets[:-1], strict=True):
        _copy_channels(upsampler)
        h = upsampler(h)
        for layer in range(len(block.convs1)):
            h = _solve_block(block, layer, h, target)
