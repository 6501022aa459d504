"""Paths of this machine in the request of somebody's clip, and requests that are too large."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_clips import FIELDS

from latent_ladder.errors import RequestError
from latent_ladder.request.files import read_request
from latent_ladder.request.model import Request
from latent_ladder.request.outside_paths import check_outside_paths, outside_paths

BASE, *OTHERS = FIELDS["stages"]


def fields(**changes: Any) -> dict[str, Any]:
    return Request.from_dict({**FIELDS, **changes}).to_dict()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": [{"file": "/home/you/photo.png"}]}, {"images[0].file": "/home/you/photo.png"}),
        ({"images": [{"file": "photo.png"}]}, {}),
        ({"audio_in": "../../secret.wav"}, {"audio_in": "../../secret.wav"}),
        ({"audio_in": "~/secret.wav"}, {"audio_in": "~/secret.wav"}),
        ({"video": {"file": "C:\\v.mp4", "denoise": 0.5}}, {"video.file": "C:\\v.mp4"}),
        ({"video": {"file": "\\\\host\\v.mp4", "denoise": 1}}, {"video.file": "\\\\host\\v.mp4"}),
        ({"models": {"folders": ["models"]}}, {"models.folders": "models"}),
        ({"models": {"checkpoint": "/m/x.gguf"}}, {"models.checkpoint": "/m/x.gguf"}),
        ({"models": {"checkpoint": "x.gguf"}}, {}),
        (
            {"stages": [{**BASE, "loras": [{"name": "/l/a.safetensors"}]}, *OTHERS]},
            {"stages[0].loras[0].name": "/l/a.safetensors"},
        ),
        (
            {"stages": [BASE, *OTHERS, {"kind": "upscale", "name": "/u/x.pth"}]},
            {"stages[3].name": "/u/x.pth"},
        ),
    ],
)
def test_paths_that_lead_out_of_the_working_folder_are_found(
    changes: dict[str, Any], expected: dict[str, str]
) -> None:
    assert outside_paths(fields(**changes)) == expected


def test_all_paths_are_listed_and_those_that_the_user_named_are_not() -> None:
    clip = fields(images=[{"file": "/a.png"}, {"file": "/b.png", "frame": -1}], audio_in="/c.wav")
    with pytest.raises(RequestError, match="names 3 paths") as caught:
        check_outside_paths(clip, clip, (), "clip.mp4")
    assert [m.partition("=")[0] for m, _ in caught.value.problems] == [
        "images[0].file", "images[1].file", "audio_in",
    ]  # fmt: skip
    assert all(hint and "--allow-paths" in hint for _, hint in caught.value.problems)
    check_outside_paths(clip, clip, ("/a.png", "/b.png", "/c.wav"), "clip.mp4")
    replaced = fields(images=[{"file": "/mine.png"}])
    check_outside_paths(replaced, clip, (), "clip.mp4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "word " * 1_800_000}, "prompt is 9,000,000 characters long"),
        ({"stages": [BASE, *OTHERS * 500]}, "stages has 1,001 entries, expected at most 32"),
        ({"stages": [{**BASE, "sigmas": [1.0] * 10**6}]}, r"stages\[0\].sigmas has 1,000,000"),
    ],
)
def test_a_huge_request_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(RequestError, match=message):
        Request.from_dict({**FIELDS, **changes})
    assert time.monotonic() - began < 1


def test_a_huge_request_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    path.write_text(f'prompt = "{"x" * 9_000_000}"\n')
    with pytest.raises(RequestError, match="too large: 9,000,012 bytes"):
        read_request(path)
