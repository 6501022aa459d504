"""Loader nodes; they only read file headers, and their outputs name components to load later."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.checkpoints.components import Component
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.values import (
    AudioVaeFile,
    Model,
    TextEncoderFiles,
    UpsamplerFile,
    UpscalerFile,
    Value,
    VideoVaeFile,
)
from latent_ladder.errors import CheckpointError


def load_checkpoint(ctx: NodeContext) -> list[Value]:
    """``CheckpointLoaderSimple``: the MODEL, CLIP and VAE of a file, as far as it contains them.

    LTX-2 checkpoints contain no text encoder, so CLIP is empty for them.
    """
    parts = ctx.engine.parts(ctx.text("ckpt_name"), "transformer", "video_vae")
    model = Model(parts["transformer"]) if "transformer" in parts else None
    vae = VideoVaeFile(parts["video_vae"]) if "video_vae" in parts else None
    return [model, _embedded_clip(parts), vae]


def _embedded_clip(parts: Mapping[str, Component]) -> TextEncoderFiles | None:
    if "text_encoder" not in parts or "text_projection" not in parts:
        return None
    return TextEncoderFiles(
        parts["text_encoder"], parts["text_projection"], parts.get("connectors")
    )


def load_transformer(ctx: NodeContext) -> list[Value]:
    """``UNETLoader`` and the GGUF loaders: a transformer.

    Weights stay in the format of the file, so ``weight_dtype`` and the GGUF dtypes are ignored;
    ``--oom-policy fp8`` converts a float checkpoint to fp8 if memory requires it.
    """
    if ctx.has("weight_dtype") and ctx.text("weight_dtype") != "default":
        ctx.warn(
            "weight_dtype",
            f"weight_dtype {ctx.text('weight_dtype')} is ignored: weights stay in the format of "
            "the file, and memory use is planned",
        )
    return [Model(ctx.engine.component(ctx.text("unet_name"), "transformer"))]


def load_lora(ctx: NodeContext) -> list[Value]:
    """``LoraLoaderModelOnly``: a model with a LoRA."""
    component = ctx.engine.component(ctx.text("lora_name"), "lora")
    return [ctx.get("model", Model).with_lora(component, ctx.number("strength_model"))]


def load_lora_with_clip(ctx: NodeContext) -> list[Value]:
    """``LoraLoader``: a model and a text encoder with a LoRA."""
    model, clip = ctx.get("model", Model), ctx.get("clip", TextEncoderFiles)
    component = ctx.engine.component(ctx.text("lora_name"), "lora")
    strength = ctx.number("strength_clip")
    loras = (*clip.loras, (component, strength)) if strength else clip.loras
    with_lora = TextEncoderFiles(clip.text_encoder, clip.projection, clip.connectors, loras)
    return [model.with_lora(component, ctx.number("strength_model")), with_lora]


def load_ic_lora(ctx: NodeContext) -> list[Value]:
    """``LTXICLoRALoaderModelOnly``: a model with a LoRA, and the LoRA's downscale factor."""
    component = ctx.engine.component(ctx.text("lora_name"), "lora")
    model = ctx.get("model", Model).with_lora(component, ctx.number("strength_model"))
    return [model, downscale_factor(component)]


def downscale_factor(lora: Component) -> float:
    """Return the factor by which references of an IC-LoRA are smaller than the clip, default 1."""
    try:
        return float(lora.config.get("reference_downscale_factor", 1.0))
    except (TypeError, ValueError):
        return 1.0


def load_text_encoder(ctx: NodeContext) -> list[Value]:
    """``LTXAVTextEncoderLoader``: a text encoder with the projection of a checkpoint.

    ``device`` is ignored: layers are loaded one by one, and memory use is planned.
    """
    return [_load_clip(ctx, "text_encoder", "ckpt_name")]


def load_gemma(ctx: NodeContext) -> list[Value]:
    """``LTXVGemmaCLIPModelLoader``: a text encoder; ``max_length`` is that of its file."""
    return [_load_clip(ctx, "gemma_path", "ltxv_path")]


def _load_clip(ctx: NodeContext, encoder: str, checkpoint: str) -> TextEncoderFiles:
    engine = ctx.engine
    found = engine.component(ctx.text(encoder), "text_encoder")
    parts = engine.parts(ctx.text(checkpoint), "text_projection")
    return TextEncoderFiles(found, parts["text_projection"], parts.get("connectors"))


def load_dual_clip(ctx: NodeContext) -> list[Value]:
    """``DualCLIPLoader`` of type ltxv: a text encoder and a projection, in either order."""
    engine = ctx.engine
    if ctx.text("type") != "ltxv":
        raise ctx.error(f"type is {ctx.text('type')}", "set type to ltxv")
    names = [ctx.text("clip_name1"), ctx.text("clip_name2")]
    parts: dict[str, Component] = {}
    for name in names:
        parts = {**engine.parts(name, "text_encoder", "text_projection"), **parts}
    for role in ("text_encoder", "text_projection"):
        if role not in parts:
            missing = role.replace("_", " ")
            raise ctx.error(f"neither {names[0]} nor {names[1]} contains a {missing}")
    return [
        TextEncoderFiles(parts["text_encoder"], parts["text_projection"], parts.get("connectors"))
    ]


def load_clip(ctx: NodeContext) -> list[Value]:
    """``CLIPLoader``: a text encoder with a projection from the library that fits it."""
    engine = ctx.engine
    parts = engine.parts(ctx.text("clip_name"), "text_encoder")
    embedded = _embedded_clip(parts)
    if embedded is not None:
        return [embedded]
    projections = engine.library.of("text_projection")
    for found in projections:
        if engine.fits_text(parts["text_encoder"], found.component):
            return [TextEncoderFiles(parts["text_encoder"], found.component)]
    raise ctx.error(
        f"no text projection fits {ctx.text('clip_name')}",
        "use LTXAVTextEncoderLoader or DualCLIPLoader, which name a projection",
    )


def load_vae(ctx: NodeContext) -> list[Value]:
    """``VAELoader``: a video VAE, or an audio VAE if the file contains no video VAE."""
    name = ctx.text("vae_name")
    parts = ctx.engine.parts(name, "video_vae", "audio_vae")
    if "video_vae" in parts:
        return [VideoVaeFile(parts["video_vae"])]
    return [_audio_vae_file(ctx, parts)]


def load_audio_vae(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioVAELoader``: an audio VAE and a vocoder."""
    return [_audio_vae_file(ctx, ctx.engine.parts(ctx.text("ckpt_name"), "audio_vae"))]


def _audio_vae_file(ctx: NodeContext, parts: Mapping[str, Component]) -> AudioVaeFile:
    found = parts["audio_vae"]
    vocoder = parts.get("vocoder")
    if vocoder is None:
        others = ctx.engine.library.of("vocoder")
        vocoder = others[0].component if others else None
    return AudioVaeFile(found, vocoder)


def load_latent_upsampler(ctx: NodeContext) -> list[Value]:
    """``LatentUpscaleModelLoader``: a latent upsampler."""
    return [UpsamplerFile(ctx.engine.component(ctx.text("model_name"), "latent_upsampler"))]


def load_upscale_model(ctx: NodeContext) -> list[Value]:
    """``UpscaleModelLoader``: a pixel upscaler."""
    try:
        return [UpscalerFile(ctx.engine.upscaler(ctx.text("model_name")))]
    except CheckpointError as error:
        raise ctx.error(error.message, error.hint) from error


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "CheckpointLoaderSimple": NodeFunction(load_checkpoint),
        "LowVRAMCheckpointLoader": NodeFunction(load_checkpoint),
        "UNETLoader": NodeFunction(load_transformer),
        "UnetLoaderGGUF": NodeFunction(load_transformer),
        "UnetLoaderGGUFAdvanced": NodeFunction(load_transformer),
        "LoraLoaderModelOnly": NodeFunction(load_lora),
        "LoraLoader": NodeFunction(load_lora_with_clip),
        "LTXICLoRALoaderModelOnly": NodeFunction(load_ic_lora),
        "LTXAVTextEncoderLoader": NodeFunction(load_text_encoder),
        "LTXVGemmaCLIPModelLoader": NodeFunction(load_gemma),
        "CLIPLoader": NodeFunction(load_clip),
        "CLIPLoaderGGUF": NodeFunction(load_clip),
        "DualCLIPLoader": NodeFunction(load_dual_clip),
        "DualCLIPLoaderGGUF": NodeFunction(load_dual_clip),
        "VAELoader": NodeFunction(load_vae),
        "VAELoaderKJ": NodeFunction(load_vae),
        "LTXVAudioVAELoader": NodeFunction(load_audio_vae),
        "LowVRAMAudioVAELoader": NodeFunction(load_audio_vae),
        "LatentUpscaleModelLoader": NodeFunction(load_latent_upsampler),
        "LowVRAMLatentUpscaleModelLoader": NodeFunction(load_latent_upsampler),
        "UpscaleModelLoader": NodeFunction(load_upscale_model),
    }
)
