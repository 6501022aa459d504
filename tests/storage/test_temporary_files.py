"""Temporary files: who writes them, which are left over, which must stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from latent_ladder.storage import temporary_files
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.temporary_files import (
    ABANDONED_S,
    PART_PREFIX,
    is_abandoned,
    part_path,
    process_start,
    remove_abandoned,
    temporary_folder,
)

MAKE = """
import os, sys
from pathlib import Path
from latent_ladder.storage.temporary_files import part_path, temporary_folder
for name in sys.argv[1:]:
    part_path(Path(name)).write_bytes(b"x")
with temporary_folder() as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""


def killed_writer(*paths: Path) -> str:
    """A process that starts files and a temporary folder, and is killed; the folder's path."""
    command = [sys.executable, "-c", MAKE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def age(path: Path) -> None:
    past = time.time() - ABANDONED_S - 10
    os.utime(path, (past, past))


def test_files_of_a_killed_process_go_at_once_whatever_their_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    other, out = tmp_path / "other", tmp_path / "out"
    for folder in (store.root / "runs", store.root / "artefacts" / "3f", other, out / "points"):
        folder.mkdir(parents=True)
    run = store.runs.start("make", {})
    parts = [
        store.root / "runs" / "r.json", store.root / "artefacts" / "3f" / "a.safetensors",
        other / "any name.mkv", out / "points" / "frames.rgb",
    ]  # fmt: skip
    killed_writer(*parts)
    own = part_path(other / "any name.mkv")
    own.touch()
    gone = replace(run, output=str(other / "clip.mp4"), pid=2**22 + 1)
    store.runs.save(gone)
    store.runs.save(replace(store.runs.start("sweep", {}), output=str(out), pid=2**22 + 1))
    assert len(store.runs.list()[0]) == 2, "a temporary file counts as a run"
    store.remove_temporary_files()
    assert list(tmp_path.rglob(f"{PART_PREFIX}*")) == [own]


def test_a_file_of_a_living_process_stays_however_old_it_is(tmp_path: Path) -> None:
    own = part_path(tmp_path / "clip.mp4")
    own.touch()
    age(own)
    remove_abandoned([tmp_path])
    assert own.exists()


def test_another_process_with_the_same_id_is_not_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = part_path(tmp_path / "clip.mp4")
    assert not is_abandoned(own)
    start = process_start(os.getpid())
    assert start is not None
    assert is_abandoned(own.with_name(own.name.replace(f"-{start:x}-", f"-{start + 1:x}-")))
    place = temporary_files._this_place()
    monkeypatch.setattr(temporary_files, "_this_place", lambda: place._replace(boot="0000"))
    assert is_abandoned(own), "the machine has started again since"


def test_files_of_other_machines_and_versions_go_by_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = temporary_files._this_place()
    with monkeypatch.context() as patch:
        patch.setattr(temporary_files, "_this_place", lambda: place._replace(machine="0000"))
        other = part_path(tmp_path / "clip.mp4")
    earlier = tmp_path / f"{PART_PREFIX}clip-0a1b2c3d.mp4"
    users = tmp_path / f"{PART_PREFIX}notes of mine.txt"
    for path in (other, earlier, users):
        path.touch()
    remove_abandoned([tmp_path])
    assert (other.exists(), earlier.exists(), users.exists()) == (True, True, True)
    for path in (other, earlier, users):
        age(path)
    remove_abandoned([tmp_path])
    assert (other.exists(), earlier.exists(), users.exists()) == (False, False, True)


def test_a_folder_goes_whole_and_a_link_without_its_target(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    folder = tmp_path / f"{PART_PREFIX}frames-0a1b2c3d"
    folder.mkdir()
    (folder / "00000.png").touch()
    link = tmp_path / f"{PART_PREFIX}link-0a1b2c3d"
    link.symlink_to(tmp_path / "kept", target_is_directory=True)
    age(folder)
    os.utime(link, (0, 0), follow_symlinks=False)
    remove_abandoned([tmp_path])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_temporary_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    left = Path(killed_writer())
    assert left.parent == tmp_path
    assert left.is_dir()
    foreign = tmp_path / "ladder-of-somebody"
    foreign.mkdir()
    with temporary_folder() as folder:
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([folder.name, foreign.name])
    assert list(tmp_path.iterdir()) == [foreign]


@pytest.mark.parametrize("name", ["n" * 250 + ".mp4", "é" * 120 + ".mp4", "a." + "b" * 200])
def test_a_long_name_has_a_temporary_name_that_fits(tmp_path: Path, name: str) -> None:
    part = part_path(tmp_path / name)
    part.touch()
    assert part.parent == tmp_path
    assert part_path(part).name != part.name
    part_path(part).touch()
