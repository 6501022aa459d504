"""Fixtures shared by the suite: the goldens of the official implementation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenCase:
    """One case: tensors that went in, tensors that the official implementation gave."""

    name: str
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    params: dict[str, Any]
    rtol: float
    atol: float

    def check(
        self,
        output: str,
        got: torch.Tensor,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        """Assert that ``got`` equals the stored output within the case's tolerance."""
        want = self.outputs[output]
        if want.is_floating_point():
            want = want.float()
            got = got.float()
        torch.testing.assert_close(
            got,
            want,
            rtol=self.rtol if rtol is None else rtol,
            atol=self.atol if atol is None else atol,
            msg=lambda m: f"{self.name}.{output}: {m}",
        )


class Goldens:
    """``golden("dit.uniform")`` gives a case, ``golden.path(...)`` a fixture file."""

    @cached_property
    def _index(self) -> dict[str, Any]:
        cases = json.loads((GOLDEN / "goldens.json").read_text())["cases"]
        return cases if isinstance(cases, dict) else {c["name"]: c for c in cases}

    def path(self, name: str) -> Path:
        """The path of a fixture file below tests/golden."""
        return GOLDEN / name

    def __call__(self, name: str) -> GoldenCase:
        entry = self._index[name]
        aliases = entry.get("aliases") or {}
        with safe_open(GOLDEN / "goldens.safetensors", "pt") as f:
            stored = set(f.keys())

            def load(kind: str, names: Any) -> dict[str, torch.Tensor]:
                found = {}
                for n in names:
                    key = f"{name}.{kind}.{n}"
                    key = aliases.get(key, aliases.get(n, key))
                    if key in stored:
                        found[n] = f.get_tensor(key)
                return found

            inputs = load("in", entry["inputs"])
            outputs = load("out", entry["outputs"])
        return GoldenCase(
            name,
            inputs,
            outputs,
            entry.get("params") or {},
            entry.get("rtol") or 0.0,
            entry.get("atol") or 0.0,
        )


@pytest.fixture(scope="session")
def golden() -> Goldens:
    """Access to the goldens."""
    return Goldens()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What can be made again is kept beside the tests' other files, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADDER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
