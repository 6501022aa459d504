"""Overhead of the server: time of a job over HTTP minus that of the same graph without a server.

    python benchmarks/server.py [--rounds 30]

The job is a small clip of the pocket model with all results already stored, so that only overhead
is measured. A round is one job over HTTP and a websocket, from the first byte sent to
``execution_success``, then one ``execute`` of the same graph on an engine that has already run it.
Prints one JSON object with medians in milliseconds; the goal is ``added_ms`` < 50. Run it on an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.comfyui.executor import execute
from latent_ladder.comfyui.formats.api import read_api
from latent_ladder.comfyui.runtime.engine import Engine, WorkFolders
from latent_ladder.storage.artifact_store import Store

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.comfyui_server import ComfyUiServer, clip_graph

GRAPH = clip_graph(steps=2)


async def measure_rounds(
    url: str, rounds: int, alone: Callable[[], object]
) -> dict[str, list[float]]:
    """Measure milliseconds of each round, over the server and alone."""
    times: dict[str, list[float]] = {"server": [], "alone": []}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId=bench") as socket,
    ):
        for number in range(rounds + 2):
            began = time.perf_counter()
            await session.post(f"{url}/prompt", json={"prompt": GRAPH, "client_id": "bench"})
            while not await _is_end(socket):
                pass
            over_server = time.perf_counter() - began
            began = time.perf_counter()
            alone()
            if number >= 2:  # the first rounds load models and fill the store
                times["server"].append(1000 * over_server)
                times["alone"].append(1000 * (time.perf_counter() - began))
    return times


async def _is_end(socket: aiohttp.ClientWebSocketResponse) -> bool:
    message = await socket.receive()
    return message.type is aiohttp.WSMsgType.TEXT and "execution_success" in message.data


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        places = WorkFolders(folder / "i", folder / "o", folder / "t")
        engine = Engine(scan(model_folders(())), Store(folder / "alone"), places, device="cpu")
        graph = read_api(GRAPH)
        with ComfyUiServer(folder) as served:
            times = asyncio.run(
                measure_rounds(served.url, args.rounds, lambda: execute(graph, engine))
            )
    medians = {f"{way}_ms": statistics.median(each) for way, each in times.items()}
    print(json.dumps({**medians, "added_ms": medians["server_ms"] - medians["alone_ms"]}))


if __name__ == "__main__":
    main()
