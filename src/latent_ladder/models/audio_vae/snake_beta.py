"""The activation of the vocoder: a snake on twice the rate, so that its overtones do not fold back.

Sources: snake (arXiv 2006.08195), BigVGAN (arXiv 2206.04658). For inference only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FILTER_TAPS = 12
BETA_EPS = 1e-9
BLOCK_VALUES = 1 << 17
"""Values of the channels that are worked on together on a CPU."""


class _Filter(nn.Module):
    """A low-pass filter as a buffer of the file, (1, 1, taps)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter: Tensor
        self.register_buffer("filter", torch.empty(1, 1, FILTER_TAPS))


class _Down(nn.Module):
    """Where the files keep the second filter of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = _Filter()


class _Snake(nn.Module):
    """``x + sin^2(a x) / b`` with logarithms of a and b per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(width))
        self.beta = nn.Parameter(torch.empty(width))

    def scales(self) -> tuple[Tensor, Tensor]:
        """a and b, each (width, 1)."""
        return self.alpha.exp()[:, None], self.beta.exp()[:, None] + BETA_EPS


class SnakeActivation(nn.Module):
    """A snake on twice the rate: up by 2, activate, down by 2, both with the file's filters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act = _Snake(width)
        self.upsample = _Filter()
        self.downsample = _Down()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, N) to the same."""
        return self._in_blocks(x) if x.device.type == "cpu" else self._at_once(x)

    def _at_once(self, x: Tensor) -> Tensor:
        """With the convolutions that the definition names."""
        width, half = x.shape[1], FILTER_TAPS // 2
        up, down = self.upsample.filter, self.downsample.lowpass.filter
        padded = F.pad(x, (half - 1, half - 1), mode="replicate")
        y = F.conv_transpose1d(padded, 2 * up.expand(width, -1, -1), stride=2, groups=width)
        cut = 3 * (half - 1)  # what the padding became, and half of the filter
        y = y[..., cut:-cut]
        a, b = self.act.scales()
        y = (y * a).sin_().square_().div_(b).add_(y)
        padded = F.pad(y, (half - 1, half), mode="replicate")
        return F.conv1d(padded, down.expand(width, -1, -1), stride=2, groups=width)

    def _in_blocks(self, x: Tensor) -> Tensor:
        """The same as sums of shifted samples, a few channels at a time: faster on a CPU.

        The samples of the double rate stay apart by parity, and a block stays in the cache.
        """
        count = x.shape[-1]
        rows = x.reshape(-1, count)
        a, b = (scale.repeat(len(x), 1) for scale in self.act.scales())
        out = torch.empty_like(rows)
        step = max(1, BLOCK_VALUES // count)
        doubling = (2 * self.upsample.filter).flatten().tolist()
        halving = self.downsample.lowpass.filter.flatten().tolist()
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            odd, even = _doubled(rows[part] * a[part], doubling)
            ratio = b[part] / a[part]
            for y in (odd, even):
                wave = y.sin()
                y.mul_(ratio).addcmul_(wave, wave)
            halved = _shifted_sum(odd, halving[::2], count, out[part])
            _shifted_sum(even, halving[1::2], count, halved, add=True).div_(b[part])
        return out.view_as(x)


def _doubled(x: Tensor, taps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(rows, N) at twice the rate, as samples 2 i - 1 and samples 2 i for i from -2 to N + 2.

    Beyond its ends a signal goes on with its last sample, before doubling and after.
    """
    count, half = x.shape[-1], len(taps) // 2
    edge = half - 1
    ends = x[:, :1].expand(-1, edge), x[:, -1:].expand(-1, edge)
    padded = torch.cat((ends[0], x, ends[1]), 1)
    # A transposed convolution runs its taps backwards, every other one for each parity.
    odd, even = (_shifted_sum(padded, taps[p::2][::-1], count + edge) for p in (0, 1))
    first, last = even[:, 2:3].clone(), odd[:, count + 2 : count + 3].clone()
    odd[:, :3], even[:, :2] = first, first
    odd[:, count + 3 :], even[:, count + 2 :] = last, last
    return odd, even


def _shifted_sum(
    x: Tensor, taps: Sequence[float], count: int, out: Tensor | None = None, add: bool = False
) -> Tensor:
    """``taps[0] x[i] + taps[1] x[i + 1] + ...`` for i below ``count``, in (or added to) ``out``."""
    y = x.new_empty((len(x), count)) if out is None else out
    for shift, tap in enumerate(taps):
        shifted = x[:, shift : shift + count]
        if shift or add:
            y.add_(shifted, alpha=tap)
        else:
            torch.mul(shifted, tap, out=y)
    return y
