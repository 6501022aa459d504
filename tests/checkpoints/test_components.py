"""Components are detected by content; the real LTX-2.3 layout matches the networks exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import checkpoint_layouts as layouts
from helpers.goldens import Goldens
from safetensors.torch import save_file
from torch import nn

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, TensorInfo, open_checkpoint
from latent_ladder.checkpoints.components import (
    Component,
    components,
    find_unused_tensors,
)
from latent_ladder.checkpoints.families import detect_family
from latent_ladder.checkpoints.key_names import is_lora
from latent_ladder.checkpoints.scan import summarize
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout
from latent_ladder.models.audio_vae.networks import AudioDecoder, AudioEncoder
from latent_ladder.models.audio_vae.vocoder import Generator
from latent_ladder.models.latent_upsampler.network import UpsamplerNetwork
from latent_ladder.models.network_configs import (
    audio_vae_config,
    bandwidth_extension_config,
    generator_config,
    shapes_below,
    upsampler_config,
    video_decoder_config,
    video_encoder_config,
)
from latent_ladder.models.transformer.config import TransformerConfig
from latent_ladder.models.video_vae.networks import VideoDecoder, VideoEncoder
from latent_ladder.models.weights.loading import EmptyOnMeta


def header(
    shapes: Mapping[str, layouts.Shape], config: Mapping[str, Any] | None = None
) -> CheckpointFile:
    """A file without data: names, shapes and configuration."""
    tensors = {name: TensorInfo(tuple(shape), "BF16") for name, shape in shapes.items()}
    return CheckpointFile(Path("model.safetensors"), 0, {}, tensors, config or {})


@pytest.fixture(scope="module")
def real() -> dict[str, Component]:
    shapes = {prefix + k: s for prefix, part in layouts.REAL.items() for k, s in part()}
    assert len(shapes) == 5947
    sections = {
        "vae": layouts.VAE_CONFIG,
        "audio_vae": layouts.AUDIO_CONFIG,
        "vocoder": layouts.VOCODER_CONFIG,
    }
    sections["transformer"] = {"connector_num_attention_heads": 32}
    return components(header(shapes, sections))


def test_real_single_file(real: dict[str, Component]) -> None:
    assert {role: len(part.names) for role, part in real.items()} == {
        "transformer": 4186,
        "connectors": 258,
        "text_projection": 4,
        "video_vae": 170,
        "audio_vae": 102,
        "vocoder": 1227,
    }
    assert find_unused_tensors(real["vocoder"].file) == []
    assert detect_family(real["transformer"]) == "2.3"
    assert real["video_vae"].config["latent_channels"] == 128


def count_parameters(module: nn.Module, part: Component, prefix: str = "") -> int:
    """The parameter count of ``module``; its state must be exactly the tensors of ``part``."""
    stored = {k[len(prefix) :]: part.shape(k) for k in part.names if k.startswith(prefix)}
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == stored
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
def test_real_video_vae(real: dict[str, Component]) -> None:
    part = real["video_vae"]
    for config in (layouts.VAE_CONFIG, {}):
        encoder = video_encoder_config(part.shapes(), config)
        decoder = video_decoder_config(part.shapes(), config)
        with torch.device("meta"):
            built = VideoEncoder(encoder), VideoDecoder(decoder)
        assert count_parameters(built[0], part, "encoder.") == 318_936_897
        assert count_parameters(built[1], part, "decoder.") == 407_169_072
        assert encoder.resamplers == ("space", "time", "all", "all")
        assert (decoder.spatial_scale, decoder.temporal_scale, decoder.patch) == (32, 8, 4)
        assert (encoder.padding, decoder.padding, decoder.causal) == ("zeros", "zeros", False)


def test_real_audio(real: dict[str, Component]) -> None:
    for config in (layouts.AUDIO_CONFIG, {}):
        coder = audio_vae_config(real["audio_vae"].shapes(), config)
        assert (coder.latent_channels, coder.mel_bins) == (8, 64)
        with torch.device("meta"):
            halves = [AudioEncoder(coder), AudioDecoder(coder)]
        assert count_parameters(halves[0], real["audio_vae"], "encoder.") == 21_333_008
        assert count_parameters(halves[1], real["audio_vae"], "decoder.") == 31_915_138


def test_real_vocoder(real: dict[str, Component]) -> None:
    part = real["vocoder"]
    shapes, config = part.shapes(), part.config
    extension = bandwidth_extension_config(shapes, config)
    main = generator_config(shapes_below(shapes, "vocoder."), config["vocoder"], last="clamp")
    assert extension is not None
    assert (main.final, extension.generator.final) == ("clamp", None)
    assert (extension.n_fft, extension.hop, extension.output_rate) == (512, 80, 48000)
    with EmptyOnMeta():
        built = Generator(main), Generator(extension.generator)
    assert sum(
        count_parameters(g, part, p)
        for g, p in zip(built, ("vocoder.", "bwe_generator."), strict=True)
    ) == (128_537_448)
    # Without a header, the kernels of the published model give the same strides.
    assert generator_config(shapes_below(shapes, "vocoder."), {}, last="clamp") == main
    assert bandwidth_extension_config(shapes, {}) == extension


@pytest.mark.parametrize(
    ("mid", "kind", "count", "factor"),
    [
        (1024, "x2", 497_867_904, 2.0),
        (1024, "x1.5", 545_058_944, 1.5),
        (512, "temporal", 130_968_192, 2.0),
    ],
)
def test_real_upsamplers(mid: int, kind: str, count: int, factor: float) -> None:
    part = components(header(dict(layouts.upsampler(mid, kind))))["latent_upsampler"]
    found = upsampler_config(part.shapes(), part.config)
    assert (found.spatial, found.temporal) == (kind != "temporal", kind == "temporal")
    assert (found.scale, found.rational) == (factor, kind == "x1.5")
    with torch.device("meta"):
        assert count_parameters(UpsamplerNetwork(found), part) == count


# --- split files ------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["vae.", ""])
def test_split_video_vae(prefix: str) -> None:
    shapes = {prefix + k: s for k, s in layouts.video_vae()}
    # Unused statistics in older files.
    shapes[f"{prefix}per_channel_statistics.channel"] = (128,)
    (part,) = components(header(shapes)).values()
    assert part.role == "video_vae"
    decoder = video_decoder_config(part.shapes(), part.config)
    with torch.device("meta"):
        assert count_parameters(VideoDecoder(decoder), part, "decoder.") == 407_169_072


@pytest.mark.parametrize("prefix", ["audio_vae.", ""])
def test_split_audio_vae_with_vocoder(prefix: str) -> None:
    shapes = {prefix + k: s for k, s in layouts.audio_vae()} | {
        f"vocoder.{k}": s for k, s in layouts.vocoder()
    }
    found = components(header(shapes))
    assert {role: len(part.names) for role, part in found.items()} == {
        "audio_vae": 102,
        "vocoder": 1227,
    }
    assert "vocoder.conv_pre.weight" in found["vocoder"]


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize("with_connectors", [True, False])
def test_transformer_only(prefix: str, with_connectors: bool) -> None:
    shapes = {prefix + k: s for k, s in layouts.transformer()} | {"scaled_fp8": (0,)}
    if with_connectors:
        shapes |= {prefix + k: s for k, s in layouts.connectors()}
    found = components(header(shapes))
    roles = ["transformer", "connectors"] if with_connectors else ["transformer"]
    assert list(found) == roles
    assert len(found["transformer"].names) == 4186, (
        "the marker of the file is not a tensor of the component"
    )
    assert detect_family(found["transformer"]) == "2.3"


def test_bits_of_a_mixed_file_are_the_mean_over_all_blocks(real: dict[str, Component]) -> None:
    """Some files keep their first blocks unquantised."""
    shapes = {f"model.diffusion_model.{k}": s for k, s in layouts.transformer()}
    file = header(shapes)
    wide = [name for name in file.tensors if name.endswith(".attn1.to_q.weight")]
    assert summarize(real["transformer"]).bits == 16
    mixed = {n: TensorInfo(file.tensors[n].shape, "F32") for n in wide if int(n.split(".")[3]) < 12}
    part = components(replace(file, tensors={**file.tensors, **mixed}))["transformer"]
    assert summarize(part).bits == 16 + 16 * 12 / 48


def test_dimensions_need_no_header(real: dict[str, Component]) -> None:
    """GGUF and transformer-only files have no config in the header; the result must not change."""
    config = {
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "audio_num_attention_heads": 32,
        "audio_attention_head_dim": 64,
        "num_layers": 48,
        "cross_attention_adaln": True,
        "apply_gated_attention": True,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "frequencies_precision": "float64",
    }
    shapes = real["transformer"].shapes()
    found = TransformerConfig.from_shapes(shapes, {})
    assert found == TransformerConfig.from_shapes(shapes, config)
    assert (found.video.heads, found.audio.heads, found.layers) == (32, 32, 48)
    # A gate stored as nvfp4 is padded to 16 rows; its bias is not.
    gate = "transformer_blocks.0.attn1.to_gate_logits"
    padded = {**shapes, f"{gate}.weight": (48, 4096), f"{gate}.bias": (32,)}
    assert TransformerConfig.from_shapes(padded, {}) == found


def test_without_gates_the_published_head_width_is_used(real: dict[str, Component]) -> None:
    shapes = {k: s for k, s in real["transformer"].shapes().items() if "to_gate_logits" not in k}
    found = TransformerConfig.from_shapes(shapes, {})
    assert (found.gated, found.video.heads, found.audio.heads) == (False, 32, 32)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("shape", [(4096,), (1, 4096)])
def test_gguf_transformer(prefix: str, shape: tuple[int, ...]) -> None:
    """GGUF drops a leading dimension of 1."""
    shapes = {prefix + k: s for k, s in layouts.transformer() if "ff.net.2.bias" not in k}
    tensors = {k: TensorInfo(s, "Q8_0" if len(s) == 2 else "F32") for k, s in shapes.items()}
    tensors[f"{prefix}keyframes_abs_pos_embedding"] = TensorInfo(shape, "F32")
    kv = {"general.architecture": "ltxv"}
    file = CheckpointFile(Path("x.gguf"), 0, {}, tensors, {}, container="gguf", kv=kv)
    (part,) = components(file).values()
    assert detect_family(part) == "2.5"
    assert part.shape("keyframes_abs_pos_embedding") == (1, 4096)
    assert part.shapes()["keyframes_abs_pos_embedding"] == (1, 4096)
    assert TransformerConfig.from_component(part).keyframe_embedding
    assert part.precision == "q8_0"


def test_a_dropped_dimension_is_restored(tmp_path: Path) -> None:
    key = "keyframes_abs_pos_embedding"
    tensors = {key: torch.ones(4), "transformer_blocks.0.attn1.to_q.weight": torch.ones(4, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    part = components(open_checkpoint(tmp_path / "x.safetensors"))["transformer"]
    assert part.read(key).shape == part.shape(key) == (1, 4)


def test_a_transformer_with_diffusers_names_is_an_error() -> None:
    shapes = {"transformer_blocks.0.attn1.to_q.weight": (8, 8), "audio_proj_in.weight": (8, 8)}
    shapes["proj_in.weight"] = (8, 8)
    with pytest.raises(UnknownLayout, match="tensor names of diffusers"):
        detect_family(Component("transformer", header(shapes), {k: k for k in shapes}))


@pytest.mark.parametrize("prefix", ["text_embedding_projection.", ""])
def test_text_projection_file(prefix: str) -> None:
    shapes = {prefix + k: s for k, s in layouts.projection()}
    (part,) = components(header(shapes)).values()
    assert (part.role, set(part.names)) == ("text_projection", {k for k, _ in layouts.projection()})


@pytest.mark.parametrize("wrap", ["model.", "language_model.model.", "model.language_model."])
def test_gemma_names(wrap: str, golden: Goldens) -> None:
    tiny = open_checkpoint(golden.path("text_encoders/tiny-gemma-3.safetensors"))
    (part,) = components(tiny).values()
    assert part.role == "text_encoder"
    assert part.config["text_config"]["hidden_size"] == 32
    assert {"embed_tokens.weight", "norm.weight", "spiece_model"} <= set(part.names)
    renamed = {
        (k if k == "spiece_model" else wrap + k): shape for k, shape in part.shapes().items()
    } | {"vision_model.encoder.weight": (4,), "lm_head.weight": (4, 4)}
    again = components(header(renamed))["text_encoder"]
    assert again.shapes() == part.shapes()
    assert find_unused_tensors(again.file) == []


def test_encoder_with_its_projection_in_one_file() -> None:
    shapes: dict[str, layouts.Shape] = {
        "model.layers.0.pre_feedforward_layernorm.weight": (8,),
        "model.embed_tokens.weight": (16, 8),
        "tokenizer_json": (100,),
        "hf_asset__tokenizer_config.json": (20,),
    } | {f"text_embedding_projection.{k}": s for k, s in layouts.projection()}
    found = components(header(shapes))
    assert list(found) == ["text_projection", "text_encoder"]
    assert "hf_asset__tokenizer_config.json" in found["text_encoder"]


def test_a_vocoder_without_its_outer_prefix() -> None:
    """Its own generator is called vocoder too, so the prefix alone is ambiguous."""
    (part,) = components(header(dict(layouts.vocoder()))).values()
    assert part.role == "vocoder"
    assert set(part.names) == {k for k, _ in layouts.vocoder()}


def tiny_decoder(latent: int = 128, width: int = 256) -> dict[str, layouts.Shape]:
    """Some tensors of a tiny video autoencoder (TAEHV)."""
    blocks = dict(layouts.layer("decoder.3.conv.0", width, 2 * width, 3, 3))
    ends = (
        layouts.layer("decoder.1", width, latent, 3, 3),
        layouts.layer("decoder.22", 48, 64, 3, 3),
    )
    return dict(ends[0]) | blocks | dict(ends[1]) | {"decoder.7.conv.weight": (width, width, 1, 1)}


@pytest.mark.parametrize("half", [{}, {"encoder.0.weight": (64, 48, 3, 3)}])
def test_a_tiny_preview_decoder(half: dict[str, layouts.Shape]) -> None:
    file = header(tiny_decoder() | half)
    (part,) = components(file).values()
    assert (part.role, part.shape("decoder.1.weight")[1]) == ("preview_vae", 128)
    assert len(part.names) == len(file.tensors)


def test_settings_in_the_header_of_a_lora(tmp_path: Path) -> None:
    tensors = {"diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 4)}
    facts = {"reference_downscale_factor": "+2e0", "reference_temporal_scale_factor": "0", "x": "1"}
    save_file(tensors, tmp_path / "x.safetensors", facts)
    (part,) = components(open_checkpoint(tmp_path / "x.safetensors")).values()
    assert part.config == {"reference_downscale_factor": 2.0}


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "transformer_blocks.0.attn1.to_q.lora_B.default.weight",
        "lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "transformer.transformer_blocks.0.attn1.to_q.lora_up.weight",
        "diffusion_model.transformer_blocks.0.ff.net.2.lokr_w1",
        "transformer.transformer_blocks.0.attn1.to_q.lora.down.weight",
        "transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
        "transformer_blocks.0.attn1.to_q.lora_linear_layer.down.weight",
        "transformer_blocks.0.attn1.to_q.lora_A.default",
        "transformer_blocks.0.attn1.to_q.oft_blocks",
        "model.diffusion_model.transformer_blocks.0.attn1.to_q.glora_a.weight",
    ],
)
def test_lora_key_styles(key: str) -> None:
    (part,) = components(header({key: (4, 4), "other": (1,)})).values()
    assert (part.role, set(part.names)) == ("lora", {key, "other"})


@pytest.mark.parametrize("key", ["blocks.0.lora_A.weight", "transformer_blocks.0.attn1.to_q.diff"])
def test_a_transformer_that_also_holds_adapter_tensors_is_no_lora(
    real: dict[str, Component], key: str
) -> None:
    """A low-rank correction inside a checkpoint; without the whole network it is a LoRA."""
    names = [*real["transformer"].names, key]
    assert not is_lora(names)
    assert not is_lora(names[:-1])
    assert is_lora(name for name in names if "patchify_proj" not in name)
    assert is_lora([key])


def test_golden_files(golden: Goldens) -> None:
    def roles(name: str) -> list[str]:
        return list(components(open_checkpoint(golden.path(f"{name}.safetensors"))))

    everything = ["transformer", "connectors", "text_projection", "video_vae"]
    assert roles("checkpoints/tiny-ltx-2.3") == [*everything, "audio_vae", "vocoder"]
    assert roles("checkpoints/tiny-ltx-2.0") == [*everything, "vocoder"]
    assert roles("diffusion_models/tiny-ltx-2.5-transformer") == ["transformer"]
    assert roles("quantized/comfy-quant-mixed") == ["transformer"]
    assert roles("quantized/legacy-scaled-fp8-attn") == ["transformer"]
    assert roles("loras/tiny-distilled-lora") == ["lora"]
    for kind in ("spatial-x2", "spatial-x1.5", "temporal-x2"):
        assert roles(f"latent_upscale_models/tiny-{kind}") == ["latent_upsampler"]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("checkpoints/tiny-ltx-2.0", "2.0"),
        ("checkpoints/tiny-ltx-2.3", "2.3"),
        ("quantized/tiny-ltx-2.3-fp8", "2.3"),
        ("quantized/tiny-ltx-2.3-nvfp4", "2.3"),
        ("diffusion_models/tiny-ltx-2.5-transformer", "2.5"),
    ],
)
def test_families(name: str, want: str, golden: Goldens) -> None:
    part = components(open_checkpoint(golden.path(f"{name}.safetensors")))["transformer"]
    assert detect_family(part) == want


def test_other_families_are_refused() -> None:
    for shapes in (
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)},
        {"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)},
        {"model.layers.0.self_attn.q_proj.weight": (8, 8), "model.norm.weight": (8,)},
        {},
    ):
        with pytest.raises(UnknownLayout, match="not a model file of the LTX-2 family"):
            components(header(shapes))
    silent = components(header({"transformer_blocks.0.attn1.to_q.weight": (8, 8)}))
    with pytest.raises(UnknownLayout, match="unknown family"):
        detect_family(silent["transformer"])


def test_header_must_agree_with_tensors(real: dict[str, Component]) -> None:
    shapes = real["video_vae"].shapes()
    blocks: list[list[Any]] = [[n, dict(o)] for n, o in layouts.VAE_CONFIG["encoder_blocks"]]
    blocks[0][1]["num_layers"] = 3
    with pytest.raises(UnknownLayout, match=r"residual blocks .* in its tensors, .* in its header"):
        video_encoder_config(shapes, {"encoder_blocks": blocks})
    del shapes["decoder.conv_in.conv.weight"]
    with pytest.raises(UnknownLayout, match=r"tensor decoder\.conv_in"):
        video_decoder_config(shapes, {})
    with pytest.raises(UnknownLayout, match="timestep"):
        video_decoder_config(shapes, {"timestep_conditioning": True})
    with pytest.raises(UnknownLayout, match="strides"):
        odd = {"conv_pre.weight": (8, 4, 7), "ups.0.weight": (8, 4, 9)}
        generator_config(odd, {}, last=None)


def test_missing_tensors_and_damaged_headers(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    tensors = {"model.layers.0.pre_feedforward_layernorm.weight": torch.ones(3)}
    save_file(tensors, path, {"gemma_config": json.dumps({"hidden_size": 3})})
    (part,) = components(open_checkpoint(path)).values()
    assert part.config == {"hidden_size": 3}
    assert part.read("layers.0.pre_feedforward_layernorm.weight").tolist() == [1, 1, 1]
    assert part.id == f"{part.file.id}:text_encoder"
    with pytest.raises(UnknownLayout, match="text encoder has no tensor norm"):
        part.read("norm.weight")
    save_file(tensors, path, {"gemma_config": "{"})
    with pytest.raises(CorruptCheckpoint, match="gemma_config"):
        components(open_checkpoint(path))
