"""Answers of ``ladder studio`` with many runs in the store: times, and the memory of the server.

    python benchmarks/studio.py            # 2,000 runs, a table on stdout
    python benchmarks/studio.py --runs 200

Starts a real server with a temporary store, without jobs. Times are of whole requests by a client
on the same machine.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil

from latent_ladder.request.model import Request
from latent_ladder.storage.run_records import RunLog

REPEATS = 40
PATHS = (
    "/ladder/state",
    "/ladder/runs?limit=50",
    "/ladder/runs?limit=200",
    "/ladder/runs?limit=50&text=ball%207",
    "/ladder/runs?limit=50&seed=77",
    "/ladder/jobs",
    "/studio/",
)


def fill(store: Path, count: int) -> None:
    """Write finished runs with a small file each."""
    log, clip = RunLog(store / "runs"), store / "clip.mp4"
    store.mkdir(parents=True)
    clip.write_bytes(b"0" * 1000)
    for number in range(count):
        request = Request.from_preset("pocket", prompt=f"a ball {number}", seed=number)
        record = log.start("ladder make", request.to_dict())
        log.save(replace(record, status="done", output=str(clip)))


def measure(url: str, path: str) -> tuple[float, float]:
    """Median and longest time of a request in milliseconds, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        with urlopen(url + path, timeout=120) as answer:
            answer.read()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:]), max(times[1:])


def main() -> None:
    """Fill a store, start the server, measure, print."""
    parser = argparse.ArgumentParser(description="Measure the answers of ladder studio.")
    parser.add_argument("--runs", type=int, default=2000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        fill(store, count)
        process = subprocess.Popen(
            [sys.executable, "-m", "latent_ladder", "studio", "--no-open", "--port", "0",
             "--store", str(store), "--device", "cpu"],
            cwd=folder, stderr=subprocess.PIPE, text=True, env=os.environ | {"LADDER_MODELS": ""},
        )  # fmt: skip
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://[\d.:]+", line)
            assert found is not None, line
            began = time.perf_counter()
            urlopen(f"{found[0]}/ladder/runs?limit=1", timeout=300).close()
            print(f"index of {count} runs made in {time.perf_counter() - began:.2f} s")
            server = psutil.Process(process.pid)
            before = server.memory_info().rss
            for path in PATHS:
                median, longest = measure(found[0], path)
                print(f"{path:40} median {median:6.1f} ms, longest {longest:6.1f} ms")
            after = server.memory_info().rss
            print(f"memory of the server {before / 2**20:.0f} -> {after / 2**20:.0f} MiB")
            idle = server.cpu_times()
            time.sleep(10)
            spent = sum(server.cpu_times()[:2]) - sum(idle[:2])
            print(f"processor time while idle: {spent * 100:.1f} ms in 1 s")
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
