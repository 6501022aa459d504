"""The model files that a graph names, as the fields of a request's ``models``; what names tell."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from latent_ladder.checkpoints.catalog import FILES, Upsampling
from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import GraphWalker, unsupported_node
from latent_ladder.comfyui.importer.output import SavedOutput
from latent_ladder.comfyui.importer.stages import StageChain, find_prompt

_TRANSFORMERS = {"ckpt_name": "checkpoint", "unet_name": "transformer"}
_ENCODERS = {
    "text_encoder": "text_encoder", "clip_name1": "text_encoder", "clip_name2": "text_projection",
    "clip_name": "text_encoder", "gemma_path": "text_encoder",
}  # fmt: skip


def model_fields(
    walker: GraphWalker, chain: StageChain, saved_output: SavedOutput
) -> dict[str, Any]:
    """The names of the model files, by the field of a request's ``models``."""
    chains = [stage.sampling.model for stage in chain.sampled]
    loaders = {chain.loader.id: chain.loader for chain in chains}
    if len(loaders) > 1:
        raise unsupported_node([*loaders.values()][-1], "loads another transformer")
    (loader,) = loaders.values()
    found = _file_names(walker, loader, _TRANSFORMERS)
    if not found:
        raise unsupported_node(loader, "loads the transformer in another way")
    encoder = find_prompt(walker, chain.sampled[0].sampling.positive).encoder
    clip, _ = walker.required_source(encoder, "clip")
    while "clip" in clip.inputs:
        walker.report_loss(clip, "puts a LoRA on the text encoder")
        clip, _ = walker.required_source(clip, "clip")
    found |= _file_names(walker, clip, _ENCODERS)
    decoder_vae = walker.source(saved_output.decoder, "vae")
    while decoder_vae is not None and "vae" in decoder_vae[0].inputs:
        walker.report_loss(decoder_vae[0], "changes the decoder, which no request can ask for")
        decoder_vae = walker.source(decoder_vae[0], "vae")
    if decoder_vae is not None and decoder_vae[0].id != loader.id:
        found |= _file_names(walker, decoder_vae[0], {"vae_name": "video_vae"})
    audio_vae = _find_audio_vae(walker, saved_output)
    if audio_vae is not None:
        named = _file_names(walker, audio_vae, {"ckpt_name": "audio_vae", "vae_name": "audio_vae"})
        if named.get("audio_vae") != found.get("checkpoint"):
            found |= named
    lora = _find_distilled_lora(chain)
    return found | ({} if lora is None else {"distilled_lora": lora})


def _find_audio_vae(walker: GraphWalker, saved_output: SavedOutput) -> Node | None:
    """The node that loads the VAE of the sound, from wherever it is used."""
    sound = saved_output.sound
    if sound is None:
        return None
    for name in ("audio_vae", "vae"):
        found = walker.source(sound[0], name)
        if found is not None:
            return found[0]
    return None


def _find_distilled_lora(chain: StageChain) -> str | None:
    """The first LoRA that is a distilled one by its name."""
    names = [str(lora["name"]) for stage in chain.sampled for lora in stage.sampling.model.loras]
    return next((name for name in names if is_distilled_lora(name)), None)


def _file_names(walker: GraphWalker, node: Node, fields: dict[str, str]) -> dict[str, Any]:
    return {field: walker.text(node, name) for name, field in fields.items() if name in node.inputs}


def is_distilled_lora(name: str) -> bool:
    """Whether a file is a distilled LoRA by its name: ``ltx-2.3-distilled-lora.safetensors``."""
    words = re.split(r"[^a-z]+", name.lower())
    return "distilled" in words and "lora" in words


def with_distilled_role(lora: dict[str, Any], distilled: str | None) -> dict[str, Any]:
    if lora["name"] != distilled:
        return lora
    return {"role": "distilled", "strength": lora["strength"]}


def upsampling_from_name(file: str) -> Upsampling | None:
    """What a latent upsampler does, by the name of its file; ``None`` if it does not say."""
    name = file.replace("\\", "/").rpartition("/")[2]
    published = next((f.upsampling for f in FILES if f.name == name and f.upsampling), None)
    if published is not None:
        return published
    factor = re.search(r"x(\d+(?:\.\d+)?)", name.lower())
    if factor is None:
        return None
    return "temporal" if "temporal" in name.lower() else "spatial", Fraction(factor[1])
