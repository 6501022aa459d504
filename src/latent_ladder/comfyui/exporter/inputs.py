"""The nodes that bring pictures, a sound or a video into a graph, and hold them in every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from latent_ladder.comfyui.exporter.graph_builder import Sheet
from latent_ladder.comfyui.exporter.sampling import Prompts
from latent_ladder.comfyui.graph import Link
from latent_ladder.latents.shapes import AUDIO_LATENTS_PER_SECOND, Resolution, duration
from latent_ladder.request.inputs import LAST, Image
from latent_ladder.request.model import Request

IMAGE_CRF = 33
"""The compression of ``crf="auto"`` with LTX 2.3."""
ENCODED_MORE_S = 0.001
"""A sound of n latents' length is encoded as n + 1; one that is so much shorter, as n."""
MASK_PX = 512
"""Side of the mask that holds a sound; ComfyUI resizes it to the latent, so any will do."""


@dataclass(frozen=True)
class Held:
    """What the inputs gave: pictures, the sound that drives the picture, the one that is heard."""

    images: Sequence[tuple[Image, Link]] = ()
    vae: Link | None = None
    driving: Link | None = None
    sound: Link | None = None
    video: Link | None = None
    video_sound: Link | None = None
    reference: tuple[Link, float] | None = None
    """The frames of a reference video, and the strength that holds it."""

    def show(
        self, sheet: Sheet, request: Request, resolution: Resolution, texts: Prompts, video: Link
    ) -> tuple[Prompts, Link, bool]:
        """Prompts and latents with every picture held, and whether guides are to be cut off."""
        guided = False
        for image, pixels in self.images:
            if self.vae is None:
                raise TypeError("pictures are held without a VAE")
            if image.index(request.frames) == 0:
                video = sheet.add(
                    "LTXVImgToVideoInplace",
                    strength=image.strength,
                    bypass=False,
                    vae=self.vae,
                    image=pixels,
                    latent=video,
                )[0]
                continue
            guide = sheet.add(
                "LTXVAddGuide",
                frame_idx=_frame(image, request, resolution),
                strength=image.strength,
                positive=texts.positive,
                negative=texts.negative,
                vae=self.vae,
                latent=video,
                image=pixels,
            )
            texts, video, guided = Prompts(guide[0], guide[1]), guide[2], True
        return texts, video, guided

    def refer(
        self, sheet: Sheet, texts: Prompts, video: Link, factor: Link | None
    ) -> tuple[Prompts, Link]:
        """Prompts and latents with the reference video beside the clip.

        ``factor`` is how much smaller its LoRA wants it.
        """
        if self.reference is None or self.vae is None:
            return texts, video
        frames, strength = self.reference
        guide = sheet.add(
            "LTXAddVideoICLoRAGuide",
            frame_idx=0,
            strength=strength,
            latent_downscale_factor=1.0 if factor is None else factor,
            crop="center",
            use_tiled_encode=False,
            tile_size=256,
            tile_overlap=64,
            positive=texts.positive,
            negative=texts.negative,
            vae=self.vae,
            latent=video,
            image=frames,
        )
        return Prompts(guide[0], guide[1]), guide[2]


def held_inputs(sheet: Sheet, request: Request, vae: Link, audio_vae: Link | None) -> Held:
    """The loaders of every input file, and what prepares it. ``audio_vae``: if there is sound."""
    images = [(image, _picture(sheet, image)) for image in request.active_images]
    driving = sound = None
    if request.audio_in is not None:
        loaded = sheet.add("LoadAudio", audio=_name(request.audio_in))
        sound = _beginning(sheet, loaded[0], float(duration(request.frames, request.fps)))
        if audio_vae is not None:
            steps = request.resolutions[-1].audio_latents / AUDIO_LATENTS_PER_SECOND
            driving = _frozen(
                sheet, _beginning(sheet, loaded[0], steps - ENCODED_MORE_S), audio_vae
            )
    if request.video is not None and request.video.mode == "reference":
        frames, _ = _footage(sheet, request, request.video.file)
        reference = frames, request.video.strength
        return Held(images, vae, driving, sound, reference=reference)
    video, video_sound = _video(sheet, request, vae, audio_vae)
    return Held(images, vae, driving, sound, video, video_sound)


def _picture(sheet: Sheet, image: Image) -> Link:
    loaded = sheet.add("LoadImage", image=_name(image.file))[0]
    crf = IMAGE_CRF if image.crf == "auto" else image.crf
    if crf == 0:
        return loaded
    return sheet.add("LTXVPreprocess", img_compression=crf, image=loaded)[0]


def _beginning(sheet: Sheet, sound: Link, seconds: float) -> Link:
    return sheet.add("TrimAudioDuration", start_index=0.0, duration=seconds, audio=sound)[0]


def _frozen(sheet: Sheet, sound: Link, audio_vae: Link) -> Link:
    """The sound as latents that sampling leaves as they are."""
    encoded = sheet.add("LTXVAudioVAEEncode", audio=sound, audio_vae=audio_vae)
    mask = sheet.add("SolidMask", value=0.0, width=MASK_PX, height=MASK_PX)
    return sheet.add("SetLatentNoiseMask", samples=encoded[0], mask=mask[0])[0]


def _video(
    sheet: Sheet, request: Request, vae: Link, audio_vae: Link | None
) -> tuple[Link | None, Link | None]:
    """The video that the base stage starts from, and its sound, as latents."""
    if request.video is None:
        return None, None
    resolution = request.resolutions[0]
    frames, heard = _footage(sheet, request, request.video.file)
    scaled = sheet.add(
        "ImageScale",
        upscale_method="lanczos",
        width=resolution.width,
        height=resolution.height,
        crop="center",
        image=frames,
    )
    encoded = sheet.add("VAEEncode", pixels=scaled[0], vae=vae)
    if audio_vae is None or request.audio_in is not None:
        return encoded[0], None
    sound = sheet.add("LTXVAudioVAEEncode", audio=heard, audio_vae=audio_vae)
    return encoded[0], sound[0]


def _footage(sheet: Sheet, request: Request, file: str) -> tuple[Link, Link]:
    """As many frames of a video as the first stage has, and its sound."""
    loaded = sheet.add("LoadVideo", file=_name(file))
    parts = sheet.add("GetVideoComponents", video=loaded[0])
    length = request.resolutions[0].frames
    frames = sheet.add("ImageFromBatch", batch_index=0, length=length, image=parts[0])
    return frames[0], parts[1]


def _frame(image: Image, request: Request, resolution: Resolution) -> int:
    """The frame of a picture in a stage that may have fewer of them."""
    if image.frame == LAST:
        return LAST
    return round(image.frame * (resolution.frames - 1) / max(request.frames - 1, 1))


def _name(file: str) -> str:
    """ComfyUI's loaders list the names in its input folder."""
    return PurePath(file.replace("\\", "/")).name
