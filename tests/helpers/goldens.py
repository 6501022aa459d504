"""Goldens: recorded inputs and outputs of the official implementation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_2_5 = Path(__file__).parents[1] / "golden-2.5"


@dataclass(frozen=True)
class GoldenCase:
    """One case: input tensors, and the output tensors of the official implementation."""

    name: str
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    params: dict[str, Any]
    rtol: float
    atol: float

    def check(
        self,
        output: str,
        got: torch.Tensor | None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        """Assert that ``got`` equals the stored output within the case's tolerance."""
        assert got is not None, f"{self.name}.{output}: no tensor"
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

    def __init__(self, folder: Path = GOLDEN) -> None:
        self.folder = folder

    @cached_property
    def _index(self) -> dict[str, Any]:
        cases = json.loads((self.folder / "goldens.json").read_text())["cases"]
        return cases if isinstance(cases, dict) else {c["name"]: c for c in cases}

    def path(self, name: str) -> Path:
        """The path of a fixture file below the folder of the goldens."""
        return self.folder / name

    def __call__(self, name: str) -> GoldenCase:
        entry = self._index[name]
        aliases = entry.get("aliases") or {}
        with safe_open(self.folder / "goldens.safetensors", "pt") as f:
            stored = set(f.keys())

            def load(kind: str, names: Iterable[str]) -> dict[str, torch.Tensor]:
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
