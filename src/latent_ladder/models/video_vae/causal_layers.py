"""Layers of the video VAE that take a clip in chunks and give exactly what the whole would.

Frames come first, (n, C, H, W) of one clip, channels last in memory. A 3x3x3 convolution needs the
frame before and the one after, so between chunks each layer keeps the last two frames of its input
(:class:`Carry`), and a layer that looks ahead gives its last frame with the clip's last chunk.
A chunk may therefore come out shorter than it went in, even empty. Activations are overwritten in
place: for inference only.

Maths: ltx_core ``CausalConv3d``, ``ResnetBlock3D``, ``DepthToSpaceUpsample`` and
``SpaceToDepthDownsample``; goldens ``vae.*`` and ``ltx20.vae_*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.network_configs import CHUNK_VALUES, CHUNK_VALUES_ELSEWHERE

NORM_EPS = 1e-8

STRIDES: dict[str, tuple[int, int, int]] = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}
"""Frames, rows and columns that a resampler moves into channels or out of them."""


class Level(NamedTuple):
    """Layers that a chunk passes at once; ``width``: the most values at any of them per frame and
    position of what goes in."""

    layers: Callable[[Tensor, Carry], Tensor]
    width: float


class Carry:
    """What the layers keep of a clip between its chunks. ``last``: no chunk follows this one."""

    def __init__(self) -> None:
        self.last = False
        self._held: dict[nn.Module, Tensor] = {}
        self._begun: set[nn.Module] = set()

    def held(self, layer: nn.Module) -> Tensor | None:
        """The frames that ``layer`` kept, None before its first chunk."""
        return self._held.get(layer)

    def hold(self, layer: nn.Module, frames: Tensor) -> None:
        """Keep a copy of ``frames`` for the layer's next chunk, nothing after the last one."""
        if self.last:
            self._held.pop(layer, None)
        else:
            self._held[layer] = frames.clone(memory_format=torch.preserve_format)

    def queue(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """The first ``count`` frames not given yet; the others wait."""
        waiting = self._held.get(layer)
        if waiting is not None and len(waiting):
            x = torch.cat((waiting, x))
        if len(x) > count or waiting is not None:
            self.hold(layer, x[count:])
        return x[:count]

    def begins(self, layer: nn.Module, x: Tensor) -> bool:
        """Whether ``x`` holds the layer's first frame."""
        if layer in self._begun or not len(x):
            return False
        self._begun.add(layer)
        return True


class FrameConv(nn.Module):
    """A 3x3x3 convolution. In time the first frame is repeated, twice and with no look ahead where
    ``causal``, else once, as the last one is; ``padding`` in space is "zeros" or "reflect"."""

    def __init__(self, inputs: int, outputs: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3)
        self.reflect = padding == "reflect"
        self.causal = causal

    def pack(self) -> None:
        """Lay the kernel out for its device; the numbers stay. Once, after loading."""
        weight = self.conv.weight
        if weight.device.type == "cpu":
            packed = weight.data.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
        else:
            packed = weight.data.contiguous(memory_format=torch.channels_last_3d)
        weight.data = packed

    def forward(self, x: Tensor, carry: Carry, activate: bool = False) -> Tensor:
        """(n, C, H, W) -> (m, C', H, W); ``activate`` puts RMS norm and SiLU before it."""
        if not len(x) and not carry.last:
            return x.new_empty((0, self.conv.out_channels, *x.shape[2:]))
        frames = self._with_context(x, carry, activate)
        if len(frames) < 3:
            return x.new_empty((0, self.conv.out_channels, *x.shape[2:]))
        if self.reflect:
            frames = F.pad(frames, (1, 1, 1, 1), mode="reflect")
        convolve = _in_planes if x.device.type == "cpu" else _in_space
        return convolve(frames, self.conv.weight, self.conv.bias, 0 if self.reflect else 1)

    def _with_context(self, x: Tensor, carry: Carry, activate: bool) -> Tensor:
        """The chunk between the frames kept and, at the clip's end, the last one again."""
        held = carry.held(self)
        before = (2 if self.causal else 1) if held is None else len(held)
        after = int(carry.last and not self.causal)
        frames = _empty(before + len(x) + after, x)
        chunk = frames[before : before + len(x)]
        if activate:
            norm_silu(x, chunk)
        else:
            chunk.copy_(x)
        frames[:before] = chunk[:1] if held is None else held
        if after:
            frames[-1] = frames[-2]
        carry.hold(self, frames[-2:])
        return frames


class ResidualBlock(nn.Module):
    """Twice RMS norm, SiLU and convolution, plus the input."""

    def __init__(self, width: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.conv1 = FrameConv(width, width, padding, causal)
        self.conv2 = FrameConv(width, width, padding, causal)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        """(n, C, H, W) -> (m, C, H, W)."""
        y = self.conv2(self.conv1(x, carry, activate=True), carry, activate=True)
        return cast(Tensor, y.add_(carry.queue(self, x, len(y))))


class Stage(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, layers: int, width: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResidualBlock(width, padding, causal) for _ in range(layers)
        )

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        """(n, C, H, W) -> (m, C, H, W)."""
        for block in self.res_blocks:
            x = block(x, carry)
        return x


class Upsample(nn.Module):
    """A convolution whose channels become frames and pixels; in time, the first frame is dropped.

    With ``residual`` the input is added, its channels spread likewise and then repeated.
    """

    def __init__(
        self, widths: tuple[int, int], kind: str, padding: str, causal: bool, residual: bool
    ) -> None:
        super().__init__()
        self.strides = STRIDES[kind]
        before, after = widths
        frames, rows, cols = self.strides
        spread = after * frames * rows * cols
        self.conv = FrameConv(before, spread, padding, causal)
        self.repeats = spread // before if residual else 0

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        """(n, C, H, W) -> (m, C', H', W')."""
        y = self.conv(x, carry)
        if self.repeats:
            x = carry.queue(self, x, len(y))
        y = unfold(y, self.strides)
        if self.repeats:
            y += unfold(x, self.strides).repeat(1, self.repeats, 1, 1)
        return y[1:] if self.strides[0] == 2 and carry.begins(self, y) else y


class Downsample(nn.Module):
    """A convolution whose frames and pixels become channels, plus averages of the input's.

    In time, the first frame counts twice. Causal.
    """

    def __init__(self, widths: tuple[int, int], kind: str, padding: str) -> None:
        super().__init__()
        self.strides = STRIDES[kind]
        before, after = widths
        frames, rows, cols = self.strides
        self.conv = FrameConv(before, after // (frames * rows * cols), padding, True)
        self.after = after

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        """(n, C, H, W) -> (m, C', H', W')."""
        if self.strides[0] == 2:
            if carry.begins(self, x):
                x = torch.cat((x[:1], x))
            waiting = carry.held(self)
            count = len(x) + (0 if waiting is None else len(waiting))
            x = carry.queue(self, x, count - count % 2)
        y = fold(self.conv(x, carry), self.strides)
        count, channels, height, width = (x := fold(x, self.strides)).shape
        grouped = x.reshape(count, self.after, channels // self.after, height, width)
        return y.add_(grouped.mean(2))


def norm_silu(x: Tensor, out: Tensor) -> None:
    """``out`` = SiLU of ``x`` over its root mean square along the channels."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    torch.mul(x, norm.square_().mul_(1 / x.shape[1]).add_(NORM_EPS).rsqrt_(), out=out)
    F.silu(out, inplace=True)


def unfold(x: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """(n, C t p q, H, W) -> (n t, C, H p, W q): channels become frames, rows and columns."""
    count, channels, height, width = x.shape
    t, p, q = strides
    inner = channels // (t * p * q)
    x = x.permute(0, 2, 3, 1).reshape(count, height, width, inner, t, p, q)
    x = x.permute(0, 4, 1, 5, 2, 6, 3).reshape(count * t, height * p, width * q, inner)
    return x.permute(0, 3, 1, 2)


def fold(x: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """The inverse of :func:`unfold`."""
    count, channels, height, width = x.shape
    t, p, q = strides
    x = x.permute(0, 2, 3, 1).reshape(count // t, t, height // p, p, width // q, q, channels)
    return x.permute(0, 2, 4, 6, 1, 3, 5).flatten(3).permute(0, 3, 1, 2)


def to_pixels(x: Tensor, patch: int) -> Tensor:
    """(n, 3 patch^2, H, W) -> (n, 3, H patch, W patch): columns before rows in the channels."""
    count, _, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, height, width, 3, patch, patch)
    x = x.permute(0, 1, 5, 2, 4, 3).reshape(count, height * patch, width * patch, 3)
    return x.permute(0, 3, 1, 2)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`to_pixels`."""
    count, _, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, height // patch, patch, width // patch, patch, 3)
    return x.permute(0, 1, 3, 5, 4, 2).flatten(3).permute(0, 3, 1, 2)


def chunked(levels: Sequence[Level], x: Tensor, carry: Carry, last: bool) -> Iterator[Tensor]:
    """``x`` through all ``levels``, at each of them as many frames at a time as
    :func:`chunk_frames` allows; what comes out of the last level, in order."""
    level, *rest = levels
    chunks = torch.split(x, chunk_frames(level.width, x))
    for i, chunk in enumerate(chunks):
        carry.last = ends = last and i == len(chunks) - 1
        y = level.layers(chunk, carry)
        if rest and (len(y) or ends):
            yield from chunked(rest, y, carry, ends)
        elif len(y):
            yield y


def chunk_frames(width: float, x: Tensor) -> int:
    """How many frames to work on together, by their size and the kind of device alone."""
    most = CHUNK_VALUES.get(x.device.type, CHUNK_VALUES_ELSEWHERE)
    return max(1, int(most / (width * x.shape[2] * x.shape[3])))


def _empty(count: int, like: Tensor) -> Tensor:
    """Frames of the form and kind of ``like``, channels last."""
    return torch.empty(
        (count, *like.shape[1:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _in_space(frames: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    x = frames.transpose(0, 1)[None]
    return F.conv3d(x, weight, bias, padding=(0, padding, padding))[0].transpose(0, 1)


def _in_planes(frames: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same as a convolution of three frames' channels at once.

    On CPUs of today this is as fast as the one in space where that is fast, and up to eight times
    as fast for a few small frames.
    """
    x = torch.cat((frames[:-2], frames[1:-1], frames[2:]), dim=1)
    flat = weight.permute(0, 3, 4, 2, 1).flatten(3).permute(0, 3, 1, 2)
    return F.conv2d(x, flat, bias, padding=padding)
