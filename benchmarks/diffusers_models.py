"""Convert models from the original layout to a folder for diffusers' ``from_pretrained``.

diffusers has no working loader for LTX-2.3 files, so its side of a benchmark uses a folder that is
converted once, before measuring, with one sub-folder per part, as in published conversions. Every
part is loaded strictly, so a wrong name is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from diffusers_names import network_names
from torch import nn
from transformers import Gemma3TextConfig, Gemma3TextModel

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import ModelSet, model_folders, scan, select_models
from latent_ladder.models.network_configs import (
    BandwidthExtensionConfig,
    GeneratorConfig,
    audio_vae_config,
    bandwidth_extension_config,
    connector_config,
    generator_config,
    shapes_below,
    upsampler_config,
    video_decoder_config,
    video_encoder_config,
)
from latent_ladder.models.text_encoder.tokenizer import text_length

PARTS = ("transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder", "upsampler")

# Replacements of original by diffusers names, applied in this order to the transformer's keys.
TRANSFORMER_NAMES = (
    ("audio_patchify_proj.", "audio_proj_in."),
    ("patchify_proj.", "proj_in."),
    ("av_ca_video_scale_shift_adaln_single.", "av_cross_attn_video_scale_shift."),
    ("av_ca_a2v_gate_adaln_single.", "av_cross_attn_video_a2v_gate."),
    ("av_ca_audio_scale_shift_adaln_single.", "av_cross_attn_audio_scale_shift."),
    ("av_ca_v2a_gate_adaln_single.", "av_cross_attn_audio_v2a_gate."),
    ("prompt_adaln_single.", "prompt_adaln."),
    ("adaln_single.", "time_embed."),
    ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
    ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
)


def convert(models: Path, folder: Path) -> dict[str, Any]:
    """Write all parts below ``folder``; returns further facts that the pipelines need."""
    chosen = select_models(scan(model_folders([models])))
    built: dict[str, Any] = {
        "transformer": _transformer(chosen.transformer),
        "vae": _video_vae(chosen.video_vae),
        "connectors": _connectors(chosen),
        "text_encoder": _gemma(chosen.text_encoder),
        "upsampler": _upsampler(chosen),
        **_audio(chosen),
    }
    for name in PARTS:
        built[name].float().save_pretrained(folder / name)
    tokenizer = bytes(chosen.text_encoder.read("spiece_model").numpy().tobytes())
    (folder / "tokenizer.model").write_bytes(tokenizer)
    facts = {"text_length": text_length(chosen.text_encoder)}
    (folder / "facts.json").write_text(json.dumps(facts))
    return facts


def transformer_name(key: str) -> str:
    """Convert the name of one transformer tensor to diffusers'."""
    for original, new in TRANSFORMER_NAMES:
        key = key.replace(original, new)
    return key


def _load_weights(network: nn.Module, component: Component, names: Mapping[str, str]) -> nn.Module:
    """Load a component's tensors into ``network``; ``names`` maps its names to the network's."""
    state = {new: component.read(old).float() for old, new in names.items()}
    network.load_state_dict(state, strict=True)
    return network


def _transformer(component: Component) -> nn.Module:
    config = component.config
    network = LTX2VideoTransformer3DModel(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        num_attention_heads=config["num_attention_heads"],
        attention_head_dim=config["attention_head_dim"],
        cross_attention_dim=config["cross_attention_dim"],
        pos_embed_max_pos=config["positional_embedding_max_pos"][0],
        base_height=config["positional_embedding_max_pos"][1],
        base_width=config["positional_embedding_max_pos"][2],
        gated_attn=config["apply_gated_attention"],
        cross_attn_mod=config["cross_attention_adaln"],
        audio_in_channels=component.shape("audio_patchify_proj.weight")[1],
        audio_out_channels=config["audio_out_channels"],
        audio_num_attention_heads=config["audio_num_attention_heads"],
        audio_attention_head_dim=config["audio_attention_head_dim"],
        audio_cross_attention_dim=config["audio_cross_attention_dim"],
        audio_pos_embed_max_pos=config["audio_positional_embedding_max_pos"][0],
        audio_gated_attn=config["apply_gated_attention"],
        audio_cross_attn_mod=config["cross_attention_adaln"],
        num_layers=config["num_layers"],
        norm_eps=config["norm_eps"],
        caption_channels=config["caption_channels"],
        rope_theta=config["positional_embedding_theta"],
        rope_type=config["rope_type"],
        timestep_scale_multiplier=config["timestep_scale_multiplier"],
        cross_attn_timestep_scale_multiplier=config["av_ca_timestep_scale_multiplier"],
        use_prompt_embeddings=False,
        perturbed_attn=True,
    )
    return _load_weights(
        network, component, {key: transformer_name(key) for key in component.names}
    )


def _video_vae(component: Component) -> nn.Module:
    shapes, config = component.shapes(), component.config
    encoder, decoder = video_encoder_config(shapes, config), video_decoder_config(shapes, config)
    kinds = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
    steps = list(zip(decoder.widths, decoder.widths[1:], strict=False))
    strides = (*encoder.resamplers,)
    network = AutoencoderKLLTX2Video(
        latent_channels=encoder.latent_channels,
        block_out_channels=encoder.widths[1:],
        down_block_types=("LTX2VideoDownBlock3D",) * len(encoder.resamplers),
        spatio_temporal_scaling=(True,) * len(encoder.resamplers),
        layers_per_block=encoder.layers,
        downsample_type=tuple(kinds[kind] for kind in encoder.resamplers),
        # diffusers lists these from the pixels to the latents, except upsample_type.
        decoder_block_out_channels=decoder.widths[-2::-1],
        decoder_spatio_temporal_scaling=(True,) * len(decoder.resamplers),
        decoder_layers_per_block=decoder.layers[::-1],
        decoder_inject_noise=(False,) * len(decoder.layers),
        upsample_type=tuple(kinds[kind] for kind in decoder.resamplers),
        upsample_residual=decoder.residual[::-1],
        upsample_factor=tuple(before // after for before, after in steps)[::-1],
        patch_size=encoder.patch,
        encoder_causal=encoder.causal,
        decoder_causal=decoder.causal,
        encoder_spatial_padding_mode=encoder.padding,
        decoder_spatial_padding_mode=decoder.padding,
        spatial_compression_ratio=encoder.patch * 2 ** sum(k != "time" for k in strides),
        temporal_compression_ratio=2 ** sum(k != "space" for k in strides),
    )
    return _load_weights(network, component, network_names(component))


def _connectors(chosen: ModelSet) -> nn.Module:
    """Build the text projections and both connectors."""
    both, texts = chosen.connectors, chosen.text_projection
    hidden, shapes = chosen.text_encoder.shape("norm.weight")[0], texts.shapes()
    single = shapes.get("aggregate_embed.weight")
    shapes_by_stream = {
        s: single or shapes[f"{s}_aggregate_embed.weight"] for s in ("video", "audio")
    }
    network = LTX2TextConnectors(
        caption_channels=hidden,
        text_proj_in_factor=shapes_by_stream["video"][1] // hidden,
        per_modality_projections=single is None,
        video_hidden_dim=shapes_by_stream["video"][0],
        audio_hidden_dim=shapes_by_stream["audio"][0],
        proj_bias=any(key.endswith(".bias") for key in shapes),
        connector_rope_base_seq_len=both.config.get(
            "connector_positional_embedding_max_pos", [4096]
        )[0],
        rope_theta=10000.0,  # the header's theta is the transformer's
        rope_double_precision=both.config.get("frequencies_precision", "float64") == "float64",
        causal_temporal_positioning=False,
        rope_type=both.config.get("rope_type", "split"),
        **_connector_sizes(both),
    )
    state = {
        new: component.read(old).float()
        for component in (both, texts)
        for old, new in network_names(component).items()
    }
    network.load_state_dict(state, strict=True)
    assert isinstance(network, nn.Module)
    return network


def _connector_sizes(component: Component) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for stream in ("video", "audio"):
        part = connector_config(component.shapes(), component.config, stream)
        sizes |= {
            f"{stream}_connector_num_attention_heads": part.heads,
            f"{stream}_connector_attention_head_dim": part.head_dim,
            f"{stream}_connector_num_layers": part.layers,
            f"{stream}_connector_num_learnable_registers": part.registers,
            f"{stream}_gated_attn": part.gated,
        }
    return sizes


def _gemma(component: Component) -> nn.Module:
    settings = component.config.get("text_config", component.config)
    network = Gemma3TextModel(Gemma3TextConfig(**settings))
    names = {k: k for k in component.names if k.startswith(("layers.", "embed_tokens.", "norm."))}
    return _load_weights(network, component, names)


def _upsampler(chosen: ModelSet) -> nn.Module:
    component = chosen.upsamplers["spatial", Fraction(2)]
    config = upsampler_config(component.shapes(), component.config)
    network = LTX2LatentUpsamplerModel(
        in_channels=config.in_channels,
        mid_channels=config.mid_channels,
        num_blocks_per_stage=config.blocks,
        dims=config.conv_dims,
        spatial_upsample=config.spatial,
        temporal_upsample=config.temporal,
        rational_spatial_scale=config.scale,
        use_rational_resampler=config.rational,
    )
    return _load_weights(network, component, {key: key for key in component.names})


def _audio(chosen: ModelSet) -> dict[str, nn.Module]:
    vae, vocoder = chosen.audio_vae, chosen.vocoder
    if vae is None or vocoder is None:
        raise SystemExit("the benchmark needs models with an audio VAE and a vocoder")
    config = audio_vae_config(vae.shapes(), vae.config)
    network = AutoencoderKLLTX2Audio(
        base_channels=config.base,
        output_channels=config.mel_channels,
        ch_mult=config.multipliers,
        num_res_blocks=config.blocks,
        in_channels=config.mel_channels,
        latent_channels=config.latent_channels,
        norm_type="pixel",
        causality_axis=config.causality_axis,
        mel_bins=config.mel_bins,
    )
    return {
        "audio_vae": _load_weights(network, vae, network_names(vae)),
        "vocoder": _load_weights(_vocoder(vocoder), vocoder, network_names(vocoder)),
    }


def _vocoder(component: Component) -> nn.Module:
    shapes, config = component.shapes(), component.config
    extension = bandwidth_extension_config(shapes, config)
    if extension is None:
        return build_vocoder(generator_config(shapes, config, last="clamp"), None)
    section = config.get("vocoder", {})
    main = generator_config(shapes_below(shapes, "vocoder."), section, last="clamp")
    return build_vocoder(main, extension)


def build_vocoder(main: GeneratorConfig, extension: BandwidthExtensionConfig | None) -> nn.Module:
    """Build the vocoder, with its bandwidth extension if it has one."""
    network: nn.Module
    if extension is None:
        network = LTX2Vocoder(**_generator_arguments(main))
        return network
    shapes_by_stream = _generator_arguments(extension.generator)
    network = LTX2VocoderWithBWE(
        **_generator_arguments(main),
        **{f"bwe_{name}": value for name, value in shapes_by_stream.items()},
        filter_length=extension.n_fft,
        hop_length=extension.hop,
        window_length=extension.window,
        num_mel_channels=extension.mels,
        input_sampling_rate=extension.input_rate,
        output_sampling_rate=extension.output_rate,
    )
    return network


def _generator_arguments(generator: GeneratorConfig) -> dict[str, Any]:
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


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
