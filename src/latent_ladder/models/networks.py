"""The borrowed networks: the one module that knows diffusers.

Audio VAE and vocoder are diffusers' classes (pinned; its loaders and pipelines are not used). This
module turns dimensions into their arguments, loads them strictly from original key names, and sets
them up where their defaults differ from the reference implementation: the low-band waveform is
clamped before bandwidth extension, and audio statistics have the length of the latent.
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


def _audio_module() -> Any:
    from diffusers.models.autoencoders import autoencoder_kl_ltx2_audio

    return autoencoder_kl_ltx2_audio


def _vocoder_module() -> Any:
    from diffusers.pipelines.ltx2 import vocoder

    return vocoder


# Imported when needed: the autoencoders alone take seconds to import.
_MODULES: Mapping[str, Callable[[], Any]] = {
    "audio_vae": _audio_module,
    "vocoder": _vocoder_module,
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
