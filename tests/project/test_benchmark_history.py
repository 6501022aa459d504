"""The comparison of benchmark ratios with those of the last release."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from check_history import BENCHMARKS as SCRIPTS  # noqa: E402
from check_history import HISTORY, compare, newest  # noqa: E402


def test_a_ratio_is_worse_only_beyond_the_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = {"denoiser": {"forward cpu": 0.8, "guided cpu": 0.6}}
    found = {"denoiser": {"forward cpu": 0.99, "guided cpu": 0.76, "forward memory": 2.0}}
    assert compare(found, recorded, 0.25) == ["denoiser guided cpu"]
    assert "recorded new" in capsys.readouterr().out


def test_releases_are_ordered_by_number(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0", "0.2.11"):
        (tmp_path / f"{version}.json").write_text("{}")
    assert newest(tmp_path).stem == "0.10.0"


def test_every_recorded_ratio_still_has_a_script() -> None:
    for path in HISTORY.glob("*.json"):
        recorded = json.loads(path.read_text())
        assert set(recorded["ratios"]) <= set(SCRIPTS), path.name
        values = [v for ratios in recorded["ratios"].values() for v in ratios.values()]
        assert values and all(0 < value < 10 for value in values), path.name


def test_every_script_exists() -> None:
    for benchmark in SCRIPTS.values():
        assert (BENCHMARKS / benchmark.arguments[0]).is_file()
