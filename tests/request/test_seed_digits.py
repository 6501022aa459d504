"""Seeds keep all 64 bits on every way from text to a stage's noise."""

from __future__ import annotations

import json

import pytest

from latent_ladder.drafts.seeds import parse_seeds
from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request, override
from latent_ladder.request.presets import read_preset
from latent_ladder.sweeps.axes import parse_axes

SEEDS = (2**53 + 1, 2**63 - 1, 2**63 + 1, 2**64 - 1)


def pocket(**fields: object) -> dict[str, object]:
    return override({"prompt": "a", **read_preset("pocket").fields}, fields)


@pytest.mark.parametrize("seed", SEEDS)
def test_requests(seed: int) -> None:
    request = Request.from_dict(pocket(seed=seed))
    for again in (
        Request.from_toml(request.to_toml()),
        Request.from_json(request.to_json()),
        Request.from_dict(json.loads(json.dumps(request.to_dict()))),
    ):
        assert (again.seed, again.stage_seed(0)) == (seed, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_drafts_and_sweeps(seed: int) -> None:
    assert parse_seeds(f"{seed},1", 0) == (seed, 1)
    (axis,) = parse_axes([f"seed=1,{seed}"])
    assert [int(value) for value in axis.values] == [1, seed]


@pytest.mark.parametrize("seed", [9007199254740993.0, 1e16, -2, 2**64])
def test_a_seed_that_may_have_lost_digits_is_refused(seed: float) -> None:
    with pytest.raises(RequestError, match="seed"):
        Request.from_dict(pocket(seed=seed))
