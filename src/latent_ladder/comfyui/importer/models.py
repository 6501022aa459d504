"""Import of model file names as the ``models`` table of a request, and facts from file names."""

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
    """Return the ``models`` table of a request: model file names by field."""
    chains = [stage.sampling.model for stage in chain.sampled_stages]
    loaders = {chain.loader.id: chain.loader for chain in chains}
    if len(loaders) > 1:
        raise unsupported_node([*loaders.values()][-1], "loads a second transformer")
    (loader,) = loaders.values()
    models = _file_names(walker, loader, _TRANSFORMERS)
    if not models:
        raise unsupported_node(loader, "is an unsupported loader for the transformer")
    encoder = find_prompt(walker, chain.sampled_stages[0].sampling.positive).encoder
    clip, _ = walker.required_source(encoder, "clip")
    while "clip" in clip.inputs:
        walker.report_loss(clip, "applies a LoRA to the text encoder")
        clip, _ = walker.required_source(clip, "clip")
    models |= _file_names(walker, clip, _ENCODERS)
    decoder_vae = walker.source(saved_output.decoder, "vae")
    while decoder_vae is not None and "vae" in decoder_vae[0].inputs:
        walker.report_loss(decoder_vae[0], "modifies the decoder, which a request cannot express")
        decoder_vae = walker.source(decoder_vae[0], "vae")
    if decoder_vae is not None and decoder_vae[0].id != loader.id:
        models |= _file_names(walker, decoder_vae[0], {"vae_name": "video_vae"})
    audio_vae = _find_audio_vae(walker, saved_output)
    if audio_vae is not None:
        audio_models = _file_names(
            walker, audio_vae, {"ckpt_name": "audio_vae", "vae_name": "audio_vae"}
        )
        if audio_models.get("audio_vae") != models.get("checkpoint"):
            models |= audio_models
    lora = _find_distilled_lora(chain)
    return models | ({} if lora is None else {"distilled_lora": lora})


def _find_audio_vae(walker: GraphWalker, saved_output: SavedOutput) -> Node | None:
    """Return the node that loads the audio VAE."""
    sound = saved_output.audio
    if sound is None:
        return None
    for name in ("audio_vae", "vae"):
        models = walker.source(sound[0], name)
        if models is not None:
            return models[0]
    return None


def _find_distilled_lora(chain: StageChain) -> str | None:
    """Return the name of the first LoRA with a name of a distilled LoRA."""
    names = [
        str(lora["name"]) for stage in chain.sampled_stages for lora in stage.sampling.model.loras
    ]
    return next((name for name in names if is_distilled_lora(name)), None)


def _file_names(walker: GraphWalker, node: Node, fields: dict[str, str]) -> dict[str, Any]:
    return {field: walker.text(node, name) for name, field in fields.items() if name in node.inputs}


def is_distilled_lora(name: str) -> bool:
    """Return whether a file name is that of a distilled LoRA: ``ltx-2.3-distilled-lora-384``."""
    words = re.split(r"[^a-z]+", name.lower())
    return "distilled" in words and "lora" in words


def with_distilled_role(lora: dict[str, Any], distilled: str | None) -> dict[str, Any]:
    """Return a LoRA entry with the role ``distilled`` in place of that name."""
    if lora["name"] != distilled:
        return lora
    return {"role": "distilled", "strength": lora["strength"]}


def upsampling_from_name(file: str) -> Upsampling | None:
    """Return axis and factor of a latent upsampler by its file name, ``None`` if unknown."""
    name = file.replace("\\", "/").rpartition("/")[2]
    published = next((f.upsampling for f in FILES if f.name == name and f.upsampling), None)
    if published is not None:
        return published
    factor = re.search(r"x(\d+(?:\.\d+)?)", name.lower())
    if factor is None:
        return None
    return "temporal" if "temporal" in name.lower() else "spatial", Fraction(factor[1])
