"""Uploaded files: a folder for each, with the file and what is known about it."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.errors import MediaError
from latent_ladder.server.ladder_api.api_errors import ApiError, not_found
from latent_ladder.server.request_progress import now_iso
from latent_ladder.storage.atomic_write import commit, convert_write_errors, write_atomically
from latent_ladder.storage.temporary_files import remove_abandoned

_ID = re.compile(r"[0-9a-f]{16}")
_BAD = re.compile(r'[\x00-\x1f<>:"/\\|?*%\x7f]')
INFO = "info.json"
LONGEST_NAME = 120
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass(frozen=True)
class UploadStore:
    """The uploads in one folder."""

    folder: Path

    def remove_partial(self) -> None:
        """Delete the files of uploads whose server was killed while they arrived."""
        remove_abandoned([self.folder])

    def add(self, part: Path, name: str) -> dict[str, Any]:
        """Keep the file ``part`` under the client's name. Raises :class:`ApiError` for a file
        that is no image, video or sound; it is deleted then.
        """
        upload_id = secrets.token_hex(8)
        place = self.folder / upload_id
        with convert_write_errors(MediaError, f"the upload {name[:80]}", self.folder):
            place.mkdir(parents=True)
            path = place / safe_name(name)
            commit(part, path)
        try:
            info = inspect(path, name)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        info |= {"id": upload_id, "file": path.name, "created": now_iso()}
        data = json.dumps(info).encode()
        with convert_write_errors(MediaError, f"the upload {name[:80]}", place, len(data)):
            write_atomically(place / INFO, data)
        return self.describe(upload_id)

    def describe(self, upload_id: str) -> dict[str, Any]:
        """The properties of an upload, with its addresses. Raises :class:`ApiError`."""
        info = dict(self._info(upload_id))
        info.pop("file")
        place = f"/ladder/uploads/{upload_id}"
        has_picture = info["kind"] != "audio"
        return info | {
            "url": f"{place}/file",
            "thumbnail_url": f"{place}/thumbnail" if has_picture else None,
            "proxy_url": None if info["playable"] else f"{place}/file?proxy=1",
        }

    def path(self, upload_id: str) -> Path:
        """The file of an upload. Raises :class:`ApiError`."""
        found = self.folder / upload_id / str(self._info(upload_id)["file"])
        if not found.is_file():
            raise not_found(f"file of upload {upload_id} any more", "upload it again")
        return found

    def remove(self, upload_id: str) -> None:
        """Delete an upload. Raises :class:`ApiError`."""
        self._info(upload_id)
        shutil.rmtree(self.folder / upload_id, ignore_errors=True)

    def _info(self, upload_id: str) -> dict[str, Any]:
        hint = "upload the file again"
        if not _ID.fullmatch(upload_id):
            raise not_found(f"upload {upload_id[:40]!r}", hint)
        try:
            info = json.loads((self.folder / upload_id / INFO).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise not_found(f"upload {upload_id}", hint) from error
        return dict(info)


def safe_name(name: str) -> str:
    """A file name without folders and characters that a system refuses; the suffix stays."""
    plain = _BAD.sub("_", name.replace("\\", "/").rsplit("/", 1)[-1]).strip(". ")
    plain = plain.encode("utf-8", "ignore").decode()
    suffix = Path(plain).suffix if _SUFFIX.fullmatch(Path(plain).suffix) else ""
    stem = plain[: len(plain) - len(suffix)] if suffix else plain
    while len(stem.encode()) > LONGEST_NAME:
        stem = stem[:-1]
    return f"{stem or 'file'}{suffix}"


def inspect(path: Path, name: str) -> dict[str, Any]:
    """Kind and properties of a file by its content. Raises :class:`ApiError` (422, 415)."""
    size = path.stat().st_size
    if size == 0:
        raise ApiError(422, "empty", f"{name[:80]} is empty: 0 bytes", "choose another file")
    reasons = []
    for read in (_image, _video, _audio):
        try:
            found = read(path)
        except MediaError as error:
            reasons.append(error.message)
        else:
            if found is not None:
                return {"name": name[:200], "bytes": size, **found}
    raise ApiError(
        415,
        "wrong_kind",
        f"{name[:80]} is no image, video or sound that can be read",
        "use PNG, JPEG, WebP, EXR, MP4, MOV, WebM, WAV, FLAC or MP3",
    )


def _image(path: Path) -> dict[str, Any] | None:
    from latent_ladder.media.hdr import EXR_SUFFIX, load_exr
    from latent_ladder.media.image_input import check_image
    from latent_ladder.media.video_input import is_image

    if path.suffix.lower() == EXR_SUFFIX:
        height, width = load_exr(path).shape[:2]
        facts = _facts("image", (width, height), notes=["HDR: linear light"])
        return facts | {"playable": False}
    if not is_image(path):
        return None
    found = check_image(path)
    return _facts("image", found.size, notes=list(found.notes))


def _video(path: Path) -> dict[str, Any] | None:
    from latent_ladder.media.video_input import check_video

    found = check_video(path)
    notes = list(found.notes)
    notes += ["rotated"] if found.rotated else []
    notes += ["frames last for different times"] if found.variable_rate else []
    return _facts("video", found.size, notes=notes) | {
        "playable": _plays(path),
        "frames": found.frames,
        "fps": float(found.fps),
        "seconds": round(found.duration_s, 3),
        "has_sound": found.has_audio,
    }


def _plays(path: Path) -> bool:
    """True for a video that every browser plays: 8-bit H.264, VP8, VP9 or AV1."""
    from latent_ladder.media.open_media import open_media, video_stream

    with open_media(path) as container:
        stream = video_stream(container, path)
        form, codec = container.format.name, stream.codec_context
        pixels = codec.pix_fmt in ("yuv420p", "yuvj420p")
        known = codec.name in ("h264", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9")
        return bool(pixels and known and ("mp4" in form or "webm" in form))


def _audio(path: Path) -> dict[str, Any] | None:
    from latent_ladder.media.audio_input import check_audio

    found = check_audio(path)
    sound = {"seconds": round(found.duration_s, 3), "has_sound": True}
    return _facts("audio", (None, None), notes=[]) | sound


def _facts(kind: str, size: tuple[int | None, int | None], notes: list[str]) -> dict[str, Any]:
    return {
        "kind": kind,
        "width": size[0],
        "height": size[1],
        "frames": None,
        "fps": None,
        "seconds": None,
        "has_sound": False,
        "playable": True,
        "notes": notes,
    }
