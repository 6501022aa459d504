"""Build, initialise, save and load the audio networks of the pocket model.

They are LTX-2.3's audio VAE and vocoder with bandwidth extension, at very small widths. Files have
the tensor names (`audio_vae.*`, `vocoder.*`) and the header `config` sections of the original
checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import worlds
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from state import PARTS
from torch import Tensor, nn

sound = worlds.module("sound")

LATENT_CHANNELS = worlds.SIZES.audio_channels
LATENT_BINS = 16
BASE_CHANNELS = LATENT_CHANNELS * LATENT_BINS  # one entry of the latent statistics each
CHANNEL_MULTIPLIERS = (1, 1, 2)
RES_BLOCKS = 1
LINEAR_LOG_ALPHA = -8.0  # log alpha for which a snake activation is linear to 1e-6
AUDIO_VAE_FILE = "audio_vae.safetensors"
VOCODER_FILE = "vocoder.safetensors"

# the stages of rate 1 run at 100 mel frames per second; the last stage sums the wavelets
VOCODER: dict[str, Any] = {
    "upsample_initial_channel": 4 * sound.CHANNELS,
    "resblock": "AMP1",
    "upsample_rates": [1, 1, 160],
    "upsample_kernel_sizes": [1, 1, 320],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "stereo": True,
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
BWE: dict[str, Any] = {
    "upsample_initial_channel": 8,
    "resblock": "AMP1",
    "upsample_rates": [15, 16],
    "upsample_kernel_sizes": [15, 16],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1]],
    "stereo": True,
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
    "apply_final_activation": False,
    "input_sampling_rate": sound.MEL_RATE,
    "output_sampling_rate": sound.SAMPLE_RATE,
    "hop_length": 80,
    "n_fft": 128,
    "win_size": 128,
    "num_mels": sound.MELS,
}


def audio_vae_config() -> dict[str, Any]:
    """The `audio_vae` section of the header config."""
    ddconfig = {
        "double_z": True,
        "mel_bins": sound.MELS,
        "z_channels": LATENT_CHANNELS,
        "resolution": 256,
        "downsample_time": False,
        "in_channels": 2,
        "out_ch": 2,
        "ch": BASE_CHANNELS,
        "ch_mult": list(CHANNEL_MULTIPLIERS),
        "num_res_blocks": RES_BLOCKS,
        "attn_resolutions": [],
        "dropout": 0.0,
        "mid_block_add_attention": False,
        "norm_type": "pixel",
        "causality_axis": "height",
    }
    stft = {"filter_length": sound.N_FFT, "hop_length": sound.HOP, "win_length": sound.N_FFT}
    return {
        "model": {"params": {"sampling_rate": sound.MEL_RATE, "ddconfig": ddconfig}},
        "preprocessing": {
            "stft": stft | {"causal": True},
            "mel": {"n_mel_channels": sound.MELS, "mel_fmin": 0, "mel_fmax": 8000},
            "audio": {"sampling_rate": sound.MEL_RATE},
        },
    }


def vocoder_config() -> dict[str, Any]:
    """The `vocoder` section of the header config."""
    return {"vocoder": dict(VOCODER), "bwe": dict(BWE)}


def build_audio_vae() -> AutoencoderKLLTX2Audio:
    """An audio VAE with random weights."""
    return AutoencoderKLLTX2Audio(
        base_channels=BASE_CHANNELS,
        ch_mult=CHANNEL_MULTIPLIERS,
        num_res_blocks=RES_BLOCKS,
        latent_channels=LATENT_CHANNELS,
    )


def _generator_options(section: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_channels": section["upsample_initial_channel"],
        "upsample_kernel_sizes": section["upsample_kernel_sizes"],
        "upsample_factors": section["upsample_rates"],
        "resnet_kernel_sizes": section["resblock_kernel_sizes"],
        "resnet_dilations": section["resblock_dilation_sizes"],
    }


def vocoder_from_config(config: dict[str, Any]) -> LTX2VocoderWithBWE:
    """A vocoder from the `vocoder` section of a header config (LTX-2.3 layout)."""
    bwe = {f"bwe_{name}": value for name, value in _generator_options(config["bwe"]).items()}
    return LTX2VocoderWithBWE(
        **_generator_options(config["vocoder"]),
        **bwe,
        filter_length=config["bwe"]["n_fft"],
        hop_length=config["bwe"]["hop_length"],
        window_length=config["bwe"]["win_size"],
        num_mel_channels=config["bwe"]["num_mels"],
    )


def _fill_mel_stft(net: LTX2VocoderWithBWE) -> None:
    """Set the STFT and mel bases that feed the bandwidth extension."""
    n = BWE["n_fft"]
    angle = 2 * math.pi / n * torch.outer(torch.arange(n // 2 + 1), torch.arange(n)).double()
    fourier = torch.cat([angle.cos(), -angle.sin()])
    window = torch.hann_window(n, dtype=torch.float64)
    inverse = torch.linalg.pinv(fourier * n / BWE["hop_length"]).T
    stft = net.mel_stft.stft_fn
    stft.forward_basis.copy_((fourier * window)[:, None])
    stft.inverse_basis.copy_((inverse * window)[:, None])
    net.mel_stft.mel_basis.copy_(sound.mel_basis(n, sound.MEL_RATE))


@torch.no_grad()
def build_vocoder() -> LTX2VocoderWithBWE:
    """A vocoder whose last stage is set to the wavelets of sound.py; bandwidth extension adds 0.

    Only the stages at mel rate need training: they predict wavelet weights from a mel spectrogram.
    """
    net = vocoder_from_config(vocoder_config())
    main = net.vocoder
    last = main.upsamplers[-1]
    last.weight.zero_()
    last.weight[:, :2] = sound.LOUDNESS * sound.bank(sound.MEL_RATE)
    last.bias.zero_()
    for conv in main.resnets[-1].convs2:  # the residual branches are 0
        conv.weight.zero_()
        conv.bias.zero_()
    main.act_out.act.alpha.fill_(LINEAR_LOG_ALPHA)
    main.act_out.act.beta.zero_()
    main.conv_out.weight.zero_()
    for channel in range(2):
        main.conv_out.weight[channel, channel, main.conv_out.kernel_size[0] // 2] = 1
    net.bwe_generator.conv_out.weight.zero_()
    _fill_mel_stft(net)
    return net


def wavelet_weights(net: LTX2VocoderWithBWE, mel: Tensor) -> Tensor:
    """Wavelet weights (B, CHANNELS, M) in units of `sound.LOUDNESS` for log mels (B, 2, M, 64).

    They are the input of the main vocoder's last upsampler.
    """
    main = net.vocoder
    h = main.conv_in(mel.transpose(2, 3).flatten(1, 2))
    for upsampler, resnet in zip(main.upsamplers[:-1], main.resnets[:-1], strict=True):
        h = resnet(upsampler(h))
    return h


@torch.no_grad()
def vocode(net: LTX2VocoderWithBWE, mel: Tensor) -> Tensor:
    """Log mels (B, 2, M, 64) -> waveform (B, 2, 480 * M) at 48 kHz.

    As in LTX-2, the 16 kHz waveform is clamped before bandwidth extension.
    """
    low = net.vocoder(mel).clamp(-1, 1)
    again = net.mel_stft(low.flatten(0, 1))[0].unflatten(0, low.shape[:2])
    high = net.bwe_generator(again.transpose(2, 3)) + net.resampler(low)
    return high.clamp(-1, 1)


def normalise(vae: AutoencoderKLLTX2Audio, latents: Tensor) -> Tensor:
    """Normalise audio latents (B, 2, T, 16) with the statistics of the VAE."""
    shape = (1, LATENT_CHANNELS, 1, LATENT_BINS)
    return (latents - vae.latents_mean.view(shape)) / vae.latents_std.view(shape)


def denormalise(vae: AutoencoderKLLTX2Audio, latents: Tensor) -> Tensor:
    """Undo `normalise`."""
    shape = (1, LATENT_CHANNELS, 1, LATENT_BINS)
    return latents * vae.latents_std.view(shape) + vae.latents_mean.view(shape)


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKLLTX2Audio, scenes: list[Any], frames: int, fps: float
) -> Tensor:
    """Normalised audio latents (B, 2, T, 16) of scenes, 25 latent frames per second."""
    mel, _ = sound.scene_mels(scenes, sound.latent_frames(frames, fps))
    return normalise(vae, vae.encode(mel).latent_dist.mode())


@torch.no_grad()
def decode_latents(
    vae: AutoencoderKLLTX2Audio, vocoder: LTX2VocoderWithBWE, latents: Tensor
) -> Tensor:
    """Normalised audio latents (B, 2, T, 16) -> 48 kHz waveform (B, 2, 480 * (4T - 3))."""
    return vocode(vocoder, vae.decode(denormalise(vae, latents)).sample)


_VOCODER_NAMES = (  # (diffusers, original) names of path segments
    ("resnets", "resblocks"), ("conv_in", "conv_pre"), ("conv_out", "conv_post"),
    ("act_out", "act_post"), ("downsample", "downsample.lowpass"), ("upsamplers", "ups"),
)  # fmt: skip
_STATISTICS = {"latents_mean": "mean-of-means", "latents_std": "std-of-means"}


def _original_vocoder_name(name: str) -> str:
    names = dict(_VOCODER_NAMES)
    return "vocoder." + ".".join(names.get(part, part) for part in name.split("."))


def _original_vae_name(name: str) -> str:
    if name in _STATISTICS:
        return f"audio_vae.per_channel_statistics.{_STATISTICS[name]}"
    return f"audio_vae.{name}"


def audio_vae_tensors(vae: AutoencoderKLLTX2Audio) -> dict[str, Tensor]:
    """Tensors of the audio VAE under their original names: bf16, statistics float32."""
    return {
        _original_vae_name(name): value.detach().float() if name in _STATISTICS else _bf16(value)
        for name, value in vae.state_dict().items()
    }


def vocoder_tensors(net: LTX2VocoderWithBWE) -> dict[str, Tensor]:
    """Tensors of the vocoder under their original names, bf16."""
    return {_original_vocoder_name(n): _bf16(v) for n, v in net.state_dict().items()}


def _bf16(value: Tensor) -> Tensor:
    return value.detach().to(torch.bfloat16).contiguous()


def _restore(net: nn.Module, tensors: dict[str, Tensor], original: Callable[[str], str]) -> None:
    state = {name: tensors[original(name)].float() for name in net.state_dict()}
    net.load_state_dict(state)


def save_part(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file atomically; `metadata` values other than strings become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata=text)
    temporary.replace(path)


def save(vae: AutoencoderKLLTX2Audio, vocoder: LTX2VocoderWithBWE, folder: Path = PARTS) -> None:
    """Write both networks to runs/parts, with their header configs."""
    save_part(
        folder / AUDIO_VAE_FILE,
        audio_vae_tensors(vae),
        {"config": {"audio_vae": audio_vae_config()}},
    )
    save_part(
        folder / VOCODER_FILE,
        vocoder_tensors(vocoder),
        {"config": {"vocoder": vocoder_config()}},
    )


def load(*paths: Path) -> tuple[AutoencoderKLLTX2Audio, LTX2VocoderWithBWE]:
    """Both networks from their files in runs/parts (default) or from a complete checkpoint."""
    tensors: dict[str, Tensor] = {}
    for path in paths or (PARTS / AUDIO_VAE_FILE, PARTS / VOCODER_FILE):
        tensors |= load_file(path)
    vae, vocoder = build_audio_vae(), build_vocoder()
    _restore(vae, tensors, _original_vae_name)
    _restore(vocoder, tensors, _original_vocoder_name)
    return vae.eval(), vocoder.eval()


def header_config(path: Path) -> dict[str, Any]:
    """The parsed header `config` of a file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["config"])
