"""The original layout of LTX-2.3 files as names and shapes, independent of the package.

Taken from the header and the key lists published with ltx-2.3-22b; ``video_vae`` can also have
other widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Shape = tuple[int, ...]
Stages = tuple[tuple[int, int], ...]
"""(residual blocks, channels) of each stage, in the order applied."""

VAE_CONFIG: dict[str, Any] = {
    "latent_channels": 128,
    "encoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 4}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 4}],
        ["compress_space", {"multiplier": 2}],
        ["res_x", {"num_layers": 6}],
        ["compress_time", {"multiplier": 2}],
        ["res_x", {"num_layers": 4}],
        ["compress_all", {"multiplier": 1}],
        ["res_x", {"num_layers": 2}],
        ["compress_all", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
    ],
    "patch_size": 4,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
}
AUDIO_CONFIG = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "mel_bins": 64,
                "z_channels": 8,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    }
}
AMP = {
    "resblock": "AMP1",
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    "stereo": True,
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
VOCODER_CONFIG = {
    "vocoder": AMP
    | {"upsample_rates": [5, 2, 2, 2, 2, 2], "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4]},
    "bwe": AMP
    | {
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}


def layer(
    name: str, *shape: int, bias: bool = True, out_axis: int = 0
) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", (shape[out_axis],)


def residual(path: str, count: int, width: int) -> Iterator[tuple[str, Shape]]:
    for i in range(count):
        for conv in ("conv1", "conv2"):
            yield from layer(f"{path}.res_blocks.{i}.{conv}.conv", width, width, 3, 3, 3)


def video_vae(
    latent: int = 128,
    encoder: Stages = ((4, 128), (6, 256), (4, 512), (2, 1024), (2, 1024)),
    decoder: Stages = ((2, 1024), (2, 512), (4, 512), (6, 256), (4, 128)),
) -> Iterator[tuple[str, Shape]]:
    for name in ("mean-of-means", "std-of-means"):
        yield f"per_channel_statistics.{name}", (latent,)
    yield from layer("encoder.conv_in.conv", encoder[0][1], 48, 3, 3, 3)
    for i, (count, width) in enumerate(encoder):
        yield from residual(f"encoder.down_blocks.{2 * i}", count, width)
    for i, stride in enumerate((4, 2, 8, 8)):
        after, width = encoder[i + 1][1], encoder[i][1]
        down = f"encoder.down_blocks.{2 * i + 1}.conv.conv"
        yield from layer(down, after // stride, width, 3, 3, 3)
    yield from layer("encoder.conv_out.conv", latent + 1, encoder[-1][1], 3, 3, 3)
    yield from layer("decoder.conv_in.conv", decoder[0][1], latent, 3, 3, 3)
    for i, (count, width) in enumerate(decoder):
        yield from residual(f"decoder.up_blocks.{2 * i}", count, width)
    for i, stride in enumerate((8, 8, 2, 4)):
        after, width = decoder[i + 1][1], decoder[i][1]
        up = f"decoder.up_blocks.{2 * i + 1}.conv.conv"
        yield from layer(up, after * stride, width, 3, 3, 3)
    yield from layer("decoder.conv_out.conv", 48, decoder[-1][1], 3, 3, 3)


POCKET_VIDEO: dict[str, Any] = {
    "latent": 64,
    "encoder": ((0, 64), (1, 64), (1, 64), (1, 128), (1, 128)),
    "decoder": ((1, 160), (1, 80), (1, 80), (1, 40), (1, 20)),
}
"""The widths of the pocket model."""


def audio_block(path: str, before: int, after: int) -> Iterator[tuple[str, Shape]]:
    yield from layer(f"{path}.conv1.conv", after, before, 3, 3)
    yield from layer(f"{path}.conv2.conv", after, after, 3, 3)
    if before != after:
        yield from layer(f"{path}.nin_shortcut.conv", after, before, 1, 1)


def audio_vae(
    latent: int = 8, widths: tuple[int, ...] = (128, 256, 512), blocks: int = 2
) -> Iterator[tuple[str, Shape]]:
    for name in ("mean-of-means", "std-of-means"):
        yield f"per_channel_statistics.{name}", (latent * 16,)
    width, deepest = widths[0], widths[-1]
    yield from layer("encoder.conv_in.conv", width, 2, 3, 3)
    for level, after in enumerate(widths):
        for block in range(blocks):
            yield from audio_block(f"encoder.down.{level}.block.{block}", width, after)
            width = after
        if level < 2:
            yield from layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for half in ("encoder", "decoder"):
        for block in (1, 2):
            yield from audio_block(f"{half}.mid.block_{block}", deepest, deepest)
    yield from layer("encoder.conv_out.conv", 2 * latent, deepest, 3, 3)
    yield from layer("decoder.conv_in.conv", deepest, latent, 3, 3)
    for level in (2, 1, 0):
        for block in range(blocks + 1):
            yield from audio_block(f"decoder.up.{level}.block.{block}", width, widths[level])
            width = widths[level]
        if level:
            yield from layer(f"decoder.up.{level}.upsample.conv.conv", width, width, 3, 3)
    yield from layer("decoder.conv_out.conv", 2, widths[0], 3, 3)


def snake(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.act.alpha", (width,)
    yield f"{path}.act.beta", (width,)
    yield f"{path}.upsample.filter", (1, 1, 12)
    yield f"{path}.downsample.lowpass.filter", (1, 1, 12)


def generator(path: str, width: int, kernels: tuple[int, ...]) -> Iterator[tuple[str, Shape]]:
    yield from layer(f"{path}.conv_pre", width, 128, 7)
    for i, kernel in enumerate(kernels):
        yield from layer(f"{path}.ups.{i}", width, width // 2, kernel, out_axis=1)
        width //= 2
        for j, size in enumerate((3, 7, 11)):
            block = f"{path}.resblocks.{3 * i + j}"
            for k in range(3):
                for half in "12":
                    yield from layer(f"{block}.convs{half}.{k}", width, width, size)
                    yield from snake(f"{block}.acts{half}.{k}", width)
    yield from snake(f"{path}.act_post", width)
    yield from layer(f"{path}.conv_post", 2, width, 7, bias=False)


def vocoder(
    hidden: int = 1536,
    kernels: tuple[int, ...] = (11, 4, 4, 4, 4, 4),
    wide_hidden: int = 512,
    wide_kernels: tuple[int, ...] = (12, 11, 4, 4, 4),
) -> Iterator[tuple[str, Shape]]:
    yield from generator("vocoder", hidden, kernels)
    yield from generator("bwe_generator", wide_hidden, wide_kernels)
    yield "mel_stft.mel_basis", (64, 257)
    for way in ("forward", "inverse"):
        yield f"mel_stft.stft_fn.{way}_basis", (514, 1, 512)


def attention(path: str, width: int, query: int, other: int) -> Iterator[tuple[str, Shape]]:
    yield from layer(f"{path}.to_q", width, query)
    for name in ("to_k", "to_v"):
        yield from layer(f"{path}.{name}", width, other)
    yield from layer(f"{path}.to_out.0", query, width)
    yield from layer(f"{path}.to_gate_logits", 32, query)
    for name in ("q_norm", "k_norm"):
        yield from layer(f"{path}.{name}", width, bias=False)


def feed_forward(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from layer(f"{path}.net.0.proj", 4 * width, width)
    yield from layer(f"{path}.net.2", width, 4 * width)


def connectors() -> Iterator[tuple[str, Shape]]:
    for stream, width in (("video", 4096), ("audio", 2048)):
        path = f"{stream}_embeddings_connector"
        yield f"{path}.learnable_registers", (128, width)
        for i in range(8):
            block = f"{path}.transformer_1d_blocks.{i}"
            yield from attention(f"{block}.attn1", width, width, width)
            yield from feed_forward(f"{block}.ff", width)


def projection() -> Iterator[tuple[str, Shape]]:
    yield from layer("video_aggregate_embed", 4096, 188160)
    yield from layer("audio_aggregate_embed", 2048, 188160)


def adaln(name: str, width: int, rows: int) -> Iterator[tuple[str, Shape]]:
    yield from layer(f"{name}.emb.timestep_embedder.linear_1", width, 256)
    yield from layer(f"{name}.emb.timestep_embedder.linear_2", width, width)
    yield from layer(f"{name}.linear", rows * width, width)


def transformer() -> Iterator[tuple[str, Shape]]:
    v, a = 4096, 2048
    for prefix, width in (("", v), ("audio_", a)):
        yield from layer(f"{prefix}patchify_proj", width, 128)
        yield from layer(f"{prefix}proj_out", 128, width)
        yield f"{prefix}scale_shift_table", (2, width)
        yield from adaln(f"{prefix}adaln_single", width, 9)
        yield from adaln(f"{prefix}prompt_adaln_single", width, 2)
    yield from adaln("av_ca_video_scale_shift_adaln_single", v, 4)
    yield from adaln("av_ca_audio_scale_shift_adaln_single", a, 4)
    yield from adaln("av_ca_a2v_gate_adaln_single", v, 1)
    yield from adaln("av_ca_v2a_gate_adaln_single", a, 1)
    for i in range(48):
        block = f"transformer_blocks.{i}"
        for prefix, width, stream in (("", v, "video"), ("audio_", a, "audio")):
            yield f"{block}.{prefix}scale_shift_table", (9, width)
            yield f"{block}.{prefix}prompt_scale_shift_table", (2, width)
            yield f"{block}.scale_shift_table_a2v_ca_{stream}", (5, width)
            for n in "12":
                yield from attention(f"{block}.{prefix}attn{n}", width, width, width)
            yield from feed_forward(f"{block}.{prefix}ff", width)
        yield from attention(f"{block}.audio_to_video_attn", a, v, a)
        yield from attention(f"{block}.video_to_audio_attn", a, a, v)


def upsampler(mid: int, kind: str) -> Iterator[tuple[str, Shape]]:
    yield from layer("initial_conv", mid, 128, 3, 3, 3)
    yield from layer("initial_norm", mid)
    for stage in ("res_blocks", "post_upsample_res_blocks"):
        for i in range(4):
            for n in "12":
                yield from layer(f"{stage}.{i}.conv{n}", mid, mid, 3, 3, 3)
                yield from layer(f"{stage}.{i}.norm{n}", mid)
    yield from {
        "x2": layer("upsampler.0", 4 * mid, mid, 3, 3),
        "x1.5": layer("upsampler.conv", 9 * mid, mid, 3, 3),
        "temporal": layer("upsampler.0", 2 * mid, mid, 3, 3, 3),
    }[kind]
    if kind == "x1.5":
        yield "upsampler.blur_down.kernel", (1, 1, 5, 5)
    yield from layer("final_conv", 128, mid, 3, 3, 3)


REAL: Mapping[str, Callable[[], Iterator[tuple[str, Shape]]]] = {
    "model.diffusion_model.": transformer,
    "model.diffusion_model": lambda: ((f".{k}", s) for k, s in connectors()),
    "text_embedding_projection.": projection,
    "vae.": video_vae,
    "audio_vae.": audio_vae,
    "vocoder.": vocoder,
}

POCKET_AUDIO: dict[str, Any] = {"latent": 2, "widths": (32, 32, 64), "blocks": 1}
POCKET_VOCODER: dict[str, Any] = {
    "hidden": 48,
    "kernels": (20, 8, 8),
    "wide_hidden": 24,
    "wide_kernels": (20, 12, 8),
}
POCKET_VOCODER_CONFIG = {
    "vocoder": AMP | {"upsample_rates": [10, 4, 4], "upsample_kernel_sizes": [20, 8, 8]},
    "bwe": AMP
    | {
        "upsample_rates": [10, 6, 4],
        "upsample_kernel_sizes": [20, 12, 8],
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
    },
}
"""Strides that differ from the published ones and must therefore be read from the header."""
