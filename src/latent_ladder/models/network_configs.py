"""The dimensions of VAEs, vocoders, upsamplers and connectors, from the shapes of their tensors.

Shapes decide, because split files often come without a header; where a header configuration is
present it must agree. What no shape shows (strides of a vocoder, padding, activations at the end)
comes from the header, or from the one published variant the shapes single out. Knows no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_ladder.errors import UnknownLayout

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

CHUNK_VALUES = {"cpu": 1 << 19}
"""By device type, how many values the widest tensor of a chunk may have where a chunk is more than
one frame. It depends on nothing else, so that a clip is always cut in the same way."""
CHUNK_VALUES_ELSEWHERE = 1 << 25

CHUNK_TOKENS_CPU, CHUNK_TOKENS_GPU = 1024, 8192
"""Tokens that a sublayer of the transformer processes at once where an offload plan sets none: as
few as still make efficient matrix products."""


def chunk_tokens(device: str) -> int:
    """Tokens that a sublayer processes at once on a device of this type (cpu, cuda, mps)."""
    return CHUNK_TOKENS_CPU if device == "cpu" else CHUNK_TOKENS_GPU


@dataclass(frozen=True)
class VideoCoder:
    """One half of the video VAE, in the order it is applied.

    ``widths``: channels of each residual stage; ``layers``: residual blocks in each;
    ``resamplers``: what lies between the stages, "space" (2x2), "time" (2) or "all" (2x2x2).
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
        """Pixels per latent, each way."""
        return self.patch << sum(kind in ("space", "all") for kind in self.resamplers)

    @property
    def temporal_scale(self) -> int:
        """Frames per latent frame after the first."""
        return 1 << sum(kind in ("time", "all") for kind in self.resamplers)

    @property
    def held_values(self) -> float:
        """Values that decoding keeps between chunks, per pixel of one output frame, at most.

        Two frames before every convolution and residual block, one more where it is not causal.
        """
        position = 1 / self.spatial_scale**2
        held = 2 * self.latent_channels * position
        per_block = 4 if self.causal else 6
        for width, layers, kind in zip(
            self.widths, self.layers, (*self.resamplers, None), strict=True
        ):
            held += (per_block * layers + 2) * width * position
            position *= 4 if kind in ("space", "all") else 1
        return held


@dataclass(frozen=True)
class AudioCoder:
    """Encoder and decoder of the audio VAE, which mirror each other."""

    base: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    mel_channels: int
    mel_bins: int
    causality_axis: str


@dataclass(frozen=True)
class WaveGenerator:
    """A HiFi-GAN or BigVGAN style generator: mel frames -> waveform."""

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
class BandwidthExtension:
    """The second half of the 2.3 vocoder: log-mel of the low band -> a residual at a high rate."""

    generator: WaveGenerator
    n_fft: int
    window: int
    hop: int
    mels: int
    input_rate: int
    output_rate: int

    @property
    def gain(self) -> int:
        """Samples that are made of one."""
        return self.output_rate // self.input_rate


@dataclass(frozen=True)
class Upsampler:
    """A latent upsampler; ``scale`` acts on height and width, ``temporal`` doubles the frames."""

    in_channels: int
    mid_channels: int
    blocks: int
    conv_dims: int
    spatial: bool
    temporal: bool
    rational: bool
    scale: float


@dataclass(frozen=True)
class Connector:
    """One text connector, a small transformer over prompt tokens and learnable registers."""

    heads: int
    head_dim: int
    layers: int
    registers: int
    gated: bool


# --- video VAE ----------------------------------------------------------------------------------

_RESAMPLER_OF_STRIDE = {2: "time", 4: "space", 8: "all"}
_BLOCK_KIND = re.compile(r"compress_(space|time|all)(_res)?$")


def video_encoder(shapes: Shapes, config: Config) -> VideoCoder:
    """The encoder. A down-sampler folds ``stride`` positions into channels after its kernel."""
    out, patch_channels = _shape(shapes, "encoder.conv_in.conv.weight")[:2]
    depth = _count(shapes, r"encoder\.down_blocks\.(\d*[13579])\.conv\.conv\.weight")
    convs = [
        _shape(shapes, f"encoder.down_blocks.{2 * i + 1}.conv.conv.weight") for i in range(depth)
    ]
    ends = _shape(shapes, "encoder.conv_out.conv.weight")
    widths = (*(conv[1] for conv in convs), ends[1])
    coder = VideoCoder(
        latent_channels=ends[0] - 1,
        patch=_patch(patch_channels, "video encoder"),
        widths=widths,
        layers=_stage_layers(shapes, "encoder.down_blocks", depth),
        resamplers=tuple(
            _resampler(after, conv[0], "video encoder")
            for conv, after in zip(convs, widths[1:], strict=True)
        ),
        padding=config.get("spatial_padding_mode", "zeros"),
        causal=True,
        residual=(True,) * depth,
    )
    if out != widths[0]:
        raise UnknownLayout(f"video encoder: {out} channels after conv_in, not {widths[0]}")
    _check_blocks(coder, config.get("encoder_blocks"), "video encoder")
    return coder


def video_decoder(shapes: Shapes, config: Config) -> VideoCoder:
    """The decoder. An up-sampler makes ``stride`` times its channels and shuffles them out."""
    timed = [key for key in shapes if "time_embedder" in key or "timestep_scale" in key]
    if timed or config.get("timestep_conditioning"):
        raise UnknownLayout(
            "video decoder: conditioned on a timestep, which this version cannot decode",
            "use the LTX-2.0 or LTX-2.3 video VAE as published",
        )
    first, latent_channels = _shape(shapes, "decoder.conv_in.conv.weight")[:2]
    depth = _count(shapes, r"decoder\.up_blocks\.(\d*[13579])\.conv\.conv\.weight")
    convs = [
        _shape(shapes, f"decoder.up_blocks.{2 * i + 1}.conv.conv.weight") for i in range(depth)
    ]
    ends = _shape(shapes, "decoder.conv_out.conv.weight")
    widths = (first, *(conv[1] for conv in convs[1:]), ends[1])
    residual = _decoder_residual(config, depth)
    coder = VideoCoder(
        latent_channels=latent_channels,
        patch=_patch(ends[0], "video decoder"),
        widths=widths,
        layers=_stage_layers(shapes, "decoder.up_blocks", depth),
        resamplers=tuple(
            _resampler(conv[0], after, "video decoder")
            for conv, after in zip(convs, widths[1:], strict=True)
        ),
        padding=config.get("spatial_padding_mode", "reflect" if any(residual) else "zeros"),
        causal=bool(config.get("causal_decoder", False)),
        residual=residual,
    )
    blocks = config.get("decoder_blocks")
    _check_blocks(coder, None if blocks is None else blocks[::-1], "video decoder")
    return coder


def _decoder_residual(config: Config, depth: int) -> tuple[bool, ...]:
    """Whether each up-sampler adds its input; without a header, as LTX-2.0 (three of them) does."""
    blocks = config.get("decoder_blocks")
    if blocks is None:
        return (depth == 3,) * depth
    named = [options for name, options in blocks[::-1] if _BLOCK_KIND.match(name)]
    return tuple(bool(options.get("residual", False)) for options in named)


def _check_blocks(coder: VideoCoder, blocks: Sequence[Any] | None, what: str) -> None:
    if blocks is None:
        return
    stages = tuple(int(o.get("num_layers", 1)) for name, o in blocks if name == "res_x")
    kinds = tuple(m[1] for name, _ in blocks if (m := _BLOCK_KIND.match(name)))
    if len(stages) + len(kinds) != len(blocks):
        raise UnknownLayout(f"{what}: its header names blocks {[b[0] for b in blocks]}")
    _must_agree(what, "residual blocks", coder.layers, stages)
    _must_agree(what, "resamplers", coder.resamplers, kinds)


def _stage_layers(shapes: Shapes, path: str, depth: int) -> tuple[int, ...]:
    escaped = re.escape(path)
    return tuple(
        _count(shapes, rf"{escaped}\.{2 * i}\.res_blocks\.(\d+)\.conv1\.conv\.weight")
        for i in range(depth + 1)
    )


def _resampler(many: int, few: int, what: str) -> str:
    kind = _RESAMPLER_OF_STRIDE.get(many // few) if many % few == 0 else None
    if kind is None:
        raise UnknownLayout(f"{what}: a resampler between {many} and {few} channels is not known")
    return kind


def _patch(channels: int, what: str) -> int:
    patch = math.isqrt(channels // 3)
    if 3 * patch * patch != channels:
        raise UnknownLayout(f"{what}: {channels} channels are not RGB in square patches")
    return patch


# --- audio VAE and vocoder ----------------------------------------------------------------------


def audio_coder(shapes: Shapes, config: Config) -> AudioCoder:
    """Both halves of the audio VAE; a file may hold only the decoder."""
    has_decoder = "decoder.conv_in.conv.weight" in shapes
    half, stages = ("decoder", "up") if has_decoder else ("encoder", "down")
    params = config.get("model", {}).get("params", {}).get("ddconfig", {})
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
    coder = AudioCoder(
        base=base,
        multipliers=tuple(width // base for width in widths),
        blocks=blocks - (half == "decoder"),
        latent_channels=latent,
        mel_channels=last[0] if half == "decoder" else first[1],
        mel_bins=statistics // latent * 2 ** (levels - 1),
        causality_axis=str(params.get("causality_axis", "height")),
    )
    if levels != 3 or any(width % base for width in widths):
        raise UnknownLayout(f"audio VAE: stages of {widths} channels, known are three stages")
    if params:
        _must_agree("audio VAE", "channel multipliers", coder.multipliers, params["ch_mult"])
        _must_agree("audio VAE", "latent channels", latent, params["z_channels"])
        _must_agree("audio VAE", "mel bins", coder.mel_bins, params.get("mel_bins", 64))
    return coder


# Strides by kernel sizes, where no header tells them: the generators of LTX-2.0 and LTX-2.3.
_KNOWN_RATES = {
    (16, 15, 8, 4, 4): (6, 5, 2, 2, 2),
    (11, 4, 4, 4, 4, 4): (5, 2, 2, 2, 2, 2),
    (12, 11, 4, 4, 4): (6, 5, 2, 2, 2),
}


def wave_generator(shapes: Shapes, config: Config, *, last: str | None) -> WaveGenerator:
    """One generator from its own shapes and header section.

    ``last`` is what bounds the waveform where the header does not ask for tanh: "clamp" or None.
    """
    hidden, in_channels, _ = _shape(shapes, "conv_pre.weight")
    stages = _count(shapes, r"ups\.(\d+)\.weight")
    kernels = tuple(_shape(shapes, f"ups.{i}.weight")[2] for i in range(stages))
    per_stage = _count(shapes, r"resblocks\.(\d+)\.convs1\.0\.weight") // max(stages, 1)
    block_kernels = tuple(
        _shape(shapes, f"resblocks.{i}.convs1.0.weight")[2] for i in range(per_stage)
    )
    convolutions = _count(shapes, r"resblocks\.0\.convs1\.(\d+)\.weight")
    rates = config.get("upsample_rates") or _KNOWN_RATES.get(kernels)
    if rates is None:
        raise UnknownLayout(
            f"vocoder: no header tells the strides of kernels {list(kernels)}",
            "use a file with its original header",
        )
    _must_agree("vocoder", "kernels", kernels, config.get("upsample_kernel_sizes", kernels))
    snake = "act_post.act.alpha" in shapes
    tanh = bool(config.get("use_tanh_at_final", not snake))
    dilations = config.get("resblock_dilation_sizes") or [[1, 3, 5][:convolutions]] * per_stage
    return WaveGenerator(
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


def bandwidth_extension(shapes: Shapes, config: Config) -> BandwidthExtension | None:
    """The extension of a 2.3 vocoder, None for the flat one of 2.0."""
    if "bwe_generator.conv_pre.weight" not in shapes:
        return None
    section = config.get("bwe", {})
    mels, bins = _shape(shapes, "mel_stft.mel_basis")
    n_fft = 2 * (bins - 1)
    _must_agree("bandwidth extension", "n_fft", n_fft, section.get("n_fft", n_fft))
    generator = wave_generator(below(shapes, "bwe_generator."), section, last=None)
    hop, low = int(section.get("hop_length", 80)), int(section.get("input_sampling_rate", 16000))
    high = low // hop * math.prod(generator.rates)
    _must_agree("bandwidth extension", "rate", high, section.get("output_sampling_rate", high))
    window = int(section.get("win_size", n_fft))
    return BandwidthExtension(generator, n_fft, window, hop, mels, low, high)


# --- latent upsampler and connectors ------------------------------------------------------------


def upsampler(shapes: Shapes, config: Config) -> Upsampler:
    """Kind and scale follow from the one layer between the two residual stages."""
    first = _shape(shapes, "initial_conv.weight")
    mid, channels = first[:2]
    rational = "upsampler.conv.weight" in shapes
    layer = _shape(shapes, "upsampler.conv.weight" if rational else "upsampler.0.weight")
    gain = layer[0] // mid
    spatial, temporal = (True, False) if len(layer) == 4 else (gain == 8, True)
    known = {(4, True): (4, 9, 16), (4, False): (4,), (5, False): (2, 8)}[len(layer), rational]
    if layer[0] % mid or gain not in known:
        raise UnknownLayout(f"latent upsampler: a layer of {list(layer)} for {mid} channels")
    # A rational resampler gains its numerator squared, then strides: 3/2, or 2 and 4 without.
    scale = {9: 1.5, 16: 4.0}.get(gain, 2.0) if rational else 2.0
    found = Upsampler(
        in_channels=channels,
        mid_channels=mid,
        blocks=_count(shapes, r"res_blocks\.(\d+)\.conv1\.weight"),
        conv_dims=len(first) - 2,
        spatial=spatial,
        temporal=temporal,
        rational=rational,
        scale=float(config.get("spatial_scale", scale)) if rational else scale,
    )
    for name, value in (
        ("mid_channels", found.mid_channels),
        ("spatial_upsample", found.spatial),
        ("temporal_upsample", found.temporal),
        ("num_blocks_per_stage", found.blocks),
    ):
        _must_agree("latent upsampler", name, value, config.get(name, value))
    return found


CONNECTOR_HEAD_DIM = 128
"""Width of a head in connectors without gates, where no header tells their number: those of
LTX-2.0, both streams 30 x 128. No other tensor shows it, the norms span all heads."""


def connector(shapes: Shapes, config: Config, stream: str) -> Connector:
    """The connector of one ``stream``, "video" or "audio"."""
    own = below(shapes, f"{stream}_embeddings_connector.")
    registers, width = _shape(own, "learnable_registers")
    gate = "transformer_1d_blocks.0.attn1.to_gate_logits"
    # The bias first: a packed weight may be padded beyond the number of heads.
    gates = own.get(f"{gate}.bias") or own.get(f"{gate}.weight")
    prefix = "audio_" if stream == "audio" else ""
    heads = config.get(f"{prefix}connector_num_attention_heads")
    heads = heads or config.get("connector_num_attention_heads")
    heads = gates[0] if gates else heads or width // CONNECTOR_HEAD_DIM
    if not heads or width % heads:
        raise UnknownLayout(
            f"{stream} connector: width {width}, number of attention heads {heads or 'unknown'}",
            "use a file with its original header",
        )
    return Connector(
        heads=int(heads),
        head_dim=width // int(heads),
        layers=_count(own, r"transformer_1d_blocks\.(\d+)\.attn1\.to_q\.weight"),
        registers=registers,
        gated=gates is not None,
    )


# --- shared ------------------------------------------------------------------------------------


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes whose names start with ``prefix``, without it."""
    return {k[len(prefix) :]: shape for k, shape in shapes.items() if k.startswith(prefix)}


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise UnknownLayout(
            f"no tensor {key} among {len(shapes)}",
            "the file is incomplete, or of a family this version does not know",
        )
    return shapes[key]


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in group 1 of the names that match fully."""
    matches = (re.fullmatch(pattern, name) for name in names)
    return len({match[1] for match in matches if match})


def _must_agree(what: str, subject: str, found: Any, header: Any) -> None:
    plain = tuple(header) if isinstance(header, list) else header
    if found != plain:
        raise UnknownLayout(
            f"{what}: {subject} {found} in its tensors, {plain} in its header",
            "the header and the tensors come from different models",
        )
