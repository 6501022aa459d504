"""Time of ``ladder workflow check`` from process start to end, on a graph of about 150 kB.

The graph is exported with ``ladder workflow export`` and padded with notes to the size of the
largest published one. Bytecode is compiled first; reported is the median of the runs.

    python benchmarks/workflow_check.py [--runs 9] [--graph FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZE = 150_000
RESULTS = Path(__file__).parent / "results" / "workflow_check.json"


def graph(folder: Path) -> Path:
    """Export a two-stage graph and pad it with notes."""
    path = folder / "graph.json"
    command = [sys.executable, "-m", "latent_ladder", "workflow", "export"]
    preset = ["preset:comfy-template", "--prompt", "a red ball"]
    subprocess.run([*command, *preset, "-o", str(path)], check=True, capture_output=True)
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    key = max(node["id"] for node in document["nodes"])
    while len(json.dumps(document)) < SIZE:
        key += 1
        note = {"id": key, "type": "MarkdownNote", "widgets_values": ["words " * 200]}
        document["nodes"].append(note)
    path.write_text(json.dumps(document), "utf-8")
    return path


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Seconds of one run of the command; its result is ignored."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "latent_ladder", *arguments]
    subprocess.run(command, capture_output=True, check=False, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print the medians and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--graph", type=Path)
    args = parser.parse_args()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "compiled")
        path = args.graph or graph(Path(folder))
        check, version = ["workflow", "check", str(path)], ["--version"]
        seconds(check, environment)  # compiles
        result = {
            name: round(statistics.median(seconds(a, environment) for _ in range(args.runs)), 3)
            for name, a in (("check_s", check), ("version_s", version))
        }
        result |= {"bytes": path.stat().st_size, "runs": args.runs}
    print(json.dumps(result))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
