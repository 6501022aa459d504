"""A server that is killed in mid-job: its worker ends at once, and no result is written twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.comfyui_server import ENDLESS, ComfyUiServer, clip_graph
from helpers.in_process_server import make_config
from helpers.waiting import PATIENCE_S, wait_until, wait_until_dead

from latent_ladder.server.worker_protocol import pack_frame

pytestmark = pytest.mark.slow

STILLS = 24


def busy_graph(steps: int = 2) -> dict[str, Any]:
    """A graph that writes many pictures, previews them, and makes a clip of so many steps."""
    size = {"width": 512, "height": 512, "batch_size": STILLS, "color": 255}
    return {
        "a": {"class_type": "EmptyImage", "inputs": size},
        "b": {"class_type": "SaveImage", "inputs": {"images": ["a", 0], "filename_prefix": "s"}},
        "c": {"class_type": "PreviewImage", "inputs": {"images": ["a", 0]}},
        **clip_graph(steps),
    }


def worker_of(server: ComfyUiServer) -> psutil.Process:
    (worker,) = psutil.Process(server.process.pid).children()
    return worker


def running_worker(server: ComfyUiServer) -> psutil.Process:
    """The worker of a server, once it has begun to write the pictures of :func:`busy_graph`.

    A job counts as running while its worker still starts.
    """
    wait_for_stills(server.folder, 1)
    return worker_of(server)


def wait_for_stills(folder: Path, count: int) -> None:
    stills = (folder / "output").glob
    wait_until(lambda: len(list(stills("s_*.png"))) >= count, "no pictures come", 0.005)


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
        entry = server.wait_for_history(job)
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
        server.post("/prompt", {"prompt": busy_graph(ENDLESS)})
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
    job = {
        "do": "run",
        "id": "a",
        "prompt": clip_graph(ENDLESS),
        "outputs": ["9"],
        "workflow": None,
    }
    process.stdin.write(pack_frame(config.worker_settings()))
    process.stdin.write(pack_frame({**job, "journal": str(tmp_path / "journal")}))
    process.stdin.flush()
    output = process.stdout.fileno()
    started = b""
    while b"NodeProgress" not in started:
        started = os.read(output, 2**16)
        assert started, "the worker ended before its first step"
    if is_told:
        process.stdin.write(pack_frame({"do": "end"}))
    process.stdin.close()
    rest = b""
    while data := os.read(output, 2**16):
        rest += data
    assert process.wait(PATIENCE_S) == code
    # steps follow one another quickly: a worker that went on would have reported many of them
    assert is_told or rest.count(b"NodeProgress") < 100
    process.stdout.close()


def test_ctrl_c_still_lets_the_step_end(tmp_path: Path) -> None:
    with ComfyUiServer(tmp_path) as server:
        server.post("/prompt", {"prompt": busy_graph(ENDLESS)})
        worker = running_worker(server)
        assert server.stop(signal.SIGINT) == 0
        assert not worker.is_running()
        assert "1 queued jobs are kept" in "".join(server.stderr_lines)
