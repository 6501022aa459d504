"""Pixel diffusion decoder of LTX-2.5: latents to frames in one denoising step or several.

Deterministic stages turn latents into a context with a position per 4 x 4 pixels; the diffusion
blocks denoise a noisy picture with it. With one step of x0 prediction the prediction is the
picture. Everything is streamed frame by frame (:mod:`frame_stream`). Source: LTX-2
``DiffusionVideoDecoder``, ``NADiffusionDecoder``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.diffusion_decoder_config import (
    GHOSTS,
    DiffusionDecoderConfig,
    Size,
    diffusion_decoder_config,
)
from latent_ladder.models.video_vae.diffusion_blocks import (
    EPS,
    DiffusionBlock,
    NaBlock,
    SharedAdaLn,
    TimeEmbedding,
    Upsampling,
)
from latent_ladder.models.video_vae.frame_stream import (
    Frames,
    FrameStream,
    StreamPlace,
    in_chunks,
    map_frames,
    through_block,
    through_upsampling,
)
from latent_ladder.models.weights.loading import load_module, tensor_readers
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor, read_float

GATES = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}
"""Gates of a block before they were folded, and the layer whose outputs they multiply."""
ReadNoise = Callable[[int, int], Tensor]
"""Noise (3, n, H, W) float32 of the frames from one to before another, asked for in order."""


class DiffusionDecoder(nn.Module):
    """Diffusion decoder; loaded with :func:`load_diffusion_decoder`."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, stages = config.channels[-1], len(config.strides)
        self.conv_in = nn.Linear(config.latent_channels, config.channels[0])
        self.det_stages = nn.ModuleList(
            nn.ModuleList(NaBlock(config, stage) for _ in range(config.depths[stage]))
            for stage in range(stages)
        )
        self.upsamples = nn.ModuleList(Upsampling(config, stage) for stage in range(stages))
        self.t_embedder = TimeEmbedding(config)
        self.shared_adaln = SharedAdaLn(config)
        self.conv_in_x_t = nn.Linear(3 * config.patch**2, width)
        self.diff_blocks = nn.ModuleList(DiffusionBlock(config) for _ in range(config.depths[-1]))
        self.norm_out = nn.RMSNorm(width, eps=EPS)
        self.conv_out = nn.Linear(width, 3 * config.patch**2)

    # -- the deterministic stages -------------------------------------------------------------

    def pad(self, latents: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Latents (1, C, F, H, W) padded to the windows, and the latents added above and left."""
        grid: Size = (latents.shape[2], latents.shape[3], latents.shape[4])
        need = [a - b for a, b in zip(self.config.padded(grid), grid, strict=True)]
        top, left = need[1] // 2, need[2] // 2
        sides = (left, need[2] - left, top, need[1] - top, 0, need[0])
        return F.pad(latents, sides, mode="replicate"), (top, left)

    def early_stages(self, latents: Tensor, place: StreamPlace) -> tuple[FrameStream, Size]:
        """Features before the last deterministic stage, and their size with ghost frames.

        ``latents`` (1, C, F, H, W) are padded and un-normalised.
        """
        ghosts = latents[:, :, -1:].expand(-1, -1, GHOSTS, -1, -1)
        cells = torch.cat((latents, ghosts), 2)[0].permute(1, 2, 3, 0)
        size: Size = (cells.shape[0], cells.shape[1], cells.shape[2])
        stream = in_chunks(cast(Tensor, self.conv_in(cells.to(place.compute))).to(place.keep))
        last = len(self.config.strides) - 1
        for stage in range(last):
            stream = self.stage(stage, stream, self.config.grid(size, stage), place)
        return stream, self.config.grid(size, last)

    def stage(
        self,
        number: int,
        stream: FrameStream,
        grid: Size,
        place: StreamPlace,
        *,
        from_start: bool = True,
    ) -> FrameStream:
        """Stream after a deterministic stage of size ``grid`` and its upsampling."""
        for block in cast(nn.ModuleList, self.det_stages[number]):
            stream = through_block(cast(NaBlock, block), stream, grid, place)
        layer = cast(Upsampling, self.upsamples[number])
        return through_upsampling(layer, stream, place, from_start=from_start)

    # -- the diffusion ------------------------------------------------------------------------

    def denoise(
        self, context: FrameStream, grid: Size, noise: ReadNoise, place: StreamPlace, steps: int
    ) -> Iterator[Tensor]:
        """Pictures (n, 3, H, W) float32, about -1..1, of a context of size ``grid``, in order."""
        stream = self._with_noise(context, grid[0], noise, place)
        times = [1 - i / steps for i in range(steps)]
        for time, following in zip(times, [*times[1:], 0.0], strict=True):
            stream = self._step(stream, grid, place, (time, following))
        for frames in stream:
            if frames.canvas is None:
                raise ValueError("a denoising step gives a canvas")
            yield self._to_pixels(frames.canvas)

    def _with_noise(
        self, context: FrameStream, total: int, noise: ReadNoise, place: StreamPlace
    ) -> FrameStream:
        """Frames with their context and a canvas of pure noise."""
        first = 0
        for frames in context:
            kept = frames.x[: total - first]
            canvas = self._to_patches(noise(first, first + len(kept)))
            first += len(kept)
            yield Frames(kept, kept, canvas.to(place.keep))
            if first == total:
                return

    def _step(
        self, stream: FrameStream, grid: Size, place: StreamPlace, times: tuple[float, float]
    ) -> FrameStream:
        """Stream whose canvas is denoised from the first of ``times`` to the second."""
        chunks = self.shared_adaln(self.t_embedder(times[0]))
        dtype = self.conv_in_x_t.weight.dtype

        def embed(frames: Frames) -> Frames:
            if frames.canvas is None:
                raise ValueError("a denoising step needs a canvas")
            x = self.conv_in_x_t(frames.canvas.to(place.compute, dtype))
            return frames._replace(x=cast(Tensor, x).to(place.keep))

        stream = map_frames(stream, embed)
        for module in self.diff_blocks:
            block = cast(DiffusionBlock, module)
            stream = through_block(block, stream, grid, place, block.modulation(chunks))
        return map_frames(stream, partial(self._update, times=times, place=place))

    def _update(self, frames: Frames, times: tuple[float, float], place: StreamPlace) -> Frames:
        """Frames with the canvas at the next time: an Euler step in float32."""
        time, following = times
        predicted = self.conv_out(self.norm_out(frames.x.to(place.compute))).float()
        if frames.canvas is None:
            raise ValueError("a denoising step needs a canvas")
        if self.config.predicts == "x0" and following == 0:
            return frames._replace(canvas=predicted.to(place.keep))
        canvas = frames.canvas.to(place.compute)
        velocity = predicted if self.config.predicts == "v" else (canvas - predicted) / time
        return frames._replace(canvas=(canvas + (following - time) * velocity).to(place.keep))

    def _to_patches(self, pixels: Tensor) -> Tensor:
        """(3, n, H, W) to (n, H / p, W / p, 3 p p): colour, column and row in the patch."""
        p = self.config.patch
        _, n, height, width = pixels.shape
        cells = pixels.view(3, n, height // p, p, width // p, p)
        return cells.permute(1, 2, 4, 0, 5, 3).flatten(3)

    def _to_pixels(self, patches: Tensor) -> Tensor:
        """(n, H / p, W / p, 3 p p) to (n, 3, H, W), the inverse of :meth:`_to_patches`."""
        p = self.config.patch
        n, rows, cols, _ = patches.shape
        cells = patches.view(n, rows, cols, 3, p, p).permute(0, 3, 1, 5, 2, 4)
        return cells.reshape(n, 3, rows * p, cols * p)


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of a decode: its place, its denoising steps and what the network predicts."""

    place: StreamPlace
    steps: int

    @classmethod
    def of(cls, decoder: DiffusionDecoder, device: torch.device) -> DecodeSettings:
        """All on one device, with the decoder's own number of steps."""
        return cls(StreamPlace(device, device), decoder.config.steps)

    def keep_on(self, device: torch.device) -> DecodeSettings:
        """The same with the frames on another device."""
        return replace(self, place=StreamPlace(self.place.compute, device))


@torch.no_grad()
def decode_whole(
    decoder: DiffusionDecoder,
    latents: Tensor,
    un_normalise: Callable[[Tensor], Tensor],
    noise: ReadNoise,
    settings: DecodeSettings,
) -> Iterator[Tensor]:
    """Decode normalised latents (1, C, F, H, W) exactly; yields frames (n, 3, H', W'), -1..1.

    ``noise`` is that of the padded canvas, see :meth:`DiffusionDecoder.pad`.
    """
    config, place = decoder.config, settings.place
    padded, (top, left) = decoder.pad(latents)
    dtype = decoder.conv_in.weight.dtype
    stream, before = decoder.early_stages(un_normalise(padded).to(dtype), place)
    last = len(config.strides) - 1
    context = decoder.stage(last, stream, before, place)
    grid = config.grid((padded.shape[2], padded.shape[3], padded.shape[4]), last + 1)
    frames, scale = config.temporal_scale * (latents.shape[2] - 1) + 1, config.spatial_scale
    rows = slice(top * scale, (top + latents.shape[3]) * scale)
    cols = slice(left * scale, (left + latents.shape[4]) * scale)
    done = 0
    for pixels in decoder.denoise(context, grid, noise, place, settings.steps):
        kept = pixels[: frames - done, :, rows, cols]
        done += len(kept)
        if len(kept):
            yield kept


def load_diffusion_decoder(
    component: Component, *, device: torch.device | str, dtype: torch.dtype
) -> DiffusionDecoder:
    """Load the diffusion decoder of a video VAE; raises :class:`UnknownLayout`.

    Gates of a checkpoint that still has them are multiplied into the layers before them.
    """
    config = diffusion_decoder_config(component.shapes(), component.config)
    read: dict[str, Callable[[], Tensor | QuantizedTensor]] = {
        name: reader
        for name, reader in tensor_readers(component, "decoder.").items()
        if name != "type_emb" and not name.startswith("coarse_")
    }
    for name in [name for name in read if name.endswith(tuple(GATES))]:
        block, _, gate = name.rpartition(".")
        scale = partial(read_float, component, f"decoder.{name}", torch.float32)
        del read[name]
        for layer in (f"{block}.{GATES[gate]}.{part}" for part in ("weight", "bias")):
            if layer in read:
                read[layer] = partial(_gated, component, f"decoder.{layer}", scale)
    label = f"{component.file.path.name}: video VAE decoder"
    return load_module(
        lambda: DiffusionDecoder(config), read, device=device, dtype=dtype, label=label
    )


def _gated(component: Component, key: str, scale: Callable[[], Tensor]) -> Tensor:
    """A weight or bias times the gate of each output."""
    weight = read_float(component, key, torch.float32)
    return weight * scale().flatten().reshape(-1, *[1] * (weight.ndim - 1))
