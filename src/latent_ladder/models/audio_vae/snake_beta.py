"""Anti-aliased SnakeBeta activation of the vocoder: upsample by 2, activate, downsample by 2.

Sources: snake (arXiv 2006.08195), BigVGAN (arXiv 2206.04658). For inference only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ladder.models.audio_chunks import FILTER_TAPS

BETA_EPS = 1e-9
BLOCK_VALUES = 1 << 17
"""Values per block of channels on a CPU, small enough for its cache."""


class _Filter(nn.Module):
    """Low-pass filter from the checkpoint, a buffer (1, 1, taps)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter: Tensor
        self.register_buffer("filter", torch.empty(1, 1, FILTER_TAPS))


class _DownsampleFilter(nn.Module):
    """Container of the downsampling filter, named as in the checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = _Filter()


class _Snake(nn.Module):
    """SnakeBeta parameters of ``x + sin^2(a x) / b``: logarithms of a and b per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(width))
        self.beta = nn.Parameter(torch.empty(width))

    def scales(self) -> tuple[Tensor, Tensor]:
        """Return a and b, each (width, 1)."""
        return self.alpha.exp()[:, None], self.beta.exp()[:, None] + BETA_EPS


class SnakeActivation(nn.Module):
    """SnakeBeta at twice the rate; upsampling and downsampling use the checkpoint's filters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act = _Snake(width)
        self.upsample = _Filter()
        self.downsample = _DownsampleFilter()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, N) to the same shape."""
        return self._forward_blocks(x) if x.device.type == "cpu" else self._forward_convolutions(x)

    def _forward_convolutions(self, x: Tensor) -> Tensor:
        """Compute with (transposed) convolutions, as in the definition."""
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

    def _forward_blocks(self, x: Tensor) -> Tensor:
        """Compute with sums of shifted samples, in blocks of channels: faster on a CPU.

        Odd and even samples of the doubled rate are separate tensors.
        """
        count = x.shape[-1]
        rows = x.reshape(-1, count)
        a, b = (scale.repeat(len(x), 1) for scale in self.act.scales())
        out = torch.empty_like(rows)
        step = max(1, BLOCK_VALUES // count)
        up_taps = (2 * self.upsample.filter).flatten().tolist()
        down_taps = self.downsample.lowpass.filter.flatten().tolist()
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            odd, even = _upsample_by_two(rows[part] * a[part], up_taps)
            ratio = b[part] / a[part]
            for y in (odd, even):
                sine = y.sin()
                y.mul_(ratio).addcmul_(sine, sine)
            result = _sum_shifted(odd, down_taps[::2], count, out[part])
            _sum_shifted(even, down_taps[1::2], count, result, add=True).div_(b[part])
        return out.view_as(x)


def _upsample_by_two(x: Tensor, taps: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Upsample (rows, N) by 2; returns samples 2 i - 1 and samples 2 i for i from -2 to N + 2.

    The signal is padded with its first and last sample, before and after upsampling.
    """
    count, half = x.shape[-1], len(taps) // 2
    edge = half - 1
    ends = x[:, :1].expand(-1, edge), x[:, -1:].expand(-1, edge)
    padded = torch.cat((ends[0], x, ends[1]), 1)
    # A transposed convolution uses its taps in reverse, every second one for each parity.
    odd, even = (_sum_shifted(padded, taps[p::2][::-1], count + edge) for p in (0, 1))
    first, last = even[:, 2:3].clone(), odd[:, count + 2 : count + 3].clone()
    odd[:, :3], even[:, :2] = first, first
    odd[:, count + 3 :], even[:, count + 2 :] = last, last
    return odd, even


def _sum_shifted(
    x: Tensor, taps: Sequence[float], count: int, out: Tensor | None = None, add: bool = False
) -> Tensor:
    """Compute ``taps[0] x[i] + taps[1] x[i + 1] + ...`` for i < ``count``.

    The result is written to ``out`` (a new tensor if None) or, with ``add``, added to it.
    """
    y = x.new_empty((len(x), count)) if out is None else out
    for shift, tap in enumerate(taps):
        shifted = x[:, shift : shift + count]
        if shift or add:
            y.add_(shifted, alpha=tap)
        else:
            torch.mul(shifted, tap, out=y)
    return y
