"""Warnings: each one in its case, with its numbers, and in no other."""

from __future__ import annotations

import pytest

from latent_ladder.diagnostics.request_warnings import advise, refine_start
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.presets import read_preset

PROMPT = "A dog runs along the beach while the sun sets behind it."


def request(*sets: str, preset: str = "conservative") -> Request:
    fields = read_preset(preset).fields | {"prompt": PROMPT, "seed": 1}
    return Request.from_dict(apply_sets(fields, ("width=1280", "height=768", *sets)))


def codes(*sets: str, preset: str = "conservative") -> list[str]:
    return [a.code for a in advise(request(*sets, preset=preset))]


CASES = [
    ("base.guidance.video.cfg=4.6", "cfg_high", ["4.6", "4.5", "stiff"]),
    ("refine.denoise=0.75", "denoise_high", ["denoise 0.75", "start sigma 0.97", "0.7", "motion"]),
    ("refine.denoise=0.15", "denoise_low", ["0.15", "below 0.2", "0.4"]),
    ("refine.denoise=0.25", "denoise_blurry", ["0.25", "start sigma 0.7", "below 0.3", "0.4"]),
    ("refine.sigmas=0.7,0.4,0", "denoise_low", ["start sigma 0.7", "denoise 0.18"]),
    ("refine.sigmas=1,0.5,0", "denoise_high", ["start sigma 1", "denoise 1.00"]),
    ("refine.seed=7", "seed_differs", ["seed 7", "(1)"]),
    ("frames=489", "windows", ["20.38 s", "2 windows of 10.71 s", "24 frames"]),
    ("fps=60", "fps_high", ["60 fps", "50"]),
    ("width=2112", "tiled", ["2112x768", "2048"]),
    ("height=720", "size_rounded", ["1280x720", "1280x768"]),
    ("duration_s=4.9", "duration_differs", ["4.9 s", "5.04 s", "121 frames"]),
    ("base.sigmas=0.9,0.5,0", "base_start", ["0.9"]),
    ("prompt=dog, beach, sunset, 8k, masterpiece", "tag_list", ["5 pieces", "0%"]),
]


@pytest.mark.parametrize(("text", "code", "numbers"), CASES, ids=lambda v: str(v)[:30])
def test_warnings(text: str, code: str, numbers: list[str]) -> None:
    found = [a for a in advise(request(text)) if a.code == code]
    assert len(found) == 1
    for number in numbers:
        assert number in found[0].message


@pytest.mark.parametrize(
    "text",
    [
        "base.guidance.video.cfg=4.5",
        "refine.denoise=0.7",
        "refine.denoise=0.3",
        "refine.sigmas=0.85,0.725,0.4219,0",
        "refine.sigmas=0.909375,0.725,0.421875,0",
        "refine.seed=1",
        "frames=481",
        "fps=50",
        "width=2048",
        "prompt=A man, a dog, a cat, and a bird walk past the old house in the rain, then stop.",
    ],
)
def test_requests_without_warnings(text: str) -> None:
    assert codes(text) == []


def test_an_unused_negative_prompt_is_mentioned_unless_the_preset_sets_it() -> None:
    assert codes(preset="comfy-template") == []
    assert codes("negative_prompt=blurry", preset="comfy-template") == ["negative_unused"]
    assert codes("negative_prompt=blurry") == []


def test_a_seed_of_the_preset_has_no_warning() -> None:
    assert codes(preset="lightricks-workflow") == []
    assert codes("refine.seed=8", preset="lightricks-workflow") == ["seed_differs"]


def test_notes_are_not_warnings() -> None:
    levels = {a.code: a.level for a in advise(request("height=720", "duration_s=4.9", "fps=60"))}
    assert levels == {"size_rounded": "note", "duration_differs": "note", "fps_high": "warning"}


@pytest.mark.parametrize(
    ("text", "denoise", "sigma"),
    [
        ("refine.sigmas=0.85,0.725,0.4219,0", 0.346, 0.85),
        ("refine.sigmas=0.909375,0.725,0.421875,0", 0.484, 0.909375),
        ("refine.schedule={name='simple', steps=3}", 0.35, 0.8652),
    ],
)
def test_refine_start_as_denoise_and_sigma(text: str, denoise: float, sigma: float) -> None:
    start = refine_start(request(text), 2)
    assert start.denoise == pytest.approx(denoise, abs=1e-3)
    assert start.sigma == pytest.approx(sigma, abs=1e-4)
    assert str(start).startswith(f"denoise {denoise:.2f} = start sigma 0.")


def test_a_start_of_the_preset_has_no_warning() -> None:
    fields = read_preset("pocket").fields | {"prompt": PROMPT}
    assert "denoise_blurry" not in [a.code for a in advise(Request.from_dict(fields))]
    changed = Request.from_dict(apply_sets(fields, ["refine.denoise=0.28"]))
    assert "denoise_blurry" in [a.code for a in advise(changed)]
