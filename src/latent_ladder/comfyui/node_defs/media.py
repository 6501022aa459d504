"""Definitions of video and audio nodes: load, trim, combine, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from latent_ladder.comfyui.node_defs.builders import (
    MAX_SEED,
    choice,
    dynamic_combo,
    file,
    flag,
    integer,
    link,
    node,
    number,
    text,
)
from latent_ladder.comfyui.node_defs.schema import Input

VIDEO = link("video", "VIDEO")
AUDIO = link("audio", "AUDIO")
PREFIX = text("filename_prefix", "video/ComfyUI")
SOUND_PREFIX = text("filename_prefix", "audio/ComfyUI")


def _codec(name: str, *codecs: str) -> Input:
    """Return a video codec input; the codec and its encoding mode select further inputs."""
    quality = {"h264": (23.0, 51), "av1": (30.0, 63)}

    def encoding(codec: str) -> Sequence[Input]:
        default, high = quality[codec]
        inner = f"{name}.encoding"
        shown = {"auto": (), "re-encode": (number(f"{inner}.crf", default, 0, high, 1),)}
        return (dynamic_combo(inner, shown, required=False),)

    branches = {one: encoding(one) if one in quality else () for one in codecs}
    return dynamic_combo(name, branches, required=False)


VIDEOS = (
    node(
        "LoadVideo",
        "Load Video",
        "video",
        [file("file", "input", extra_widgets=("upload",))],
        "VIDEO",
    ),
    node(
        "GetVideoComponents",
        "Get Video Components",
        "video",
        [VIDEO],
        "IMAGE images",
        "AUDIO audio",
        "FLOAT fps",
        "COMBO bit_depth",
        "COMBO color_space",
    ),
    node(
        "CreateVideo",
        "Create Video",
        "video",
        [
            link("images", "IMAGE"),
            number("fps", 30.0, 1, 120, 1),
            link("audio", "AUDIO", required=False),
            choice("bit_depth", ("auto", "8", "10"), required=False),
            choice("color_space", ("sRGB", "HDR", "HDR PQ"), required=False),
            choice("codec", ("none", "auto", "h264", "av1"), required=False),
        ],
        "VIDEO",
    ),
    # older graphs have the codec next to the format, not inside it
    node(
        "SaveVideo",
        "Save Video",
        "video",
        [
            VIDEO,
            PREFIX,
            dynamic_combo(
                "format",
                {
                    "auto": [_codec("format.codec", "auto", "h264", "av1")],
                    "mp4": [_codec("format.codec", "auto", "h264", "av1")],
                    "mkv": [_codec("format.codec", "auto", "h264", "av1")],
                    "webm": [_codec("format.codec", "auto", "av1")],
                },
            ),
            replace(_codec("codec", "auto", "h264", "av1"), is_old=True),
        ],
        "VIDEO video",
        is_output=True,
    ),
    node(
        "SaveWEBM",
        "Save WEBM",
        "video",
        [
            link("images", "IMAGE"),
            text("filename_prefix", "ComfyUI"),
            choice("codec", ("vp9", "av1")),
            number("fps", 24.0, 0.01, 1000),
            number("crf", 32.0, 0, 63, 1),
        ],
        "IMAGE images",
        is_output=True,
    ),
    node(
        "Video Slice",
        "Trim Video",
        "video",
        [
            VIDEO,
            number("start_time", 0.0, -1e5, 1e5, 0.001),
            number("duration", 0.0, 0, 1e9, 0.001),
            flag("strict_duration"),
        ],
        "VIDEO",
    ),
)

SOUNDS = (
    node(
        "LoadAudio",
        "Load Audio",
        "audio",
        [file("audio", "input", extra_widgets=("audioUI", "upload"))],
        "AUDIO",
    ),
    node(
        "SaveAudio",
        "Save Audio (FLAC)",
        "audio",
        [AUDIO, SOUND_PREFIX],
        "AUDIO audio",
        is_output=True,
    ),
    node(
        "SaveAudioMP3",
        "Save Audio (MP3)",
        "audio",
        [AUDIO, SOUND_PREFIX, choice("quality", ("V0", "128k", "320k"))],
        "AUDIO audio",
        is_output=True,
    ),
    node(
        "SaveAudioOpus",
        "Save Audio (Opus)",
        "audio",
        [AUDIO, SOUND_PREFIX, choice("quality", ("64k", "96k", "128k", "192k", "320k"), "128k")],
        "AUDIO audio",
        is_output=True,
    ),
    node("PreviewAudio", "Preview Audio", "audio", [AUDIO], "AUDIO audio", is_output=True),
    node(
        "TrimAudioDuration",
        "Trim Audio Duration",
        "audio",
        [
            AUDIO,
            number("start_index", 0.0, -MAX_SEED, MAX_SEED),
            number("duration", 60.0, 0, MAX_SEED),
        ],
        "AUDIO",
    ),
    node(
        "EmptyAudio",
        "Empty Audio",
        "audio",
        [
            number("duration", 60.0, 0, MAX_SEED),
            integer("sample_rate", 44100, 1, 192000),
            integer("channels", 2, 1, 2),
        ],
        "AUDIO",
    ),
    node(
        "RecordAudio",
        "Record Audio",
        "audio",
        [link("audio", "AUDIO_RECORD")],
        "AUDIO",
        unsupported_reason="it records from the microphone of a browser: use LoadAudio",
    ),
)

NODE_DEFS = (*VIDEOS, *SOUNDS)
