"""Scripts for a GPU: a rehearsal writes its table, and never becomes a page."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pretended import guard

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a card appear; those of a rehearsal do not."""
    pages = script("docs_page")
    assert pages.page() == (ROOT / "docs" / "laboratory" / "gpu.md").read_text()
    row = {"name": "norm", "value": "error 0.001", "goal": "<= 0.004", "ok": True}
    report = {"script": "speed", "device": "H200", "torch": "2", "seconds": 3, "rows": [row]}
    monkeypatch.setattr(pages, "STORED", tmp_path)
    for rehearsal in (True, False):
        (tmp_path / "gpu_speed.json").write_text(json.dumps(report | {"rehearsal": rehearsal}))
        assert ("| norm | error 0.001 | <= 0.004 | yes |" in pages.page()) is not rehearsal


@pytest.mark.slow
@pytest.mark.parametrize("name", ["correctness", "speed", "end_to_end"])
def test_without_a_gpu_scripts_say_what_to_do(name: str) -> None:
    code = "import torch; torch.cuda.is_available = lambda: False; import runpy, sys; "
    code += f"sys.path.insert(0, {str(GPU)!r}); sys.argv = ['x']; "
    code += f"runpy.run_path({str(GPU / f'{name}.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: this script needs a CUDA device" in done.stderr
    assert "--tiny" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checks", "least"),
    [
        ("correctness", "attention,fp8,decoders,registration", 15),
        pytest.param("correctness", "", 25, marks=pytest.mark.long),
        pytest.param("speed", "", 15, marks=pytest.mark.long),
        pytest.param("end_to_end", "", 8, marks=pytest.mark.long),
    ],
)
def test_a_rehearsal_on_a_pretended_card_runs_to_its_end(
    tmp_path: Path, name: str, checks: str, least: int
) -> None:
    if (reason := guard.reason_against()) is not None:
        pytest.skip(reason)
    command = [sys.executable, str(GPU / f"{name}.py"), "--pretend", "twin", "--results"]
    done = subprocess.run(
        [*command, str(tmp_path), "--only", checks], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / f"gpu_{name}_rehearsal.json").read_text())
    assert len(report["rows"]) >= least
    assert report["pretended"] == "twin"
    assert not [row for row in report["rows"] if row["ok"] is False]


@pytest.mark.slow
def test_an_unknown_check_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(GPU / "correctness.py"), "--tiny", "--only", "bit"]
    command += ["--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no check is named bit" in done.stderr
