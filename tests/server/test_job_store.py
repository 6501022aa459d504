"""Queue and history: order, persistence, damaged files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest
from campaign.surroundings import file_size_limit

from latent_ladder.errors import StoreError
from latent_ladder.server.job_store import Job, JobStore, is_queue_number


def make_job(name: str, number: float = 0) -> Job:
    return Job(number, name, {"1": {"class_type": "X", "inputs": {}}}, {"client_id": "c"}, ("1",))


def test_the_queue_is_ordered_and_persistent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.sqlite3"
    with closing(JobStore(path)) as store:
        assert [store.next_number() for _ in range(2)] == [0, 1]
        jobs = (("b", 5), ("a", 1), ("c", 5), ("front", -7.5))
        assert all(store.add(make_job(*job)) for job in jobs)
        assert not store.add(make_job("a", 9))
    with closing(JobStore(path)) as store:
        assert [job.id for job in store.pending_jobs()] == ["front", "a", "b", "c"]
        assert store.next_number() == 2
        assert store.next_job() == make_job("front", -7.5)
        store.remove_pending(["a", "front"], running="front")
        assert [job.id for job in store.pending_jobs()] == ["front", "b", "c"]
        store.remove_pending(None, running="front")
        assert store.count() == 1
        assert store.is_pending("front")


def test_the_history_has_pages_and_a_limit(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path / "s.sqlite3", max_history=4)) as store:
        for number in range(6):
            store.add(make_job(str(number)))
            store.finish(str(number), {"n": number}, {"id": str(number)})
    with closing(JobStore(tmp_path / "s.sqlite3", max_history=4)) as store:
        assert list(store.history()) == ["2", "3", "4", "5"]
        assert list(store.history(2)) == ["4", "5"]
        assert list(store.history(2, 1)) == ["3", "4"]
        assert store.history(0) == {}
        assert store.entry("5") == {"n": 5}
        assert store.count() == 0
        store.delete_history(["3"])
        assert [summary["id"] for summary in store.summaries()] == ["2", "4", "5"]
        store.delete_history(None)
        assert store.history() == {}


def test_a_second_server_cannot_open_the_file(tmp_path: Path) -> None:
    with (
        closing(JobStore(tmp_path / "s.sqlite3")),
        pytest.raises(StoreError, match="cannot be opened") as raised,
    ):
        JobStore(tmp_path / "s.sqlite3")
    assert "another server" in (raised.value.hint or "")


def test_a_damaged_file_is_copied_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with closing(JobStore(path)) as store:
        assert Path(store.damaged_copy).read_bytes().startswith(b"no database")
        assert store.count() == 0


def test_an_incomplete_transaction_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    with closing(JobStore(path)) as store:
        store.add(make_job("a"))
    pid = os.fork()
    if pid == 0:  # this process ends in the middle of a transaction
        database = sqlite3.connect(path)
        database.execute("DELETE FROM pending")
        os._exit(9)
    os.waitpid(pid, 0)
    with closing(JobStore(path)) as store:
        assert store.is_pending("a")


def test_numbers_that_order_the_queue() -> None:
    assert [is_queue_number(n) for n in (0, -1.5, True, "1", None, 2**60, float("nan"))] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


def test_a_full_disk_loses_no_finished_job(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    with closing(JobStore(path)) as store:
        for name in "abc":
            store.add(make_job(name))
        with file_size_limit(0):
            store.finish("a", {"n": 1}, {"id": "a"})
            with pytest.raises(
                StoreError, match=r"the queue cannot be written .* are free"
            ) as full:
                store.add(make_job("d"))
            assert full.value.hint
            assert set(store.unsaved) == {"a"}
            assert [job.id for job in store.pending_jobs()] == ["b", "c"]
            assert (store.count(), store.is_pending("a")) == (2, False)
            assert store.history() == {"a": {"n": 1}}
            assert store.entry("a") == {"n": 1}
            assert store.summaries() == [{"id": "a"}]
            assert store.next_job() == make_job("b")
        store.finish("b", {"n": 2}, {"id": "b"})
        assert not store.unsaved
        assert store.add(make_job("d"))
    with closing(JobStore(path)) as store:
        assert list(store.history()) == ["a", "b"]
        assert [job.id for job in store.pending_jobs()] == ["c", "d"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_the_reserve_takes_the_entry_of_a_job_that_ends_on_a_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a disk")
    try:
        with closing(JobStore(tmp_path / "s.sqlite3")) as store:
            store.add(make_job("a"))
            with suppress(OSError), (tmp_path / "fill").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            with pytest.raises(StoreError):
                store.add(make_job("big" * 50_000))
            store.finish("a", {"n": 1}, {"id": "a"})
            assert not store.unsaved
            assert store.count() == 0
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
