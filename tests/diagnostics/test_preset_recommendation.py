"""Recommended presets: the guide's rules, the files on this machine, and the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latent_ladder import Request
from latent_ladder.checkpoints.selection import ModelSet, scan, select_models
from latent_ladder.cli.app import build_app
from latent_ladder.diagnostics.first_presets import training_of
from latent_ladder.diagnostics.preset_recommendation import (
    PRESETS,
    WAYS,
    propose,
    suitable_way,
)
from latent_ladder.memory.planner import GIB, Budget, Machine, Policy
from latent_ladder.request.presets import preset_names

GOLDEN = Path(__file__).parents[1] / "golden"
CARD = Budget("cuda", 24 * GIB, 64 * GIB)
SMALL_CARD = Budget("cuda", 10 * GIB, 64 * GIB)
PLAIN = "A red ball rolls to the right."
WOOL = "A close look at the wool of a sheep in the rain."


def make_request(
    width: int, height: int, frames: int, prompt: str = PLAIN, **changes: Any
) -> Request:
    return Request.from_preset(
        "distilled-single", prompt=prompt, width=width, height=height, frames=frames, **changes
    )


@pytest.fixture(scope="module")
def models() -> ModelSet:
    return select_models(scan([GOLDEN]), {"checkpoint": "tiny-ltx-2.3.safetensors"})


@pytest.mark.parametrize(
    ("request_", "card", "way", "expected"),
    [
        (make_request(960, 544, 49), CARD, "single pass", "small and short"),
        (make_request(1280, 720, 121), CARD, "distilled", "5.0 s is 4 s or more"),
        (make_request(1920, 1080, 49), CARD, "distilled", "1920x1080 is delivery size"),
        (make_request(1920, 1080, 121), CARD, "multi-stage", "1920x1080 is delivery size"),
        (make_request(1080, 1920, 121), CARD, "multi-stage", "1080x1920 is delivery size"),
        (make_request(1280, 720, 121, WOOL), CARD, "multi-stage", "fine detail (wool)"),
        (make_request(1280, 720, 49, WOOL), CARD, "distilled", "fine detail (wool)"),
        (make_request(1280, 720, 121), SMALL_CARD, "single pass", "under 12 GiB of memory"),
        (make_request(1920, 1080, 121), SMALL_CARD, "multi-stage", "delivery size"),
    ],
)
def test_the_guides_rules(request_: Request, card: Budget, way: str, expected: str) -> None:
    found, reasons = suitable_way(request_, card)
    assert found == way
    assert any(expected in reason for reason in reasons)


def test_an_input_picture_counts() -> None:
    request = make_request(1280, 720, 121, images=[{"file": "a.png"}])
    assert suitable_way(request, CARD)[0] == "multi-stage"


def test_a_small_cpu_memory_is_not_a_small_card() -> None:
    assert (
        suitable_way(make_request(1280, 720, 121), Budget("cpu", 10 * GIB, 10 * GIB))[0]
        == "distilled"
    )


def test_every_named_preset_exists() -> None:
    named = {
        name
        for kinds in PRESETS.values()
        for ways in kinds.values()
        for n in ways.values()
        for name in n
    }
    assert named <= set(preset_names())


def test_options_are_those_of_the_training_at_the_requested_size(models: ModelSet) -> None:
    assert training_of(models) == "dev"  # not in its name, but there is a distilled LoRA
    proposal = propose(make_request(1920, 1080, 121), models, CARD, Policy())
    assert (proposal.way, proposal.preset) == ("multi-stage", "hq")
    assert [o.preset for o in proposal.options] == [
        name for way in WAYS for name in PRESETS["2.3"]["dev"][way]
    ]
    assert all(o.flops and o.peak_bytes and o.why_not is None for o in proposal.options)
    assert "takes" in proposal.sentence
    single, distilled = proposal.options[:2]
    assert distilled.flops is not None
    assert single.flops is not None
    assert distilled.flops < single.flops  # most of its steps are at half the size


def test_a_missing_file_is_named_and_the_next_cheaper_way_recommended(models: ModelSet) -> None:
    without = replace(models, upsamplers={})
    proposal = propose(make_request(1920, 1080, 121), without, CARD, Policy())
    assert (proposal.way, proposal.preset) == ("single pass", "distilled-lora-single")
    assert "hq would suit, but there is no spatial x2 upsampler" in proposal.sentence
    nothing = propose(make_request(1920, 1080, 121), replace(without, loras={}), CARD, Policy())
    assert nothing.preset == "distilled-single"


def test_a_preset_that_does_not_fit_is_not_recommended(models: ModelSet) -> None:
    proposal = propose(
        make_request(1920, 1080, 121), models, Budget("cuda", 2**20, 2**20), Policy()
    )
    assert proposal.preset is None
    assert "no preset can make this clip" in proposal.sentence
    assert all("the budget is" in (o.why_not or "") for o in proposal.options)


def test_one_pass_is_not_recommended_where_stages_cost_less(models: ModelSet) -> None:
    card = Budget("cuda", 11 * GIB, 64 * GIB)
    proposal = propose(make_request(1280, 768, 121), models, card, Policy())
    assert (proposal.way, proposal.preset) == ("distilled", "distilled-lora")
    single, distilled = proposal.options[:2]
    assert distilled.flops is not None
    assert single.flops is not None
    share = f"{distilled.flops / single.flops:.0%}"
    assert f"its stages take {share} of the work of distilled-lora-single" in proposal.sentence
    small = propose(make_request(320, 256, 49), models, card, Policy())  # half of it: 160x128
    assert small.preset == "distilled-lora-single"


def test_measured_rates_give_times(models: ModelSet) -> None:
    slow = propose(make_request(960, 544, 49), models, CARD, Policy(), Machine(1e9, 1e9, 1e9))
    fast = propose(make_request(960, 544, 49), models, CARD, Policy(), Machine(1e12, 1e9, 1e9))
    for a, b in zip(slow.options, fast.options, strict=True):
        assert a.flops is not None
        assert a.seconds is not None
        assert b.seconds is not None
        assert a.seconds == pytest.approx(a.flops / 1e9)
        assert b.seconds < a.seconds


def test_a_checkpoint_that_names_its_preset_gets_it(models: ModelSet) -> None:
    proposal = propose(make_request(512, 512, 25), replace(models, preset="pocket"), CARD, Policy())
    assert (proposal.preset, len(proposal.options)) == ("pocket", 1)


def test_fps_and_sound_of_the_request_stay(models: ModelSet) -> None:
    request = make_request(960, 544, 97, fps=Fraction(48), audio="none")
    other = propose(request, models, CARD, Policy()).options[0]
    heard = propose(make_request(960, 544, 97), models, CARD, Policy()).options[0]
    assert other.flops is not None
    assert heard.flops is not None
    assert other.flops < heard.flops


def test_the_command_and_the_plan_agree() -> None:
    run = CliRunner().invoke
    arguments = [PLAIN, "--models", str(GOLDEN), "--size", "64x64", "--frames", "9", "--json"]
    arguments += ["--checkpoint", "tiny-ltx-2.3.safetensors"]
    advised = json.loads(run(build_app(), ["advise", *arguments]).stdout)
    planned = json.loads(run(build_app(), ["plan", *arguments]).stdout)["advice"]
    assert advised["sentence"] == planned["sentence"]
    assert advised["preset"] == "distilled-lora-single"
    text = run(build_app(), ["advise", *arguments[:-3], *arguments[-2:]]).stdout
    assert text.startswith(f'For "{PLAIN}", 64x64, 0.38 s, with')
    assert "single pass (--preset distilled-lora-single): 64x64 and 0.4 s" in text


@pytest.mark.slow
def test_advising_does_not_import_torch() -> None:
    code = (
        "import sys; from latent_ladder.cli.app import main; "
        "sys.argv = ['ladder', 'advise', 'a ball',"
        f" '--models', {str(GOLDEN)!r}, '--checkpoint', 'tiny-ltx-2.3.safetensors']\n"
        "try: main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout
