"""Where models come from: every loader gives a recipe, nothing is read but headers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.checkpoints.components import Component
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
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


def checkpoint(ask: Ask) -> list[Value]:
    """``CheckpointLoaderSimple``: MODEL, CLIP, VAE.

    Checkpoints of this family hold no text encoder, so CLIP is only what is missing of one.
    """
    parts = ask.engine.parts(ask.text("ckpt_name"), "transformer", "video_vae")
    model = Model(parts["transformer"]) if "transformer" in parts else None
    vae = VideoVaeFile(parts["video_vae"]) if "video_vae" in parts else None
    return [model, _own_clip(parts), vae]


def _own_clip(parts: Mapping[str, Component]) -> TextEncoderFiles | None:
    if "text_encoder" not in parts or "text_projection" not in parts:
        return None
    return TextEncoderFiles(
        parts["text_encoder"], parts["text_projection"], parts.get("connectors")
    )


def transformer(ask: Ask) -> list[Value]:
    """``UNETLoader`` and the GGUF loaders: a transformer alone.

    Weights are kept as the file has them, so ``weight_dtype`` and the GGUF dtypes change nothing
    but a float checkpoint that is to be stored in fp8, which ``--oom-policy fp8`` does.
    """
    if ask.has("weight_dtype") and ask.text("weight_dtype") != "default":
        ask.warn(
            "weight_dtype",
            f"weight_dtype {ask.text('weight_dtype')} is left out: weights stay as the file has "
            "them, and memory is planned",
        )
    return [Model(ask.engine.component(ask.text("unet_name"), "transformer"))]


def lora(ask: Ask) -> list[Value]:
    """``LoraLoaderModelOnly``."""
    component = ask.engine.component(ask.text("lora_name"), "lora")
    return [ask.get("model", Model).with_lora(component, ask.number("strength_model"))]


def lora_with_clip(ask: Ask) -> list[Value]:
    """``LoraLoader``: on the model, and remembered for the text encoder."""
    model, clip = ask.get("model", Model), ask.get("clip", TextEncoderFiles)
    component = ask.engine.component(ask.text("lora_name"), "lora")
    strength = ask.number("strength_clip")
    loras = (*clip.loras, (component, strength)) if strength else clip.loras
    amended = TextEncoderFiles(clip.text_encoder, clip.projection, clip.connectors, loras)
    return [model.with_lora(component, ask.number("strength_model")), amended]


def ic_lora(ask: Ask) -> list[Value]:
    """``LTXICLoRALoaderModelOnly``: also by how much its references are smaller, 1 if unsaid."""
    component = ask.engine.component(ask.text("lora_name"), "lora")
    model = ask.get("model", Model).with_lora(component, ask.number("strength_model"))
    return [model, downscale_factor(component)]


def downscale_factor(lora: Component) -> float:
    """By how much references of an IC-LoRA are smaller than the clip."""
    try:
        return float(lora.config.get("reference_downscale_factor", 1.0))
    except (TypeError, ValueError):
        return 1.0


def text_encoder(ask: Ask) -> list[Value]:
    """``LTXAVTextEncoderLoader``: the projection comes from the checkpoint.

    ``device`` cpu is not followed: layers are read one by one and the memory is planned.
    """
    return [_clip(ask, "text_encoder", "ckpt_name")]


def gemma(ask: Ask) -> list[Value]:
    """``LTXVGemmaCLIPModelLoader``; the text length is that of the text encoder's file."""
    return [_clip(ask, "gemma_path", "ltxv_path")]


def _clip(ask: Ask, encoder: str, checkpoint: str) -> TextEncoderFiles:
    engine = ask.engine
    found = engine.component(ask.text(encoder), "text_encoder")
    parts = engine.parts(ask.text(checkpoint), "text_projection")
    return TextEncoderFiles(found, parts["text_projection"], parts.get("connectors"))


def two_clips(ask: Ask) -> list[Value]:
    """``DualCLIPLoader`` of type ltxv: an encoder and a projection, in either order."""
    engine = ask.engine
    if ask.text("type") != "ltxv":
        raise ask.error(f"type is {ask.text('type')}", "set type to ltxv")
    names = [ask.text("clip_name1"), ask.text("clip_name2")]
    parts: dict[str, Component] = {}
    for name in names:
        parts = {**engine.parts(name, "text_encoder", "text_projection"), **parts}
    for role in ("text_encoder", "text_projection"):
        if role not in parts:
            spoken = role.replace("_", " ")
            raise ask.error(f"neither {names[0]} nor {names[1]} holds a {spoken}")
    return [
        TextEncoderFiles(parts["text_encoder"], parts["text_projection"], parts.get("connectors"))
    ]


def one_clip(ask: Ask) -> list[Value]:
    """``CLIPLoader``: an encoder; the projection is one that fits it."""
    engine = ask.engine
    parts = engine.parts(ask.text("clip_name"), "text_encoder")
    own = _own_clip(parts)
    if own is not None:
        return [own]
    projections = engine.library.of("text_projection")
    for found in projections:
        if engine.fits_text(parts["text_encoder"], found.component):
            return [TextEncoderFiles(parts["text_encoder"], found.component)]
    raise ask.error(
        f"no text projection fits {ask.text('clip_name')}",
        "use LTXAVTextEncoderLoader or DualCLIPLoader, which name one",
    )


def vae(ask: Ask) -> list[Value]:
    """``VAELoader``: a video VAE, or an audio VAE where the file holds no other."""
    name = ask.text("vae_name")
    parts = ask.engine.parts(name, "video_vae", "audio_vae")
    if "video_vae" in parts:
        return [VideoVaeFile(parts["video_vae"])]
    return [_audio(ask, parts)]


def audio_vae(ask: Ask) -> list[Value]:
    """``LTXVAudioVAELoader``: an audio VAE and its vocoder."""
    return [_audio(ask, ask.engine.parts(ask.text("ckpt_name"), "audio_vae"))]


def _audio(ask: Ask, parts: Mapping[str, Component]) -> AudioVaeFile:
    found = parts["audio_vae"]
    vocoder = parts.get("vocoder")
    if vocoder is None:
        others = ask.engine.library.of("vocoder")
        vocoder = others[0].component if others else None
    return AudioVaeFile(found, vocoder)


def latent_upsampler(ask: Ask) -> list[Value]:
    """``LatentUpscaleModelLoader``."""
    return [UpsamplerFile(ask.engine.component(ask.text("model_name"), "latent_upsampler"))]


def pixel_upscaler(ask: Ask) -> list[Value]:
    """``UpscaleModelLoader``."""
    try:
        return [UpscalerFile(ask.engine.upscaler(ask.text("model_name")))]
    except CheckpointError as error:
        raise ask.error(error.message, error.hint) from error


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "CheckpointLoaderSimple": Meaning(checkpoint),
        "LowVRAMCheckpointLoader": Meaning(checkpoint),
        "UNETLoader": Meaning(transformer),
        "UnetLoaderGGUF": Meaning(transformer),
        "UnetLoaderGGUFAdvanced": Meaning(transformer),
        "LoraLoaderModelOnly": Meaning(lora),
        "LoraLoader": Meaning(lora_with_clip),
        "LTXICLoRALoaderModelOnly": Meaning(ic_lora),
        "LTXAVTextEncoderLoader": Meaning(text_encoder),
        "LTXVGemmaCLIPModelLoader": Meaning(gemma),
        "CLIPLoader": Meaning(one_clip),
        "CLIPLoaderGGUF": Meaning(one_clip),
        "DualCLIPLoader": Meaning(two_clips),
        "DualCLIPLoaderGGUF": Meaning(two_clips),
        "VAELoader": Meaning(vae),
        "VAELoaderKJ": Meaning(vae),
        "LTXVAudioVAELoader": Meaning(audio_vae),
        "LowVRAMAudioVAELoader": Meaning(audio_vae),
        "LatentUpscaleModelLoader": Meaning(latent_upsampler),
        "LowVRAMLatentUpscaleModelLoader": Meaning(latent_upsampler),
        "UpscaleModelLoader": Meaning(pixel_upscaler),
    }
)
