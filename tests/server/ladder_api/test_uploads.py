"""Uploads: every kind of file and of name, limits, pictures, waveforms, deletion."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from helpers.in_process_server import Answer
from helpers.stored_runs import write_clip
from helpers.studio_server import PROMPT, StudioServer
from PIL import Image

from latent_ladder.server.config import Limits
from latent_ladder.server.ladder_api.upload_store import safe_name


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StudioServer]:
    """A server that takes files of up to 1 MiB."""
    with StudioServer(tmp_path, limits=Limits(upload=2**20)) as running:
        yield running


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(out, "PNG")
    return out.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    """A tone."""
    out = io.BytesIO()
    tone = np.sin(np.arange(int(seconds * 48_000)) / 20) * 16_000
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(tone.astype("<i2").tobytes())
    return out.getvalue()


def send(server: StudioServer, data: bytes, name: str) -> Answer:
    """Upload a file as the body of a request."""
    headers = {"X-File-Name": quote(name, safe="")}
    return server.request("POST", "/ladder/uploads", data, headers)


def send_form(server: StudioServer, data: bytes, name: str, field: str = "file") -> Answer:
    """Upload a file in a form."""
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return server.request("POST", "/ladder/uploads", body, headers)


def leftovers(server: StudioServer) -> list[str]:
    """Files in the folder of uploads."""
    folder = server.studio.uploads.folder
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_a_picture_is_stored_and_used_in_a_request(server: StudioServer) -> None:
    info = send_form(server, png(), "ball.png").json
    assert (info["kind"], info["width"], info["height"]) == ("image", 64, 48)
    assert server.get(info["url"]).body == png()
    assert server.get(info["thumbnail_url"]).body[8:12] == b"WEBP"
    assert server.get(f"/ladder/uploads/{info['id']}").json == info
    images = [{"file": {"upload": info["id"]}, "frame": 0}]
    plan = server.post("/ladder/plan", {"request": {"prompt": PROMPT, "images": images}})
    assert plan.status == 200, plan.body
    assert plan.json["request"]["images"][0]["file"].endswith("ball.png")
    assert server.get(f"/ladder/uploads/{info['id']}/waveform").status == 415


def test_a_video_and_a_sound_have_their_properties(server: StudioServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4").read_bytes()
    video = send(server, clip, "clip.mp4").json
    assert (video["kind"], video["frames"], video["fps"]) == ("video", 9, 8.0)
    assert video["playable"] and video["proxy_url"] is None
    sound = send(server, wav(), "tone.wav").json
    assert (sound["kind"], sound["seconds"], sound["thumbnail_url"]) == ("audio", 0.5, None)
    found = server.get(f"/ladder/uploads/{sound['id']}/waveform?points=10").json
    assert found["seconds"] == 0.5 and len(found["peaks"]) == 10
    low, high = found["peaks"][4]
    assert low == pytest.approx(-0.488, abs=0.01) and high == pytest.approx(0.488, abs=0.01)
    assert server.get(f"/ladder/uploads/{sound['id']}/thumbnail").status == 404
    assert server.get(f"/ladder/uploads/{sound['id']}/waveform?points=0").status == 422


def test_a_file_is_known_by_its_content(server: StudioServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4").read_bytes()
    assert send(server, clip, "clip").json["kind"] == "video"
    assert send(server, wav(), "tone.mp4").json["kind"] == "audio"


@pytest.mark.parametrize(
    ("data", "name", "status", "code"),
    [
        (b"", "empty.png", 422, "empty"),
        (b"hello", "text.png", 415, "wrong_kind"),
        (b"<svg/>", "page.svg", 415, "wrong_kind"),
        (b"\0" * 5000, "zeros.mp4", 415, "wrong_kind"),
        (png()[:60], "cut.png", 415, "wrong_kind"),
        (b"x" * (2**20 + 1), "large.mp4", 413, "too_large"),
    ],
)
def test_wrong_files_are_refused_and_leave_nothing(
    server: StudioServer, data: bytes, name: str, status: int, code: str
) -> None:
    for answer in (send(server, data, name), send_form(server, data, name)):
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
        assert answer.json["error"]["hint"]
    assert leftovers(server) == []


def test_a_request_without_a_file_or_a_name_is_refused(server: StudioServer) -> None:
    assert server.request("POST", "/ladder/uploads", png()).status == 422
    assert send_form(server, png(), "x.png", field="image").status == 422
    assert send_form(server, png(), "").status == 422
    assert leftovers(server) == []


@pytest.mark.parametrize(
    "name",
    ["ä ö.png", "日本語.png", "../../etc/passwd.png", "C:\\x\\con.png", "a%05d.png", "-rf.png",
     "é" * 200 + ".png", "..", "a\nb.png", "'; DROP TABLE.png", "x.png.", "🎬.png", ".png"],
)  # fmt: skip
def test_every_name_is_kept_for_the_eye_and_made_safe_on_disk(
    server: StudioServer, name: str
) -> None:
    info = send(server, png(), name)
    assert info.status in (201, 415), info.body
    if info.status == 201:
        assert info.json["name"] == name[:200]
        assert server.get(info.json["url"]).body == png()
    stored = safe_name(name)
    assert not set(stored) & set('/\\%:\0\n"') and stored.strip(".")
    assert len(stored.encode()) <= 140
    folder = server.studio.uploads.folder
    assert all(path.is_relative_to(folder) for path in folder.rglob("*"))


def test_an_upload_is_deleted_unless_a_job_needs_it(server: StudioServer) -> None:
    info = send(server, png(), "x.png").json
    place = f"/ladder/uploads/{info['id']}"
    images = [{"file": f"upload:{info['id']}", "frame": 0}]
    job = server.make_job(kind="make", request={"prompt": PROMPT, "images": images})
    assert server.request("DELETE", place).status == 409
    server.post(f"/ladder/jobs/{job['id']}/cancel")
    assert server.request("DELETE", place).json == {"done": True}
    assert server.get(place).status == 404
    assert leftovers(server) == []


def test_a_full_disk_is_said(server: StudioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latent_ladder.server.ladder_api.upload_store.commit", full)
    answer = send(server, png(), "x.png")
    assert answer.status == 507 and "free" in answer.body.decode()


def test_an_upscale_takes_an_upload(server: StudioServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4").read_bytes()
    info = send(server, clip, "clip.mp4").json
    plan = server.post("/ladder/plan", {"kind": "upscale", "upload": info["id"]})
    assert plan.status == 200, plan.body
    assert (plan.json["request"]["width"], plan.json["request"]["frames"]) == (128, 9)
    job = server.make_job(kind="upscale", request={}, upload=info["id"], by=2.0)
    assert job["title"] == "clip.mp4 x2"
