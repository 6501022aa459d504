"""The command line in a process of its own: output, exit codes, JSON, imports."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest
import typer
from helpers.command_line import SMALL, TINY, environment

from latent_ladder.cli.command_table import COMMANDS, CommandRow, load_command


class Ladder(Protocol):
    """Runs ``ladder`` and checks its exit code."""

    def __call__(
        self, *words: str, code: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def ladder(tmp_path: Path) -> Ladder:
    """Run ``ladder`` in a fresh folder with its own store."""

    def call(*words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "latent_ladder", *words],
            cwd=tmp_path,
            env={**environment(tmp_path), **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    return call


@pytest.mark.slow
def test_quiet_prints_the_path_and_nothing_else(ladder: Ladder, tmp_path: Path) -> None:
    done = ladder("make", "a red ball", "-o", "a.mp4", "-q", *TINY, *SMALL)
    assert done.stdout == "a.mp4\n"
    assert (tmp_path / "a.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_make_json_describes_the_result(ladder: Ladder) -> None:
    done = ladder("make", "a red ball", "-o", "a.mp4", "--json", *TINY, *SMALL, "--seed", "5")
    body = json.loads(done.stdout)
    assert (body["width"], body["height"], body["frames"], body["fps"]) == (64, 64, 9, "24")
    assert body["seed"] == body["request"]["seed"] == 5
    assert body["audio_duration_s"] == pytest.approx(body["duration_s"], abs=1e-4)
    fields = {"stage", "key", "reused", "seconds", "peak_memory_bytes", "memory"}
    assert fields == set(body["stages"][0])
    # models and work, without the interpreter; a process that freed memory before would reuse it
    assert max(stage["peak_memory_bytes"] for stage in body["stages"]) > 5e5


@pytest.mark.slow
def test_seed_minus_one_is_random_and_recorded(ladder: Ladder) -> None:
    seeds = set()
    for _ in range(2):
        body = json.loads(ladder("plan", "a ball", "--json", *TINY, *SMALL, "--seed", "-1").stdout)
        seeds.add(body["request"]["seed"])
    assert len(seeds) == 2
    assert min(seeds) >= 0


@pytest.mark.slow
def test_plan_runs_nothing_and_lists_stored_stages(ladder: Ladder, tmp_path: Path) -> None:
    words = ("a red ball", *TINY, *SMALL, "--json", "--seed", "3")
    before = json.loads(ladder("plan", *words).stdout)
    assert not (tmp_path / "store" / "artefacts").exists()
    assert {s["stored"] for s in before["stages"]} == {False}
    ladder("make", *words, "-o", "a.mp4")
    after = json.loads(
        ladder("plan", *words, "--set", "refine.denoise=0.4", "--set", "refine.steps=3").stdout
    )
    stored = {s["stage"]: s["stored"] for s in after["stages"]}
    assert stored["base"]
    assert not stored["refine"]
    refine = next(s for s in after["stages"] if s["stage"] == "refine")
    assert refine["start_sigma"] == pytest.approx(0.6598, abs=1e-3)  # the pocket's shift is .95
    assert refine["video_latents"] == [1, 8, 2, 2, 2]
    assert refine["flops"] > 0


@pytest.mark.slow
def test_show_and_from_round_trip(ladder: Ladder, tmp_path: Path) -> None:
    ladder("make", "a red ball", "-o", "a.mp4", *TINY, *SMALL)
    assert 'prompt = "a red ball"' in ladder("show", "a.mp4").stdout
    body = json.loads(ladder("make", "--from", "a.mp4", "-o", "b.mp4", "--json", *TINY[:2]).stdout)
    assert {s["reused"] for s in body["stages"][:-1]} == {True}
    (tmp_path / "r.toml").write_text(ladder("show", "a.mp4").stdout)
    again = json.loads(ladder("plan", "--from", "r.toml", "--json", *TINY[:2]).stdout)
    assert again["request"] == body["request"]


@pytest.mark.slow
def test_runs_list_show_verify_prune(ladder: Ladder, tmp_path: Path) -> None:
    ladder("make", "a red ball", "-o", "a.mp4", *TINY, *SMALL)
    [run] = json.loads(ladder("runs", "list", "--json").stdout)
    assert run["status"] == "done"
    assert run["id"] in ladder("runs", "list").stdout
    assert "refine" in ladder("runs", "show", run["id"][:6]).stdout
    assert "0 were damaged" in ladder("runs", "verify").stdout
    dry = json.loads(ladder("runs", "prune", "--keep-last", "0", "--dry-run", "--json").stdout)
    assert dry["runs"] == [run["id"]]
    ladder("runs", "prune", "--keep-last", "0")
    assert json.loads(ladder("runs", "list", "--json").stdout) == []
    assert not list((tmp_path / "store" / "artefacts").rglob("*.safetensors"))


@pytest.mark.slow
def test_presets_and_models(ladder: Ladder) -> None:
    names = [p["name"] for p in json.loads(ladder("presets", "list", "--json").stdout)]
    assert {"pocket", "distilled", "balanced", "lightricks-workflow", "three-stage"} <= set(names)
    assert "source =" in ladder("presets", "show", "balanced").stdout
    listed = json.loads(ladder("models", "list", "--json", *TINY[:2]).stdout)
    assert {"transformer", "text_encoder", "lora"} <= {m["role"] for m in listed["models"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "output"),
    [
        (["make", "--preset", "pokcet", "x"], 2, "did you mean pocket"),
        (["plan", "x", "-p", "pocket", "--set", "refine.denoize=1"], 2, "did you mean denoise"),
        (["make", "x", "--preset", "pocket", "--frames", "100"], 2, "--frames 97"),
        (["make", "x", "--preset", "pocket", "--size", "0x64"], 2, "width 0"),
        (["make", "x", "--preset", "pocket", "--size", "-5x64"], 2, "width -5"),
        (["make", "x", "--preset", "pocket", "--size", "999999x64"], 2, "width 999999"),
        (["make", "x", "--preset", "pocket", "--size", "big"], 2, "1280x720"),
        (["make", "x", "--preset", "pocket", "--fps", "0"], 2, "frame rate"),
        (["make", "x", "--preset", "pocket", "--seed", "abc"], 2, "seed"),
        (["make", "x", "--preset", "pocket", "--seed", "1.5"], 2, "seed"),
        (["make", "x", "--preset", "pocket", "--set", "refine.sigmas=0.5 0.9 0"], 2, "0.9, 0.5, 0"),
        (["make", "x", "-p", "pocket", "--set", "refine.sigmas=0.9 0.5"], 2, "do not end in 0"),
        (["make", "x", "--preset", "pocket", "--set", "refine.sigmas=9,1e-3,0"], 2, "sigmas"),
        (["make", "", "--preset", "pocket"], 2, "is empty"),
        (["make", "--preset", "pocket"], 2, "no prompt"),
        (["make", "x", "-p", "pocket", "-o", "none/a.mp4", "--mode", "v2v"], 2, "needs --video"),
        (["make", "x", "--preset", "pocket", "-o", "a.avi"], 5, "a.mp4"),
        (["make", "x", "--models", "/nowhere"], 3, "does not exist"),
        (["make", "x", "--checkpoint", "nope.safetensors"], 3, "known:"),
        (["make", "x", "--preset", "pocket", "--device", "tpu"], 2, "--device auto"),
        (["show", "nothing.mp4"], 5, "nothing.mp4"),
        (["make", "--from", "nothing.toml"], 2, "does not exist"),
        (["runs", "show", "zzz"], 8, "no run"),
    ],
)  # fmt: skip
def test_wrong_input_gives_an_error_with_a_hint(
    ladder: Ladder, tmp_path: Path, words: list[str], code: int, output: str
) -> None:
    done = ladder(*words, code=code)
    assert output in done.stderr, done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.mp4"))
    assert not list(tmp_path.glob("store/artefacts/*/*"))


@pytest.mark.slow
def test_errors_as_json(ladder: Ladder) -> None:
    done = ladder("make", "", "--preset", "pocket", "--frames", "100", "--json", code=2)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "request_error"
    assert len(error["problems"]) == 2
    assert all(p["hint"] for p in error["problems"])


@pytest.mark.slow
def test_existing_output_needs_overwrite(ladder: Ladder, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"mine")
    done = ladder("make", "x", "-o", "a.mp4", *TINY, *SMALL, code=5)
    assert "already exists" in done.stderr
    assert (tmp_path / "a.mp4").read_bytes() == b"mine"
    ladder("make", "x", "-o", "a.mp4", *TINY, *SMALL, "--overwrite")
    assert (tmp_path / "a.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_a_warning_for_a_prompt_of_ten_thousand_words(ladder: Ladder) -> None:
    done = ladder("plan", "ball " * 10_000, *TINY, *SMALL)
    assert "cut at" in done.stderr


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_prints_the_command_that_resumes(
    ladder: Ladder, tmp_path: Path
) -> None:
    words = ["make", "a red ball", "-o", "a.mp4", *TINY, "--size", "64x64", "--frames", "9"]
    steps = ["--set", "base.steps=400"]
    child = subprocess.Popen(
        [sys.executable, "-m", "latent_ladder", *words, *steps],
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("store/artefacts/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, output = child.communicate(timeout=120)
    assert child.returncode == 130, output
    assert "To resume:" in output
    assert "base.steps=400" in output
    assert "--seed" in output
    assert not (tmp_path / "a.mp4").exists()
    [run] = json.loads(ladder("runs", "list", "--json").stdout)
    assert run["status"] == "cancelled"


@pytest.mark.parametrize("module", dict.fromkeys(row.module for row in COMMANDS))
def test_the_table_lists_every_command_of_a_module(module: str) -> None:
    """Only that module is imported, so a command missing from the table would not be found."""
    app = typer.Typer()
    importlib.import_module(f"latent_ladder.cli.commands.{module}").register(app)
    built = typer.main.get_group(app).commands
    assert set(built) == {row.name for row in COMMANDS if row.module == module}
    for name in built:
        loaded = load_command(name)
        assert loaded.name == name
        assert [p.name for p in loaded.params] == [p.name for p in built[name].params]


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_the_summary_in_the_table_opens_the_help_of_the_command(row: CommandRow) -> None:
    opening, _, _ = load_command(row.name).help.partition("\n\n")
    assert opening == row.summary


def run_main(*words: str) -> tuple[str, list[str]]:
    """Output and heavy modules of ``ladder`` in a process of its own."""
    code = (
        f"import sys; sys.argv = {['ladder', *words]!r}\n"
        "from latent_ladder.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'av', 'pydantic', 'numpy', 'latent_ladder.cli.commands.make'}\n"
        "print()\nprint(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *output, heavy = done.stdout.split("\n")[:-1]
    return "\n".join(output), heavy.split()


def test_help_needs_nothing_heavy() -> None:
    text, heavy = run_main("--help")
    assert heavy == []
    assert all(row.summary in text for row in COMMANDS)
