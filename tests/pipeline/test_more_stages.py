"""Other upsampling than one x2: x1.5, twice the frame rate, three stages, refining in tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.goldens import Goldens
from helpers.tiny_clips import load_artefact

from latent_ladder import Request
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.diagnostics.request_warnings import advise
from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import MAX_PX_OF_ROPE
from latent_ladder.latents.tiling import TilePlan, TileSize, even_spans, one_tile, plan_tiles
from latent_ladder.latents.tokens import tokens_to_video
from latent_ladder.media.video_reader import probe
from latent_ladder.memory.cost_model import estimate, forward_flops
from latent_ladder.memory.model_sizes import LTX_2_3
from latent_ladder.memory.planner import GIB, Budget, plan_memory
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput
from latent_ladder.models.transformer.tiled_denoiser import TiledDenoiser, TokenTile, token_tiles
from latent_ladder.pipeline.run import RunOptions, execute, prepare
from latent_ladder.request.overrides import apply_sets
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.storage.artifact_store import Store

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
BASE: dict[str, Any] = {"kind": "base", "schedule": {"steps": 2}}
REFINE: dict[str, Any] = {"kind": "refine", "sigmas": [0.9, 0.5, 0.0]}
X2 = {"kind": "upsample"}
X15 = {"kind": "upsample", "factor": 1.5}
FASTER = {"kind": "upsample", "axis": "temporal"}
FIELDS = {
    "prompt": "a red ball rolls to the right",
    "seed": 7,
    "frames": 9,
    "fps": "24",
    "models": {"checkpoint": "tiny-ltx-2.3.safetensors"},
}
LADDERS: dict[str, tuple[list[dict[str, Any]], tuple[int, int], int, list[str]]] = {
    "x1.5": ([BASE, X15, REFINE], (96, 96), 9, ["64x64", "96x96", "96x96"]),
    "temporal x2": ([BASE, FASTER, REFINE], (64, 64), 17, ["64x64"] * 3),
    "x2 and x2": (
        [BASE, X2, REFINE, X2, REFINE],
        (128, 128),
        9,
        ["32x32", "64x64", "64x64", "128x128", "128x128"],
    ),
    "x1.5 and x2": (
        [BASE, X15, REFINE, X2, REFINE],
        (192, 192),
        9,
        ["64x64", "96x96", "96x96", "192x192", "192x192"],
    ),
    "x2 and temporal x2": (
        [BASE, X2, REFINE, FASTER, REFINE],
        (64, 64),
        17,
        ["32x32", "64x64", "64x64", "64x64", "64x64"],
    ),
}


@pytest.fixture(scope="session")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture(scope="module")
def model(golden: Goldens) -> Transformer:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return load_transformer(components(open_checkpoint(path))["transformer"])


@pytest.fixture(scope="module")
def texts(golden: Goldens) -> list[dict[str, torch.Tensor]]:
    return [golden(f"text.context.p{i}").outputs for i in (0, 1)]


def request_of(
    stages: Sequence[Mapping[str, Any]],
    size: tuple[int, int] = (64, 64),
    frames: int = 9,
    **changes: Any,
) -> Request:
    width, height = size
    fields = {**FIELDS, "stages": stages, "width": width, "height": height, "frames": frames}
    return Request.from_dict(fields | changes)


def canvases(request: Request) -> list[str]:
    return [f"{r.width}x{r.height}" for r in request.resolutions]


# --- ladders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LADDERS)
def test_a_ladder_ends_in_a_clip_of_the_asked_size_and_length(
    name: str, library: Library, tmp_path: Path
) -> None:
    stages, size, frames, expected = LADDERS[name]
    fps = Fraction(48 if frames == 17 else 24)
    request = request_of(stages, size, frames, fps=str(fps))
    assert canvases(request) == expected
    prepared = prepare(request, library, Store(tmp_path / "store"))
    assert [s["video_latents"][2:] for s in prepared.report()["stages"] if "fps" in s] == [
        [r.latent_frames, r.latent_height, r.latent_width] for r in request.resolutions
    ]
    result = execute(prepared, tmp_path / "a.mp4", RunOptions())
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (*size, frames, fps)
    assert result.duration_s == pytest.approx(frames / fps)
    assert info.audio_duration_s == pytest.approx(float(frames / fps), abs=1 / 48000)


def test_the_frame_rate_doubles_once_and_the_sound_stays(library: Library, tmp_path: Path) -> None:
    request = request_of(LADDERS["x2 and temporal x2"][0], frames=17, fps="48")
    assert [str(r.fps) for r in request.resolutions] == ["24", "24", "24", "48", "48"]
    assert [r.frames for r in request.resolutions] == [9, 9, 9, 17, 17]
    assert [r.latent_frames for r in request.resolutions] == [2, 2, 2, 3, 3]
    assert {r.audio_latents for r in request.resolutions} == {9}
    store = Store(tmp_path / "store")
    prepared = prepare(request, library, store)
    execute(prepared, tmp_path / "a.mp4", RunOptions())
    stages = {s.name: s for s in prepared.plan.stages}
    before, after = (
        load_artefact(store, stages[name].key) for name in ("refine[0]", "upsample[1]")
    )
    assert torch.equal(before["audio"], after["audio"])
    assert after["video"].shape[2] == 2 * before["video"].shape[2] - 1


def test_plan_tells_the_rate_of_slower_rungs(library: Library, tmp_path: Path) -> None:
    request = request_of(LADDERS["temporal x2"][0], frames=17, fps="50")
    rows = prepare(request, library, Store(tmp_path)).report()["rows"]
    assert [row["canvas"] for row in rows if row["canvas"]] == ["64x64 at 25 fps", "64x64", "64x64"]


@pytest.mark.parametrize("frames", [25, 41])
def test_frames_that_halve_to_no_8k_plus_1_are_refused(frames: int) -> None:
    with pytest.raises(RequestError, match=r"is not 16k\+1") as caught:
        request_of([BASE, FASTER, REFINE], frames=frames)
    assert f"frames={frames - 8}" in (caught.value.hint or "")


def test_x1_5_rounds_every_rung_to_whole_latents() -> None:
    request = request_of([BASE, X15, REFINE], (1280, 720))
    assert canvases(request) == ["896x512", "1344x768", "1344x768"]
    assert request.resolved.crop == (32, 24, 1280, 720)
    request = request_of([BASE, X15, REFINE, X2, REFINE], (1920, 1080))
    assert canvases(request)[::2] == ["640x384", "960x576", "1920x1152"]


# --- tiles of a refine stage --------------------------------------------------------------------


def plan_of(request: Request) -> TilePlan:
    """Tiles of the third stage."""
    plan = request.resolved.stages[2].tiles
    assert plan is not None
    return plan


def tiled(
    width: int, height: int, tiles: str | int | dict[str, int] = "auto", **changes: Any
) -> Request:
    return request_of([BASE, X2, REFINE | {"tiles": tiles}], (width, height), **changes)


def test_tiles_are_off_up_to_2048_px_and_on_beyond() -> None:
    assert tiled(2048, 1152).resolved.stages[2].tiles is None
    assert plan_of(tiled(2112, 1152)).count == 2
    assert plan_of(tiled(1152, 2112)).count == 2
    assert plan_of(tiled(3840, 2160)).count == 6
    assert tiled(3840, 2160, "off").resolved.stages[2].tiles is None
    assert plan_of(tiled(3840, 2160, {"px": 1024})).count == 15
    assert tiled(512, 512, {"px": 512}).resolved.stages[2].tiles is None


def test_only_tiles_that_are_used_move_a_key() -> None:
    def fields(*asked: Any) -> dict[str, Any]:
        return tiled(*asked).stage_fields(2)

    assert fields(512, 512) == fields(512, 512, "off") == fields(512, 512, {"px": 1024})
    assert "tiles" not in fields(512, 512)
    assert fields(512, 512, {"px": 256})["tiles"] == {"px": 256, "overlap_px": 32}
    assert fields(3840, 2160)["tiles"] == {"px": 1536, "overlap_px": 256}
    assert fields(3840, 2160) != fields(3840, 2160, "off")


def test_tiles_survive_toml_and_set() -> None:
    request = tiled(512, 512, {"px": 256, "overlap_px": 64})
    assert Request.from_toml(request.to_toml()) == request
    table = apply_sets(tiled(512, 512).to_dict(), ["refine.tiles={px=256, overlap_px=64}"])
    assert Request.from_dict(table) == request


@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        ("on", "neither"),
        (1536, "neither"),
        ({"px": 100}, r"refine\.tiles\.px=100 is not a multiple of 32"),
        ({"px": 4096}, r"refine\.tiles\.px=4096 is not a multiple of 32 from 64 to 2048"),
        ({"px": 640, "overlap_px": 352}, "more than half of a tile"),
        ({"pixels": 640}, r"refine\.tiles\.pixels is not a field"),
    ],
)
def test_tiles_that_cannot_be_are_refused_in_words(
    tiles: str | int | dict[str, int], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        tiled(512, 512, tiles)
    assert caught.value.hint


def test_tiles_are_equal_cover_all_and_stay_in_the_trained_range() -> None:
    for request in (tiled(3840, 2160), tiled(2112, 1152), tiled(6016, 4096)):
        plan = plan_of(request)
        for spans, length in ((plan.rows, plan.grid[1]), (plan.cols, plan.grid[2])):
            assert {i for s in spans for i in range(s.start, s.stop)} == set(range(length))
            assert max(map(len, spans)) - min(map(len, spans)) <= len(spans)
            assert max(map(len, spans)) * 32 <= 1536
    assert even_spans(48, 48, 8) == even_spans(48, 64, 8)


def test_advice_says_that_it_is_tiled_instead_of_warning() -> None:
    assert {a.code: a.level for a in advise(tiled(3840, 2176))}["tiled"] == "note"
    assert "edge_long" not in {a.code for a in advise(tiled(3840, 2176))}
    assert "edge_long" in {a.code for a in advise(tiled(3840, 2176, "off"))}


def test_memory_and_work_are_planned_per_tile() -> None:
    whole, in_tiles = (
        next(c for c in estimate(r, LTX_2_3) if c.kind == "refine")
        for r in (tiled(3840, 2160, "off", frames=121), tiled(3840, 2160, frames=121))
    )
    assert in_tiles.tile_tokens == 16 * 38 * 46
    assert whole.tile_tokens is None
    assert in_tiles.flops < 0.5 * whole.flops
    largest = forward_flops(LTX_2_3.dit, in_tiles.tile_tokens, in_tiles.audio_tokens).total
    assert 5 * 2 * largest < in_tiles.flops <= 6 * 2 * largest
    budget = Budget("cuda", 200 * GIB, 64 * GIB)
    peaks = [
        plan_memory(r, LTX_2_3, budget).of("refine").activation_bytes
        for r in (tiled(3840, 2160, "off", frames=121), tiled(3840, 2160, frames=121))
    ]
    assert peaks[1] < 0.45 * peaks[0]


# --- the model of a tiled stage -----------------------------------------------------------------

SIZE = (2, 6, 8)
TOKENS = SIZE[0] * SIZE[1] * SIZE[2]
FOUR = plan_tiles(*SIZE, TileSize(2, 4, 5, overlap=2))


def streams(
    texts: list[dict[str, torch.Tensor]],
    positions: torch.Tensor | None = None,
    rescale: float = 0.5,
    **video: Any,
) -> tuple[DenoiserStream, DenoiserStream]:
    where = video_positions(*SIZE, 24) if positions is None else positions
    cfg = Guidance(cfg=3.0, rescale=rescale)
    return (
        DenoiserStream(where, texts[0]["video"], texts[1]["video"], guidance=cfg, **video),
        DenoiserStream(audio_positions(9), texts[0]["audio"], texts[1]["audio"], guidance=cfg),
    )


def noise(tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(1, tokens * 8 + 9 * 32, generator=torch.Generator().manual_seed(3))


def test_one_tile_predicts_what_no_tiles_predict(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    x = noise()
    whole = Denoiser(model, *streams(texts))(x, 0.8, 0)
    tiles = TiledDenoiser(model, *streams(texts), one_tile(*SIZE))(x, 0.8, 0)
    assert torch.equal(whole.denoised, tiles.denoised)
    assert whole.uncond is not None
    assert tiles.uncond is not None
    assert torch.equal(whole.uncond, tiles.uncond)


def test_attention_does_not_see_where_in_the_picture_a_tile_lies(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    moved = video_positions(*SIZE, 24) + torch.tensor([0, 640, 320])[:, None, None]
    here = Denoiser(model, *streams(texts))(noise(), 0.8, 0).denoised
    there = Denoiser(model, *streams(texts, moved))(noise(), 0.8, 0).denoised
    torch.testing.assert_close(here, there, rtol=0, atol=2e-3)


def test_a_tile_predicts_what_its_own_clip_would_be_predicted(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    """Outside of overlaps, the result is the prediction of the single tile that covers it."""
    x = noise()
    found = TiledDenoiser(model, *streams(texts), FOUR)
    video, audio = found.packing.unpack(x)
    assert video is not None
    corner = tokens_to_video(video, *SIZE)[..., :4, :5].flatten(2).transpose(1, 2)
    alone = Denoiser(model, *streams(texts, video_positions(2, 4, 5, 24)))
    expected, _ = alone.packing.unpack(alone(alone.packing.pack(corner, audio), 0.8, 0).denoised)
    got, _ = found.packing.unpack(found(x, 0.8, 0).denoised)
    assert expected is not None
    assert got is not None
    alone_in = tokens_to_video(got, *SIZE)[..., :2, :3]
    torch.testing.assert_close(
        alone_in, tokens_to_video(expected, 2, 4, 5)[..., :2, :3], rtol=1e-5, atol=1e-5
    )


def test_positions_stay_within_the_trained_range() -> None:
    plan = plan_of(tiled(3840, 2160))
    where = video_positions(2, 68, 120, 24)
    run = DenoiserStream(where, torch.zeros(1, 1, 1))
    seen = torch.zeros(where.shape[2])
    for tile in token_tiles(where, plan):
        part = tile.crop(run).positions
        assert part[:, 1:].min() == 0
        assert part[:, 1:].max() <= 1536 < MAX_PX_OF_ROPE
        assert torch.equal(part[:, 0].unique(), where[:, 0].unique())
        assert torch.equal(part[0, 1:, -1, 1] - part[0, 1:, 0, 0], _extent(where, tile))
        seen[tile.index] += tile.weight[:, 0]
    torch.testing.assert_close(seen, torch.ones_like(seen))


def _extent(where: torch.Tensor, tile: TokenTile) -> torch.Tensor:
    return where[0, 1:, tile.index[-1], 1] - where[0, 1:, tile.index[0], 0]


class Local:
    """A transformer whose velocity of each token depends on that token only."""

    def __init__(
        self, model: Transformer, velocity: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.config, self._velocity, self.graphs = model.config, velocity, False

    def __call__(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        specs: Sequence[PassSpec],
        *,
        updated_video: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        return tuple(
            None if s is None else self._velocity(s.tokens).repeat(len(specs), 1, 1)
            for s in (video, audio)
        )


@pytest.mark.parametrize(
    "velocity", [torch.ones_like, lambda x: torch.sin(3 * x)], ids=["constant", "local"]
)
def test_a_local_model_leaves_no_seams(
    velocity: Callable[[torch.Tensor], torch.Tensor],
    model: Transformer,
    texts: list[dict[str, torch.Tensor]],
) -> None:
    local, x = cast("Transformer", Local(model, velocity)), noise()
    whole = Denoiser(local, *streams(texts))(x, 0.8, 0).denoised
    tiles = TiledDenoiser(local, *streams(texts), FOUR)(x, 0.8, 0).denoised
    torch.testing.assert_close(whole, tiles, rtol=1e-5, atol=1e-5)


def test_guide_tokens_go_with_their_part_of_the_picture(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    """A keyframe after the clip, and a reference of half the tokens, both fixed."""
    coarse = video_positions(1, 3, 4, 24) * torch.tensor([1.0, 2.0, 2.0])[:, None, None]
    where = torch.cat([video_positions(*SIZE, 24), video_positions(1, 6, 8, 24), coarse], 2)
    total = where.shape[2]
    mask = torch.ones(1, total, 1)
    mask[:, TOKENS:] = 0
    x = noise(total)
    tiles = TiledDenoiser(model, *streams(texts, where, rescale=0, mask=mask), FOUR)
    sums = torch.zeros(total)
    for tile in tiles.tiles:
        sums[tile.index] += tile.weight[:, 0]
        clip = int((tile.index < TOKENS).sum())
        keyframe = int(((tile.index >= TOKENS) & (tile.index < TOKENS + 48)).sum())
        assert clip == 2 * keyframe
    torch.testing.assert_close(sums, torch.ones(total))
    denoised, _ = tiles.packing.unpack(tiles(x, 0.8, 0).denoised)
    given, _ = tiles.packing.unpack(x)
    assert denoised is not None
    assert given is not None
    torch.testing.assert_close(denoised[:, TOKENS:], given[:, TOKENS:])


def test_skipped_steps_keep_each_tiles_prediction(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    video, audio = streams(texts)
    lazy = Guidance(cfg=3.0, skip_step=1)
    video, audio = (
        DenoiserStream(r.positions, r.positive, r.negative, guidance=lazy) for r in (video, audio)
    )
    tiles = TiledDenoiser(model, video, audio, FOUR)
    first, second = tiles(noise(), 0.8, 0).denoised, tiles(noise() + 1, 0.6, 1).denoised
    assert torch.equal(first, second)
    assert not torch.equal(first, tiles(noise() + 1, 0.4, 2).denoised)


def test_a_tiled_clip_is_the_same_twice_and_another_than_whole(
    library: Library, tmp_path: Path
) -> None:
    small = {"px": 64, "overlap_px": 32}
    stages = [BASE, X2, REFINE]
    clips = {}
    for name, tiles in (("a", small), ("b", small), ("whole", "off")):
        request = request_of([*stages[:2], REFINE | {"tiles": tiles}], (128, 64))
        store = Store(tmp_path / name)
        prepared = prepare(request, library, store)
        execute(prepared, tmp_path / f"{name}.mp4", RunOptions())
        clips[name] = load_artefact(store, prepared.plan.latents.key)
    report = prepare(
        request_of([*stages[:2], REFINE | {"tiles": small}], (128, 64)), library, store
    )
    row = next(r for r in report.report()["rows"] if r["stage"] == "refine")
    assert row["canvas"] == "128x64 in 3 tiles of 64x64"
    for stream in ("video", "audio"):
        assert torch.equal(clips["a"][stream], clips["b"][stream])
        assert not torch.equal(clips["a"][stream], clips["whole"][stream])
        assert clips["a"][stream].shape == clips["whole"][stream].shape
