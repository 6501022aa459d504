"""The long form: ``make campaign``, or ``python -m campaign --scale 3 --seed 7 --only media``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from campaign.kinds import KINDS
from campaign.trials import run_kind, table


def main() -> int:
    """Run all kinds, print the faults and the table; 1 if there are faults."""
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other trials")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the counts of all")
    parser.add_argument("--only", action="append", choices=[kind.name for kind in KINDS])
    options = parser.parse_args()
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for kind in KINDS:
            if options.only and kind.name not in options.only:
                continue
            count = max(1, round(kind.many * options.scale))
            tally = run_kind(kind, count, options.seed, Path(folder) / kind.name)
            tallies[kind.name] = tally
            for number, fault in tally.faults.items():
                print(f"--- {kind.name} {number} of seed {options.seed}\n{fault}")
            print(f"{kind.name}: {tally.tried} tried", file=sys.stderr)
    print("\n".join(table(tallies)))
    return 1 if any(tally.faults for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
