"""A few trials of every kind; ``make campaign`` runs the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.kinds import KINDS
from campaign.trials import Kind, run_kind

SEED = 13


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_faulty_and_hostile_inputs_are_read_or_refused_in_words(kind: Kind, tmp_path: Path) -> None:
    tally = run_kind(kind, kind.few, SEED, tmp_path)
    assert not tally.faults, "\n".join(f"{n}: {text}" for n, text in tally.faults.items())
    assert tally.tried == kind.few
