"""Configuration of the pixel diffusion decoder of LTX-2.5, from tensor shapes and the header.

Widths, depths and strides are read from shapes. Kernels of the windows and what is predicted come
from the header or, without one, from the published decoder. Imports no torch, so that the memory
planner can use it. Source: LTX-2, ``NADiffusionDecoder``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from latent_ladder.checkpoints.families import DIFFUSION_DECODER
from latent_ladder.errors import UnknownLayout

Shapes = Mapping[str, tuple[int, ...]]
Size = tuple[int, int, int]
"""Frames, rows and columns."""
Prediction = Literal["x0", "v"]

CHUNK_FRAMES = 4
"""Frames of queries that a block computes at a time: always the same ones, so that the result does
not depend on memory."""
QUERY_TILE: Size = (CHUNK_FRAMES, 8, 8)
"""Queries of a tile of window attention: frames, rows, columns."""
BAND_VALUES, BAND_VALUES_ELSEWHERE = {"cpu": 1 << 22}, 1 << 26
"""Values of the frames of a band of rows, at most, if it has more than one tile of queries; by
device type, and of other devices."""
ATTENTION_VALUES, ATTENTION_VALUES_ELSEWHERE = {"cpu": 1 << 24}, 1 << 28
"""Values of queries, keys and masks of the tiles computed together, at most."""
GHOSTS = 2
"""Copies of the last latent frame that are decoded after the clip and cut off again."""
PUBLISHED_KERNELS: tuple[Size, ...] = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5), (11, 11, 11))
_STRIDES: Mapping[int, Size] = {2: (2, 1, 1), 4: (1, 2, 2), 8: (2, 2, 2)}
"""Stride of an upsampling by the number of positions that one becomes."""


@dataclass(frozen=True)
class DiffusionDecoderConfig:
    """Configuration of a diffusion decoder.

    Four deterministic stages turn latents into a context, each followed by an upsampling by one of
    ``strides``; the diffusion blocks are the fifth entry of ``channels``, ``depths`` and
    ``kernels`` (frames, rows, columns of an attention window). A position of theirs is ``patch`` x
    ``patch`` pixels. ``predicts``: the picture, or the velocity; ``steps``: denoising steps.
    """

    latent_channels: int
    patch: int
    head_dim: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    inner: tuple[int, ...]
    kernels: tuple[Size, ...]
    strides: tuple[Size, ...]
    time_dim: int
    frequency_dim: int
    time_scale: float = 1000.0
    predicts: Prediction = "x0"
    steps: int = 1

    @property
    def spatial_scale(self) -> int:
        """Pixels per latent in height and in width."""
        return self.patch * math.prod(stride[1] for stride in self.strides)

    @property
    def temporal_scale(self) -> int:
        """Video frames per latent frame, after the first one."""
        return math.prod(stride[0] for stride in self.strides)

    def grid(self, latents: Size, stage: int) -> Size:
        """Positions of a stage for latents (frames, rows, columns); 4: of the diffusion blocks.

        An upsampling in time drops its first frame.
        """
        frames, rows, cols = latents
        for time, height, width in self.strides[:stage]:
            frames, rows, cols = time * frames - (time - 1), height * rows, width * cols
        return frames, rows, cols

    def padded(self, latents: Size) -> Size:
        """The latents (frames, rows, columns) after padding small ones to a window's size."""
        size = list(latents)
        for axis in range(3):
            while any(
                self.grid((size[0], size[1], size[2]), stage)[axis] < self.kernels[stage][axis]
                for stage in range(len(self.channels))
            ):
                size[axis] += 1
        return size[0], size[1], size[2]


def window_start(position: int, length: int, kernel: int) -> int:
    """First position of the window of ``position`` on an axis of ``length``."""
    return min(max(position - kernel // 2, 0), max(length - kernel, 0))


def window_range(first: int, stop: int, length: int, kernel: int) -> tuple[int, int]:
    """First position and end of the windows of all positions ``first`` to ``stop``."""
    last = window_start(stop - 1, length, kernel)
    return window_start(first, length, kernel), last + min(kernel, length)


def band_rows(budget: int, row_values: int, kernel: int) -> int:
    """Rows of queries in a band of ``budget`` values, whole tiles of them, at least one.

    ``row_values`` are those of a row of all frames of a window, ``kernel`` the rows of a window.
    """
    tile = QUERY_TILE[1]
    return max((budget // row_values - (kernel - 1)) // tile, 1) * tile


def held_values(config: DiffusionDecoderConfig, latents: Size) -> int:
    """Values that are in memory between blocks while latents (frames, rows, columns) are decoded.

    Each block holds the frames of its windows and a few chunks; the context waits for the last
    block, which is behind the first one by half a window for each block between them.
    """
    frames, rows, cols = config.padded(latents)
    ghosts = (frames + GHOSTS, rows, cols)
    last, total = len(config.strides), math.prod(ghosts) * config.channels[0]
    for stage in range(last + 1):
        length, height, width = config.grid(
            (frames, rows, cols) if stage == last else ghosts, stage
        )
        frame = height * width * config.channels[stage]
        window = min(config.kernels[stage][0] - 1 + 3 * CHUNK_FRAMES, length)
        total += config.depths[stage] * window * frame
        if stage == last:
            lag = config.depths[stage] * (config.kernels[stage][0] // 2 + CHUNK_FRAMES)
            canvas = 2 * 3 * config.patch**2 * height * width  # float32
            total += min(lag, length) * (frame + canvas)
    return total


def has_diffusion_decoder(shapes: Shapes) -> bool:
    """True if the decoder of a video VAE is the diffusion decoder."""
    return DIFFUSION_DECODER in shapes


def diffusion_decoder_config(shapes: Shapes, header: Mapping[str, Any]) -> DiffusionDecoderConfig:
    """Read the configuration of a diffusion decoder; raises :class:`UnknownLayout`.

    ``header`` is the ``vae`` section of the file's configuration, empty if there is none.
    """
    section = header.get("decoder", {})
    section = section if isinstance(section, Mapping) else {}
    numbers = sorted(
        {int(m[1]) for key in shapes if (m := re.match(r"decoder\.det_stages\.(\d+)\.", key))}
    )
    blocks = [f"decoder.det_stages.{n}" for n in numbers] + ["decoder.diff_blocks"]
    channels = tuple(_shape(shapes, f"{block}.0.norm1.weight")[0] for block in blocks)
    gains = [
        _shape(shapes, f"decoder.upsamples.{n}.proj.weight")[0] / channels[n + 1] for n in numbers
    ]
    if any(gain not in _STRIDES for gain in gains):
        raise UnknownLayout(f"diffusion decoder: upsampling by {gains}, expected 2, 4 or 8")
    patch = math.isqrt(_shape(shapes, "decoder.conv_out.weight")[0] // 3)
    (head_dim,) = _shape(shapes, "decoder.diff_blocks.0.attn.q_norm.weight")
    time_dim, frequency_dim = _shape(shapes, "decoder.t_embedder.mlp.0.weight")
    config = DiffusionDecoderConfig(
        latent_channels=_shape(shapes, "decoder.conv_in.weight")[1],
        patch=patch,
        head_dim=head_dim,
        channels=channels,
        depths=tuple(_depth(shapes, block) for block in blocks),
        inner=tuple(_shape(shapes, f"{block}.0.mlp.w_up.weight")[0] for block in blocks),
        kernels=_kernels(section, len(blocks)),
        strides=tuple(_STRIDES[int(gain)] for gain in gains),
        time_dim=time_dim,
        frequency_dim=frequency_dim,
        time_scale=float(section.get("timestep_scale_multiplier", 1000)),
        predicts=_prediction(header.get("model_output_type", "x0")),
        steps=int(section.get("default_num_inference_steps", 1)),
    )
    _check(config, section)
    return config


def _kernels(section: Mapping[str, Any], count: int) -> tuple[Size, ...]:
    stated = section.get("stage_kernels", PUBLISHED_KERNELS)
    kernels = [_size(kernel) for kernel in stated]
    if "stage5_kernel" in section:
        kernels[-1:] = [_size(section["stage5_kernel"])]
    if len(kernels) != count:
        raise UnknownLayout(f"diffusion decoder: {len(kernels)} windows for {count} stages")
    return tuple(kernels)


def _size(values: Sequence[int]) -> Size:
    frames, rows, cols = values
    return int(frames), int(rows), int(cols)


def _prediction(stated: Any) -> Prediction:
    known: Mapping[str, Prediction] = {"x0": "x0", "v": "v", "velocity": "v"}
    if stated not in known:
        raise UnknownLayout(
            f"diffusion decoder: predicts {stated!r}, supported: x0 and v",
            "use the published video VAE of LTX-2.5",
        )
    return known[stated]


def _check(config: DiffusionDecoderConfig, section: Mapping[str, Any]) -> None:
    stated_strides = [list(stride) for stride, _ in section.get("upsamples", [])]
    for name, in_tensors, stated in (
        ("channels", list(config.channels), section.get("stage_channels")),
        ("blocks", list(config.depths), section.get("stage_depths")),
        ("head width", config.head_dim, section.get("head_dim")),
        ("patch", config.patch, section.get("patch_size")),
        ("strides", [list(s) for s in config.strides], stated_strides or None),
    ):
        if stated is not None and stated != in_tensors:
            raise UnknownLayout(
                f"diffusion decoder: {name} {in_tensors} in its tensors, {stated} in its header",
                "header and tensors come from different models; use an unmodified file",
            )
    if any(width % config.head_dim for width in config.channels):
        raise UnknownLayout(f"diffusion decoder: {config.channels} are not heads of a whole width")


def _depth(shapes: Shapes, path: str) -> int:
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\.norm1\.weight")
    return sum(bool(pattern.fullmatch(key)) for key in shapes)


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise UnknownLayout(
            f"diffusion decoder: tensor {key} is missing",
            "the file is incomplete or of an unsupported model family; download it again",
        )
    return shapes[key]
