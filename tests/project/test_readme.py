"""The commands of README and tutorial work as a newcomer types them, and the README is true.

Blocks marked ``sh`` and ``python`` are run in order in one shell, in a folder as after a clone with
nothing installed: ``ladder`` is found only from the line on that the README says so. Blocks without
a mark need something that a test does not have (network, real weights, inputs).
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from helpers.clone import make_clone, run_shell

from latent_ladder.media.video_reader import probe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
URL = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]


def blocks(kind: str, page: str = README) -> list[str]:
    return [body for name, body in BLOCK.findall(page) if name == kind]


@pytest.mark.slow
@pytest.mark.timeout(900)  # it installs everything
def test_the_blocks_work_in_order_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "latent-ladder")
    assert run_shell("command -v ladder", clone).returncode == 1
    shell, code = "\n".join(blocks("sh")), "\n".join(blocks("python"))
    assert len([line for line in shell.splitlines() if line.startswith("ladder ")]) >= 12
    done = run_shell(f"{shell}\npython - <<'EOF'\n{code}EOF\n", clone)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for name in ("demo", "ball", "star", "stronger", "again"):
        info = probe(clone / f"{name}.mp4")
        assert (info.width, info.height) == (512, 512), name
        assert info.audio_duration_s == pytest.approx(info.duration_s, abs=1e-3)
    assert (clone / "drafts" / "sheet.png").exists()
    assert done.stdout.rstrip().splitlines()[-1].startswith("falling.mp4 1.04")
    check_tutorial(clone)


def check_tutorial(clone: Path) -> None:
    """The tutorial's commands and the sweep from Python, with the store of the README's."""
    page = (ROOT / "docs" / "guide" / "tutorial.md").read_text("utf-8")
    shell = "\n".join(blocks("sh", page))
    assert shell.count("ladder ") >= 8
    (code,) = blocks("python", (ROOT / "docs" / "guide" / "sweeps.md").read_text("utf-8"))
    start = "source .venv/bin/activate\nmkdir tutorial\ncd tutorial\n"
    done = run_shell(f"{start}{shell}\npython - <<'EOF'\n{code}EOF\n", clone)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    files = (
        "ball.mp4",
        "stronger.mp4",
        "drafts/drafts.mp4",
        "star.mp4",
        "square.preview.png",
        "report",
    )
    assert all((clone / "tutorial" / name).exists() for name in files)


def test_ladder_is_called_only_where_it_was_put_on_the_path() -> None:
    before, _, _ = README.partition("source .venv/bin/activate")
    for kind, body in BLOCK.findall(before):
        lines = [line for line in body.splitlines() if line.startswith("ladder ")]
        assert not lines, f"```{kind}: {lines}"


def test_links_are_absolute_and_of_one_repository() -> None:
    """PyPI shows the README too, where a relative link leads nowhere."""
    targets = re.findall(r"\]\(([^)]+)\)", README)
    base = URL["Homepage"]
    assert len(targets) >= 12
    for target in targets:
        assert target.startswith("https://"), target
        if "latent-ladder" not in target or target.startswith(URL["Documentation"]):
            continue
        found = re.fullmatch(rf"{re.escape(base)}/(?:blob|raw)/main/(.+)", target)
        assert found is not None, target
        assert (ROOT / found[1]).exists(), target


def test_numbers_of_the_comparison() -> None:
    (page,) = (ROOT / "docs").rglob("workflows.md")  # tests/comfyui/test_docs.py checks it
    runs = re.search(r"^(\d+) types run", page.read_text("utf-8"), re.M)
    assert runs is not None
    assert f"{runs[1]} node types" in README
    figures = (ROOT / "docs" / "laboratory" / "benchmarks.md").read_text("utf-8")
    ratios = re.search(r"^\| ratio \| \*\*([\d.]+)\*\*.*\| [\d.]+ \| ([\d.]+) ", figures, re.M)
    assert ratios is not None
    assert f"{ratios[1]} of the time, {ratios[2]}\nof the memory" in README


def test_blocks_are_marked_or_meant_to_be_read() -> None:
    assert {kind for kind, _ in BLOCK.findall(README)} <= {"", "sh", "python"}
