"""A server that is killed in mid-job: its worker ends at once, and no result is written twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.comfyui_server import ComfyUiServer, clip_graph
from helpers.in_process_server import make_config

from latent_ladder.server.worker_protocol import pack_frame

pytestmark = pytest.mark.slow

PATIENCE_S = 300.0
"""Limit for what a slow machine does; nothing waits that long where the code is right."""
STILLS = 24


def busy_graph() -> dict[str, Any]:
    """A graph that writes many pictures, and previews them."""
    size = {"width": 512, "height": 512, "batch_size": STILLS, "color": 255}
    return {
        "a": {"class_type": "EmptyImage", "inputs": size},
        "b": {"class_type": "SaveImage", "inputs": {"images": ["a", 0], "filename_prefix": "s"}},
        "c": {"class_type": "PreviewImage", "inputs": {"images": ["a", 0]}},
        **clip_graph(2),
    }


def worker_of(server: ComfyUiServer) -> psutil.Process:
    (worker,) = psutil.Process(server.process.pid).children()
    return worker


def running_worker(server: ComfyUiServer) -> psutil.Process:
    """The worker of a server, once its job runs."""
    end = time.monotonic() + PATIENCE_S
    while True:
        workers = psutil.Process(server.process.pid).children()
        if workers and server.get_json("/queue")["queue_running"]:
            return workers[0]
        assert time.monotonic() < end, "no job runs"
        time.sleep(0.05)


def wait_until_dead(process: psutil.Process) -> None:
    """Wait until a process has ended; init may take longer to remove it from the table.

    A stopped process can only be ended from outside, so one that is dead had no grace of its own.
    """
    end = time.monotonic() + PATIENCE_S
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "the worker outlives its server"
            time.sleep(0.01)


def wait_for_stills(folder: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(list((folder / "output").glob("s_*.png"))) < count:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_kill_9_in_mid_job_ends_the_worker_and_writes_once(tmp_path: Path) -> None:
    flags = ("--temp-directory", "temp")
    server = ComfyUiServer(tmp_path, *flags)
    try:
        job = server.post("/prompt", {"prompt": busy_graph()})[1]["prompt_id"]
        wait_for_stills(tmp_path, STILLS // 2)
        worker = worker_of(server)
        server.process.kill()
        wait_until_dead(worker)
        server.stop()
        before = {path: path.stat().st_ino for path in (tmp_path / "output").glob("s_*.png")}
        server = ComfyUiServer(tmp_path, *flags)
        while not (entry := server.get_json(f"/history/{job}")):
            time.sleep(0.05)
    finally:
        server.stop()
    assert entry[job]["status"]["status_str"] == "success"
    assert sorted(path.name for path in (tmp_path / "output").glob("*.png")) == [
        f"s_{i:05}_.png" for i in range(1, STILLS + 1)
    ]
    assert all(path.stat().st_ino == inode for path, inode in before.items())
    assert len(list((tmp_path / "temp").glob("*.png"))) == STILLS
    assert not list((tmp_path / "store" / "serve").glob("*.journals/*"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_worker_in_the_middle_of_a_step_ends_with_its_server(tmp_path: Path) -> None:
    with ComfyUiServer(tmp_path) as server:
        server.post("/prompt", {"prompt": clip_graph(400)})
        worker = running_worker(server)
        worker.suspend()
        server.process.kill()
        wait_until_dead(worker)


@pytest.mark.parametrize(("is_told", "code"), [(False, 1), (True, 0)], ids=["died", "stopped"])
def test_the_end_of_stdin_ends_a_worker(tmp_path: Path, is_told: bool, code: int) -> None:
    """The way for systems without prctl; a server that stops says so first."""
    config = make_config(tmp_path)
    process = subprocess.Popen(config.worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    job = {"do": "run", "id": "a", "prompt": clip_graph(400), "outputs": ["9"], "workflow": None}
    process.stdin.write(pack_frame(config.worker_settings()))
    process.stdin.write(pack_frame({**job, "journal": str(tmp_path / "journal")}))
    process.stdin.flush()
    output = process.stdout.fileno()
    while b"NodeProgress" not in os.read(output, 2**16):
        pass
    if is_told:
        process.stdin.write(pack_frame({"do": "end"}))
    process.stdin.close()
    rest = b""
    while data := os.read(output, 2**16):
        rest += data
    assert process.wait(PATIENCE_S) == code
    # 400 steps follow one another quickly: a worker that went on would have reported many of them
    assert is_told or rest.count(b"NodeProgress") < 100
    process.stdout.close()


def test_ctrl_c_still_lets_the_step_end(tmp_path: Path) -> None:
    with ComfyUiServer(tmp_path) as server:
        server.post("/prompt", {"prompt": clip_graph(400)})
        worker = running_worker(server)
        assert server.stop(signal.SIGINT) == 0
        assert not worker.is_running()
        assert "1 queued jobs are kept" in "".join(server.stderr_lines)
