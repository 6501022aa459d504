"""The README's commands work, in the order they stand there, as a newcomer would type them.

Blocks marked ``sh`` and ``python`` are run on the embedded pocket model; blocks without a mark
need something that a test does not have (make, real weights).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from latent_ladder.media.video_reader import probe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


def blocks(kind: str) -> list[str]:
    return [body for name, body in BLOCK.findall(README) if name == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("newcomer")


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"LADDER_STORE": str(folder / "store"), "LADDER_MODELS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    return done


def test_the_commands_work(folder):
    commands = [line for body in blocks("sh") for line in body.splitlines() if line.strip()]
    assert len(commands) >= 10
    for command in commands:
        name, *words = shlex.split(command)
        assert name == "ladder", command
        run([sys.executable, "-m", "latent_ladder", *words], folder)
    for clip in folder.glob("*.mp4"):
        info = probe(clip)
        assert (info.width, info.height) == (512, 512)
        assert info.audio_duration_s == pytest.approx(info.duration_s, abs=1e-3)


def test_the_python_works(folder):
    [code] = blocks("python")
    said = run([sys.executable, "-c", code], folder).stdout
    assert said.startswith("star.mp4")
    assert (folder / "star.mp4").exists()


def test_every_local_link_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"):
        for target in LINK.findall(page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_preset_named_exists():
    from latent_ladder.request.presets import preset_names

    table = README[README.index("| preset |") :]
    rows = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[2:]
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert named <= set(preset_names())
    assert len(named) >= 9
