"""Nodes that create videos and save videos, images, sound and latents."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.nodes.latents import latent_bytes
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning, Results
from latent_ladder.comfyui.runtime.output_paths import Place, claim_name, fill_prefix, place
from latent_ladder.comfyui.runtime.values import Audio, Images, Latent, Value, Video
from latent_ladder.errors import MediaError, MemoryBudgetError, WorkflowError
from latent_ladder.latents.shapes import duration
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.video_writer import Frames, VideoSpec
from latent_ladder.media.writers import check_clip, write_clip_file
from latent_ladder.memory.oom import retry_with_fallbacks
from latent_ladder.models.audio_vae.vae import fit_length
from latent_ladder.pipeline.stages.decoding import as_integers
from latent_ladder.storage.atomic_write import part_path, write_whole, writing

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
TEMPORARY = "ComfyUI_temp"
MOST_FPS_DENOMINATOR = 1001


def create_video(ask: Ask) -> list[Value]:
    """``CreateVideo``: images and sound as a video; nothing is decoded or encoded yet."""
    images, audio = ask.get("images", Images), ask.maybe("audio", Audio)
    bits = 10 if ask.has("bit_depth") and ask.text("bit_depth") == "10" else 8
    if ask.has("color_space") and ask.text("color_space") != "sRGB":
        raise ask.error("HDR is not written here", "set color_space to sRGB")
    return [Video(images, exact_fps(ask.number("fps")), lambda: audio, None, bits)]


def exact_fps(rate: float) -> Fraction:
    """A frame rate as a fraction: 23.976 is 24000/1001."""
    near = Fraction(rate).limit_denominator(MOST_FPS_DENOMINATOR)
    broadcast = Fraction(round(rate) * 1000, 1001)
    return broadcast if abs(rate - float(broadcast)) < 5e-4 else near


# --- videos -------------------------------------------------------------------------------------

SUFFIXES = MappingProxyType({"auto": ".mp4", "mp4": ".mp4", "mkv": ".mkv", "webm": ".webm"})


def save_video(ask: Ask) -> Results:
    """``SaveVideo``: ``<prefix>_00001_.mp4`` with the workflow in its tags."""
    video = ask.get("video", Video)
    form = ask.text("format") if ask.has("format") else "auto"
    if form not in SUFFIXES:
        raise ask.error(f"format {form} is not known here", f"use {', '.join(SUFFIXES)}")
    codec, crf = _codec(ask)
    if form == "webm":
        codec = "av1" if codec == "auto" else codec
    settings = EncoderSettings(
        codec=codec, crf=crf, pix_fmt="yuv420p10le" if video.bits > 8 else None
    )
    where = _place(ask, video.images)
    path = _write_video(ask, video, where, SUFFIXES[form], settings)
    return Results((video,), {"images": [_entry(where, path, "output")], "animated": [True]})


def _codec(ask: Ask) -> tuple[str, int | None]:
    """The codec and its crf: of the newer nested choice, else of the older flat one."""
    for name in ("format.codec", "codec"):
        if ask.has(name) and ask.text(name) != "auto":
            crf = f"{name}.encoding.crf"
            return ask.text(name), ask.whole(crf) if ask.has(crf) else None
    return "auto", None


def _write_video(
    ask: Ask, video: Video, where: Place, suffix: str, settings: EncoderSettings
) -> Path:
    """Write the video under a temporary name, then rename it to the next free one."""
    part = part_path(where.path(suffix))
    images = _even(video.images)
    sound = video.audio()
    count = images.count
    waveform = None
    if sound is not None and sound.waveform.numel():
        stereo = sound.waveform.expand(2, -1) if len(sound.waveform) == 1 else sound.waveform[:2]
        fitted = fit_length(stereo, count, video.fps, sound.rate)
        waveform = (fitted.numpy(), sound.rate)
    spec = VideoSpec((images.width, images.height), video.fps, settings)

    def write(frames: Images) -> None:
        write_clip_file(
            part,
            _count(ask, _integers(frames, video.bits), count),
            spec,
            audio=waveform,
            duration=duration(count, video.fps),
            metadata=ask.metadata,
            overwrite=False,
        )

    try:
        check_clip(part, False, settings)
        with_smaller_tiles(ask, images, write)
        with writing(MediaError, f"video {where.path(suffix).name}", where.folder):
            return claim_name(where, suffix, part)
    except MediaError as error:
        raise ask.error(error.message, error.hint) from error
    finally:
        part.unlink(missing_ok=True)


def with_smaller_tiles(ask: Ask, images: Images, work: Callable[[Images], T]) -> T:
    """Result of ``work(images)``; after out-of-memory, with the same images in smaller tiles.

    Raises :class:`MemoryBudgetError` where the tiles cannot be smaller.
    """

    def next_tiles(before: Images) -> Images:
        ask.engine.release()
        smaller = before.smaller()
        if smaller is None:
            raise MemoryBudgetError(
                "the images do not fit into memory even in small tiles",
                "make them smaller, or allow more with --vram",
            )
        ask.warn("out_of_memory", "memory ran out while decoding; trying again in smaller tiles")
        return smaller

    return retry_with_fallbacks(work, images, next_tiles)


def _even(images: Images) -> Images:
    """The images without the last row or column of an odd side: video needs even sides."""
    width, height = images.width // 2 * 2, images.height // 2 * 2
    if (width, height) == (images.width, images.height):
        return images
    return images.mapped(lambda frames: frames[..., :height, :width], (width, height))


def _integers(images: Images, bits: int) -> Iterator[Frames]:
    if images.integers is not None and bits == 8:
        return cast("Iterator[Frames]", images.integers())
    return (as_integers(chunk, bits) for chunk in images.pixels())


def _count(ask: Ask, chunks: Iterator[Frames], total: int) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        ask.progress(done, total)
        ask.check_cancelled()


# --- pictures -----------------------------------------------------------------------------------


def save_image(ask: Ask) -> Results:
    """``SaveImage``: every frame a PNG with the workflow in its text."""
    return _saved_images(ask, _place(ask, ask.get("images", Images)), "output")


def preview_image(ask: Ask) -> Results:
    """``PreviewImage``: as ``SaveImage``, in the folder of temporary files."""
    return _saved_images(ask, _temporary(ask), "temp")


def _saved_images(ask: Ask, where: Place, kind: str) -> Results:
    images = ask.get("images", Images)

    def write(frames: Images) -> list[Path]:
        written: list[Path] = []
        for chunk in _count(ask, _integers(frames, 8), frames.count):
            for frame in chunk:
                data = _png(frame, ask.metadata)
                written.append(_write(where, ".png", data, len(written)))
        return written

    paths = with_smaller_tiles(ask, images, write)
    return Results((), {"images": [_entry(where, path, kind) for path in paths]})


def _png(frame: NDArray[np.uint8] | NDArray[np.uint16], tags: Mapping[str, str]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in tags.items():
        info.add_text(name, text)
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG", pnginfo=info, compress_level=4)
    return data.getvalue()


def save_webp(ask: Ask) -> Results:
    """``SaveAnimatedWEBP``, with the quality of this package's encoder."""
    images = ask.get("images", Images)
    where = _place(ask, images)
    video = Video(images, exact_fps(ask.number("fps")))
    path = _write_video(ask, video, where, ".webp", EncoderSettings())
    return Results((images,), {"images": [_entry(where, path, "output")], "animated": [True]})


def save_webm(ask: Ask) -> Results:
    """``SaveWEBM`` with av1."""
    images = ask.get("images", Images)
    where = _place(ask, images)
    video = Video(images, exact_fps(ask.number("fps")))
    settings = EncoderSettings(codec="av1", crf=ask.whole("crf"))
    path = _write_video(ask, video, where, ".webm", settings)
    return Results((images,), {"images": [_entry(where, path, "output")], "animated": [True]})


def refuses_vp9(node: Node) -> str:
    """Reason why a WEBM cannot be written, empty if it can."""
    if node.inputs.get("codec", "vp9") == "vp9":
        return "vp9 is not written here: set codec to av1, or use SaveVideo"
    return ""


# --- sound --------------------------------------------------------------------------------------

QUALITIES = MappingProxyType({"64k": 64, "96k": 96, "128k": 128, "192k": 192, "320k": 320})


def _save_sound(suffix: str, encoder: str, preview: bool = False) -> Callable[[Ask], Results]:
    def save(ask: Ask) -> Results:
        audio = ask.get("audio", Audio)
        kind = "temp" if preview else "output"
        where = _temporary(ask) if preview else _place(ask)
        quality = ask.text("quality") if ask.has("quality") else ""
        data = _sound_bytes(audio, suffix, encoder, quality, ask.metadata)
        path = _write(where, suffix, data)
        return Results((audio,), {"audio": [_entry(where, path, kind)]})

    return save


def _sound_bytes(
    audio: Audio, suffix: str, encoder: str, quality: str, tags: Mapping[str, str]
) -> bytes:
    """An encoded sound file. Opus files have 48 kHz, as the format allows few rates."""
    import av

    data = io.BytesIO()
    formats = {".flac": "flac", ".mp3": "mp3", ".opus": "opus"}
    samples = audio.waveform.clamp(-1, 1).contiguous().numpy()
    layout = "mono" if len(samples) == 1 else "stereo"
    rate = 48_000 if suffix == ".opus" else audio.rate
    with av.open(data, "w", format=formats[suffix]) as container:
        container.metadata.update(dict(tags))
        stream = container.add_stream(encoder, rate=rate, layout=layout)
        if quality in QUALITIES:
            stream.bit_rate = QUALITIES[quality] * 1000
        elif quality == "V0":
            stream.options = {"q": "0"}
        frame = av.AudioFrame.from_ndarray(samples[:2], format="fltp", layout=layout)
        frame.sample_rate = audio.rate
        wanted = stream.codec_context.format.name
        resampler = av.AudioResampler(format=wanted, layout=layout, rate=rate)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return data.getvalue()


# --- latents ------------------------------------------------------------------------------------


def save_latent(ask: Ask) -> Results:
    """``SaveLatent``: also for audio and audio-video latents, which ComfyUI cannot save."""
    latent = ask.get("samples", Latent)
    where = _place(ask)
    path = _write(where, ".latent", latent_bytes(latent, ask.metadata))
    return Results((), {"latents": [_entry(where, path, "output")]})


# --- where --------------------------------------------------------------------------------------


def _place(ask: Ask, images: Images | None = None) -> Place:
    prefix = fill_prefix(ask.text("filename_prefix"), ask.graph)
    size = (0, 0) if images is None else (images.width, images.height)
    try:
        return place(ask.engine.folders.output, prefix, size)
    except WorkflowError as error:
        raise ask.error(error.message, error.hint) from error


def _temporary(ask: Ask) -> Place:
    return place(ask.engine.folders.temp, f"{TEMPORARY}_{secrets.token_hex(3)}")


def _entry(where: Place, path: Path, kind: str) -> dict[str, str]:
    return {"filename": path.name, "subfolder": where.subfolder, "type": kind}


def _write(where: Place, suffix: str, data: bytes, more: int = 0) -> Path:
    """Write a file under a temporary name, then rename it to the next free one."""
    part = part_path(where.path(suffix))
    with writing(MediaError, where.path(suffix).name, where.folder, len(data)):
        try:
            write_whole(part, data)
            return claim_name(where, suffix, part, more)
        finally:
            part.unlink(missing_ok=True)


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "CreateVideo": Meaning(create_video),
        "SaveVideo": Meaning(save_video),
        "SaveWEBM": Meaning(save_webm, refuses=refuses_vp9),
        "SaveAnimatedWEBP": Meaning(save_webp),
        "SaveImage": Meaning(save_image),
        "PreviewImage": Meaning(preview_image),
        "SaveAudio": Meaning(_save_sound(".flac", "flac")),
        "SaveAudioMP3": Meaning(_save_sound(".mp3", "libmp3lame")),
        "SaveAudioOpus": Meaning(_save_sound(".opus", "libopus")),
        "PreviewAudio": Meaning(_save_sound(".flac", "flac", preview=True)),
        "SaveLatent": Meaning(save_latent),
    }
)
