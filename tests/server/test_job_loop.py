"""The job loop with a worker that never answers."""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from pathlib import Path

import pytest

from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.job_store import Job, JobStore
from latent_ladder.server.websockets import WebSocketClients
from latent_ladder.server.worker_process import WorkerProcess

SILENT_WORKER = "import time; time.sleep(600)"


def test_a_second_interrupt_kills_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_ladder.server.job_loop.INTERRUPT_GRACE_S", 0.0)
    notes: list[str] = []

    async def interrupt_twice(store: JobStore) -> None:
        worker = WorkerProcess((sys.executable, "-c", SILENT_WORKER), {})
        jobs = JobLoop(store, worker, WebSocketClients({}), notes.append)
        running = asyncio.create_task(jobs.run())
        prompt = {"1": {"class_type": "X", "inputs": {}}}
        jobs.add(Job(0, "silent", prompt, {"client_id": "c"}, ("1",)))
        while jobs.running is None:
            await asyncio.sleep(0.01)
        assert not jobs.interrupt("another")
        assert jobs.interrupt()
        await asyncio.sleep(0.05)
        assert store.entry("silent") is None
        assert jobs.interrupt("silent")
        while store.entry("silent") is None:
            await asyncio.sleep(0.01)
        await jobs.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with closing(JobStore(tmp_path / "s.sqlite3")) as store:
        asyncio.run(asyncio.wait_for(interrupt_twice(store), 30))
        entry = store.entry("silent")
    assert entry is not None
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert "killing the worker, because silent does not stop" in notes
