"""Several clips of one command: files, seeds, list, resuming, errors of single clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import TINY
from typer.testing import CliRunner, Result

from latent_ladder.cli.app import build_app
from latent_ladder.errors import LadderError, RequestError
from latent_ladder.request.files import request_of_clip

SMALL = ["--size", "64x64", "--frames", "9", "--set", "base.steps=2", "--set", "refine.steps=2"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LADDER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LADDER_OUTPUT", raising=False)


def run(*words: object) -> Result:
    return CliRunner().invoke(build_app(), [*map(str, words)])


def made(*words: object) -> dict[str, Any]:
    done = run("make", *words, *TINY, *SMALL, "--no-measure", "--json")
    if isinstance(done.exception, LadderError):
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_count_makes_numbered_clips_with_seeds_of_their_own_and_goes_on(tmp_path: Path) -> None:
    first = made("a ball", "--count", 2, "-o", "ball.mp4", "--compare")
    seeds = [clip["seed"] for clip in first["clips"]]
    assert seeds[1] == seeds[0] + 1
    for number in (1, 2):
        assert request_of_clip(tmp_path / f"ball-{number}.mp4").seed == seeds[number - 1]
        assert (tmp_path / f"ball-{number}.compare.mp4").exists()
    assert Path(first["page"]).name == "ball-clips.html"
    header, *lines = Path("ball-clips.csv").read_text().splitlines()
    assert header.startswith("clip,file,prompt,seed") and len(lines) == 2

    kept = (tmp_path / "ball-1.mp4").stat().st_mtime_ns
    (tmp_path / "ball-2.mp4").unlink()
    (tmp_path / "ball-2.compare.mp4").unlink()
    again = made("a ball", "--count", 2, "-o", "ball.mp4", "--compare")
    assert [clip["seed"] for clip in again["clips"]] == seeds
    assert (tmp_path / "ball-1.mp4").stat().st_mtime_ns == kept
    assert (tmp_path / "ball-2.mp4").exists()

    with pytest.raises(LadderError, match="list of other clips"):
        made("a box", "--count", 2, "-o", "ball.mp4")


@pytest.mark.slow
def test_rows_of_a_table_have_their_own_fields(tmp_path: Path) -> None:
    Path("p.csv").write_text("prompt,seed,output,refine.denoise\na ball,5,one.mp4,0.5\na box,6,,\n")
    done = made("--prompts", "p.csv", "--seed", 3)
    assert [c["output"] for c in done["clips"]] == ["one.mp4", "2-a-box.mp4"]
    one, two = (request_of_clip(tmp_path / "p-clips" / c["output"]) for c in done["clips"])
    assert (one.seed, two.seed) == (5, 6)
    assert one.model_dump()["stages"][-1]["denoise"] == 0.5
    assert two.model_dump()["stages"][-1]["denoise"] != 0.5


def test_everything_is_checked_before_the_first_clip(tmp_path: Path) -> None:
    Path("p.csv").write_text("prompt,size\na ball,64x64\na box,63x64\n")
    with pytest.raises(RequestError, match="row 2: width"):
        made("--prompts", "p.csv")
    assert not (tmp_path / "p-clips").exists()
    for name in ("../x.mp4", "a/b.mp4", ".."):
        Path("q.jsonl").write_text(json.dumps({"prompt": "a", "output": name}))
        with pytest.raises(RequestError, match="plain file name"):
            made("--prompts", "q.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--count", 0], "count=0"),
        (["a", "--prompts", "none.txt"], "cannot be combined"),
        (["--prompts", "/dev/zero"], "a device"),
        (["--count", 2], "no prompt"),
        (["a", "--count", 2, "-o", "f/%05d.png"], "image sequence"),
        (["a", "--count", 20_000], "20000 clips"),
    ],
)
def test_wrong_options_are_errors(words: list[object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        made(*words)


def test_compare_needs_two_stages() -> None:
    done = run("make", "a", *TINY, *SMALL[:4], "-p", "distilled-single", "--compare")
    assert isinstance(done.exception, RequestError)
    assert "--compare needs" in done.exception.message
