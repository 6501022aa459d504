"""Configurations of VAEs, vocoders, latent upsamplers and text connectors, from tensor shapes.

Shapes are used first, because files with one component often have no header; a header must agree
with them. What shapes do not show (strides of a vocoder, padding, final activations) is read from
the header or, without one, from the only published model with these shapes. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_ladder.errors import UnknownLayout

Shapes = Mapping[str, tuple[int, ...]]
Header = Mapping[str, Any]

CHUNK_VALUES = {"cpu": 1 << 19}
"""Values in the largest tensor of a chunk, at most, if a chunk has more than one frame; by device
type. It depends on nothing else, so a clip is always split in the same way."""
CHUNK_VALUES_ELSEWHERE = 1 << 25

CHUNK_TOKENS_CPU, CHUNK_TOKENS_GPU = 1024, 8192
"""Tokens that a sublayer of the transformer processes at once where an offload plan sets none: as
few as still make efficient matrix products."""


def chunk_tokens(device: str) -> int:
    """Tokens that a sublayer processes at once on a device of this type (cpu, cuda, mps)."""
    return CHUNK_TOKENS_CPU if device == "cpu" else CHUNK_TOKENS_GPU


STRIDES: Mapping[str, tuple[int, int, int]] = {
    "space": (1, 2, 2),
    "time": (2, 1, 1),
    "all": (2, 2, 2),
}
"""Frames, rows and columns that a resampler moves into channels or out of them."""


@dataclass(frozen=True)
class VideoVaeConfig:
    """Configuration of a video encoder or decoder; sequences are in the order of computation.

    ``patch``: pixels per side of a patch. ``widths``: channels of each level. ``layers``: residual
    blocks of each level. ``resamplers``: resampling between the levels, "space" (2x2), "time" (2)
    or "all" (2x2x2). ``residual``: the resampler adds its input.
    """

    latent_channels: int
    patch: int
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    resamplers: tuple[str, ...]
    padding: str
    causal: bool
    residual: tuple[bool, ...]

    @property
    def spatial_scale(self) -> int:
        """Pixels per latent in height and in width."""
        return self.patch << sum(kind in ("space", "all") for kind in self.resamplers)

    @property
    def temporal_scale(self) -> int:
        """Video frames per latent frame, after the first one."""
        return 1 << sum(kind in ("time", "all") for kind in self.resamplers)

    @property
    def cached_values(self) -> float:
        """Values stored between chunks while decoding, per pixel of one output frame, at most.

        Two frames for each convolution and residual block, and one more if it is not causal.
        """
        position = 1 / self.spatial_scale**2
        values = 2 * self.latent_channels * position
        per_block = 4 if self.causal else 6
        for width, layers, kind in zip(
            self.widths, self.layers, (*self.resamplers, None), strict=True
        ):
            values += (per_block * layers + 2) * width * position
            position *= 4 if kind in ("space", "all") else 1
        return values

    @property
    def frame_values(self) -> int:
        """Values of the largest tensor in decoding, per latent position of one of its frames."""
        position, most = 1, max(self.latent_channels, self.widths[0])
        for before, after, kind in zip(self.widths, self.widths[1:], self.resamplers, strict=False):
            most = max(most, position * max(before, after * math.prod(STRIDES[kind])))
            position *= math.prod(STRIDES[kind][1:])
        return max(most, position * max(self.widths[-1], 3 * self.patch**2))

    def decode_flops(self, frames: int, rows: int, cols: int) -> float:
        """FLOPs of decoding latents: 2 * 27 per input and output channel of a convolution."""
        positions, total = rows * cols, self.latent_channels * self.widths[0] * frames * rows * cols
        for level, (width, layers) in enumerate(zip(self.widths, self.layers, strict=True)):
            total += 2 * layers * width**2 * frames * positions
            if level < len(self.resamplers):
                strides = STRIDES[self.resamplers[level]]
                after = self.widths[level + 1] * math.prod(strides)
                total += width * after * frames * positions
                frames = frames * strides[0] - (strides[0] == 2)  # the first one is dropped
                positions *= strides[1] * strides[2]
        total += self.widths[-1] * 3 * self.patch**2 * frames * positions
        return 2.0 * 27 * total


@dataclass(frozen=True)
class AudioVaeConfig:
    """Configuration of an audio VAE; encoder and decoder are symmetric.

    ``base`` times ``multipliers``: channels of each level. ``blocks``: residual blocks per level.
    """

    base: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    mel_channels: int
    mel_bins: int
    causality_axis: str


@dataclass(frozen=True)
class GeneratorConfig:
    """Configuration of a vocoder's generator (HiFi-GAN or BigVGAN): mel frames to waveform.

    ``rates``: upsampling factors. ``final``: "tanh", "clamp" or None, what bounds the waveform.
    """

    in_channels: int
    hidden: int
    out_channels: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]
    activation: str
    final: str | None
    final_bias: bool


@dataclass(frozen=True)
class BandwidthExtensionConfig:
    """Configuration of the bandwidth extension of the LTX-2.3 vocoder; rates are in Hz."""

    generator: GeneratorConfig
    n_fft: int
    window: int
    hop: int
    mels: int
    input_rate: int
    output_rate: int

    @property
    def gain(self) -> int:
        """Output samples per input sample."""
        return self.output_rate // self.input_rate


@dataclass(frozen=True)
class UpsamplerConfig:
    """Configuration of a latent upsampler; ``scale`` is for H and W, ``temporal`` for F."""

    in_channels: int
    mid_channels: int
    blocks: int
    conv_dims: int
    spatial: bool
    temporal: bool
    rational: bool
    scale: float


@dataclass(frozen=True)
class ConnectorConfig:
    """Configuration of a text connector, a small transformer over prompt tokens and registers."""

    heads: int
    head_dim: int
    layers: int
    registers: int
    gated: bool


# --- video VAE ----------------------------------------------------------------------------------

_RESAMPLER_OF_STRIDE = {2: "time", 4: "space", 8: "all"}
_BLOCK_KIND = re.compile(r"compress_(space|time|all)(_res)?$")


def video_encoder_config(shapes: Shapes, header: Header) -> VideoVaeConfig:
    """Read the configuration of a video encoder; raises :class:`UnknownLayout`.

    A downsampler moves ``stride`` positions into channels after its convolution.
    """
    header = _encoder_header(header)
    out, patch_channels = _shape(shapes, "encoder.conv_in.conv.weight")[:2]
    depth = _count(shapes, r"encoder\.down_blocks\.(\d*[13579])\.conv\.conv\.weight")
    convs = [
        _shape(shapes, f"encoder.down_blocks.{2 * i + 1}.conv.conv.weight") for i in range(depth)
    ]
    ends = _shape(shapes, "encoder.conv_out.conv.weight")
    widths = (*(conv[1] for conv in convs), ends[1])
    config = VideoVaeConfig(
        latent_channels=ends[0] - 1,
        patch=_patch(patch_channels, "video encoder"),
        widths=widths,
        layers=_level_layers(shapes, "encoder.down_blocks", depth),
        resamplers=tuple(
            _resampler(after, conv[0], "video encoder")
            for conv, after in zip(convs, widths[1:], strict=True)
        ),
        padding=header.get("spatial_padding_mode", "zeros"),
        causal=True,
        residual=(True,) * depth,
    )
    if out != widths[0]:
        raise UnknownLayout(f"video encoder: {out} channels after conv_in, not {widths[0]}")
    _check_blocks(config, header.get("encoder_blocks"), "video encoder")
    return config


def _encoder_header(header: Header) -> Header:
    """The entries of an encoder with the names of a file whose decoder is convolutional.

    A file with a diffusion decoder has a section for each of the two.
    """
    section = header.get("encoder")
    if not isinstance(section, Mapping):
        return header
    return {**section, "encoder_blocks": section.get("blocks")}


def video_decoder_config(shapes: Shapes, header: Header) -> VideoVaeConfig:
    """Read the configuration of a video decoder; raises :class:`UnknownLayout`.

    An upsampler's convolution has ``stride`` times the channels, which become positions.
    """
    timed = [key for key in shapes if "time_embedder" in key or "timestep_scale" in key]
    if timed or header.get("timestep_conditioning"):
        raise UnknownLayout(
            "video decoder: conditioned on a timestep, which is not supported",
            "use the published video VAE of LTX-2.0 or LTX-2.3",
        )
    first, latent_channels = _shape(shapes, "decoder.conv_in.conv.weight")[:2]
    depth = _count(shapes, r"decoder\.up_blocks\.(\d*[13579])\.conv\.conv\.weight")
    convs = [
        _shape(shapes, f"decoder.up_blocks.{2 * i + 1}.conv.conv.weight") for i in range(depth)
    ]
    ends = _shape(shapes, "decoder.conv_out.conv.weight")
    widths = (first, *(conv[1] for conv in convs[1:]), ends[1])
    residual = _decoder_residual(header, depth)
    config = VideoVaeConfig(
        latent_channels=latent_channels,
        patch=_patch(ends[0], "video decoder"),
        widths=widths,
        layers=_level_layers(shapes, "decoder.up_blocks", depth),
        resamplers=tuple(
            _resampler(conv[0], after, "video decoder")
            for conv, after in zip(convs, widths[1:], strict=True)
        ),
        padding=header.get("spatial_padding_mode", "reflect" if any(residual) else "zeros"),
        causal=bool(header.get("causal_decoder", False)),
        residual=residual,
    )
    blocks = header.get("decoder_blocks")
    _check_blocks(config, None if blocks is None else blocks[::-1], "video decoder")
    return config


def _decoder_residual(header: Header, depth: int) -> tuple[bool, ...]:
    """For each upsampler, True if it adds its input.

    Without a header: True for three upsamplers, as in LTX-2.0.
    """
    blocks = header.get("decoder_blocks")
    if blocks is None:
        return (depth == 3,) * depth
    named = [options for name, options in blocks[::-1] if _BLOCK_KIND.match(name)]
    return tuple(bool(options.get("residual", False)) for options in named)


def _check_blocks(config: VideoVaeConfig, blocks: Sequence[Any] | None, label: str) -> None:
    if blocks is None:
        return
    stages = tuple(int(o.get("num_layers", 1)) for name, o in blocks if name == "res_x")
    kinds = tuple(m[1] for name, _ in blocks if (m := _BLOCK_KIND.match(name)))
    if len(stages) + len(kinds) != len(blocks):
        raise UnknownLayout(f"{label}: unknown blocks in its header, {[b[0] for b in blocks]}")
    _must_agree(label, "residual blocks", config.layers, stages)
    _must_agree(label, "resamplers", config.resamplers, kinds)


def _level_layers(shapes: Shapes, path: str, depth: int) -> tuple[int, ...]:
    escaped = re.escape(path)
    return tuple(
        _count(shapes, rf"{escaped}\.{2 * i}\.res_blocks\.(\d+)\.conv1\.conv\.weight")
        for i in range(depth + 1)
    )


def _resampler(many: int, few: int, label: str) -> str:
    kind = _RESAMPLER_OF_STRIDE.get(many // few) if many % few == 0 else None
    if kind is None:
        raise UnknownLayout(f"{label}: unknown resampler between {many} and {few} channels")
    return kind


def _patch(channels: int, label: str) -> int:
    patch = math.isqrt(channels // 3)
    if 3 * patch * patch != channels:
        raise UnknownLayout(f"{label}: {channels} channels are not RGB pixels of a square patch")
    return patch


# --- audio VAE and vocoder ----------------------------------------------------------------------


def audio_vae_config(shapes: Shapes, header: Header) -> AudioVaeConfig:
    """Read the configuration of an audio VAE; the file may have only the decoder.

    Raises :class:`UnknownLayout`.
    """
    has_decoder = "decoder.conv_in.conv.weight" in shapes
    half, stages = ("decoder", "up") if has_decoder else ("encoder", "down")
    params = header.get("model", {}).get("params", {}).get("ddconfig", {})
    levels = _count(shapes, rf"{half}\.{stages}\.(\d+)\.block\.0\.conv1\.conv\.weight")
    widths = [
        _shape(shapes, f"{half}.{stages}.{i}.block.0.conv1.conv.weight")[0] for i in range(levels)
    ]
    blocks = _count(shapes, rf"{half}\.{stages}\.0\.block\.(\d+)\.conv1\.conv\.weight")
    first, last = (_shape(shapes, f"{half}.conv_{end}.conv.weight") for end in ("in", "out"))
    latent = first[1] if half == "decoder" else last[0] // 2
    (statistics,) = _shape(shapes, "per_channel_statistics.mean-of-means")
    base = math.gcd(*widths) if half == "decoder" else first[0]
    base = int(params.get("ch", base))
    config = AudioVaeConfig(
        base=base,
        multipliers=tuple(width // base for width in widths),
        blocks=blocks - (half == "decoder"),
        latent_channels=latent,
        mel_channels=last[0] if half == "decoder" else first[1],
        mel_bins=statistics // latent * 2 ** (levels - 1),
        causality_axis=str(params.get("causality_axis", "height")),
    )
    if levels != 3 or any(width % base for width in widths):
        raise UnknownLayout(f"audio VAE: levels of {widths} channels, expected three levels")
    if params:
        _must_agree("audio VAE", "channel multipliers", config.multipliers, params["ch_mult"])
        _must_agree("audio VAE", "latent channels", latent, params["z_channels"])
        _must_agree("audio VAE", "mel bins", config.mel_bins, params.get("mel_bins", 64))
    return config


# Strides by kernel sizes, for files without a header: the generators of LTX-2.0 and LTX-2.3.
_KNOWN_RATES = {
    (16, 15, 8, 4, 4): (6, 5, 2, 2, 2),
    (11, 4, 4, 4, 4, 4): (5, 2, 2, 2, 2, 2),
    (12, 11, 4, 4, 4): (6, 5, 2, 2, 2),
}


def generator_config(shapes: Shapes, header: Header, *, last: str | None) -> GeneratorConfig:
    """Read the configuration of a generator from its shapes and its section of the header.

    ``last``: how to bound the waveform if the header does not request tanh, "clamp" or None.
    Raises :class:`UnknownLayout`.
    """
    hidden, in_channels, _ = _shape(shapes, "conv_pre.weight")
    stages = _count(shapes, r"ups\.(\d+)\.weight")
    kernels = tuple(_shape(shapes, f"ups.{i}.weight")[2] for i in range(stages))
    per_stage = _count(shapes, r"resblocks\.(\d+)\.convs1\.0\.weight") // max(stages, 1)
    block_kernels = tuple(
        _shape(shapes, f"resblocks.{i}.convs1.0.weight")[2] for i in range(per_stage)
    )
    convolutions = _count(shapes, r"resblocks\.0\.convs1\.(\d+)\.weight")
    rates = header.get("upsample_rates") or _KNOWN_RATES.get(kernels)
    if rates is None:
        raise UnknownLayout(
            f"vocoder: the header has no strides, and kernels {list(kernels)} are unknown",
            "use a file with its original header",
        )
    _must_agree("vocoder", "kernels", kernels, header.get("upsample_kernel_sizes", kernels))
    snake = "act_post.act.alpha" in shapes
    tanh = bool(header.get("use_tanh_at_final", not snake))
    dilations = header.get("resblock_dilation_sizes") or [[1, 3, 5][:convolutions]] * per_stage
    return GeneratorConfig(
        in_channels=in_channels,
        hidden=hidden,
        out_channels=_shape(shapes, "conv_post.weight")[0],
        rates=tuple(rates),
        kernels=kernels,
        block_kernels=block_kernels,
        dilations=tuple(tuple(row) for row in dilations),
        activation="snakebeta" if snake else "leaky_relu",
        final="tanh" if tanh else last,
        final_bias="conv_post.bias" in shapes,
    )


def bandwidth_extension_config(shapes: Shapes, header: Header) -> BandwidthExtensionConfig | None:
    """Read the bandwidth extension of an LTX-2.3 vocoder; None for a vocoder of LTX-2.0.

    Raises :class:`UnknownLayout`.
    """
    if "bwe_generator.conv_pre.weight" not in shapes:
        return None
    section = header.get("bwe", {})
    mels, bins = _shape(shapes, "mel_stft.mel_basis")
    n_fft = 2 * (bins - 1)
    _must_agree("bandwidth extension", "n_fft", n_fft, section.get("n_fft", n_fft))
    generator = generator_config(shapes_below(shapes, "bwe_generator."), section, last=None)
    hop, low = int(section.get("hop_length", 80)), int(section.get("input_sampling_rate", 16000))
    high = low // hop * math.prod(generator.rates)
    _must_agree("bandwidth extension", "rate", high, section.get("output_sampling_rate", high))
    window = int(section.get("win_size", n_fft))
    return BandwidthExtensionConfig(generator, n_fft, window, hop, mels, low, high)


# --- latent upsampler and connectors ------------------------------------------------------------


def upsampler_config(shapes: Shapes, header: Header) -> UpsamplerConfig:
    """Read the configuration of a latent upsampler from the layer between its residual blocks.

    Raises :class:`UnknownLayout`.
    """
    first = _shape(shapes, "initial_conv.weight")
    mid, channels = first[:2]
    rational = "upsampler.conv.weight" in shapes
    layer = _shape(shapes, "upsampler.conv.weight" if rational else "upsampler.0.weight")
    gain = layer[0] // mid
    spatial, temporal = (True, False) if len(layer) == 4 else (gain == 8, True)
    known = {(4, True): (4, 9, 16), (4, False): (4,), (5, False): (2, 8)}[len(layer), rational]
    if layer[0] % mid or gain not in known:
        raise UnknownLayout(f"latent upsampler: unknown layer {list(layer)} for {mid} channels")
    # A rational resampler multiplies channels by its numerator squared; its stride is 2 for 3/2.
    scale = {9: 1.5, 16: 4.0}.get(gain, 2.0) if rational else 2.0
    config = UpsamplerConfig(
        in_channels=channels,
        mid_channels=mid,
        blocks=_count(shapes, r"res_blocks\.(\d+)\.conv1\.weight"),
        conv_dims=len(first) - 2,
        spatial=spatial,
        temporal=temporal,
        rational=rational,
        scale=float(header.get("spatial_scale", scale)) if rational else scale,
    )
    for name, value in (
        ("mid_channels", config.mid_channels),
        ("spatial_upsample", config.spatial),
        ("temporal_upsample", config.temporal),
        ("num_blocks_per_stage", config.blocks),
    ):
        _must_agree("latent upsampler", name, value, header.get(name, value))
    return config


CONNECTOR_HEAD_DIM = 128
"""Head width of connectors without gates and without a header: that of LTX-2.0 (30 x 128 in both
streams). No tensor shows the number of heads, as the norms span all heads."""


def connector_config(shapes: Shapes, header: Header, stream: str) -> ConnectorConfig:
    """Read the configuration of the connector of ``stream``, "video" or "audio".

    Raises :class:`UnknownLayout`.
    """
    own = shapes_below(shapes, f"{stream}_embeddings_connector.")
    registers, width = _shape(own, "learnable_registers")
    gate = "transformer_1d_blocks.0.attn1.to_gate_logits"
    # The bias is tried first: a quantised weight may be padded beyond the number of heads.
    gates = own.get(f"{gate}.bias") or own.get(f"{gate}.weight")
    prefix = "audio_" if stream == "audio" else ""
    heads = header.get(f"{prefix}connector_num_attention_heads")
    heads = heads or header.get("connector_num_attention_heads")
    heads = gates[0] if gates else heads or width // CONNECTOR_HEAD_DIM
    if not heads or width % heads:
        raise UnknownLayout(
            f"{stream} connector: width {width}, number of attention heads {heads or 'unknown'}",
            "use a file with its original header",
        )
    return ConnectorConfig(
        heads=int(heads),
        head_dim=width // int(heads),
        layers=_count(own, r"transformer_1d_blocks\.(\d+)\.attn1\.to_q\.weight"),
        registers=registers,
        gated=gates is not None,
    )


# --- shared ------------------------------------------------------------------------------------


def shapes_below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors below ``prefix``, by their names without it."""
    return {k[len(prefix) :]: shape for k, shape in shapes.items() if k.startswith(prefix)}


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise UnknownLayout(
            f"tensor {key} is missing (the file has {len(shapes)} of this component)",
            "the file is incomplete or of an unsupported model family; download it again",
        )
    return shapes[key]


def _count(names: Iterable[str], pattern: str) -> int:
    """Count the different values of group 1 of ``pattern`` among the names that match it."""
    matches = (re.fullmatch(pattern, name) for name in names)
    return len({match[1] for match in matches if match})


def _must_agree(label: str, subject: str, from_shapes: Any, header: Any) -> None:
    header_value = tuple(header) if isinstance(header, list) else header
    if from_shapes != header_value:
        raise UnknownLayout(
            f"{label}: {subject} {from_shapes} in its tensors, {header_value} in its header",
            "header and tensors come from different models; use an unmodified file",
        )
