"""A request as a ComfyUI graph: the nodes that make the same clip, stage by stage.

What no node can say is told in notes and travels beside the graph (:mod:`.embedded`), so that an
import of an export is the same request again. Node types are ComfyUI's and those of
Lightricks' pack for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from latent_ladder.comfyui.exporter.file_names import FileNames
from latent_ladder.comfyui.exporter.graph_builder import AnnotatedGraph, GraphBuilder, NodeRef
from latent_ladder.comfyui.exporter.inputs import InputNodes, add_input_nodes
from latent_ladder.comfyui.exporter.lossy_fields import find_lossy_fields
from latent_ladder.comfyui.exporter.output import add_output_nodes
from latent_ladder.comfyui.exporter.sampling import (
    Prompts,
    add_guider,
    add_sampler,
    add_sigmas,
)
from latent_ladder.comfyui.graph import Link
from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, UpsampleStage, UpscaleStage

MODELS, PROMPT, INPUTS, OUTPUT = "Models", "Prompt", "Inputs", "Decode and save"


@dataclass(frozen=True)
class LoaderOutputs:
    """The outputs of the loaders."""

    model: Link
    clip: Link
    vae: Link
    audio_vae: Link


@dataclass(frozen=True)
class StageLatents:
    """Where the clip stands: its video latents, its sound, and the sound that is to be heard."""

    video: Link
    audio: Link | None = None
    heard: Link | None = None


def build_graph(request: Request, files: FileNames) -> AnnotatedGraph:
    """The graph of a request. Raises :class:`RequestError` for what no ComfyUI node can do."""
    if request.video is not None and request.video.keeps:
        raise RequestError(
            f"video.mode={request.video.mode} has no counterpart among ComfyUI's nodes",
            "export the request without its video, or run it with `ladder make --from`",
        )
    return _RequestExporter(request, files).annotated_graph()


class _RequestExporter:
    """One request on its way into a graph."""

    def __init__(self, request: Request, files: FileNames) -> None:
        self._request, self._files = request, files
        self._builder = GraphBuilder()
        self._sound = request.audio != "none" and request.resolutions[-1].audio_latents > 0

    def annotated_graph(self) -> AnnotatedGraph:
        builder, request = self._builder, self._request
        builder.start_group(MODELS)
        loaded = self._loaders()
        builder.start_group(PROMPT)
        positive = builder.add_node(
            "CLIPTextEncode", "Prompt", text=request.prompt, clip=loaded.clip
        )
        negative = builder.add_node(
            "CLIPTextEncode", "Negative prompt", text=request.negative_prompt, clip=loaded.clip
        )
        for title, text in find_lossy_fields(request):
            builder.add_note(f"{title}: {text}")
        builder.start_group(INPUTS)
        inputs = add_input_nodes(
            builder, request, loaded.vae, loaded.audio_vae if self._sound else None
        )
        latents: StageLatents | None = None
        texts = Prompts(positive[0], negative[0])
        for position, name in enumerate(request.stage_names):
            stage = request.stages[position]
            builder.start_group(self._title(position, name))
            if isinstance(stage, BaseStage | RefineStage):
                latents = self._sample(position, loaded, texts, inputs, latents)
            elif isinstance(stage, UpsampleStage) and latents is not None:
                latents = replace(latents, video=self._upsample(stage, loaded, latents.video))
        if latents is None:
            raise RequestError("a request without a base stage has no graph")
        builder.start_group(OUTPUT)
        sound = None
        if inputs.sound is not None:
            sound = inputs.sound
        elif latents.heard is not None:
            heard = latents.heard
            sound = builder.add_node(
                "LTXVAudioVAEDecode", samples=heard, audio_vae=loaded.audio_vae
            )[0]
        add_output_nodes(builder, request, latents.video, loaded.vae, sound)
        return builder.annotated_graph(self._files.sources)

    def _title(self, position: int, name: str) -> str:
        """``base: 640x384, 121 frames at 24 fps``."""
        if isinstance(self._request.stages[position], UpscaleStage):
            return OUTPUT
        resolution = self._request.resolutions[position]
        return f"{name}: {resolution} at {float(resolution.fps):g} fps"

    # -- loaders ------------------------------------------------------------------------------

    def _loaders(self) -> LoaderOutputs:
        builder, files = self._builder, self._files
        if files.transformer is not None:
            return self._separate_loaders(files.transformer)
        checkpoint = builder.add_node("CheckpointLoaderSimple", ckpt_name=files.checkpoint)
        encoder = builder.add_node(
            "LTXAVTextEncoderLoader",
            text_encoder=files.text_encoder,
            ckpt_name=files.checkpoint,
            device="default",
        )
        audio = self._audio_vae(files.checkpoint)
        return LoaderOutputs(checkpoint[0], encoder[0], checkpoint[2], audio[0])

    def _separate_loaders(self, transformer: str) -> LoaderOutputs:
        builder, files = self._builder, self._files
        if transformer.lower().endswith(".gguf"):
            model = builder.add_node("UnetLoaderGGUF", unet_name=transformer)
        else:
            model = builder.add_node("UNETLoader", unet_name=transformer, weight_dtype="default")
        clip = builder.add_node(
            "DualCLIPLoader",
            clip_name1=files.text_encoder,
            clip_name2=files.text_projection,
            type="ltxv",
            device="default",
        )
        vae = builder.add_node("VAELoader", vae_name=files.video_vae)
        return LoaderOutputs(model[0], clip[0], vae[0], self._audio_vae(files.audio_vae)[0])

    def _audio_vae(self, name: str) -> NodeRef:
        needed = self._sound or self._request.audio_in is not None
        return (
            self._builder.add_node("LTXVAudioVAELoader", ckpt_name=name) if needed else NodeRef("")
        )

    def _model(self, position: int, loaded: LoaderOutputs) -> tuple[Link, Link | None]:
        """The transformer with the LoRAs of a stage; how much smaller they want a reference."""
        stage, link, factor = self._request.stages[position], loaded.model, None
        if not isinstance(stage, BaseStage | RefineStage):
            return link, None
        video = self._request.video
        refers = video is not None and video.mode == "reference" and position == 0
        for lora in stage.loras:
            name = lora.name if lora.name is not None else self._files.distilled_lora
            guides = refers and lora.name is not None and factor is None
            kind = "LTXICLoRALoaderModelOnly" if guides else "LoraLoaderModelOnly"
            put_on = self._builder.reuse_node(
                kind, lora_name=name, strength_model=lora.strength, model=link
            )
            link, factor = put_on[0], put_on[1] if guides else factor
        return link, factor

    # -- stages -------------------------------------------------------------------------------

    def _sample(
        self,
        position: int,
        loaded: LoaderOutputs,
        texts: Prompts,
        inputs: InputNodes,
        before: StageLatents | None,
    ) -> StageLatents:
        request, builder = self._request, self._builder
        stage, resolution = request.stages[position], request.resolutions[position]
        if not isinstance(stage, BaseStage | RefineStage):
            raise TypeError(f"stage {position} does not sample")
        walk = request.sigmas(position)
        latents = self._start(position, loaded, inputs) if before is None else before
        if not walk:  # a video that only enters the ladder
            return replace(latents, heard=latents.audio)
        fps = float(resolution.fps)
        at_rate = builder.reuse_node(
            "LTXVConditioning", positive=texts.positive, negative=texts.negative, frame_rate=fps
        )
        texts = Prompts(at_rate[0], at_rate[1])
        model, factor = self._model(position, loaded)
        texts, video, guided = inputs.add_images(builder, request, resolution, texts, latents.video)
        if before is None and inputs.reference is not None:
            (texts, video), guided = inputs.add_reference(builder, texts, video, factor), True
        audio = inputs.driving if inputs.driving is not None else latents.audio
        joined = audio is not None and self._sound
        start = video
        if audio is not None and joined:
            start = builder.add_node("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)[
                0
            ]
        noise = builder.add_node("RandomNoise", noise_seed=max(_stage_seed(request, position), 0))
        if request.seed == -1 and stage.seed == "same":
            builder.randomize_seed(noise)
        sampled = builder.add_node(
            "SamplerCustomAdvanced",
            noise=noise[0],
            guider=add_guider(builder, stage, model, texts),
            sampler=add_sampler(builder, stage, max(_stage_seed(request, position), 0)),
            sigmas=add_sigmas(
                builder, request, position, model, latents.video if guided else start
            ),
            latent_image=start,
        )
        video, audio = sampled[0], None
        if joined:
            parts = builder.add_node("LTXVSeparateAVLatent", av_latent=sampled[0])
            video, audio = parts[0], parts[1]
        if guided:
            cut = builder.add_node(
                "LTXVCropGuides", positive=texts.positive, negative=texts.negative, latent=video
            )
            video = cut[2]
        heard = audio if before is None or request.audio == "refine" else before.heard
        return StageLatents(video, audio, heard)

    def _start(self, position: int, loaded: LoaderOutputs, inputs: InputNodes) -> StageLatents:
        """What the base stage samples from: nothing, or a video."""
        request, builder = self._request, self._builder
        resolution = request.resolutions[position]
        video = inputs.video
        if video is None:
            video = builder.add_node(
                "EmptyLTXVLatentVideo",
                width=resolution.width,
                height=resolution.height,
                length=resolution.frames,
                batch_size=1,
            )[0]
        if not self._sound:
            return StageLatents(video)
        audio = inputs.driving or inputs.video_sound
        if audio is None:
            audio = builder.add_node(
                "LTXVEmptyLatentAudio",
                frames_number=request.frames,
                frame_rate=_frame_rate(float(request.fps)),
                batch_size=1,
                audio_vae=loaded.audio_vae,
            )[0]
        return StageLatents(video, audio)

    def _upsample(self, stage: UpsampleStage, loaded: LoaderOutputs, video: Link) -> Link:
        builder = self._builder
        model = builder.reuse_node(
            "LatentUpscaleModelLoader", model_name=self._files.upsampler(stage)
        )
        larger = builder.add_node(
            "LTXVLatentUpsampler", samples=video, upscale_model=model[0], vae=loaded.vae
        )
        if not stage.adain:
            return larger[0]
        return builder.add_node(
            "LTXVAdainLatent",
            latents=larger[0],
            reference=video,
            factor=stage.adain,
            per_frame=False,
        )[0]


def _stage_seed(request: Request, position: int) -> int:
    """The seed of a stage, -1 where it is to be drawn."""
    stage = request.stages[position]
    own = stage.seed if isinstance(stage, BaseStage | RefineStage) else "same"
    return request.seed if own == "same" else own


def _frame_rate(value: float) -> int | float:
    """Whole rates as whole numbers: older versions of the node take no others."""
    return int(value) if value.is_integer() else value
