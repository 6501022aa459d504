"""The borrowed networks: the one module that knows diffusers.

VAEs, vocoder, text connectors and latent upsampler are diffusers' classes (pinned; its loaders and
pipelines are not used). This module turns dimensions into their arguments, loads them strictly
from original key names, and sets them up where their defaults differ from the reference
implementation: the low-band waveform is clamped before bandwidth extension, padding of encoder
and decoder follows the header, and audio statistics have the length of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_ladder.checkpoints.layout import Component, network_names
from latent_ladder.errors import UnknownLayout
from latent_ladder.models import networks_dims as dims
from latent_ladder.models.loading import load_module

Device = torch.device | str


def _video_module() -> Any:
    from diffusers.models.autoencoders import autoencoder_kl_ltx2

    return autoencoder_kl_ltx2


def _audio_module() -> Any:
    from diffusers.models.autoencoders import autoencoder_kl_ltx2_audio

    return autoencoder_kl_ltx2_audio


def _vocoder_module() -> Any:
    from diffusers.pipelines.ltx2 import vocoder

    return vocoder


def _upsampler_module() -> Any:
    from diffusers.pipelines.ltx2 import latent_upsampler

    return latent_upsampler


def _connectors_module() -> Any:
    from diffusers.pipelines.ltx2 import connectors

    return connectors


# Imported when needed: the autoencoders alone take seconds to import.
_MODULES: Mapping[str, Callable[[], Any]] = {
    "video_vae": _video_module,
    "audio_vae": _audio_module,
    "vocoder": _vocoder_module,
    "latent_upsampler": _upsampler_module,
    "connectors": _connectors_module,
}


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per channel of a VAE's latents, float32."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Vocoder:
    """Mel frames -> waveform. ``extension`` is None for the one-stage vocoder of LTX-2.0."""

    network: nn.Module
    main: dims.WaveGenerator
    extension: dims.BandwidthExtension | None
    sample_rate: int


def statistics(component: Component, device: Device = "cpu") -> Statistics:
    """The per-channel statistics of a video or audio VAE, without loading the rest."""
    mean, std = (
        component.read(f"per_channel_statistics.{name}").to(device, torch.float32)
        for name in ("mean-of-means", "std-of-means")
    )
    return Statistics(mean, std)


# --- video VAE ----------------------------------------------------------------------------------

_KINDS = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}


def build_video_encoder(coder: dims.VideoCoder) -> nn.Module:
    """The encoder: (B, 3, F, H, W) in -1..1 -> (B, 2C, F', H', W'), means first."""
    network: nn.Module = _video_module().LTX2VideoEncoder3d(
        in_channels=3,
        out_channels=coder.latent_channels,
        block_out_channels=coder.widths[1:],
        down_block_types=("LTX2VideoDownBlock3D",) * len(coder.resamplers),
        spatio_temporal_scaling=(True,) * len(coder.resamplers),
        layers_per_block=coder.layers,
        downsample_type=tuple(_KINDS[kind] for kind in coder.resamplers),
        patch_size=coder.patch,
        patch_size_t=1,
        is_causal=coder.causal,
        spatial_padding_mode=coder.padding,
    )
    return network


def build_video_decoder(coder: dims.VideoCoder) -> nn.Module:
    """The decoder: (B, C, F', H', W') -> (B, 3, F, H, W), about -1..1."""
    steps = zip(coder.widths, coder.widths[1:], strict=False)
    network: nn.Module = _video_module().LTX2VideoDecoder3d(
        in_channels=coder.latent_channels,
        out_channels=3,
        # diffusers lists all but the kinds of the up-samplers from the pixel side.
        block_out_channels=coder.widths[-2::-1],
        spatio_temporal_scaling=(True,) * len(coder.resamplers),
        layers_per_block=coder.layers[::-1],
        upsample_type=tuple(_KINDS[kind] for kind in coder.resamplers),
        patch_size=coder.patch,
        patch_size_t=1,
        is_causal=coder.causal,
        inject_noise=(False,) * len(coder.layers),
        timestep_conditioning=False,
        upsample_residual=coder.residual[::-1],
        upsample_factor=tuple(before // after for before, after in steps)[::-1],
        spatial_padding_mode=coder.padding,
    )
    return network


def load_video_encoder(
    component: Component, *, device: Device, dtype: torch.dtype
) -> tuple[nn.Module, dims.VideoCoder]:
    """The encoder of a video VAE and its dimensions."""
    coder = dims.video_encoder(component.shapes(), component.config)
    build = partial(build_video_encoder, coder)
    return _load(component, "encoder.", build, device, dtype), coder


def load_video_decoder(
    component: Component, *, device: Device, dtype: torch.dtype
) -> tuple[nn.Module, dims.VideoCoder]:
    """The decoder of a video VAE and its dimensions."""
    coder = dims.video_decoder(component.shapes(), component.config)
    build = partial(build_video_decoder, coder)
    return _load(component, "decoder.", build, device, dtype), coder


# --- audio VAE and vocoder ----------------------------------------------------------------------


def build_audio_coder(coder: dims.AudioCoder, half: str) -> nn.Module:
    """One ``half``: "encoder", mel (B, 2, T, 64) -> (B, 2C, T', M); or "decoder", the reverse."""
    shared: dict[str, Any] = {
        "base_channels": coder.base,
        "output_channels": coder.mel_channels,
        "ch_mult": coder.multipliers,
        "num_res_blocks": coder.blocks,
        "in_channels": coder.mel_channels,
        "latent_channels": coder.latent_channels,
        "norm_type": "pixel",
        "causality_axis": coder.causality_axis,
        "mel_bins": coder.mel_bins,
    }
    library = _audio_module()
    build = library.LTX2AudioDecoder if half == "decoder" else library.LTX2AudioEncoder
    network: nn.Module = build(**shared)
    return network


def load_audio_coder(
    component: Component, half: str, *, device: Device
) -> tuple[nn.Module, dims.AudioCoder]:
    """One half of an audio VAE and its dimensions, in float32."""
    coder = dims.audio_coder(component.shapes(), component.config)
    build = partial(build_audio_coder, coder, half)
    return _load(component, f"{half}.", build, device, torch.float32), coder


def build_vocoder(main: dims.WaveGenerator, extension: dims.BandwidthExtension | None) -> nn.Module:
    """The vocoder, with its bandwidth extension where there is one."""
    network: nn.Module
    if extension is None:
        network = _vocoder_module().LTX2Vocoder(**_generator_arguments(main))
        return network
    wide = _generator_arguments(extension.generator)
    network = _vocoder_module().LTX2VocoderWithBWE(
        **_generator_arguments(main),
        **{f"bwe_{name}": value for name, value in wide.items()},
        filter_length=extension.n_fft,
        hop_length=extension.hop,
        window_length=extension.window,
        num_mel_channels=extension.mels,
        input_sampling_rate=extension.input_rate,
        output_sampling_rate=extension.output_rate,
    )
    return network


def _generator_arguments(generator: dims.WaveGenerator) -> dict[str, Any]:
    return {
        "in_channels": generator.in_channels,
        "hidden_channels": generator.hidden,
        "out_channels": generator.out_channels,
        "upsample_kernel_sizes": list(generator.kernels),
        "upsample_factors": list(generator.rates),
        "resnet_kernel_sizes": list(generator.block_kernels),
        "resnet_dilations": [list(row) for row in generator.dilations],
        "act_fn": generator.activation,
        "antialias": generator.activation == "snakebeta",
        "final_act_fn": generator.final,
        "final_bias": generator.final_bias,
    }


def vocoder_dims(
    component: Component,
) -> tuple[dims.WaveGenerator, dims.BandwidthExtension | None]:
    """Dimensions of a vocoder; the low band is clamped wherever an extension follows."""
    shapes, config = component.shapes(), component.config
    extension = dims.bandwidth_extension(shapes, config)
    if extension is None:
        return dims.wave_generator(shapes, config, last="clamp"), None
    section = config.get("vocoder", {})
    return dims.wave_generator(dims.below(shapes, "vocoder."), section, last="clamp"), extension


MEL_FRAMES_PER_SECOND = 100
"""16 kHz at a hop of 160, in every published model."""


def load_vocoder(component: Component, *, device: Device) -> Vocoder:
    """A vocoder, always float32: bfloat16 costs 40-90 % in spectral metrics."""
    main, extension = vocoder_dims(component)
    build = partial(build_vocoder, main, extension)
    network = _load(component, "", build, device, torch.float32)
    rate = MEL_FRAMES_PER_SECOND
    for factor in main.rates:
        rate *= factor
    if extension is not None and extension.input_rate != rate:
        raise UnknownLayout(
            f"vocoder: its first stage gives {rate} Hz, its extension takes {extension.input_rate}"
        )
    return Vocoder(network, main, extension, extension.output_rate if extension else rate)


# --- latent upsampler and connectors ------------------------------------------------------------


def build_upsampler(found: dims.Upsampler) -> nn.Module:
    """The upsampler: (B, C, F, H, W) -> the same, larger; on un-normalised latents."""
    network: nn.Module = _upsampler_module().LTX2LatentUpsamplerModel(
        in_channels=found.in_channels,
        mid_channels=found.mid_channels,
        num_blocks_per_stage=found.blocks,
        dims=found.conv_dims,
        spatial_upsample=found.spatial,
        temporal_upsample=found.temporal,
        rational_spatial_scale=found.scale,
        use_rational_resampler=found.rational,
    )
    return network


def load_upsampler_network(
    component: Component, *, device: Device, dtype: torch.dtype
) -> tuple[nn.Module, dims.Upsampler]:
    """A latent upsampler and its dimensions."""
    found = dims.upsampler(component.shapes(), component.config)
    return _load(component, "", partial(build_upsampler, found), device, dtype), found


def build_connectors(
    video: dims.Connector,
    audio: dims.Connector,
    projection: Mapping[str, Any],
    config: Mapping[str, Any],
) -> nn.Module:
    """Text projections, as :func:`projection_arguments` describes them, and both connectors."""
    both = {"video": video, "audio": audio}
    network: nn.Module = _connectors_module().LTX2TextConnectors(
        **projection,
        **{
            f"{stream}_connector_{name}": value
            for stream, part in both.items()
            for name, value in (
                ("num_attention_heads", part.heads),
                ("attention_head_dim", part.head_dim),
                ("num_layers", part.layers),
                ("num_learnable_registers", part.registers),
            )
        },
        video_gated_attn=video.gated,
        audio_gated_attn=audio.gated,
        connector_rope_base_seq_len=config.get("connector_positional_embedding_max_pos", [4096])[0],
        rope_theta=10000.0,  # the header's theta is the transformer's
        rope_double_precision=config.get("frequencies_precision", "float64") == "float64",
        causal_temporal_positioning=False,
        rope_type=config.get("rope_type", "split"),
    )
    return network


def projection_arguments(projection: Component, hidden: int) -> dict[str, Any]:
    """What the projection's shapes say; ``hidden`` is the text encoder's width."""
    shapes = projection.shapes()
    single = shapes.get("aggregate_embed.weight")
    video = single or shapes.get("video_aggregate_embed.weight")
    audio = single or shapes.get("audio_aggregate_embed.weight")
    if video is None or audio is None or video[1] % hidden:
        raise UnknownLayout(
            f"{projection.file.path.name}: its text projection does not fit a text encoder of "
            f"width {hidden}",
            "use the Gemma 3 12B text encoder with LTX-2.0 and LTX-2.3",
        )
    return {
        "caption_channels": hidden,
        "text_proj_in_factor": video[1] // hidden,
        "per_modality_projections": single is None,
        "video_hidden_dim": video[0],
        "audio_hidden_dim": audio[0],
        "proj_bias": any(key.endswith(".bias") for key in shapes),
    }


def load_connectors(
    connectors: Component,
    projection: Component,
    *,
    hidden: int,
    device: Device,
    dtype: torch.dtype,
) -> nn.Module:
    """Projection and connectors as one network: ``network(states (B, L, D, layers), mask)``.

    ``hidden`` is the width of the text encoder whose hidden states go in.
    """
    video, audio = (
        dims.connector(connectors.shapes(), connectors.config, stream)
        for stream in ("video", "audio")
    )
    arguments = projection_arguments(projection, hidden)
    read = _readers(connectors, "") | _readers(projection, "")
    build = partial(build_connectors, video, audio, arguments, connectors.config)
    what = f"{connectors.file.path.name}: text connectors"
    _connectors_module()
    return load_module(build, read, device=device, dtype=dtype, what=what)


# --- shared -------------------------------------------------------------------------------------


def _load(
    component: Component,
    part: str,
    build: Callable[[], nn.Module],
    device: Device,
    dtype: torch.dtype,
) -> nn.Module:
    what = f"{component.file.path.name}: {component.role.replace('_', ' ')} {part.rstrip('.')}"
    read = _readers(component, part)
    # Before the build, during which new tensors are meta tensors: not while a library starts.
    _MODULES[component.role]()
    return load_module(build, read, device=device, dtype=dtype, what=what.strip())


def _readers(component: Component, part: str) -> dict[str, Callable[[], Tensor]]:
    """A reader per tensor of the ``part``, under the network's names."""
    return {
        name[len(part) :]: partial(component.read, key)
        for key, name in network_names(component).items()
        if name.startswith(part)
    }
