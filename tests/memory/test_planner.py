"""The planner: the first level that fits, errors where none fits, and more memory never hurts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.errors import MemoryBudgetError, RequestError
from latent_ladder.memory.cost_model import estimate
from latent_ladder.memory.hardware import MemoryOptions, budget
from latent_ladder.memory.model_sizes import LTX_2_3
from latent_ladder.memory.planner import (
    GIB,
    Budget,
    Machine,
    Policy,
    fits,
    plan_memory,
    stage_fallbacks,
)
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.presets import read_preset

FP8 = replace(
    LTX_2_3, blocks=(386_695_360,) * 48, weights={**LTX_2_3.weights, "transformer": 19_420_000_000}
)
ANY = Policy(changes=frozenset({"tiles", "fp8"}))


def request(preset: str = "distilled", *sets: str) -> Request:
    fields = read_preset(preset).fields | {"prompt": "A cat walks.", "seed": 1}
    return Request.from_dict(apply_sets(fields, ("width=1920", "height=1080", *sets)))


def card(gib: float, ram: float = 64) -> Budget:
    return Budget("cuda", int(gib * GIB), int(ram * GIB))


def test_a_large_card_has_all_blocks_resident_and_runs_all_passes_at_once() -> None:
    plan = plan_memory(request("ltx-pipelines"), LTX_2_3, card(80))
    offload_plan = plan.of("base").offload_plan
    assert offload_plan.resident is None
    assert offload_plan.rows is None
    assert plan.of("base").streamed_bytes == 0


def test_a_middle_card_streams_only_blocks_that_do_not_fit() -> None:
    plan = plan_memory(request(), LTX_2_3, card(24))
    base, refine = plan.of("base"), plan.of("refine")
    assert base.offload_plan.source == "pinned"
    assert 10 < (refine.offload_plan.resident or 0) < (base.offload_plan.resident or 0) < 40
    assert base.pinned_bytes == base.streamed_bytes > 0
    room = base.peak_bytes / GIB + 0.73  # a block is 0.72 GiB
    more = plan_memory(request("distilled", "decode.tile_px=512"), LTX_2_3, card(room)).of("base")
    assert more.offload_plan.resident == (base.offload_plan.resident or 0) + 1


def test_without_ram_to_pin_blocks_come_from_the_file() -> None:
    plan = plan_memory(request(), LTX_2_3, card(24, ram=4))
    assert plan.of("refine").offload_plan.source == "file"
    assert plan.of("refine").pinned_bytes == 0


def test_fp8_fits_where_bf16_streams() -> None:
    assert plan_memory(request(), FP8, card(32)).of("refine").offload_plan.resident is None
    assert plan_memory(request(), LTX_2_3, card(32)).of("refine").offload_plan.resident is not None


def test_the_cpu_streams_from_the_file_alone() -> None:
    asked = request("distilled", "decode.tile_px=256")
    plan = plan_memory(asked, replace(LTX_2_3, value_bytes=4), Budget("cpu", 12 * GIB, 0))
    assert plan.of("base").offload_plan.source == "file"
    assert plan.of("base").pinned_bytes == 0


def test_the_error_names_stage_need_budget_and_a_flag() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(request(), LTX_2_3, card(30), Policy(offload="none"))
    assert "base at 960x544x121 needs" in caught.value.message
    assert "the budget is 30.0 GiB" in caught.value.message
    assert "--offload auto" in (caught.value.hint or "")


def test_the_whole_decode_fits_where_other_tools_need_tiles() -> None:
    decode = plan_memory(request(), LTX_2_3, card(6), made={"decode"}).of("decode")
    assert decode.offload_plan.tile_px is None
    assert 3 * GIB < decode.peak_bytes < 6 * GIB


def test_tiles_shrink_only_where_the_policy_allows_it() -> None:
    small = card(3.5)
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(request(), LTX_2_3, small, made={"decode"})
    assert caught.value.message.startswith("decode")
    assert "--oom-policy tiles" in (caught.value.hint or "")
    decode = plan_memory(request(), LTX_2_3, small, ANY, made={"decode"}).of("decode")
    assert decode.offload_plan.tile_px is not None
    assert fits(decode, small)


@pytest.mark.parametrize("gib", [0.3, 1.0, 2.0])
def test_the_hint_names_memory_in_which_every_stage_fits(gib: float) -> None:
    """Never smaller or larger tiles than those that were tried already."""
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(request(), LTX_2_3, card(gib), ANY)
    hint = caught.value.hint or ""
    assert "tile" not in hint
    found = re.search(r"--vram ([\d.]+)", hint)
    assert found is not None
    plan_memory(request(), LTX_2_3, card(float(found[1])), ANY)


def test_a_grid_of_tiles_falls_back_to_smaller_tiles() -> None:
    asked, small = request("lightricks-workflow"), card(3.5)
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(asked, LTX_2_3, small, made={"decode"})
    hint = caught.value.hint or ""
    assert "--oom-policy tiles" in hint
    stage = plan_memory(asked, LTX_2_3, small, ANY, made={"decode"}).of("decode")
    assert fits(stage, small)
    decode = stage.offload_plan.decode(asked.decode)
    assert decode.grid == decode.overlap_px == "auto"
    assert decode.tile_px == stage.offload_plan.tile_px
    cost = estimate(asked, LTX_2_3)[-1]
    first, *others = stage_fallbacks(cost, asked, LTX_2_3, small, ANY)
    assert first.offload_plan.decode(asked.decode) == asked.decode
    assert [level.offload_plan.tile_px for level in others] == [
        1024,
        768,
        512,
        384,
        256,
        128,
    ]
    assert first.peak_bytes > max(level.peak_bytes for level in others)


def test_fallback_levels_differ_and_those_that_alter_the_picture_come_last() -> None:
    cost = estimate(request("ltx-pipelines"), LTX_2_3)[1]
    levels = list(stage_fallbacks(cost, request("ltx-pipelines"), LTX_2_3, card(24), ANY))
    assert len({level.offload_plan for level in levels}) == len(levels) > 6
    precisions = [level.offload_plan.precision for level in levels]
    assert precisions == sorted(precisions, key=lambda p: p == "fp8")
    passes = [level.offload_plan.rows for level in levels]
    assert passes[0] is None
    assert 1 in passes


@settings(max_examples=40, deadline=None)
@given(
    gib=st.floats(3.5, 100),
    more=st.floats(0, 40),
    ram=st.floats(0, 100),
    preset=st.sampled_from(["distilled", "ltx-pipelines", "conservative"]),
)
def test_plans_keep_to_their_budget_and_more_memory_never_streams_more(
    gib: float, more: float, ram: float, preset: str
) -> None:
    asked = request(preset, "decode.tile_px=256", "decode.tile_frames=16")
    try:
        small = plan_memory(asked, LTX_2_3, card(gib, ram))
    except MemoryBudgetError:
        return
    large = plan_memory(asked, LTX_2_3, card(gib + more, ram))
    for before, after in zip(small.stages, large.stages, strict=True):
        assert fits(before, small.budget)
        if before.offload_plan.source == after.offload_plan.source:
            assert after.streamed_bytes <= before.streamed_bytes


def test_time_is_the_longer_of_computing_and_streaming() -> None:
    stage = plan_memory(request(), LTX_2_3, card(24)).of("base")
    assert stage.cost.forwards == 8
    fast_copies = Machine(flops=100e12, copy=1e15, disk=1)
    assert fast_copies.seconds(stage) == pytest.approx(stage.cost.flops / 100e12)
    slow_copies = Machine(flops=1e18, copy=10e9, disk=1)
    assert slow_copies.seconds(stage) == pytest.approx(8 * stage.streamed_bytes / 10e9)


@pytest.mark.parametrize(
    "options",
    [{"vram": 0}, {"vram": -3}, {"reserve_vram": -1}, {"ram": 0}, {"offload": "cloud"},
     {"changes": frozenset({"magic"})}],
)  # fmt: skip
def test_memory_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        MemoryOptions(**options)


def test_vram_is_the_budget() -> None:
    assert budget(MemoryOptions(vram=7.5), "cpu").device_bytes == int(7.5 * GIB)


def test_a_reserve_larger_than_the_memory_is_an_error() -> None:
    with pytest.raises(MemoryBudgetError, match="reserved"):
        budget(MemoryOptions(reserve_vram=100_000), "cpu")


def test_streaming_on_a_cpu_is_streaming_from_the_file() -> None:
    cpu = Budget("cpu", 64 * GIB, 0)
    plan = plan_memory(request(), LTX_2_3, cpu, Policy(offload="stream"))
    assert plan.of("base").offload_plan.source == "file"
    assert plan.of("base").offload_plan.resident is not None


def test_the_transformer_is_planned_beside_upsampling_where_both_fit() -> None:
    for gib in (12, 16, 24, 80):
        plan = plan_memory(request(), LTX_2_3, card(gib))
        base, upsample = plan.of("base"), plan.of("upsample")
        assert upsample.kept_bytes in (0, base.resting_bytes)
        both = upsample.own_bytes + base.resting_bytes
        assert (upsample.kept_bytes > 0) == (both <= plan.budget.device_bytes)
        assert upsample.peak_bytes <= plan.budget.device_bytes
        kept = {stage.cost.kind for stage in plan.stages if stage.kept_bytes}
        assert kept <= {"upsample"}
