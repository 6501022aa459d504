"""Scripts for a GPU: a rehearsal writes its table, and never becomes a page."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
