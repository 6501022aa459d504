"""Output nodes: create videos, and save videos, images, audio and latents."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
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
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.media.video_writer import Frames, VideoSpec
from latent_ladder.media.writers import check_clip, write_clip_file
from latent_ladder.memory.oom import retry_with_fallbacks
from latent_ladder.models.audio_vae.vae import fit_length
from latent_ladder.pipeline.stages.decoding import integer_frames
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.temporary_files import part_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
TEMP_PREFIX = "ComfyUI_temp"
MOST_FPS_DENOMINATOR = 1001


def create_video(ctx: NodeContext) -> list[Value]:
    """``CreateVideo``: images, frame rate and audio as a video; nothing is encoded yet."""
    images, audio = ctx.get("images", Images), ctx.get_optional("audio", Audio)
    bits = 10 if ctx.has("bit_depth") and ctx.text("bit_depth") == "10" else 8
    if ctx.has("color_space") and ctx.text("color_space") != "sRGB":
        raise ctx.error("HDR is not supported", "set color_space to sRGB")
    return [Video(images, exact_fps(ctx.number("fps")), lambda: audio, None, bits)]


def exact_fps(rate: float) -> Fraction:
    """Return a frame rate as a fraction: 23.976 gives 24000/1001."""
    near = Fraction(rate).limit_denominator(MOST_FPS_DENOMINATOR)
    broadcast = Fraction(round(rate) * 1000, 1001)
    return broadcast if abs(rate - float(broadcast)) < 5e-4 else near


# --- videos -------------------------------------------------------------------------------------

VIDEO_SUFFIXES = MappingProxyType({"auto": ".mp4", "mp4": ".mp4", "mkv": ".mkv", "webm": ".webm"})


def save_video(ctx: NodeContext) -> NodeResult:
    """``SaveVideo``: a file ``<prefix>_00001_.mp4`` with the workflow in its metadata."""
    video = ctx.get("video", Video)
    form = ctx.text("format") if ctx.has("format") else "auto"
    if form not in VIDEO_SUFFIXES:
        raise ctx.error(f"format {form} is not supported", f"use {', '.join(VIDEO_SUFFIXES)}")
    codec, crf = _codec_and_crf(ctx)
    if form == "webm":
        codec = "av1" if codec == "auto" else codec
    settings = EncoderSettings(
        codec=codec, crf=crf, pix_fmt="yuv420p10le" if video.bits > 8 else None
    )
    target = _output_path(ctx, video.images)
    path = _write_video(ctx, video, target, VIDEO_SUFFIXES[form], settings)
    return NodeResult((video,), {"images": [_ui_entry(ctx, path, "output")], "animated": [True]})


def _codec_and_crf(ctx: NodeContext) -> tuple[str, int | None]:
    """Return codec and crf: from the inputs inside ``format``, or from those of older graphs."""
    for name in ("format.codec", "codec"):
        if ctx.has(name) and ctx.text(name) != "auto":
            crf = f"{name}.encoding.crf"
            return ctx.text(name), ctx.integer(crf) if ctx.has(crf) else None
    return "auto", None


def _write_video(
    ctx: NodeContext, video: Video, target: OutputPath, suffix: str, settings: EncoderSettings
) -> Path:
    """Write a video to a temporary name, then move it to the next free name."""
    written = _written_before(ctx, "output")
    if written is not None:
        return written
    part = part_path(target.path(suffix))
    images = _to_even(video.images)
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
            _report_progress(ctx, _to_integers(frames, video.bits), count),
            spec,
            audio=waveform,
            duration=duration(count, video.fps),
            metadata=ctx.metadata,
            overwrite=False,
        )

    try:
        check_clip(part, False, settings)
        with_smaller_tiles(ctx, images, write)
        with convert_write_errors(MediaError, f"video {target.path(suffix).name}", target.folder):
            return claim_path(target, suffix, part, 0, ctx.journal.recorder(ctx.node.id, 0, part))
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


def _to_even(images: Images) -> Images:
    """Crop odd sides by one pixel, as videos need even sides."""
    width, height = images.width // 2 * 2, images.height // 2 * 2
    if (width, height) == (images.width, images.height):
        return images
    return images.map(lambda frames: frames[..., :height, :width], (width, height))


def _to_integers(images: Images, bits: int) -> Iterator[Frames]:
    if images.pixels_uint8 is not None and bits == 8:
        return cast("Iterator[Frames]", images.pixels_uint8())
    return integer_frames(images.pixels(), bits)


def _report_progress(ctx: NodeContext, chunks: Iterator[Frames], total: int) -> Iterator[Frames]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        ctx.progress(done, total)
        ctx.check_cancelled()


# --- pictures -----------------------------------------------------------------------------------


def save_image(ctx: NodeContext) -> NodeResult:
    """``SaveImage``: each frame as a PNG with the workflow in its metadata."""
    return _write_images(ctx, _output_path(ctx, ctx.get("images", Images)), "output")


def preview_image(ctx: NodeContext) -> NodeResult:
    """``PreviewImage``: each frame as a PNG in the folder for temporary files."""
    return _write_images(ctx, _temporary_path(ctx), "temp")


def _write_images(ctx: NodeContext, target: OutputPath, kind: str) -> NodeResult:
    images = ctx.get("images", Images)
    found = ((i, _written_before(ctx, kind, i)) for i in range(images.count))
    paths = {index: path for index, path in found if path is not None}
    first_new = len(paths)  # the next free number is that of the first new file

    def write(frames: Images) -> None:
        chunks = _report_progress(ctx, _to_integers(frames, 8), frames.count)
        for index, frame in enumerate(chain.from_iterable(chunks)):
            if index not in paths:
                data = _encode_png(frame, ctx.metadata)
                place = (index, index - first_new)
                paths[index] = _write_file(ctx, target, ".png", data, place)

    if len(paths) < images.count:
        with_smaller_tiles(ctx, images, write)
    ordered = [paths[index] for index in sorted(paths)]
    return NodeResult((), {"images": [_ui_entry(ctx, path, kind) for path in ordered]})


def _encode_png(frame: NDArray[np.uint8] | NDArray[np.uint16], tags: Mapping[str, str]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in tags.items():
        info.add_text(name, text)
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG", pnginfo=info, compress_level=4)
    return data.getvalue()


def save_webp(ctx: NodeContext) -> NodeResult:
    """``SaveAnimatedWEBP``: an animated WebP with the encoder settings of this package."""
    images = ctx.get("images", Images)
    target = _output_path(ctx, images)
    video = Video(images, exact_fps(ctx.number("fps")))
    path = _write_video(ctx, video, target, ".webp", EncoderSettings())
    return NodeResult((images,), {"images": [_ui_entry(ctx, path, "output")], "animated": [True]})


def save_webm(ctx: NodeContext) -> NodeResult:
    """``SaveWEBM``: a WebM file with AV1."""
    images = ctx.get("images", Images)
    target = _output_path(ctx, images)
    video = Video(images, exact_fps(ctx.number("fps")))
    settings = EncoderSettings(codec="av1", crf=ctx.integer("crf"))
    path = _write_video(ctx, video, target, ".webm", settings)
    return NodeResult((images,), {"images": [_ui_entry(ctx, path, "output")], "animated": [True]})


def check_webm_codec(node: Node) -> str:
    """Return why the codec of a WebM file is not supported."""
    if node.inputs.get("codec", "vp9") == "vp9":
        return "vp9 is not supported: set codec to av1, or use SaveVideo"
    return ""


# --- sound --------------------------------------------------------------------------------------

AUDIO_BITRATES_KBPS = MappingProxyType(
    {"64k": 64, "96k": 96, "128k": 128, "192k": 192, "320k": 320}
)


def _make_audio_saver(
    suffix: str, encoder: str, preview: bool = False
) -> Callable[[NodeContext], NodeResult]:
    def save(ctx: NodeContext) -> NodeResult:
        audio = ctx.get("audio", Audio)
        kind = "temp" if preview else "output"
        target = _temporary_path(ctx) if preview else _output_path(ctx)
        quality = ctx.text("quality") if ctx.has("quality") else ""
        path = _written_before(ctx, kind)
        if path is None:
            data = _encode_audio_file(audio, suffix, encoder, quality, ctx.metadata)
            path = _write_file(ctx, target, suffix, data)
        return NodeResult((audio,), {"audio": [_ui_entry(ctx, path, kind)]})

    return save


def _encode_audio_file(
    audio: Audio, suffix: str, encoder: str, quality: str, tags: Mapping[str, str]
) -> bytes:
    """Return the bytes of an audio file; Opus, which supports few rates, gets 48 kHz."""
    import av

    data = io.BytesIO()
    formats = {".flac": "flac", ".mp3": "mp3", ".opus": "opus"}
    samples = audio.waveform.clamp(-1, 1).contiguous().numpy()
    layout = "mono" if len(samples) == 1 else "stereo"
    rate = SAMPLE_RATE if suffix == ".opus" else audio.rate
    with av.open(data, "w", format=formats[suffix]) as container:
        container.metadata.update(dict(tags))
        stream = container.add_stream(encoder, rate=rate, layout=layout)
        if quality in AUDIO_BITRATES_KBPS:
            stream.bit_rate = AUDIO_BITRATES_KBPS[quality] * 1000
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
    """``SaveLatent``: a latent file, also of audio-video latents, which ComfyUI cannot save."""
    latent = ctx.get("samples", Latent)
    target = _output_path(ctx)
    path = _written_before(ctx, "output") or _write_file(
        ctx, target, ".latent", serialise_latent(latent, ctx.metadata)
    )
    return NodeResult((), {"latents": [_ui_entry(ctx, path, "output")]})


# --- files --------------------------------------------------------------------------------------


def _output_path(ctx: NodeContext, images: Images | None = None) -> OutputPath:
    prefix = expand_prefix(ctx.text("filename_prefix"), ctx.graph)
    size = (0, 0) if images is None else (images.width, images.height)
    try:
        return next_output_path(ctx.engine.folders.output, prefix, size)
    except WorkflowError as error:
        raise ctx.error(error.message, error.hint) from error


def _temporary_path(ctx: NodeContext) -> OutputPath:
    return next_output_path(ctx.engine.folders.temp, f"{TEMP_PREFIX}_{secrets.token_hex(3)}")


def _root(ctx: NodeContext, kind: str) -> Path:
    return ctx.engine.folders.temp if kind == "temp" else ctx.engine.folders.output


def _ui_entry(ctx: NodeContext, path: Path, kind: str) -> dict[str, str]:
    subfolder = path.parent.relative_to(_root(ctx, kind)).as_posix()
    return {"filename": path.name, "subfolder": "" if subfolder == "." else subfolder, "type": kind}


def _written_before(ctx: NodeContext, kind: str, index: int = 0) -> Path | None:
    """The file that an earlier, killed run of the same job wrote at this position."""
    return ctx.journal.find(ctx.node.id, index, _root(ctx, kind))


def _write_file(
    ctx: NodeContext, target: OutputPath, suffix: str, data: bytes, place: tuple[int, int] = (0, 0)
) -> Path:
    """Write a file atomically under the next free name.

    ``place`` is its position among the files of the node, and among those written now.
    """
    index, offset = place
    part = part_path(target.path(suffix))
    with convert_write_errors(MediaError, target.path(suffix).name, target.folder, len(data)):
        try:
            write_atomically(part, data)
            record = ctx.journal.recorder(ctx.node.id, index, part)
            return claim_path(target, suffix, part, offset, record)
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
        "SaveAudio": NodeFunction(_make_audio_saver(".flac", "flac")),
        "SaveAudioMP3": NodeFunction(_make_audio_saver(".mp3", "libmp3lame")),
        "SaveAudioOpus": NodeFunction(_make_audio_saver(".opus", "libopus")),
        "PreviewAudio": NodeFunction(_make_audio_saver(".flac", "flac", preview=True)),
        "SaveLatent": NodeFunction(save_latent),
    }
)
