"""A request as a ComfyUI graph: the nodes that make the same clip, stage by stage.

What no node can say is told in notes and travels beside the graph (:mod:`.embedded`), so that an
import of an export is the same request again. Node types are ComfyUI's and those of
Lightricks' pack for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from latent_ladder.comfyui.exporter.file_names import FileNames
from latent_ladder.comfyui.exporter.graph_builder import Drawing, Ref, Sheet
from latent_ladder.comfyui.exporter.inputs import Held, held_inputs
from latent_ladder.comfyui.exporter.lossy_fields import not_carried
from latent_ladder.comfyui.exporter.output import write_output
from latent_ladder.comfyui.exporter.sampling import (
    Prompts,
    guider,
    sampler_node,
    sigmas_node,
)
from latent_ladder.comfyui.graph import Link
from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, UpsampleStage, UpscaleStage

MODELS, PROMPT, INPUTS, OUTPUT = "Models", "Prompt", "Inputs", "Decode and save"


@dataclass(frozen=True)
class Loaded:
    """The outputs of the loaders."""

    model: Link
    clip: Link
    vae: Link
    audio_vae: Link


@dataclass(frozen=True)
class Latents:
    """Where the clip stands: its video latents, its sound, and the sound that is to be heard."""

    video: Link
    audio: Link | None = None
    heard: Link | None = None


def build(request: Request, files: FileNames) -> Drawing:
    """The graph of a request. Raises :class:`RequestError` for what no ComfyUI node can do."""
    if request.video is not None and request.video.keeps:
        raise RequestError(
            f"video.mode={request.video.mode} has no counterpart among ComfyUI's nodes",
            "export the request without its video, or run it with `ladder make --from`",
        )
    return _Builder(request, files).drawing()


class _Builder:
    """One request on its way into a graph."""

    def __init__(self, request: Request, files: FileNames) -> None:
        self._request, self._files = request, files
        self._sheet = Sheet()
        self._sound = request.resolved.has_sound

    def drawing(self) -> Drawing:
        sheet, request = self._sheet, self._request
        sheet.group(MODELS)
        loaded = self._loaders()
        sheet.group(PROMPT)
        positive = sheet.add("CLIPTextEncode", "Prompt", text=request.prompt, clip=loaded.clip)
        negative = sheet.add(
            "CLIPTextEncode", "Negative prompt", text=request.negative_prompt, clip=loaded.clip
        )
        for title, text in not_carried(request):
            sheet.note(f"{title}: {text}")
        sheet.group(INPUTS)
        held = held_inputs(sheet, request, loaded.vae, loaded.audio_vae if self._sound else None)
        latents: Latents | None = None
        texts = Prompts(positive[0], negative[0])
        for position, name in enumerate(request.stage_names):
            stage = request.stages[position]
            sheet.group(self._title(position, name))
            if isinstance(stage, BaseStage | RefineStage):
                latents = self._sample(position, loaded, texts, held, latents)
            elif isinstance(stage, UpsampleStage) and latents is not None:
                latents = replace(latents, video=self._upsample(stage, loaded, latents.video))
        if latents is None:
            raise RequestError("a request without a base stage has no graph")
        sheet.group(OUTPUT)
        sound = None
        if held.sound is not None:
            sound = held.sound
        elif latents.heard is not None:
            heard = latents.heard
            sound = sheet.add("LTXVAudioVAEDecode", samples=heard, audio_vae=loaded.audio_vae)[0]
        write_output(sheet, request, latents.video, loaded.vae, sound)
        return sheet.drawing(self._files.sources)

    def _title(self, position: int, name: str) -> str:
        """``base: 640x384, 121 frames at 24 fps``."""
        if isinstance(self._request.stages[position], UpscaleStage):
            return OUTPUT
        resolution = self._request.resolutions[position]
        return f"{name}: {resolution} at {float(resolution.fps):g} fps"

    # -- loaders ------------------------------------------------------------------------------

    def _loaders(self) -> Loaded:
        sheet, files = self._sheet, self._files
        if files.transformer is not None:
            return self._separate_loaders(files.transformer)
        checkpoint = sheet.add("CheckpointLoaderSimple", ckpt_name=files.checkpoint)
        encoder = sheet.add(
            "LTXAVTextEncoderLoader",
            text_encoder=files.text_encoder,
            ckpt_name=files.checkpoint,
            device="default",
        )
        audio = self._audio_vae(files.checkpoint)
        return Loaded(checkpoint[0], encoder[0], checkpoint[2], audio[0])

    def _separate_loaders(self, transformer: str) -> Loaded:
        sheet, files = self._sheet, self._files
        if transformer.lower().endswith(".gguf"):
            model = sheet.add("UnetLoaderGGUF", unet_name=transformer)
        else:
            model = sheet.add("UNETLoader", unet_name=transformer, weight_dtype="default")
        clip = sheet.add(
            "DualCLIPLoader",
            clip_name1=files.text_encoder,
            clip_name2=files.text_projection,
            type="ltxv",
            device="default",
        )
        vae = sheet.add("VAELoader", vae_name=files.video_vae)
        return Loaded(model[0], clip[0], vae[0], self._audio_vae(files.audio_vae)[0])

    def _audio_vae(self, name: str) -> Ref:
        needed = self._sound or self._request.audio_in is not None
        return self._sheet.add("LTXVAudioVAELoader", ckpt_name=name) if needed else Ref("")

    def _model(self, position: int, loaded: Loaded) -> tuple[Link, Link | None]:
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
            put_on = self._sheet.share(
                kind, lora_name=name, strength_model=lora.strength, model=link
            )
            link, factor = put_on[0], put_on[1] if guides else factor
        return link, factor

    # -- stages -------------------------------------------------------------------------------

    def _sample(
        self,
        position: int,
        loaded: Loaded,
        texts: Prompts,
        held: Held,
        before: Latents | None,
    ) -> Latents:
        request, sheet = self._request, self._sheet
        stage, resolution = request.stages[position], request.resolutions[position]
        if not isinstance(stage, BaseStage | RefineStage):
            raise TypeError(f"stage {position} does not sample")
        walk = request.sigmas(position)
        latents = self._start(position, loaded, held) if before is None else before
        if not walk:  # a video that only enters the ladder
            return replace(latents, heard=latents.audio)
        fps = float(resolution.fps)
        at_rate = sheet.share(
            "LTXVConditioning", positive=texts.positive, negative=texts.negative, frame_rate=fps
        )
        texts = Prompts(at_rate[0], at_rate[1])
        model, factor = self._model(position, loaded)
        texts, video, guided = held.show(sheet, request, resolution, texts, latents.video)
        if before is None and held.reference is not None:
            (texts, video), guided = held.refer(sheet, texts, video, factor), True
        audio = held.driving if held.driving is not None else latents.audio
        joined = audio is not None and self._sound
        start = video
        if audio is not None and joined:
            start = sheet.add("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)[0]
        noise = sheet.add("RandomNoise", noise_seed=max(_seed(request, position), 0))
        if request.seed == -1 and stage.seed == "same":
            sheet.randomize(noise)
        sampled = sheet.add(
            "SamplerCustomAdvanced",
            noise=noise[0],
            guider=guider(sheet, stage, model, texts),
            sampler=sampler_node(sheet, stage, max(_seed(request, position), 0)),
            sigmas=sigmas_node(sheet, request, position, model, latents.video if guided else start),
            latent_image=start,
        )
        video, audio = sampled[0], None
        if joined:
            parts = sheet.add("LTXVSeparateAVLatent", av_latent=sampled[0])
            video, audio = parts[0], parts[1]
        if guided:
            cut = sheet.add(
                "LTXVCropGuides", positive=texts.positive, negative=texts.negative, latent=video
            )
            video = cut[2]
        heard = audio if before is None or request.audio == "refine" else before.heard
        return Latents(video, audio, heard)

    def _start(self, position: int, loaded: Loaded, held: Held) -> Latents:
        """What the base stage samples from: nothing, or a video."""
        request, sheet = self._request, self._sheet
        resolution = request.resolutions[position]
        video = held.video
        if video is None:
            video = sheet.add(
                "EmptyLTXVLatentVideo",
                width=resolution.width,
                height=resolution.height,
                length=resolution.frames,
                batch_size=1,
            )[0]
        if not self._sound:
            return Latents(video)
        audio = held.driving or held.video_sound
        if audio is None:
            audio = sheet.add(
                "LTXVEmptyLatentAudio",
                frames_number=request.frames,
                frame_rate=_number(float(request.fps)),
                batch_size=1,
                audio_vae=loaded.audio_vae,
            )[0]
        return Latents(video, audio)

    def _upsample(self, stage: UpsampleStage, loaded: Loaded, video: Link) -> Link:
        sheet = self._sheet
        model = sheet.share("LatentUpscaleModelLoader", model_name=self._files.upsampler(stage))
        larger = sheet.add(
            "LTXVLatentUpsampler", samples=video, upscale_model=model[0], vae=loaded.vae
        )
        if not stage.adain:
            return larger[0]
        return sheet.add(
            "LTXVAdainLatent",
            latents=larger[0],
            reference=video,
            factor=stage.adain,
            per_frame=False,
        )[0]


def _seed(request: Request, position: int) -> int:
    """The seed of a stage, -1 where it is to be drawn."""
    stage = request.stages[position]
    own = stage.seed if isinstance(stage, BaseStage | RefineStage) else "same"
    return request.seed if own == "same" else own


def _number(value: float) -> int | float:
    """Whole rates as whole numbers: older versions of the node take no others."""
    return int(value) if value.is_integer() else value
