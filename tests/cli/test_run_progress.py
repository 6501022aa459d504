"""A run in the foreground: the first and the second Ctrl-C, and the messages."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from latent_ladder.checkpoints.selection import EMBEDDED, scan
from latent_ladder.cli.commands.run_progress import track_run
from latent_ladder.errors import Cancelled
from latent_ladder.pipeline.run import Prepared, prepare
from latent_ladder.pipeline.run_options import RunOptions
from latent_ladder.request.model import Request
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.artifact_store import Store


@pytest.fixture
def plan(tmp_path: Path) -> Prepared:
    request = Request.from_dict({**read_preset("pocket").fields, "prompt": "a red ball"})
    return prepare(request.pick_seed(), scan([EMBEDDED]), Store(tmp_path), device="cpu")


def track(plan: Prepared) -> AbstractContextManager[RunOptions]:
    return track_run(plan, "ladder refine last:3", overwrite=False, quiet=True)


def test_the_first_ctrl_c_requests_a_stop_and_the_second_stops(
    plan: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cancelled), track(plan) as options:
        signal.raise_signal(signal.SIGINT)
        assert options.cancel.requested
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C has to stop at once")
    output = capsys.readouterr().err
    assert "stopping after this step" in output
    assert "To resume:\n  ladder refine last:3" in output
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_prints_nothing(plan: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    with track(plan) as options:
        assert options.command == "ladder refine last:3"
        assert options.memory == plan.options
    assert capsys.readouterr().err == ""
