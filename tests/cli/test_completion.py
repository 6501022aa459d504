"""Shell completion: scripts for bash, zsh and fish, and the values that are offered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import COMMANDS
from latent_ladder.media.encoders import CODECS
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.pipeline.latent_preview import KINDS
from latent_ladder.request.inputs import Fit, Mode
from latent_ladder.request.model import Models, Request
from latent_ladder.request.presets import preset_names
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.storage.artifact_store import Store

pytestmark = pytest.mark.slow

SHELLS = ("bash", "zsh", "fish")


def run_ladder(folder: Path, *words: str, **variables: str) -> str:
    """Stdout of ``ladder`` with a home and a store of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "latent_ladder", *words],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "LADDER_STORE": str(folder / "store"),
            "LADDER_MODELS": "",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(folder: Path, line: str, shell: str = "zsh") -> str:
    """The answer of ``ladder`` when Tab is pressed at the end of ``line``."""
    if shell == "bash":
        words = line.split(" ")
        variables = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        variables = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return run_ladder(folder, _LADDER_COMPLETE=f"complete_{shell}", **variables)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with one stored run and a model folder."""
    store = Store(tmp_path / "store")
    store.runs.start("ladder make", {"prompt": "a red ball: rolls"})
    for name in ("checkpoints/my-model.safetensors", "upscale_models/my-x4.pth"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_is_shown_and_installed(shell: str, tmp_path: Path) -> None:
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run_ladder(tmp_path, "--show-completion", shell, **variables)
    assert f"complete_{shell}" in script
    assert "_LADDER_COMPLETE" in script
    assert "python" not in script
    output = run_ladder(tmp_path, "--install-completion", shell, **variables)
    assert f"{shell} completion installed" in output
    installed = [p for p in tmp_path.rglob("*") if p.is_file() and "_LADDER" in p.read_text()]
    assert len(installed) == 1


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_accepts_its_script(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run_ladder(tmp_path, "--show-completion", shell, **variables)
    (tmp_path / "script").write_text(script)
    done = subprocess.run([program, "-n", "script"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bash_completes_a_command_line(folder: Path) -> None:
    """The real script in a real bash, with ``ladder`` as a function."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run_ladder(folder, "--show-completion", "bash", **variables)
    program = folder / "ladder"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m latent_ladder "$@"\n')
    program.chmod(0o755)
    command = (
        f"{script}\nCOMP_WORDS=({program} make --preset bal) COMP_CWORD=3\n"
        f'_ladder_completion {program}\necho "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run([bash, "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == "balanced", done.stderr


def test_commands_and_options_are_offered(folder: Path) -> None:
    answer = complete(folder, "ladder ")
    assert all(row.name in answer for row in COMMANDS)
    assert "Make a clip with sound" in answer
    assert "--preset" in complete(folder, "ladder make --pre")
    assert "--verbose" in complete(folder, "ladder --ver")
    assert "prune" in complete(folder, "ladder runs ")


@pytest.mark.parametrize("shell", SHELLS)
def test_presets_are_offered(shell: str, folder: Path) -> None:
    answer = complete(folder, "ladder make --preset dis", shell)
    assert "distilled-single" in answer
    assert "balanced" not in answer


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("ladder make -p ", "balanced", "--size"),
        ("ladder presets show th", "three-stage", "balanced"),
        ("ladder make --offload ", "stream", "balanced"),
        ("ladder make --oom-policy ti", "tiles,fp8", "same"),
        ("ladder make --checkpoint ", "my-model.safetensors", "my-x4.pth"),
        ("ladder make --upscale ", "my-x4.pth", "my-model"),
        ("ladder make --upscale l", "lanczos", "rtx"),
        ("ladder make --set base.sampler=eul", "base.sampler=euler_ancestral", "heun"),
        ("ladder make --preset distilled --set ref", "refine.", "base."),
        ("ladder runs show ", "last", "--store"),
        ("ladder runs show ", "a red ball", "--store"),
        ("ladder refine la", "last", "--store"),
        ("ladder models get ", "ltx-2.3", "--to"),
        ("ladder models get ltx-2.3 --precision f", "fp8", "bf16"),
        ("ladder draft x --preview t", "tae", "rgb"),
        ("ladder workflow export x --format ", "api", "--node"),
    ],
)
def test_values_are_offered(line: str, offered: str, not_offered: str, folder: Path) -> None:
    answer = complete(folder, line)
    assert offered in answer
    assert not_offered not in answer


def test_nothing_is_offered_where_values_cannot_be_found(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file in place of the folder")
    assert "last" not in complete(tmp_path, "ladder runs show ")
    assert complete(tmp_path, "ladder make --models nowhere --checkpoint ") == "_files\n"


def test_bash_gets_no_run_after_a_colon(folder: Path) -> None:
    """Bash splits ``last:`` into two words, and a run's id would be added to the first one."""
    assert complete(folder, "ladder refine last : ", "bash").strip() == ""


def test_the_offered_values_are_those_that_are_valid() -> None:
    fields = get_type_hints(Request)
    assert set(completion.AUDIO_MODES) == set(get_args(fields["audio"]))
    assert set(completion.FITS) == set(get_args(Fit))
    assert set(completion.VIDEO_MODES) == set(get_args(Mode))
    assert set(completion.PRECISIONS) == set(get_args(get_type_hints(Models)["precision"]))
    assert set(completion.DRAFT_PREVIEWS) == set(KINDS)
    assert set(completion.CODECS) <= set(CODECS)
    for offload in completion.OFFLOADS:
        MemoryOptions(offload=offload)
    for policy in completion.OOM_POLICIES:
        MemoryOptions(changes=frozenset(policy.split(",")) - {"same"})


def test_all_samplers_and_presets_are_offered(folder: Path) -> None:
    answer = complete(folder, "ladder make --set refine.sampler=")
    assert all(f"refine.sampler={name}" in answer for name in SAMPLER_FACTS)
    answer = complete(folder, "ladder make --preset ")
    assert all(name in answer for name in preset_names())
