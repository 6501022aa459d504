"""Export of a request's inputs: images, audio and video as nodes, and their use in each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from latent_ladder.comfyui.exporter.graph_builder import GraphBuilder
from latent_ladder.comfyui.exporter.sampling import Prompts
from latent_ladder.comfyui.graph import Link
from latent_ladder.latents.shapes import AUDIO_LATENTS_PER_SECOND, Resolution, duration
from latent_ladder.request.inputs import LAST, Image
from latent_ladder.request.model import Request

IMAGE_CRF = 33
"""The compression of ``crf="auto"`` for LTX-2.3."""
LENGTH_MARGIN_S = 0.001
"""Audio of exactly n latents is encoded as n + 1 latents; shortened by this, as n."""
MASK_PX = 512
"""Side of the noise mask for audio; any size works, as ComfyUI resizes it to the latent."""


@dataclass(frozen=True)
class InputNodes:
    """The links of a request's inputs in the graph.

    ``driving`` are frozen audio latents that drive the video; ``sound`` is the audio of the clip.
    ``video`` and ``video_sound`` are latents of a video to start from. ``reference`` are the frames
    of a reference video, and its strength.
    """

    images: Sequence[tuple[Image, Link]] = ()
    vae: Link | None = None
    driving: Link | None = None
    sound: Link | None = None
    video: Link | None = None
    video_sound: Link | None = None
    reference: tuple[Link, float] | None = None

    def add_images(
        self,
        builder: GraphBuilder,
        request: Request,
        resolution: Resolution,
        prompts: Prompts,
        video: Link,
    ) -> tuple[Prompts, Link, bool]:
        """Add every image to the prompts and latents of a stage.

        Returns prompts, video latents, and whether guide frames must be cropped after sampling.
        """
        guided = False
        for image, pixels in self.images:
            if self.vae is None:
                raise TypeError("images need a VAE")
            if image.index(request.frames) == 0:
                video = builder.add_node(
                    "LTXVImgToVideoInplace",
                    strength=image.strength,
                    bypass=False,
                    vae=self.vae,
                    image=pixels,
                    latent=video,
                )[0]
                continue
            guide = builder.add_node(
                "LTXVAddGuide",
                frame_idx=_stage_frame(image, request, resolution),
                strength=image.strength,
                positive=prompts.positive,
                negative=prompts.negative,
                vae=self.vae,
                latent=video,
                image=pixels,
            )
            prompts, video, guided = Prompts(guide[0], guide[1]), guide[2], True
        return prompts, video, guided

    def add_reference(
        self, builder: GraphBuilder, prompts: Prompts, video: Link, factor: Link | None
    ) -> tuple[Prompts, Link]:
        """Add the reference video to the prompts and latents of the base stage.

        ``factor`` is the link to the downscale factor of its IC-LoRA.
        """
        if self.reference is None or self.vae is None:
            return prompts, video
        frames, strength = self.reference
        guide = builder.add_node(
            "LTXAddVideoICLoRAGuide",
            frame_idx=0,
            strength=strength,
            latent_downscale_factor=1.0 if factor is None else factor,
            crop="center",
            use_tiled_encode=False,
            tile_size=256,
            tile_overlap=64,
            positive=prompts.positive,
            negative=prompts.negative,
            vae=self.vae,
            latent=video,
            image=frames,
        )
        return Prompts(guide[0], guide[1]), guide[2]


def add_input_nodes(
    builder: GraphBuilder, request: Request, vae: Link, audio_vae: Link | None
) -> InputNodes:
    """Add the loader and preprocessing nodes of all input files.

    ``audio_vae`` is ``None`` for a clip without audio.
    """
    images = [(image, _add_image(builder, image)) for image in request.active_images]
    driving = sound = None
    if request.audio_in is not None:
        loaded = builder.add_node("LoadAudio", audio=_input_name(request.audio_in))
        sound = _trim_audio(builder, loaded[0], float(duration(request.frames, request.fps)))
        if audio_vae is not None:
            steps = request.resolutions[-1].audio_latents / AUDIO_LATENTS_PER_SECOND
            driving = _encode_frozen_audio(
                builder, _trim_audio(builder, loaded[0], steps - LENGTH_MARGIN_S), audio_vae
            )
    if request.video is not None and request.video.mode == "reference":
        frames, _ = _load_frames(builder, request, request.video.file)
        reference = frames, request.video.strength
        return InputNodes(images, vae, driving, sound, reference=reference)
    video, video_sound = _add_start_video(builder, request, vae, audio_vae)
    return InputNodes(images, vae, driving, sound, video, video_sound)


def _add_image(builder: GraphBuilder, image: Image) -> Link:
    loaded = builder.add_node("LoadImage", image=_input_name(image.file))[0]
    crf = IMAGE_CRF if image.crf == "auto" else image.crf
    if crf == 0:
        return loaded
    return builder.add_node("LTXVPreprocess", img_compression=crf, image=loaded)[0]


def _trim_audio(builder: GraphBuilder, sound: Link, seconds: float) -> Link:
    return builder.add_node("TrimAudioDuration", start_index=0.0, duration=seconds, audio=sound)[0]


def _encode_frozen_audio(builder: GraphBuilder, sound: Link, audio_vae: Link) -> Link:
    """Return audio latents with a noise mask of 0, which sampling leaves unchanged."""
    encoded = builder.add_node("LTXVAudioVAEEncode", audio=sound, audio_vae=audio_vae)
    mask = builder.add_node("SolidMask", value=0.0, width=MASK_PX, height=MASK_PX)
    return builder.add_node("SetLatentNoiseMask", samples=encoded[0], mask=mask[0])[0]


def _add_start_video(
    builder: GraphBuilder, request: Request, vae: Link, audio_vae: Link | None
) -> tuple[Link | None, Link | None]:
    """Return the video and audio latents of the video that the base stage starts from."""
    if request.video is None:
        return None, None
    resolution = request.resolutions[0]
    frames, audio = _load_frames(builder, request, request.video.file)
    scaled = builder.add_node(
        "ImageScale",
        upscale_method="lanczos",
        width=resolution.width,
        height=resolution.height,
        crop="center",
        image=frames,
    )
    encoded = builder.add_node("VAEEncode", pixels=scaled[0], vae=vae)
    if audio_vae is None or request.audio_in is not None:
        return encoded[0], None
    sound = builder.add_node("LTXVAudioVAEEncode", audio=audio, audio_vae=audio_vae)
    return encoded[0], sound[0]


def _load_frames(builder: GraphBuilder, request: Request, file: str) -> tuple[Link, Link]:
    """Return the frames of a video, as many as the first stage has, and its audio."""
    loaded = builder.add_node("LoadVideo", file=_input_name(file))
    parts = builder.add_node("GetVideoComponents", video=loaded[0])
    length = request.resolutions[0].frames
    frames = builder.add_node("ImageFromBatch", batch_index=0, length=length, image=parts[0])
    return frames[0], parts[1]


def _stage_frame(image: Image, request: Request, resolution: Resolution) -> int:
    """Return the frame index of an image in a stage that may have fewer frames than the clip."""
    if image.frame == LAST:
        return LAST
    return round(image.frame * (resolution.frames - 1) / max(request.frames - 1, 1))


def _input_name(file: str) -> str:
    """Return the name of a file in ComfyUI's input folder."""
    return PurePath(file.replace("\\", "/")).name
