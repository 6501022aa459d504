"""Layers of the video VAE that process a clip in chunks, with the same result as for the whole.

Tensors are frames first, (n, C, H, W) of one clip, channels last in memory. A 3x3x3 convolution
needs the frame before and the frame after, so each layer stores the last two frames of its input
between chunks (:class:`ConvCache`), and a layer that looks ahead returns its last frame with the
last chunk of the clip. So a chunk may come out shorter than it went in, or empty. Activations are
overwritten in place: for inference only.

Source: ltx_core ``CausalConv3d``, ``ResnetBlock3D``, ``DepthToSpaceUpsample`` and
``SpaceToDepthDownsample``; goldens ``vae.*`` and ``ltx20.vae_*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.conv3d import conv3d
from latent_ladder.models.network_configs import CHUNK_VALUES, CHUNK_VALUES_ELSEWHERE, STRIDES

NORM_EPS = 1e-8


class ChunkLevel(NamedTuple):
    """Layers that process a chunk together.

    ``width``: the largest number of values in any of these layers, per frame and position of
    their input.
    """

    layers: Callable[[Tensor, ConvCache], Tensor]
    width: float


class ConvCache:
    """Frames that layers store between the chunks of a clip. ``is_last``: no chunk follows."""

    def __init__(self) -> None:
        self.is_last = False
        self._frames: dict[nn.Module, Tensor] = {}
        self._started: set[nn.Module] = set()

    def get(self, layer: nn.Module) -> Tensor | None:
        """Frames stored for ``layer``, None before its first chunk."""
        return self._frames.get(layer)

    def store(self, layer: nn.Module, frames: Tensor) -> None:
        """Store a copy of ``frames`` for the layer's next chunk; nothing in the last chunk."""
        if self.is_last:
            self._frames.pop(layer, None)
        else:
            self._frames[layer] = frames.clone(memory_format=torch.preserve_format)

    def take(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Append ``x`` to the stored frames, return the first ``count`` and store the others."""
        stored = self._frames.get(layer)
        if stored is not None and len(stored):
            x = torch.cat((stored, x))
        if len(x) > count or stored is not None:
            self.store(layer, x[count:])
        return x[:count]

    def starts(self, layer: nn.Module, x: Tensor) -> bool:
        """Return True if ``x`` contains the layer's first frame; False in later calls."""
        if layer in self._started or not len(x):
            return False
        self._started.add(layer)
        return True


class FrameConv(nn.Module):
    """3x3x3 convolution over the frames of a clip.

    Padding in time: if ``causal``, the first frame is repeated twice and there is no look-ahead;
    otherwise the first and the last frame are repeated once. Padding in space: "zeros" or
    "reflect".
    """

    def __init__(self, inputs: int, outputs: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3)
        self.reflect = padding == "reflect"
        self.causal = causal

    def pack(self) -> None:
        """Change the memory layout of the kernel for its device; call once after loading."""
        weight = self.conv.weight
        if weight.device.type == "cpu":
            packed = weight.data.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
        else:
            packed = weight.data.contiguous(memory_format=torch.channels_last_3d)
        weight.data = packed

    def forward(self, x: Tensor, cache: ConvCache, activate: bool = False) -> Tensor:
        """(n, C, H, W) -> (m, C', H, W); ``activate`` applies RMS norm and SiLU to ``x`` first."""
        if not len(x) and not cache.is_last:
            return x.new_empty((0, self.conv.out_channels, *x.shape[2:]))
        frames = self._with_context(x, cache, activate)
        if len(frames) < 3:
            return x.new_empty((0, self.conv.out_channels, *x.shape[2:]))
        if self.reflect:
            frames = F.pad(frames, (1, 1, 1, 1), mode="reflect")
        convolve = _convolve_2d if x.device.type == "cpu" else _convolve_3d
        return convolve(frames, self.conv.weight, self.conv.bias, 0 if self.reflect else 1)

    def _with_context(self, x: Tensor, cache: ConvCache, activate: bool) -> Tensor:
        """Prepend the stored frames to the chunk; at the end of the clip append the last frame."""
        stored = cache.get(self)
        before = (2 if self.causal else 1) if stored is None else len(stored)
        after = int(cache.is_last and not self.causal)
        frames = _empty(before + len(x) + after, x)
        chunk = frames[before : before + len(x)]
        if activate:
            norm_silu(x, chunk)
        else:
            chunk.copy_(x)
        frames[:before] = chunk[:1] if stored is None else stored
        if after:
            frames[-1] = frames[-2]
        cache.store(self, frames[-2:])
        return frames


class ResidualBlock(nn.Module):
    """Residual block: twice RMS norm, SiLU and convolution, plus the input."""

    def __init__(self, width: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.conv1 = FrameConv(width, width, padding, causal)
        self.conv2 = FrameConv(width, width, padding, causal)

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        """(n, C, H, W) -> (m, C, H, W)."""
        y = self.conv2(self.conv1(x, cache, activate=True), cache, activate=True)
        return cast(Tensor, y.add_(cache.take(self, x, len(y))))


class ResidualBlocks(nn.Module):
    """Sequence of residual blocks with one number of channels."""

    def __init__(self, layers: int, width: int, padding: str, causal: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResidualBlock(width, padding, causal) for _ in range(layers)
        )

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        """(n, C, H, W) -> (m, C, H, W)."""
        for block in self.res_blocks:
            x = block(x, cache)
        return x


class Upsample(nn.Module):
    """Upsampling by a convolution whose channels become frames and pixels (depth to space).

    When frames are doubled, the first one is dropped. With ``residual`` the input is rearranged
    in the same way, repeated along channels and added.
    """

    def __init__(
        self, widths: tuple[int, int], kind: str, padding: str, causal: bool, residual: bool
    ) -> None:
        super().__init__()
        self.strides = STRIDES[kind]
        before, after = widths
        frames, rows, cols = self.strides
        expanded = after * frames * rows * cols
        self.conv = FrameConv(before, expanded, padding, causal)
        self.repeats = expanded // before if residual else 0

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        """(n, C, H, W) -> (m, C', H', W')."""
        y = self.conv(x, cache)
        if self.repeats:
            x = cache.take(self, x, len(y))
        y = depth_to_space(y, self.strides)
        if self.repeats:
            y += depth_to_space(x, self.strides).repeat(1, self.repeats, 1, 1)
        return y[1:] if self.strides[0] == 2 and cache.starts(self, y) else y


class Downsample(nn.Module):
    """Causal downsampling: convolution, then frames and pixels become channels (space to depth).

    The input, rearranged in the same way and averaged over groups of channels, is added. When
    frames are halved, the first one is repeated.
    """

    def __init__(self, widths: tuple[int, int], kind: str, padding: str) -> None:
        super().__init__()
        self.strides = STRIDES[kind]
        before, after = widths
        frames, rows, cols = self.strides
        self.conv = FrameConv(before, after // (frames * rows * cols), padding, True)
        self.after = after

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        """(n, C, H, W) -> (m, C', H', W')."""
        if self.strides[0] == 2:
            if cache.starts(self, x):
                x = torch.cat((x[:1], x))
            stored = cache.get(self)
            count = len(x) + (0 if stored is None else len(stored))
            x = cache.take(self, x, count - count % 2)
        y = space_to_depth(self.conv(x, cache), self.strides)
        count, channels, height, width = (x := space_to_depth(x, self.strides)).shape
        grouped = x.reshape(count, self.after, channels // self.after, height, width)
        return y.add_(grouped.mean(2))


def norm_silu(x: Tensor, out: Tensor) -> None:
    """Divide ``x`` (n, C, H, W) by its RMS over channels, apply SiLU and write it to ``out``."""
    precision = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=precision)
    torch.mul(x, norm.square_().mul_(1 / x.shape[1]).add_(NORM_EPS).rsqrt_(), out=out)
    F.silu(out, inplace=True)


def depth_to_space(x: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """Move channels into frames, rows and columns: (n, C t p q, H, W) -> (n t, C, H p, W q)."""
    count, channels, height, width = x.shape
    t, p, q = strides
    inner = channels // (t * p * q)
    x = x.permute(0, 2, 3, 1).reshape(count, height, width, inner, t, p, q)
    x = x.permute(0, 4, 1, 5, 2, 6, 3).reshape(count * t, height * p, width * q, inner)
    return x.permute(0, 3, 1, 2)


def space_to_depth(x: Tensor, strides: tuple[int, int, int]) -> Tensor:
    """Inverse of :func:`depth_to_space`."""
    count, channels, height, width = x.shape
    t, p, q = strides
    x = x.permute(0, 2, 3, 1).reshape(count // t, t, height // p, p, width // q, q, channels)
    return x.permute(0, 2, 4, 6, 1, 3, 5).flatten(3).permute(0, 3, 1, 2)


def to_pixels(x: Tensor, patch: int) -> Tensor:
    """Convert patches to pixels: (n, 3 patch^2, H, W) -> (n, 3, H patch, W patch).

    Columns come before rows in the channels.
    """
    count, _, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, height, width, 3, patch, patch)
    x = x.permute(0, 1, 5, 2, 4, 3).reshape(count, height * patch, width * patch, 3)
    return x.permute(0, 3, 1, 2)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Convert pixels to patches, the inverse of :func:`to_pixels`."""
    count, _, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, height // patch, patch, width // patch, patch, 3)
    return x.permute(0, 1, 3, 5, 4, 2).flatten(3).permute(0, 3, 1, 2)


def run_levels(
    levels: Sequence[ChunkLevel], x: Tensor, cache: ConvCache, last: bool
) -> Iterator[Tensor]:
    """Run ``x`` (n, C, H, W) through all ``levels``; yields the output of the last one, in order.

    Each level processes as many frames at a time as :func:`chunk_frames` allows. ``last``: no
    more frames of the clip follow.
    """
    level, *rest = levels
    chunks = torch.split(x, chunk_frames(level.width, x))
    for i, chunk in enumerate(chunks):
        cache.is_last = is_last = last and i == len(chunks) - 1
        y = level.layers(chunk, cache)
        if rest and (len(y) or is_last):
            yield from run_levels(rest, y, cache, is_last)
        elif len(y):
            yield y


def chunk_frames(width: float, x: Tensor) -> int:
    """Number of frames per chunk; depends only on frame size, ``width`` and device type."""
    max_values = CHUNK_VALUES.get(x.device.type, CHUNK_VALUES_ELSEWHERE)
    return max(1, int(max_values / (width * x.shape[2] * x.shape[3])))


def _empty(count: int, like: Tensor) -> Tensor:
    """Empty frames with the shape, dtype and device of ``like``, channels last."""
    return torch.empty(
        (count, *like.shape[1:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _convolve_3d(frames: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    x = frames.transpose(0, 1)[None]
    return conv3d(x, weight, bias, (0, padding, padding))[0].transpose(0, 1)


def _convolve_2d(frames: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same convolution as one 2D convolution over the channels of three frames.

    On current CPUs it is as fast as the 3D convolution, and up to eight times as fast for a few
    small frames.
    """
    x = torch.cat((frames[:-2], frames[1:-1], frames[2:]), dim=1)
    flat = weight.permute(0, 3, 4, 2, 1).flatten(3).permute(0, 3, 1, 2)
    return F.conv2d(x, flat, bias, padding=padding)
