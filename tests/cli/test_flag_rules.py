"""Options that mean nothing together are refused; problems name the options to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from latent_ladder.cli.app import build_app
from latent_ladder.cli.command_table import load_command
from latent_ladder.cli.commands import flag_rules
from latent_ladder.cli.commands.flag_terms import in_flag_terms
from latent_ladder.errors import LadderError, RequestError


def problems_of(*words: str) -> str:
    """The error of a command in this process, with all hints."""
    with pytest.raises(LadderError) as caught:
        build_app()(list(words), prog_name="ladder", standalone_mode=False)
    error = caught.value
    pairs = error.problems if isinstance(error, RequestError) else ((error.message, error.hint),)
    return "\n".join(f"{message}\n{hint}" for message, hint in pairs)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "x", "--mode", "v2v"], "--mode needs --video"),
        (["plan", "x", "--mode", "bogus"], "--mode needs --video"),
        (["plan", "x", "--denoise", "0.5"], "--denoise needs --video"),
        (["plan", "x", "--region", "1-2"], "--region needs --video"),
        (["plan", "x", "--extend", "2s"], "--extend needs --video"),
        (["plan", "x", "--fit", "cover"], "--fit needs --image or --video"),
        (["make", "x", "--mode", "v2v", "--fit", "cover"], "--fit needs --image or --video"),
        (["draft", "x", "--mode", "v2v"], "--mode needs --video"),
        (["sweep", "x", "--set", "base.steps=1,2", "--region", "1-2"], "--region needs --video"),
        (["advise", "x", "--extend", "2"], "--extend needs --video"),
        (["plan", "x", "--video", "a.mp4", "--mode", "v2v", "--region", "1-2"], "--mode retake"),
        (["plan", "x", "--video", "a.mp4", "--region", "1-2", "--denoise", "1"], "--denoise means"),
        (["plan", "x", "--to", "64x64"], "--to needs --upscale"),
        (["plan", "x", "--by", "2"], "--by needs --upscale"),
        (["plan", "x", "--upscale", "lanczos", "--by", "2", "--to", "64x64"], "leave out --by"),
        (["plan", "x", "--frames", "9", "--duration", "1"], "--duration means nothing"),
        (["plan", "x", "--from", "a.toml", "--preset", "hq"], "--preset means nothing with --from"),
        (["plan", "x", "--audio", "keep", "--no-audio"], "--audio means nothing with --no-audio"),
        (["plan", "x", "--vram", "4", "--reserve-vram", "1"], "--reserve-vram means nothing"),
        (["doctor", "--vram", "4", "--reserve-vram", "1"], "--reserve-vram means nothing"),
        (["sound", "x", "--ram", "4", "--offload", "disk"], "--ram means nothing"),
        (["upscale", "a.mp4", "--ram", "4", "--offload", "none"], "--ram means nothing"),
        (["make", "x", "--overwrite"], "--overwrite needs --output"),
        (["sound", "x", "--overwrite"], "--overwrite needs --output"),
        (["make", "x", "-o", "a.wav", "--codec", "h264"], "--codec means nothing"),
        (["make", "x", "-o", "a/%05d.png", "--crf", "9"], "--crf means nothing"),
        (["make", "x", "-o", "a.wav", "--poster"], "--poster means nothing"),
        (["make", "x", "-o", "a.wav", "--no-audio"], "--no-audio means nothing"),
        (["draft", "x", "--seeds", "3,4", "--seed", "1"], "--seed means nothing"),
        (["draft", "x", "--seeds", "3-9", "--seed", "1"], "--seed means nothing"),
        (["draft", "x", "--prompts", "a.txt"], "--prompts means nothing with PROMPT"),
        (["advise", "x", "--codec", "h264"], "--codec means nothing"),
        (["plan", "x", "--seed", "5", "--set", "seed=6"], "--seed and --set seed set the same"),
        (["make", "x", "--size", "64x64", "--set", "width=96"], "--size and --set"),
        (["draft", "x", "--codec", "h264", "--set", "output={crf=3}"], "--codec and --set"),
        (["sweep", "x", "--seed", "5", "--set", "seed=6,7"], "--seed and --set seed"),
        (["plan", "x", "--set", "seed=5", "--set", " seed =6"], "--set names one field twice"),
        (["plan", "x", "--set", "prompt=y"], "PROMPT and --set prompt"),
        (["upscale", "a.mp4", "--denoise", "0.4", "--set", "refine.denoise=0.5"], "--denoise and"),
        (["sound", "x", "--duration", "2", "--set", "duration_s=3"], "--duration and --set"),
        (["plan", "x", "--size", "101x33"], "use --size 102x34"),
        (["plan", "x", "--size", "64x0"], "use --size 64x32"),
        (["sweep", "x", "--zip", "--set", "base.steps=1,2"], "there is one"),
        (["plan", "x", "-p", "distilled-single", "--negative", "x", "--checkpoint", "none"], "--"),
    ],
)  # fmt: skip
def test_an_option_that_means_nothing_is_an_error(words: list[str], said: str) -> None:
    assert said in problems_of(*words)


def test_all_such_options_are_in_one_report() -> None:
    said = problems_of("plan", "x", "--mode", "v2v", "--fit", "cover", "--to", "64x64")
    assert said.count("needs") == 3


def test_every_rule_names_a_parameter_of_its_command() -> None:
    """A renamed parameter would turn its rule off without a word."""
    tables = {
        "make": flag_rules.MAKE_RULES, "plan": flag_rules.CLIP_RULES,
        "draft": flag_rules.DRAFT_RULES, "advise": flag_rules.ADVISE_RULES,
        "sweep": flag_rules.SWEEP_RULES, "upscale": flag_rules.UPSCALE_RULES,
        "sound": flag_rules.SOUND_RULES, "doctor": flag_rules.MEMORY_RULES,
    }  # fmt: skip
    for name, rules in tables.items():
        params = {p.name: p for p in load_command(name).params}
        for rule in rules:
            assert rule.name in params, (name, rule)
            is_argument = params[rule.name].param_type_name == "argument"
            assert is_argument or rule.option in params[rule.name].opts, (name, rule)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "100"], "--frames 100 is not 8k+1"),
        (["--frames", "100"], "use --frames 97"),
        (["--size", "101x64"], "width 101 (--size)"),
        (["--codec", "bogus"], "--codec 'bogus' is unknown"),
        (["--image", "a.png:99"], "--image frame 99"),
        (["--windows", "100"], "--windows 100"),
        (["--set", "refine.lora=x", "--set", "base.steps=0"], "base.schedule.steps=0"),
    ],
)
def test_problems_name_the_option(words: list[str], said: str) -> None:
    assert said in problems_of("plan", "x", "-p", "pocket", *words)


def test_hints_for_fields_without_an_option_use_set() -> None:
    told = in_flag_terms(RequestError("decode.tile_px=1 is wrong", "use decode.tile_px=64"))
    assert told.hint == "use --set decode.tile_px=64"
    same = in_flag_terms(RequestError("x", "use --set decode.tile_px=64"))
    assert same.hint == "use --set decode.tile_px=64"
    region = in_flag_terms(RequestError("x", "set video.region=[1.5, 3.0]"))
    assert region.hint == "set --region 1.5-3.0"


def test_a_prompt_without_quotes_is_quoted_in_the_hint() -> None:
    from latent_ladder.cli.app import UsageError, _describe_usage_error

    for command in ("make", "draft", "sound", "plan"):
        with pytest.raises(UsageError) as caught:
            build_app()([command, "a", "red", "ball"], prog_name="ladder", standalone_mode=False)
        hint = _describe_usage_error(caught.value).hint
        assert hint == f'put the prompt in quotes: ladder {command} "a red ball"'


def test_a_rule_is_data() -> None:
    rule = flag_rules.needs("mode", "--mode", ["video"], "--video", "add --video FILE")
    assert dataclasses.is_dataclass(rule)
    flag_rules.check_rules([rule], {"mode": "v2v", "video": "a.mp4"})
    flag_rules.check_rules([rule], {})
