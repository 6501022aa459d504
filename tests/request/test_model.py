"""Requests: accepted and rejected values, error messages, round trips through TOML and JSON."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from typing import Any

import pytest
from helpers.request_stages import stages_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request, override
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.refine_tiles import Tiles
from latent_ladder.sampling.names import SAMPLER_FACTS

TABLE: dict[str, Any] = {
    "prompt": "A red ball rolls across a wooden floor.",
    "seed": 5,
    "width": 1280,
    "height": 720,
    "fps": "24",
    "frames": 121,
    "stages": [
        {
            "kind": "base",
            "schedule": {"name": "ltx", "steps": 20},
            "guidance": {"video": {"cfg": 3.0}},
        },
        {"kind": "upsample", "factor": 2.0},
        {
            "kind": "refine",
            "sigmas": [0.85, 0.725, 0.4219, 0.0],
            "loras": [{"role": "distilled", "strength": 0.5}],
        },
    ],
}


def table(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(TABLE) | changes


def with_set(*sets: str) -> Request:
    return Request.from_dict(apply_sets(TABLE, sets))


def names_of(request: Request) -> tuple[str, ...]:
    return tuple(stage.name for stage in request.resolved.stages)


def error_of(fields: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        Request.from_dict(fields)
    assert caught.value.exit_code == 2
    return caught.value


# ---------------------------------------------------------------------------------------------
# geometry


def test_resolutions_and_names_of_stages() -> None:
    request = Request.from_dict(TABLE)
    assert [str(resolution) for resolution in request.resolutions] == [
        "640x384, 121 frames",
        "1280x768, 121 frames",
        "1280x768, 121 frames",
    ]
    assert request.resolved.crop == (0, 24, 1280, 720)
    assert names_of(request) == ("base", "upsample", "refine")
    assert request.resolved.stages[2].sigmas == (0.85, 0.725, 0.4219, 0.0)
    assert len(request.resolved.stages[0].sigmas) == 21
    assert request.resolved.stages[1].sigmas == ()
    assert [stage.steps for _, stage in request.sampling_stages()] == [20, 3]


def test_duration_becomes_the_nearest_legal_frames_and_is_stored() -> None:
    fields = table(duration_s=5.0, fps=25)
    del fields["frames"]
    request = Request.from_dict(fields)
    assert (request.frames, request.duration_s, request.fps) == (121, 5.0, Fraction(25))
    assert Request.from_toml(request.to_toml()) == request


def test_a_temporal_upsampler_needs_16k_plus_1_frames() -> None:
    stages = [{"kind": "base", "sigmas": "1 0"}, {"kind": "upsample", "axis": "temporal"}]
    request = Request.from_dict(table(stages=stages, frames=97, fps=48))
    assert [(r.frames, r.fps) for r in request.resolutions] == [
        (49, Fraction(24)),
        (97, Fraction(48)),
    ]
    error = error_of(table(stages=stages, frames=105, fps=48))
    assert error.message == "frames=105 is not 16k+1"
    assert error.hint == "use frames=97 (2.02 s at 48 fps) or frames=113"


def test_fps_is_exact() -> None:
    assert Request.from_dict(table(fps=29.97)).fps == Fraction(30000, 1001)
    assert Request.from_dict(table(fps="23.976")).to_dict()["fps"] == "24000/1001"


def test_seeds_are_picked_once_and_inherited() -> None:
    asked = Request.from_dict(table(seed=-1))
    picked = asked.pick_seed()
    assert 0 <= picked.seed < 2**32
    assert picked.pick_seed() is picked
    assert picked.stage_seed(0) == picked.stage_seed(2) == picked.seed
    assert with_set("refine.seed=42").stage_seed(2) == 42
    with pytest.raises(RequestError, match="seed=-1 is not resolved"):
        asked.stage_seed(0)


def test_the_negative_prompt_counts_only_where_a_stage_uses_it() -> None:
    assert Request.from_dict(TABLE).needs_negative
    assert not with_set("base.guidance.video.cfg=1").needs_negative
    assert with_set("base.guidance.video.cfg=1", "refine.sampler=euler_cfg_pp").needs_negative
    assert "negative_prompt" not in with_set("base.guidance.video.cfg=1").prompt_fields()


def test_denoise_starts_where_comfyui_starts() -> None:
    request = with_set("refine.denoise=0.4")
    assert [round(s, 4) for s in request.resolved.stages[2].sigmas] == [0.8892, 0.8106, 0.6407, 0.0]


def test_token_dependent_schedules_use_the_canvas_of_the_stage() -> None:
    hq = with_set("width=1920", "height=1088", "base.steps=15", "base.schedule.tokens=actual")
    assert [round(s, 4) for s in hq.resolved.stages[0].sigmas][:4] == [1.0, 0.9935, 0.986, 0.9773]


def test_the_geometry_is_resolved_once_and_again_for_a_copy() -> None:
    request = Request.from_dict(table(seed=-1))
    resolved = request.resolved
    assert request.resolved is resolved
    assert [stage.name for stage in resolved.stages] == ["base", "upsample", "refine"]
    assert [stage.resolution for stage in resolved.stages] == list(request.resolutions)
    assert [stage.seed for stage in resolved.stages] == [None, None, None]
    assert resolved.has_sound
    picked = request.pick_seed()
    assert [stage.seed for stage in picked.resolved.stages] == [picked.seed] * 3
    silent = request.model_copy(update={"audio": "none"})
    assert not silent.resolved.has_sound
    assert request.resolved is resolved


def test_tokens_of_tiles_cover_each_window() -> None:
    sets = ("width=4096", "height=2304", "duration_s=30")
    request = Request.from_dict(apply_sets(TABLE, sets))
    base, _, refine = request.resolved.stages
    assert len(refine.windows) == len(base.windows) == 2
    assert base.tiles is None
    assert refine.tiles is not None
    for window in refine.windows:
        part = window.resolution(refine.resolution)
        tokens = refine.tile_tokens(window)
        assert len(tokens) == len(refine.tiles.rows) * len(refine.tiles.cols) > 1
        assert sum(tokens) > part.video_tokens
        assert base.tile_tokens(base.windows[0]) == (
            base.windows[0].resolution(base.resolution).video_tokens,
        )


# ---------------------------------------------------------------------------------------------
# round trips


def test_equal_requests_are_equal_text_and_hash() -> None:
    one, other = Request.from_dict(TABLE), Request.from_json(json.dumps(TABLE))
    assert one == other
    assert hash(one) == hash(other)
    assert one.to_json() == other.to_json()
    assert one.to_json() == json.dumps(
        json.loads(one.to_json()), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def test_a_request_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Request.from_dict(TABLE).seed = 6


strength = st.floats(-100, 100)
seeds = st.integers(0, 2**64 - 1)
share = st.floats(0, 1)
falling = st.lists(st.floats(1e-6, 1.0, exclude_min=True), min_size=1, max_size=6, unique=True).map(
    lambda values: [*sorted(values, reverse=True), 0.0]
)
guidance = st.fixed_dictionaries(
    {"cfg": st.floats(0, 100), "rescale": share},
    optional={"skip_step": st.integers(0, 3), "stg_blocks": st.lists(st.integers(0, 47))},
)
sampling = st.fixed_dictionaries(
    {
        "sampler": st.sampled_from(sorted(SAMPLER_FACTS)),
        "sigmas": falling,
        "seed": st.one_of(st.just("same"), seeds),
        "guidance": st.fixed_dictionaries({"video": guidance, "audio": guidance}),
        "loras": st.lists(
            st.fixed_dictionaries({"name": st.text(min_size=1), "strength": strength}), max_size=2
        ),
    },
    optional={"options": st.fixed_dictionaries({}, optional={"eta": share, "s_noise": share})},
)
climb = st.tuples(
    st.fixed_dictionaries(
        {"kind": st.just("upsample"), "factor": st.sampled_from([1.5, 2, 2.0]), "adain": share}
    ),
    sampling.map(lambda stage: stage | {"kind": "refine"}),
)
requests = st.fixed_dictionaries(
    {
        "prompt": st.text(min_size=1).filter(str.strip),
        "negative_prompt": st.text(),
        "seed": st.one_of(st.just(-1), seeds),
        "width": st.integers(16, 2000).map(lambda n: 2 * n),
        "height": st.integers(16, 2000).map(lambda n: 2 * n),
        "frames": st.integers(0, 60).map(lambda k: 8 * k + 1),
        "fps": st.sampled_from(["24", "24000/1001", 29.97, 50, 12.5, "59.94"]),
        "audio": st.sampled_from(["refine", "keep", "none"]),
        "stages": st.tuples(
            sampling.map(lambda stage: stage | {"kind": "base"}), st.lists(climb, max_size=2)
        ).map(lambda t: [t[0], *(stage for pair in t[1] for stage in pair)]),
        "models": st.fixed_dictionaries({}, optional={"checkpoint": st.text(min_size=1)}),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests)
def test_toml_and_json_round_trip(fields: dict[str, Any]) -> None:
    request = Request.from_dict(fields)
    assert Request.from_toml(request.to_toml()) == request
    assert Request.from_json(request.to_json()) == request
    assert Request.from_json(request.to_json()).to_json() == request.to_json()
    assert Request.from_dict(request.to_dict()) == request


def test_text_that_is_not_a_request() -> None:
    with pytest.raises(RequestError, match="not TOML"):
        Request.from_toml("prompt = ")
    with pytest.raises(RequestError, match="not JSON"):
        Request.from_json("{")
    with pytest.raises(RequestError, match="not a JSON object"):
        Request.from_json("[]")


# ---------------------------------------------------------------------------------------------
# errors

NAN = float("nan")
WRONG = [
    ({"frames": 100}, "frames=100 is not 8k+1", "use frames=97 (4.04 s at 24 fps) or frames=105"),
    ({"frames": 0}, "frames=0 is not 8k+1", "use frames=1 (0.04 s at 24 fps)"),
    ({"frames": -7}, "frames=-7 is not 8k+1", "frames=1 "),
    ({"frames": 121.0}, "frames=121.0 is not a number of frames", "such as 121"),
    ({"frames": None}, "frames=None is missing", "frames=121"),
    ({"frames": 10**9}, "frames=1000000000 is above 100001", "use frames=100001"),
    ({"duration_s": 9.0}, "frames=121 does not agree with duration_s=9", "frames=217"),
    ({"width": 0}, "width=0 is outside 32 to 16384", "use width=32"),
    ({"height": -720}, "height=-720 is outside", "use height=32"),
    ({"width": 20000}, "width=20000 is outside", "use width=16384"),
    ({"width": 1281}, "width=1281 is odd", "use width=1282"),
    ({"width": 12.5}, "width=12.5 is not a number of pixels", "1280"),
    ({"width": True}, "width=True is not a number of pixels", "1280"),
    ({"fps": 0}, "fps=0 is not a possible frame rate", "23.976"),
    ({"fps": -24}, "fps=-24 is not", "23.976"),
    ({"fps": NAN}, "fps=nan is not", "23.976"),
    ({"seed": 1.5}, "seed=1.5 is not an integer", "whole number"),
    ({"seed": "abc"}, "seed='abc' is not an integer", "whole number"),
    ({"seed": True}, "seed=True is not an integer", "whole number"),
    ({"seed": 2**64}, f"seed={2**64} is not a seed from 0", f"use seed={2**64 - 1}"),
    ({"seed": -2}, "seed=-2 is not a seed from 0", "use seed=0"),
    ({"prompt": "  "}, "prompt='  ' is empty", "whole sentences"),
    ({"prompt": 7}, "prompt=7 is not text", "quotes"),
    ({"prompt": "broken \ud800"}, "is not text", "broken characters"),
    ({"audio": "loud"}, "audio='loud' is unknown", "'refine', 'keep' or 'none'"),
    ({"sed": 3}, "sed is not a field", "did you mean seed?"),
    ({"models": {"chekpoint": "x"}}, "models.chekpoint is not a field", "checkpoint?"),
    ({"models": {"folders": [""]}}, "models.folders[0]='' is not a name", "remove the field"),
    ({"output": {"crf": 52}}, "output.crf=52 must be at most 51", "use output.crf=51"),
    ({"decode": {"tile_px": 500}}, "decode.tile_px=500 is not a multiple of 32", "use 512"),
    ({"decode": {"grid": [7, 1]}}, "decode.grid=[7, 1] is not 1 to 6 tiles", "use [6, 1]"),
    ({"decode": {"grid": [2, True]}}, "decode.grid=[2, True] is neither", "[2, 2]"),
    ({"decode": {"grid": [2]}}, "decode.grid=[2] is neither", "[2, 2]"),
    (
        {"decode": {"grid": [2, 2], "tile_px": 512, "tile_frames": 16}},
        "decode.grid cannot be combined with decode.tile_px and decode.tile_frames",
        "use decode.grid=auto, or decode.tile_px=auto and decode.tile_frames=auto",
    ),
    (
        {"decode": {"grid": [2, 2], "overlap_px": 0}},
        "decode.overlap_px=0: tiles of a grid share 32 to 256 px",
        "use decode.overlap_px=32",
    ),
    ({"decode": {"grid": [2, 1], "overlap_px": 288}}, "share 32 to 256 px", "overlap_px=256"),
    (
        {"decode": {"grid": [2, 2], "overlap_px": 192}, "width": 320, "height": 128},
        "decode.grid: 2 tiles of 128 px cannot share 192 px",
        "use decode.grid=[1,1], the whole picture, or decode.overlap_px=128",
    ),
    ({"decode": 3}, "decode=3 is not a table", None),
    ({"stages": []}, "the stages are none, expected exactly one base", "start with one base"),
    ({"stages": "base"}, "stages='base' is not a list", "brackets"),
]


@pytest.mark.parametrize(("change", "message", "hint"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_values_are_reported_with_the_nearest_legal_one(
    change: dict[str, Any], message: str, hint: str | None
) -> None:
    error = error_of(table(**change))
    assert len(error.problems) == 1, error
    assert message in error.message
    assert hint is None or hint in (error.hint or "")


STAGE_WRONG = [
    ("base.sampler=eulr", "base.sampler='eulr' is not a sampler", "did you mean euler"),
    ("base.schedule.name=smple", "is not a schedule", "did you mean simple"),
    ("base.steps=0", "base.schedule.steps=0 must be at least 1", "use base.schedule.steps=1"),
    ("base.steps=2.5", "base.schedule.steps=2.5 is not an integer", "use base.schedule.steps=2"),
    ("base.schedule.rho=7", "schedule ltx has no parameter 'rho'", None),
    ("base.schedule={name='distilled', steps=3}", "is a fixed list of 8 steps", None),
    ("refine.sigmas=0.5,0.7,0", "do not fall strictly", "0.7, 0.5, 0"),
    ("refine.sigmas=0.85,0.7", "do not end in 0", "0.85, 0.7, 0"),
    ("refine.sigmas=0.85,x,0", "'x', which is not a number", None),
    ("refine.sigmas=[0.85, nan, 0.0]", "'nan', which is not a number", None),
    ("refine.sigmas=[0.85, true, 0.0]", "contains something that is not a number", None),
    ("refine.sigmas=[1.5, 0.0]", "go above 1", None),
    ("refine.sigmas=3", "is not a list of sigmas", None),
    ("refine.denoise=0", "refine.denoise=0 must be above 0", None),
    ("refine.denoise=1.1", "must be at most 1", "use refine.denoise=1"),
    ("refine.denoise=nan", "refine.denoise=nan is not a finite number", None),
    ("refine.denoize=0.4", "refine.denoize is not a field", "did you mean denoise?"),
    ("refine.loras[0].strength=101", "must be at most 100", "strength=100"),
    ("refine.loras[0].strength=nan", "is not a finite number", None),
    ("refine.loras[0].name=x", "needs exactly one of name and role", None),
    ("refine.seed=-1", "refine.seed=-1 is not a seed of a stage", '"same"'),
    ("upsample.factor=3", "upsample.factor=3 has no spatial upsampler", "factor=2"),
    ("base.guidance.video.cfg=nan", "base.guidance.video.cfg=nan is not a finite", None),
    ("base.guidance.video.cfg=high", "is not a number", None),
    ("base.cfg=3", "base.cfg is not a field", "did you mean guidance.video.cfg?"),
    ("base.guidance.vidio.cfg=3", "base.guidance.vidio is not a field", "did you mean video"),
    ("base.guidance.video.stg=1", "names no blocks to perturb", "stg_blocks=[28]"),
    ("base.guidance.audio={sigma_low=0.9, sigma_high=0.2}", "sigma_low=0.9 is above", None),
    ("base.schedule.stretch=3", "is not true or false", None),
    ("base.schedule.tokens=some", "is not a token count", '"actual"'),
    ("stages[1].kind=upsampl", "is not a kind of stage", "did you mean upsample"),
]


@pytest.mark.parametrize(("text", "message", "hint"), STAGE_WRONG, ids=lambda v: str(v)[:40])
def test_wrong_values_in_stages(text: str, message: str, hint: str | None) -> None:
    error = error_of(apply_sets(TABLE, [text]))
    assert message in error.message + (error.hint or "")
    assert hint is None or hint in (error.hint or str(error))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kind": "refine"}, "neither sigmas nor a schedule"),
        ({"kind": "refine", "sigmas": [1, 0], "schedule": {"steps": 3}}, "both sigmas and a sched"),
        ({"kind": "refine", "sigmas": [1, 0], "denoise": 0.5}, "both sigmas and denoise"),
        ({"kind": "base", "sigmas": [1, 0]}, "expected exactly one base"),
        ({"kind": "upscale", "name": "lanczos", "width": 640}, "expected a factor, or width and"),
        ({"factor": 2}, "stages[1].kind=None is not a kind of stage"),
        ({"kind": "refine", "schedule": {"steps": 3}, "seed": "other"}, "not a seed of a stage"),
    ],
)
def test_impossible_orders_of_stages(stage: dict[str, Any], message: str) -> None:
    error = error_of(table(stages=[{"kind": "base", "sigmas": [1, 0]}, stage]))
    assert message in error.message


def test_every_problem_is_in_one_report() -> None:
    error = error_of(
        {
            "prompt": "",
            "width": 0,
            "height": 721,
            "fps": "nan",
            "frames": 100,
            "sed": 1,
            "seed": 1.5,
            "stages": [
                {"kind": "base", "sampler": "eulr", "sigmas": "1, 0", "schedule": {"stepz": 3}},
                {"kind": "refine", "sigmas": "0.5, 0.7", "denoise": 0.3},
            ],
        }
    )
    starts = [
        "base has both sigmas and a schedule",
        "refine has both sigmas and denoise",
        "prompt=''",
        "seed=1.5",
        "width=0",
        "height=721",
        "fps='nan'",
        "base.sampler='eulr'",
        "base.schedule.stepz",
        "refine.sigmas='0.5, 0.7'",
        "frames=100",
        "sed is not a field",
    ]
    assert len(error.problems) == len(starts)
    for start in starts:
        assert any(text.startswith(start) for text, _ in error.problems), start
        assert start in str(error)


def test_the_constructor_raises_the_same_report() -> None:
    with pytest.raises(RequestError, match="width=0"):
        Request(**table(width=0))
    assert Request(**TABLE) == Request.from_dict(TABLE)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, (*path, i))]
    return [path]


FULL = Request.from_dict(TABLE).to_dict()


POISONS = {"nan": math.nan, "inf": math.inf, "object": object(), "list": [], "table": {}}


@pytest.mark.parametrize("path", leaves(FULL), ids=lambda p: ".".join(map(str, p)))
@pytest.mark.parametrize("poison", POISONS)
def test_no_field_accepts_a_value_of_another_type(path: tuple[str | int, ...], poison: str) -> None:
    fields = copy.deepcopy(FULL)
    here: Any = fields
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = POISONS[poison]
    if (path[-1], poison) == ("tiles", "table"):  # tiles of the usual size
        tiles = stages_of(Request.from_dict(fields))[2].tiles
        assert isinstance(tiles, Tiles)
        assert tiles.px == 1536
        return
    error_of(fields)


# ---------------------------------------------------------------------------------------------
# --set


def test_sets_change_fields_at_every_depth() -> None:
    request = with_set(
        "refine.denoise=0.4",
        "base.steps=12",
        "fps=25",
        "base.guidance.video.cfg=3.5",
        "seed=7",
        "refine.loras[0].strength=0.7",
        "upsample.factor=1.5",
        "models.checkpoint=1.5",
        "prompt=3.5 cats = many, they run",
        "base.options.eta=0.5",
        'base.loras=[{name = "a.safetensors", strength = 0.2}]',
    )
    base, upsample, refine = stages_of(request)
    assert refine.schedule is not None
    assert (refine.denoise, refine.schedule.name, refine.steps) == (0.4, "simple", 3)
    assert (base.steps, base.guidance.video.cfg, base.options.eta) == (12, 3.5, 0.5)
    assert (request.fps, request.seed, upsample.factor) == (Fraction(25), 7, 1.5)
    assert (refine.loras[0].strength, base.loras[0].name) == (0.7, "a.safetensors")
    assert (request.models.checkpoint, request.prompt) == ("1.5", "3.5 cats = many, they run")
    assert "denoise" not in TABLE["stages"][2], "the table given is left alone"


def test_a_kind_that_occurs_twice() -> None:
    stages = [*TABLE["stages"], {"kind": "refine", "sigmas": [0.5, 0.0]}]
    both = Request.from_dict(apply_sets(table(stages=stages), ["refine.seed=9"]))
    assert [stage.seed for _, stage in both.sampling_stages()] == ["same", 9, 9]
    one = Request.from_dict(apply_sets(table(stages=stages), ["refine[1].seed=9"]))
    assert [stage.seed for _, stage in one.sampling_stages()] == ["same", "same", 9]
    assert names_of(one) == ("base", "upsample", "refine[0]", "refine[1]")


def test_a_set_field_replaces_those_it_excludes() -> None:
    assert with_set("refine.denoise=0.4", "refine.sigmas=0.5 0").resolved.stages[2].sigmas == (
        0.5,
        0.0,
    )
    refine = stages_of(with_set("refine.schedule.name=beta"))[2]
    assert refine.schedule is not None
    assert refine.schedule.steps == 3
    assert stages_of(with_set("base.schedule.name=distilled"))[0].steps == 8
    base = stages_of(with_set("base.schedule.name=distilled", "base.steps=9"))[0]
    assert base.steps == 9
    base = stages_of(with_set("base.schedule.terminal=0.2", "base.schedule.name=simple"))[0]
    kept = base.schedule
    assert kept is not None
    assert (kept.steps, kept.terminal) == (20, None)
    assert with_set("duration_s=2").frames == 49
    assert with_set("duration_s=2", "fps=50").frames == 97
    assert with_set("duration_s=2", "frames=25").duration_s is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("seed", "is not path=value", "refine.denoise=0.4"),
        ("=3", "is not path=value", None),
        ("refin.denoise=1", "refin is not a field", "did you mean refine"),
        ("crf=20", "crf is not a field", "did you mean output.crf?"),
        ("cfg=3", "cfg is not a field", "did you mean base.guidance.video.cfg?"),
        ("refine[1].seed=1", "no stage refine[1]", "base, upsample, refine"),
        ("upscale.factor=2", "no stage upscale", "base, upsample, refine"),
        ("refine=3", "names a stage", "refine.seed"),
        ("base.loras[0].strength=2", "base.loras has no entry 0", "base.loras=[...]"),
        ("seed.x=2", "seed=5 has no fields", "set seed itself"),
    ],
)
def test_sets_that_cannot_be_applied(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        apply_sets(TABLE, [text])
    assert message in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")
    with pytest.raises(RequestError) as caught:
        apply_sets(TABLE, [text, "nothing"])
    assert len(caught.value.problems) == 2


def test_text_is_used_as_written() -> None:
    for text in (
        "A cat.\nseed = 7",
        '"Hello," she says',
        "true",
        "1979-05-27",
        "# tag",
        "it's",
        "[1]",
    ):
        assert with_set(f"prompt={text}").prompt == text
    assert with_set('prompt="A cat."').prompt == "A cat."


def test_overrides_remove_the_fields_that_depend_on_them() -> None:
    with_duration = {"frames": 121, "duration_s": 5.0, "fps": "24"}
    assert override(with_duration, {"frames": 97}) == {"frames": 97, "fps": "24"}
    assert override(with_duration, {"fps": 50}) == {"duration_s": 5.0, "fps": 50}
    assert override({"frames": 121}, {"duration_s": 2.0}) == {"duration_s": 2.0}


# ---------------------------------------------------------------------------------------------
# fields of artefact keys

ALL = {"base", "upsample", "refine", "prompt", "clip"}
MOVES = {
    "prompt=A blue ball.": {"prompt"},
    "negative_prompt=ugly": {"prompt"},
    "seed=6": {"base", "refine"},
    "refine.seed=6": {"refine"},
    "width=1920": ALL - {"prompt"},
    "height=730": {"clip"},  # the same canvas, another crop
    "frames=97": ALL - {"prompt"},
    "fps=25": {"base", "refine", "clip"},
    "audio=keep": set(),
    "audio=none": {"base", "refine", "clip"},
    "noise_order=ltx": {"base", "refine"},
    "mask_convention=ltx": {"base", "refine"},
    "base.steps=21": {"base"},
    "base.schedule.terminal=0.2": {"base"},
    "base.guidance.video.cfg=4": {"base"},
    "base.guidance.audio.rescale=0.5": {"base"},
    "base.options.eta=0.5": {"base"},
    "base.sampler=heun": {"base"},
    "base.batch_passes=2": set(),
    "refine.loras[0].strength=0.6": {"refine"},
    "refine.sigmas=0.9,0.5,0": {"refine"},
    "refine.denoise=0.4": {"refine"},
    "upsample.factor=1.5": ALL - {"prompt"},
    "upsample.adain=0.5": {"upsample"},
    "decode.tile_px=512": {"clip"},
    "decode.grid=[2,1]": {"clip"},
    "output.crf=20": {"clip"},
    "preset=mine": set(),
    "models.checkpoint=other.safetensors": set(),  # models have ids of their own
}


def key_fields(request: Request) -> dict[str, str]:
    fields = {name: request.stage_fields(i) for i, name in enumerate(names_of(request))}
    fields |= {"prompt": request.prompt_fields(), "clip": request.clip_fields()}
    return {name: json.dumps(values, sort_keys=True) for name, values in fields.items()}


@pytest.mark.parametrize("text", MOVES)
def test_a_field_changes_exactly_the_stages_that_read_it(text: str) -> None:
    before, after = key_fields(Request.from_dict(TABLE)), key_fields(with_set(text))
    assert {name for name in ALL if before[name] != after[name]} == MOVES[text]


def test_a_request_without_a_grid_has_the_key_of_older_versions() -> None:
    fields = Request.from_dict(TABLE).clip_fields()["decode"]
    assert set(fields) == {"tile_px", "overlap_px", "tile_frames", "overlap_frames"}


@pytest.mark.parametrize("width", [192, 224, 1920])
def test_a_side_is_split_where_its_tiles_are_larger_than_the_overlap(width: int) -> None:
    decode = {"grid": [2, 1], "overlap_px": 192}
    request = Request.from_dict(table(width=width, height=64, decode=decode))
    assert Request.from_toml(request.to_toml()) == request
    last = request.resolutions[-1]
    tiling = request.decode.tiling((1, last.latent_height, last.latent_width))
    assert tiling is not None
    assert tiling.grid == (1, last.latent_height, last.latent_width)
    assert (len(tiling.rows), len(tiling.cols)) == (1, 2)


def test_the_same_sigmas_by_list_or_by_name_are_the_same_stage() -> None:
    named = with_set("refine.schedule.name=comfyui_stage_2")
    assert key_fields(named)["refine"] == key_fields(Request.from_dict(TABLE))["refine"]


def test_names_match_the_samplers() -> None:
    from latent_ladder.sampling.samplers import SAMPLERS

    assert SAMPLER_FACTS.keys() == SAMPLERS.keys()
    for name, facts in SAMPLER_FACTS.items():
        spec = SAMPLERS[name]
        assert facts == (
            spec.evals_per_step,
            spec.extra_evals,
            spec.needs_uncond,
            spec.stochastic,
            spec.standardised,
        ), name
        assert facts.evals(7) == spec.evals(7)
