"""Results: videos put together, and everything that is written to a file."""

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
from latent_ladder.comfyui.nodes.latents import serialise_latent
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction, NodeResult
from latent_ladder.comfyui.runtime.output_paths import (
    OutputPath,
    claim_path,
    expand_prefix,
    next_output_path,
)
from latent_ladder.comfyui.runtime.values import Audio, Images, Latent, Value, Video
from latent_ladder.errors import MediaError, MemoryBudgetError, WorkflowError
from latent_ladder.latents.shapes import duration
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.video_writer import Frames, VideoSpec
from latent_ladder.media.writers import check_clip, write_clip_file
from latent_ladder.memory.oom import retry_with_fallbacks
from latent_ladder.models.audio_vae.vae import fit_length
from latent_ladder.pipeline.stages.decoding import as_integers
from latent_ladder.storage.atomic_write import convert_write_errors, part_path, write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
TEMPORARY = "ComfyUI_temp"
MOST_FPS_DENOMINATOR = 1001


def create_video(ctx: NodeContext) -> list[Value]:
    """``CreateVideo``: nothing is decoded or encoded yet."""
    images, audio = ctx.get("images", Images), ctx.get_optional("audio", Audio)
    bits = 10 if ctx.has("bit_depth") and ctx.text("bit_depth") == "10" else 8
    if ctx.has("color_space") and ctx.text("color_space") != "sRGB":
        raise ctx.error("HDR is not written here", "set color_space to sRGB")
    return [Video(images, exact_fps(ctx.number("fps")), lambda: audio, None, bits)]


def exact_fps(rate: float) -> Fraction:
    """A frame rate as a fraction: 23.976 is 24000/1001."""
    near = Fraction(rate).limit_denominator(MOST_FPS_DENOMINATOR)
    broadcast = Fraction(round(rate) * 1000, 1001)
    return broadcast if abs(rate - float(broadcast)) < 5e-4 else near


# --- videos -------------------------------------------------------------------------------------

SUFFIXES = MappingProxyType({"auto": ".mp4", "mp4": ".mp4", "mkv": ".mkv", "webm": ".webm"})


def save_video(ctx: NodeContext) -> NodeResult:
    """``SaveVideo``: ``<prefix>_00001_.mp4`` with the workflow in its tags."""
    video = ctx.get("video", Video)
    form = ctx.text("format") if ctx.has("format") else "auto"
    if form not in SUFFIXES:
        raise ctx.error(f"format {form} is not known here", f"use {', '.join(SUFFIXES)}")
    codec, crf = _codec(ctx)
    if form == "webm":
        codec = "av1" if codec == "auto" else codec
    settings = EncoderSettings(
        codec=codec, crf=crf, pix_fmt="yuv420p10le" if video.bits > 8 else None
    )
    where = _place(ctx, video.images)
    path = _write_video(ctx, video, where, SUFFIXES[form], settings)
    return NodeResult((video,), {"images": [_entry(where, path, "output")], "animated": [True]})


def _codec(ctx: NodeContext) -> tuple[str, int | None]:
    """The codec and its crf: of the newer nested choice, else of the older flat one."""
    for name in ("format.codec", "codec"):
        if ctx.has(name) and ctx.text(name) != "auto":
            crf = f"{name}.encoding.crf"
            return ctx.text(name), ctx.integer(crf) if ctx.has(crf) else None
    return "auto", None


def _write_video(
    ctx: NodeContext, video: Video, where: OutputPath, suffix: str, settings: EncoderSettings
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
            _count_frames(ctx, _integers(frames, video.bits), count),
            spec,
            audio=waveform,
            duration=duration(count, video.fps),
            metadata=ctx.metadata,
            overwrite=False,
        )

    try:
        check_clip(part, False, settings)
        with_smaller_tiles(ctx, images, write)
        with convert_write_errors(MediaError, f"video {where.path(suffix).name}", where.folder):
            return claim_path(where, suffix, part)
    except MediaError as error:
        raise ctx.error(error.message, error.hint) from error
    finally:
        part.unlink(missing_ok=True)


def with_smaller_tiles(ctx: NodeContext, images: Images, work: Callable[[Images], T]) -> T:
    """Result of ``work(images)``; after out-of-memory, with the same images in smaller tiles.

    Raises :class:`MemoryBudgetError` where the tiles cannot be smaller.
    """

    def next_tiles(before: Images) -> Images:
        ctx.engine.release()
        smaller = before.lower_memory()
        if smaller is None:
            raise MemoryBudgetError(
                "the images do not fit into memory even in small tiles",
                "make them smaller, or allow more with --vram",
            )
        ctx.warn("out_of_memory", "memory ran out while decoding; trying again in smaller tiles")
        return smaller

    return retry_with_fallbacks(work, images, next_tiles)


def _even(images: Images) -> Images:
    """The images without the last row or column of an odd side: video needs even sides."""
    width, height = images.width // 2 * 2, images.height // 2 * 2
    if (width, height) == (images.width, images.height):
        return images
    return images.map(lambda frames: frames[..., :height, :width], (width, height))


def _integers(images: Images, bits: int) -> Iterator[Frames]:
    if images.pixels_uint8 is not None and bits == 8:
        return cast("Iterator[Frames]", images.pixels_uint8())
    return (as_integers(chunk, bits) for chunk in images.pixels())


def _count_frames(ctx: NodeContext, chunks: Iterator[Frames], total: int) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        ctx.progress(done, total)
        ctx.check_cancelled()


# --- pictures -----------------------------------------------------------------------------------


def save_image(ctx: NodeContext) -> NodeResult:
    """``SaveImage``: every frame a PNG with the workflow in its text."""
    return _saved_images(ctx, _place(ctx, ctx.get("images", Images)), "output")


def preview_image(ctx: NodeContext) -> NodeResult:
    """``PreviewImage``: the same in the folder for what does not last."""
    return _saved_images(ctx, _temporary(ctx), "temp")


def _saved_images(ctx: NodeContext, where: OutputPath, kind: str) -> NodeResult:
    images = ctx.get("images", Images)

    def write(frames: Images) -> list[Path]:
        written: list[Path] = []
        for chunk in _count_frames(ctx, _integers(frames, 8), frames.count):
            for frame in chunk:
                data = _png(frame, ctx.metadata)
                written.append(_write(where, ".png", data, len(written)))
        return written

    paths = with_smaller_tiles(ctx, images, write)
    return NodeResult((), {"images": [_entry(where, path, kind) for path in paths]})


def _png(frame: NDArray[np.uint8] | NDArray[np.uint16], tags: Mapping[str, str]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in tags.items():
        info.add_text(name, text)
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG", pnginfo=info, compress_level=4)
    return data.getvalue()


def save_webp(ctx: NodeContext) -> NodeResult:
    """``SaveAnimatedWEBP``: its quality is that of this package's encoder."""
    images = ctx.get("images", Images)
    where = _place(ctx, images)
    video = Video(images, exact_fps(ctx.number("fps")))
    path = _write_video(ctx, video, where, ".webp", EncoderSettings())
    return NodeResult((images,), {"images": [_entry(where, path, "output")], "animated": [True]})


def save_webm(ctx: NodeContext) -> NodeResult:
    """``SaveWEBM`` with av1."""
    images = ctx.get("images", Images)
    where = _place(ctx, images)
    video = Video(images, exact_fps(ctx.number("fps")))
    settings = EncoderSettings(codec="av1", crf=ctx.integer("crf"))
    path = _write_video(ctx, video, where, ".webm", settings)
    return NodeResult((images,), {"images": [_entry(where, path, "output")], "animated": [True]})


def check_webm_codec(node: Node) -> str:
    """Why a WEBM cannot be written so."""
    if node.inputs.get("codec", "vp9") == "vp9":
        return "vp9 is not written here: set codec to av1, or use SaveVideo"
    return ""


# --- sound --------------------------------------------------------------------------------------

QUALITIES = MappingProxyType({"64k": 64, "96k": 96, "128k": 128, "192k": 192, "320k": 320})


def _save_sound(
    suffix: str, encoder: str, preview: bool = False
) -> Callable[[NodeContext], NodeResult]:
    def save(ctx: NodeContext) -> NodeResult:
        audio = ctx.get("audio", Audio)
        kind = "temp" if preview else "output"
        where = _temporary(ctx) if preview else _place(ctx)
        quality = ctx.text("quality") if ctx.has("quality") else ""
        data = _sound_bytes(audio, suffix, encoder, quality, ctx.metadata)
        path = _write(where, suffix, data)
        return NodeResult((audio,), {"audio": [_entry(where, path, kind)]})

    return save


def _sound_bytes(
    audio: Audio, suffix: str, encoder: str, quality: str, tags: Mapping[str, str]
) -> bytes:
    """A whole sound file in memory; Opus knows only its own rates and gets 48 kHz."""
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


def save_latent(ctx: NodeContext) -> NodeResult:
    """``SaveLatent``: of audio and video too, which ComfyUI cannot."""
    latent = ctx.get("samples", Latent)
    where = _place(ctx)
    path = _write(where, ".latent", serialise_latent(latent, ctx.metadata))
    return NodeResult((), {"latents": [_entry(where, path, "output")]})


# --- where --------------------------------------------------------------------------------------


def _place(ctx: NodeContext, images: Images | None = None) -> OutputPath:
    prefix = expand_prefix(ctx.text("filename_prefix"), ctx.graph)
    size = (0, 0) if images is None else (images.width, images.height)
    try:
        return next_output_path(ctx.engine.folders.output, prefix, size)
    except WorkflowError as error:
        raise ctx.error(error.message, error.hint) from error


def _temporary(ctx: NodeContext) -> OutputPath:
    return next_output_path(ctx.engine.folders.temp, f"{TEMPORARY}_{secrets.token_hex(3)}")


def _entry(where: OutputPath, path: Path, kind: str) -> dict[str, str]:
    return {"filename": path.name, "subfolder": where.subfolder, "type": kind}


def _write(where: OutputPath, suffix: str, data: bytes, more: int = 0) -> Path:
    """Write a file under a temporary name, then rename it to the next free one."""
    part = part_path(where.path(suffix))
    with convert_write_errors(MediaError, where.path(suffix).name, where.folder, len(data)):
        try:
            write_atomically(part, data)
            return claim_path(where, suffix, part, more)
        finally:
            part.unlink(missing_ok=True)


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "CreateVideo": NodeFunction(create_video),
        "SaveVideo": NodeFunction(save_video),
        "SaveWEBM": NodeFunction(save_webm, check=check_webm_codec),
        "SaveAnimatedWEBP": NodeFunction(save_webp),
        "SaveImage": NodeFunction(save_image),
        "PreviewImage": NodeFunction(preview_image),
        "SaveAudio": NodeFunction(_save_sound(".flac", "flac")),
        "SaveAudioMP3": NodeFunction(_save_sound(".mp3", "libmp3lame")),
        "SaveAudioOpus": NodeFunction(_save_sound(".opus", "libopus")),
        "PreviewAudio": NodeFunction(_save_sound(".flac", "flac", preview=True)),
        "SaveLatent": NodeFunction(save_latent),
    }
)
