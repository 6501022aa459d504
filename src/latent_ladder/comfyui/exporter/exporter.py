"""Export of a request as a ComfyUI graph that makes the same clip, stage by stage.

Fields that no node can express are listed in notes, and the request is embedded in the file
(:mod:`.embedded_request`), so importing an export returns the same request. The node types are
those of ComfyUI and of the pack ComfyUI-LTXVideo.
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
    add_nag,
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
    """The outputs of the loader nodes."""

    model: Link
    clip: Link
    vae: Link
    audio_vae: Link


@dataclass(frozen=True)
class StageLatents:
    """The latents after a stage; ``final_audio`` are the audio latents of the finished clip."""

    video: Link
    audio: Link | None = None
    final_audio: Link | None = None


def build_graph(request: Request, files: FileNames) -> AnnotatedGraph:
    """Return the graph of a request. Raises :class:`RequestError` if no ComfyUI node can do it."""
    if request.video is not None and request.video.keeps:
        raise RequestError(
            f"no ComfyUI node does video.mode={request.video.mode}",
            "export the request without its video, or run it with `ladder make --from`",
        )
    return _RequestExporter(request, files).build()


class _RequestExporter:
    """Converter of one request to a graph."""

    def __init__(self, request: Request, files: FileNames) -> None:
        self._request, self._files = request, files
        self._builder = GraphBuilder()
        self._has_audio = request.resolved.has_sound

    def build(self) -> AnnotatedGraph:
        builder, request = self._builder, self._request
        builder.start_group(MODELS)
        loaders = self._add_loaders()
        builder.start_group(PROMPT)
        positive = builder.add_node(
            "CLIPTextEncode", "Prompt", text=request.prompt, clip=loaders.clip
        )
        negative = builder.add_node(
            "CLIPTextEncode", "Negative prompt", text=request.negative_prompt, clip=loaders.clip
        )
        for title, text in find_lossy_fields(request):
            builder.add_note(f"{title}: {text}")
        builder.start_group(INPUTS)
        inputs = add_input_nodes(
            builder, request, loaders.vae, loaders.audio_vae if self._has_audio else None
        )
        latents: StageLatents | None = None
        prompts = Prompts(positive[0], negative[0])
        for position, stage in enumerate(request.stages):
            name = request.resolved.stages[position].name
            builder.start_group(self._group_title(position, name))
            if isinstance(stage, BaseStage | RefineStage):
                latents = self._add_sampling(position, loaders, prompts, inputs, latents)
            elif isinstance(stage, UpsampleStage) and latents is not None:
                latents = replace(
                    latents, video=self._add_upsampling(stage, loaders, latents.video)
                )
        if latents is None:
            raise RequestError("a request without a base stage has no graph")
        builder.start_group(OUTPUT)
        sound = None
        if inputs.sound is not None:
            sound = inputs.sound
        elif latents.final_audio is not None:
            sound = builder.add_node(
                "LTXVAudioVAEDecode", samples=latents.final_audio, audio_vae=loaders.audio_vae
            )[0]
        add_output_nodes(builder, request, latents.video, loaders.vae, sound)
        return builder.build(self._files.sources)

    def _group_title(self, position: int, name: str) -> str:
        """Return the group title of a stage, such as ``base: 640x384, 121 frames at 24 fps``."""
        if isinstance(self._request.stages[position], UpscaleStage):
            return OUTPUT
        resolution = self._request.resolutions[position]
        return f"{name}: {resolution} at {float(resolution.fps):g} fps"

    # -- loaders ------------------------------------------------------------------------------

    def _add_loaders(self) -> LoaderOutputs:
        builder, files = self._builder, self._files
        if files.transformer is not None:
            return self._add_separate_loaders(files.transformer)
        checkpoint = builder.add_node("CheckpointLoaderSimple", ckpt_name=files.checkpoint)
        encoder = builder.add_node(
            "LTXAVTextEncoderLoader",
            text_encoder=files.text_encoder,
            ckpt_name=files.checkpoint,
            device="default",
        )
        audio = self._add_audio_vae(files.checkpoint)
        return LoaderOutputs(checkpoint[0], encoder[0], checkpoint[2], audio[0])

    def _add_separate_loaders(self, transformer: str) -> LoaderOutputs:
        builder, files = self._builder, self._files
        if transformer.lower().endswith(".gguf"):
            model = builder.add_node("UnetLoaderGGUF", unet_name=transformer)
        else:
            model = builder.add_node("UNETLoader", unet_name=transformer, weight_dtype="default")
        if files.projection_in_encoder:
            clip = builder.add_node(
                "CLIPLoader", clip_name=files.text_encoder, type="ltxv", device="default"
            )
        else:
            clip = builder.add_node(
                "DualCLIPLoader",
                clip_name1=files.text_encoder,
                clip_name2=files.text_projection,
                type="ltxv",
                device="default",
            )
        vae = builder.add_node("VAELoader", vae_name=files.video_vae)
        if self._needs_audio_vae and files.projection_in_encoder:
            audio = builder.add_node("VAELoader", vae_name=files.audio_vae)
        else:
            audio = self._add_audio_vae(files.audio_vae)
        return LoaderOutputs(model[0], clip[0], vae[0], audio[0])

    @property
    def _needs_audio_vae(self) -> bool:
        return self._has_audio or self._request.audio_in is not None

    def _add_audio_vae(self, name: str) -> NodeRef:
        if not self._needs_audio_vae:
            return NodeRef("")
        return self._builder.add_node("LTXVAudioVAELoader", ckpt_name=name)

    def _add_loras(self, position: int, loaders: LoaderOutputs) -> tuple[Link, Link | None]:
        """Add the LoRAs of a stage.

        Returns the links to the model and to the downscale factor of the IC-LoRA, if there is one.
        """
        stage, link, factor = self._request.stages[position], loaders.model, None
        if not isinstance(stage, BaseStage | RefineStage):
            return link, None
        video = self._request.video
        has_reference = video is not None and video.mode == "reference" and position == 0
        for lora in stage.loras:
            name = lora.name if lora.name is not None else self._files.distilled_lora
            is_ic_lora = has_reference and lora.name is not None and factor is None
            kind = "LTXICLoRALoaderModelOnly" if is_ic_lora else "LoraLoaderModelOnly"
            loader = self._builder.reuse_node(
                kind, lora_name=name, strength_model=lora.strength, model=link
            )
            link, factor = loader[0], loader[1] if is_ic_lora else factor
        return link, factor

    # -- stages -------------------------------------------------------------------------------

    def _add_sampling(
        self,
        position: int,
        loaders: LoaderOutputs,
        prompts: Prompts,
        inputs: InputNodes,
        before: StageLatents | None,
    ) -> StageLatents:
        request, builder = self._request, self._builder
        stage, resolution = request.stages[position], request.resolutions[position]
        if not isinstance(stage, BaseStage | RefineStage):
            raise TypeError(f"stage {position} does not sample")
        sigmas = request.resolved.stages[position].sigmas
        latents = self._start_latents(position, loaders, inputs) if before is None else before
        if not sigmas:  # a video that goes to the next stage without sampling
            return replace(latents, final_audio=latents.audio)
        fps = float(resolution.fps)
        negative = prompts.negative
        conditioning = builder.reuse_node(
            "LTXVConditioning", positive=prompts.positive, negative=prompts.negative, frame_rate=fps
        )
        prompts = Prompts(conditioning[0], conditioning[1])
        model, factor = self._add_loras(position, loaders)
        model = add_nag(builder, stage, model, negative, has_audio=self._has_audio)
        prompts, video, guided = inputs.add_images(
            builder, request, resolution, prompts, latents.video
        )
        if before is None and inputs.reference is not None:
            (prompts, video), guided = inputs.add_reference(builder, prompts, video, factor), True
        audio = inputs.driving if inputs.driving is not None else latents.audio
        joined = audio is not None and self._has_audio
        start = video
        if audio is not None and joined:
            both = builder.add_node("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)
            start = both[0]
        is_base = before is None
        title = "Seed" if is_base else f"Seed of {request.resolved.stages[position].name}"
        seed = max(_stage_seed(request, position), 0)
        noise = builder.add_node("RandomNoise", title, noise_seed=seed)
        if request.seed == -1 and stage.seed == "same":
            builder.randomize_seed(noise)
        sampled = builder.add_node(
            "SamplerCustomAdvanced",
            noise=noise[0],
            guider=add_guider(builder, stage, model, prompts),
            sampler=add_sampler(builder, stage, seed),
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
            cropped = builder.add_node(
                "LTXVCropGuides", positive=prompts.positive, negative=prompts.negative, latent=video
            )
            video = cropped[2]
        heard = audio if before is None or request.audio == "refine" else before.final_audio
        return StageLatents(video, audio, heard)

    def _start_latents(
        self, position: int, loaders: LoaderOutputs, inputs: InputNodes
    ) -> StageLatents:
        """Return the latents that the base stage starts from: empty ones, or those of a video."""
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
        if not self._has_audio:
            return StageLatents(video)
        audio = inputs.driving or inputs.video_sound
        if audio is None:
            audio = builder.add_node(
                "LTXVEmptyLatentAudio",
                frames_number=request.frames,
                frame_rate=_frame_rate(float(request.fps)),
                batch_size=1,
                audio_vae=loaders.audio_vae,
            )[0]
        return StageLatents(video, audio)

    def _add_upsampling(self, stage: UpsampleStage, loaders: LoaderOutputs, video: Link) -> Link:
        builder = self._builder
        model = builder.reuse_node(
            "LatentUpscaleModelLoader", model_name=self._files.upsampler(stage)
        )
        larger = builder.add_node(
            "LTXVLatentUpsampler", samples=video, upscale_model=model[0], vae=loaders.vae
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
    """Return the seed of a stage, -1 for a random one."""
    stage = request.stages[position]
    own = stage.seed if isinstance(stage, BaseStage | RefineStage) else "same"
    return request.seed if own == "same" else own


def _frame_rate(value: float) -> int | float:
    """Return a whole frame rate as an integer, as older versions of the node take only those."""
    return int(value) if value.is_integer() else value
