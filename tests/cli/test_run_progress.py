"""A run that the user watches: Ctrl-C once, Ctrl-C twice, and what is said then."""

from __future__ import annotations

import signal

import pytest

from latent_ladder.checkpoints.selection import EMBEDDED, scan
from latent_ladder.cli.commands.run_progress import watched
from latent_ladder.errors import Cancelled
from latent_ladder.pipeline.run import Prepared, prepare
from latent_ladder.request.model import Request
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.artifact_store import Store


@pytest.fixture
def prepared(tmp_path) -> Prepared:
    request = Request.from_dict({**read_preset("pocket").fields, "prompt": "a red ball"})
    return prepare(request.pick_seed(), scan([EMBEDDED]), Store(tmp_path), device="cpu")


def run(prepared: Prepared):
    return watched(prepared, "cpu", "ladder refine last:3", overwrite=False, quiet=True)


def test_the_first_ctrl_c_asks_and_the_second_stops(prepared, capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cancelled), run(prepared) as options:
        signal.raise_signal(signal.SIGINT)
        assert options.cancel.requested
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C has to stop at once")
    said = capsys.readouterr().err
    assert "stopping after this step" in said
    assert "To go on:\n  ladder refine last:3" in said
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_says_nothing(prepared, capsys):
    with run(prepared) as options:
        assert options.command == "ladder refine last:3"
        assert options.memory == prepared.options
    assert capsys.readouterr().err == ""
