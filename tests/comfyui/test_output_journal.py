"""Files of a job that is run again after it was killed: none is written twice."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from latent_ladder.comfyui.executor import Engine, RunOrigin, WorkFolders, execute
from latent_ladder.comfyui.formats.api import read_api
from latent_ladder.comfyui.runtime.events import NodeProgress
from latent_ladder.comfyui.runtime.output_journal import OutputJournal
from latent_ladder.storage.artifact_store import Store

COUNT = 5
GRAPH = {
    "1": {"class_type": "EmptyImage",
          "inputs": {"width": 32, "height": 32, "batch_size": COUNT, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a/still"}},
    "3": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 24.0}},
    "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0], "filename_prefix": "clip",
                                                "format": "auto", "codec": "auto"}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}  # fmt: skip


class Killed(BaseException):
    """End of the process in the middle of a run."""


def make_engine(folder: Path) -> Engine:
    from latent_ladder.checkpoints.selection import scan

    folders = WorkFolders(*(folder / name for name in ("input", "output", "temp")))
    for path in (folders.input, folders.output, folders.temp):
        path.mkdir(parents=True, exist_ok=True)
    return Engine(library=scan([]), store=Store(folder / "store"), folders=folders, device="cpu")


def run(folder: Path, journal: Path, stop_after: int | None = None) -> list[str]:
    """Run the graph as a new process would; returns the paths that it shows."""
    frames = 0

    def stop(event: object) -> None:
        nonlocal frames
        if isinstance(event, NodeProgress):
            frames += 1
            if frames == stop_after:
                raise Killed

    engine = make_engine(folder)
    origin = RunOrigin(journal=OutputJournal(journal))
    shown = execute(read_api(GRAPH), engine, on_event=stop, origin=origin)
    items = [item for ui in shown.values() for item in ui.get("images", ())]
    return sorted(f"{i['type']}/{i['subfolder']}/{i['filename']}" for i in items)


def files(folder: Path) -> dict[str, int]:
    """Inodes of the result files by their names."""
    found = [*(folder / "output").rglob("*"), *(folder / "temp").rglob("*")]
    visible = [path for path in found if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in visible}


@pytest.mark.parametrize("stop_after", range(1, 3 * 2 + 1))
def test_a_killed_job_writes_each_file_once(tmp_path: Path, stop_after: int) -> None:
    journal = tmp_path / "job.jsonl"
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "clip_00001_.mp4").write_bytes(b"somebody else's")
    with suppress(Killed):
        run(tmp_path, journal, stop_after)
    before = files(tmp_path)
    shown = run(tmp_path, journal)
    after = files(tmp_path)
    assert before.items() <= after.items()
    assert len(shown) == 2 * COUNT + 1
    names = [name for name in after if name.startswith("output/")]
    stills = [f"output/a/still_{i:05}_.png" for i in range(1, COUNT + 1)]
    assert sorted(names) == [*stills, "output/clip_00001_.mp4", "output/clip_00002_.mp4"]
    assert len(after) == 2 * COUNT + 2
    assert run(tmp_path, journal) == shown
    assert files(tmp_path) == after


def test_another_job_writes_its_own_files(tmp_path: Path) -> None:
    first = run(tmp_path, tmp_path / "first.jsonl")
    assert not set(first) & set(run(tmp_path, tmp_path / "second.jsonl"))


def test_a_file_that_was_deleted_or_replaced_is_written_again(tmp_path: Path) -> None:
    journal = tmp_path / "job.jsonl"
    run(tmp_path, journal)
    (tmp_path / "output" / "a" / "still_00005_.png").unlink()
    other = tmp_path / "output" / "a" / "still_00004_.png"
    other.unlink()
    other.write_bytes(b"somebody else's")
    run(tmp_path, journal)
    assert other.read_bytes() == b"somebody else's"
    stills = list((tmp_path / "output" / "a").glob("*.png"))
    assert len(stills) == COUNT + 1


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b'{"node": "2"', b"[]\nnull\n5\n", b"\0" * 99]
)
def test_a_damaged_journal_is_ignored(tmp_path: Path, damage: bytes) -> None:
    journal = tmp_path / "job.jsonl"
    journal.write_bytes(damage)
    assert len(run(tmp_path, journal)) == 2 * COUNT + 1


def test_the_line_that_was_cut_off_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"x")
    journal = tmp_path / "journal"
    OutputJournal(journal).recorder("1", 0, path)(path)
    with journal.open("ab") as file:
        file.write(b'{"node": "1", "ind')
    assert OutputJournal(journal).find("1", 0, tmp_path) == path
    assert OutputJournal(journal).find("1", 0, tmp_path / "elsewhere") is None
    assert OutputJournal(journal).find("1", 1, tmp_path) is None
    os.utime(path, ns=(0, 0))
    assert OutputJournal(journal).find("1", 0, tmp_path) is None
    assert json.loads(journal.read_bytes().splitlines()[0])["node"] == "1"
