"""Parts of all three scripts for the first GPU: arguments, rows, the table and the JSON file.

Each script prints one table and writes ``benchmarks/results/gpu_NAME.json``, from which
``docs_page.py`` makes a page. ``--tiny`` runs the same code with small networks on any device, also
on a pretended card (``--pretend twin``): a rehearsal, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT / "src")]

import torch  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
LIMIT_S = 570
"""Time after which no further check is started: a script takes less than ten minutes."""


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ok`` is ``None`` for a measurement without a goal."""

    name: str
    value: str
    goal: str = ""
    ok: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class Campaign:
    """Rows of one script on one device, stored after each so that a crash loses one check."""

    name: str
    device: torch.device
    tiny: bool
    pretend: str | None = None
    only: frozenset[str] = frozenset()
    results: Path = RESULTS
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def check(self, name: str, work: Callable[[], Iterator[Row]]) -> None:
        """Run a check and print its rows; an error becomes a row and the next check runs.

        With ``only``, other checks are left out.
        """
        if self.only and name not in self.only:
            return
        if time.monotonic() - self.began > LIMIT_S:
            self._add(Row(name, "not run: no time left", ok=False))
            return
        try:
            for row in work():
                self._add(row)
        except Exception as error:  # noqa: BLE001
            # the first half hour on a card must not end at the first failure
            traceback.print_exc(limit=-3)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._add(Row(name, f"failed: {first[:60]}", ok=False))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        mark = {True: "ok", False: "NO", None: ""}[row.ok]
        print(f"{row.name:38.38}  {row.value:26.26}  {row.goal:9.9} {mark}", flush=True)
        self.results.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @property
    def path(self) -> Path:
        """The JSON file; a rehearsal has one of its own, and so have chosen checks."""
        suffix = "_rehearsal" if self.tiny else "_part" if self.only else ""
        return self.results / f"gpu_{self.name}{suffix}.json"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: where it ran, and all rows."""
        cuda = self.device.type == "cuda"
        return {
            "script": self.name,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "pretended": self.pretend,
            "rehearsal": self.tiny,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "seconds": round(time.monotonic() - self.began, 1),
            "rows": [asdict(row) for row in self.rows],
        }


@contextmanager
def campaign(name: str, description: str) -> Iterator[Campaign]:
    """Read the arguments of a script, print the head and the end of its table."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true", help="small networks, on any device")
    parser.add_argument("--pretend", choices=["twin"], help="a pretended card; implies --tiny")
    parser.add_argument("--only", default="", metavar="CHECKS", help="names, with commas")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    args = parser.parse_args()
    tiny = args.tiny or args.pretend is not None
    if not tiny and not torch.cuda.is_available():
        print("error: this script needs a CUDA device", file=sys.stderr)
        print("hint:  --tiny uses the CPU, --pretend twin a pretended GPU", file=sys.stderr)
        raise SystemExit(1)
    with ExitStack() as stack:
        if args.pretend is not None:
            from pretended import twin

            stack.enter_context(twin.pretend())
        has_card = args.pretend is not None or torch.cuda.is_available()
        torch.manual_seed(1)
        device = torch.device("cuda" if has_card else "cpu")
        only = frozenset(filter(None, args.only.split(",")))
        run = Campaign(name, device, tiny, args.pretend, only, args.results)
        yield run
        if not run.rows:
            print(f"error: no check is named {args.only}", file=sys.stderr)
            raise SystemExit(1)
        failed = sum(row.ok is False for row in run.rows)
        print(f"{len(run.rows)} rows, {failed} not as expected; written to {run.path}")
        if failed:
            raise SystemExit(1)


def same(name: str, equal: bool) -> Row:
    """Row of a comparison of bits."""
    return Row(name, "same bits" if equal else "other bits", "same", equal)


def within(name: str, error: float, limit: float) -> Row:
    """Row of a relative error with its limit."""
    return Row(name, f"error {error:.2g}", f"<= {limit:.2g}", error <= limit, {"error": error})
