"""Killed processes and full disks."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from helpers.command_line import SMALL, TINY, environment
from helpers.tiny_clips import frames

from campaign.trials import Trial, refused
from latent_ladder.errors import LadderError
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.storage.artifact_store import Store, artefact_key
from latent_ladder.storage.run_records import RunRecord
from latent_ladder.storage.temporary_files import PART_PREFIX

_WRITE_FOREVER = """
import sys
from pathlib import Path
from latent_ladder.storage.atomic_write import write_atomically
from latent_ladder.storage.run_records import RunLog
folder = Path(sys.argv[1])
log = RunLog(folder / "store" / "runs")
print("ready", flush=True)
for number in range(10**9):
    log.start("make", {"prompt": "x" * 20000})
    write_atomically(folder / "out" / f"clip {number % 7}.mp4", bytes([number % 7]) * 3_000_000)
"""


@contextmanager
def kills(folder: Path) -> Iterator[Trial]:
    """A process that writes records and files is killed at any moment.

    Every file is whole, every record can be read, and the next start leaves nothing else.
    """
    (folder / "out").mkdir(exist_ok=True)
    store = Store(folder / "store")

    def trial(rng: random.Random) -> str:
        command = [sys.executable, "-c", _WRITE_FOREVER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
        for path in (folder / "out").glob("*.mp4"):
            if not path.name.startswith(PART_PREFIX):
                data = path.read_bytes()
                assert len(set(data)) == 1, path
                assert len(data) == 3_000_000, path
        records, damaged = store.runs.list()
        assert not damaged, damaged[0]
        if not records:  # killed before it had made one
            return "ok"
        store.runs.save(_with_output(records[0].id, store, folder / "out" / "clip.mp4"))
        store.remove_temporary_files()
        left = list(folder.rglob(f"{PART_PREFIX}*"))
        assert not left, left
        for record in records:
            store.runs.remove(record.id)
        return "ok"

    yield trial


@contextmanager
def clips(folder: Path) -> Iterator[Trial]:
    """``ladder make`` is killed at any moment, and the same command is given again.

    The second run makes the same clip, bit for bit, as one that was never killed; nothing else is
    left in the folder and every record can be read.
    """
    began = time.monotonic()
    wanted = _make_clip(folder / "whole")
    usual_s = time.monotonic() - began

    def trial(rng: random.Random) -> str:
        where = folder / f"{rng.getrandbits(60):x}"
        with _start_make(where) as child:
            time.sleep(rng.uniform(0, usual_s))
            child.send_signal(signal.SIGKILL)
        assert _make_clip(where) == wanted
        assert [path.name for path in where.glob("out/*")] == ["clip.mp4"]
        records, damaged = Store(where / "store").runs.list()
        assert not damaged, damaged[0]
        assert records[0].status == "done", records[0].status
        assert not list(where.rglob(f"{PART_PREFIX}*"))
        return "ok"

    yield trial


def _start_make(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    words = ["a red ball", *TINY, *SMALL, "--seed", "5", "--overwrite", "-o", "out/clip.mp4"]
    return subprocess.Popen(
        [sys.executable, "-m", "latent_ladder", "make", *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _make_clip(folder: Path) -> bytes:
    """All frames of the clip that the command makes."""
    with _start_make(folder) as child:
        _, said = child.communicate()
    assert child.returncode == 0, said.decode()
    return frames(folder / "out" / "clip.mp4")


def _with_output(run_id: str, store: Store, output: Path) -> RunRecord:
    from dataclasses import replace

    return replace(store.runs.find(run_id), output=str(output), status="running")


@contextmanager
def disks(folder: Path) -> Iterator[Trial]:
    """The disk is full at any point of writing an artefact, a record or a clip.

    It is refused in words; what was there before is unchanged, nothing else is left.
    """
    store, frames = Store(folder / "store"), np.zeros((4, 32, 48, 3), np.uint8)
    frames[:, ::2] = np.random.default_rng(1).integers(0, 256, frames[:, ::2].shape, np.uint8)
    clip, key = folder / "clip.mp4", artefact_key("base", 1, {}, [], [])
    spec = VideoSpec((48, 32), Fraction(24))
    write_video(clip, [frames], spec)
    store.put(key, {"x": torch.zeros(1000)}, {"stage": "base"})
    before = clip.read_bytes()

    def trial(rng: random.Random) -> str:
        work = rng.randrange(3)
        try:
            with file_size_limit(rng.choice((0, 1, rng.randrange(40_000), 10**6))):
                if work == 0:
                    store.put(key, {"x": torch.ones(rng.randrange(1, 20_000))}, {"stage": "base"})
                elif work == 1:
                    store.runs.start("make", {"prompt": "x" * rng.randrange(20_000)})
                else:
                    write_video(clip, [frames], spec, overwrite=True)
        except LadderError as error:
            assert work != 2 or clip.read_bytes() == before
            return _check_left(folder, refused(error))
        if work == 0:
            store.put(key, {"x": torch.zeros(1000)}, {"stage": "base"})
        return _check_left(folder, "ok")

    def _check_left(folder: Path, outcome: str) -> str:
        assert store.get(key) is not None
        assert not list(folder.rglob(f"{PART_PREFIX}*"))
        return outcome

    yield trial


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes in this block, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
