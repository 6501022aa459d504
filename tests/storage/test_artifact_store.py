"""Artefact store, run records and locks, including kill -9 and a full disk."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.errors import Cancelled, StoreError
from latent_ladder.storage.artifact_store import (
    DamagedArtefact,
    Store,
    artefact_key,
    canonical_json,
    default_root,
)
from latent_ladder.storage.atomic_write import readable_size
from latent_ladder.storage.file_lock import lock_file, owner_pid
from latent_ladder.storage.run_records import KEY_PATTERN, RunLog, StageRecord
from latent_ladder.storage.temporary_files import ABANDONED_S, PART_PREFIX


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def key_of(name: str) -> str:
    return artefact_key("base", 1, {"name": name}, [], [])


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs ``code``."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def wait_for(process: subprocess.Popen[str]) -> None:
    process.wait(timeout=60)
    process.communicate()


# --- keys ---


def test_a_key_is_the_same_in_every_process_and_fits_a_file_name() -> None:
    fields = {"fps": Fraction(24000, 1001), "size": (640, 384), "prompt": "Füchse", "cfg": 3.0}
    key = artefact_key("base", 2, fields, ["b2-a"], ["ck"])
    assert key == artefact_key("base", 2, dict(reversed(fields.items())), ["b2-a"], ["ck"])
    assert KEY_PATTERN.fullmatch(key)
    code = (
        "from fractions import Fraction;"
        "from latent_ladder.storage.artifact_store import artefact_key as k;"
        "print(k('base', 2, {'cfg': 3.0, 'prompt': 'F\\u00fcchse', 'size': [640, 384],"
        "'fps': Fraction(48000, 2002)}, ['b2-a'], ['ck']))"
    )
    assert output(child(code)) == key


def test_every_part_of_a_key_counts() -> None:
    parts: list[tuple[str, int, dict[str, Any], list[str], list[str]]] = [
        ("base", 1, {"a": 1}, ["x", "y"], ["c"]),
        ("refine", 1, {"a": 1}, ["x", "y"], ["c"]),
        ("base", 2, {"a": 1}, ["x", "y"], ["c"]),
        ("base", 1, {"a": 2}, ["x", "y"], ["c"]),
        ("base", 1, {"a": 1}, ["y", "x"], ["c"]),
        ("base", 1, {"a": 1}, ["x", "y"], ["d"]),
        ("base", 1, {"a": 1}, ["x"], ["y", "c"]),
        ("base", 1, {"a": Fraction(1)}, ["x", "y"], ["c"]),
        ("base", 1, {"a": "1"}, ["x", "y"], ["c"]),
        ("base", 1, {"a": None}, ["x", "y"], ["c"]),
        ("base", 1, {"a": float("inf")}, ["x", "y"], ["c"]),
    ]
    assert len({artefact_key(*part) for part in parts}) == len(parts)


class Colour(Enum):
    RED = "red"


def test_canonical_json_is_the_documented_text() -> None:
    value = {"b": (1, 2.5, None), "a": Fraction(3, 2), "c": Colour.RED, "d": -float("inf")}
    expected = '{"a":{"fraction":[3,2]},"b":[1,2.5,null],"c":"red","d":{"float":"-inf"}}'
    assert canonical_json(value) == expected
    with pytest.raises(StoreError, match=r"value\.stages\[1\]\.cfg is not a number"):
        canonical_json({"stages": [{}, {"cfg": float("nan")}]})
    with pytest.raises(TypeError, match=r"value\.x is a set"):
        canonical_json({"x": {1}})


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(DATA)
def test_canonical_json_survives_a_round_trip(value: object) -> None:
    text = canonical_json(value)
    assert "\n" not in text
    if "float" not in text:
        assert canonical_json(json.loads(text)) == text


# --- artefacts ---


def test_an_artefact_round_trips_with_dtypes_and_meta(store: Store) -> None:
    tensors = {
        "video": torch.randn(1, 4, 2, 3, 5).bfloat16(),
        "audio": torch.randn(1, 8, 3).transpose(1, 2),
        "tokens": torch.arange(6),
        "empty": torch.zeros(0, 3),
    }
    key = key_of("a")
    meta = {"stage": "base", "note": "größer", "sigmas": (1.0, 0.0)}
    put = store.put(key, tensors, meta)
    got = store.get(key)
    assert got == put
    assert got is not None
    assert got.meta["note"] == "größer"
    assert got.meta["key"] == key
    assert got.meta["sigmas"] == [1.0, 0.0]
    loaded = got.load()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert got.size == got.path.stat().st_size
    assert store.get(key_of("b")) is None
    assert [entry.stage for entry in store.entries()] == ["base"]


def test_putting_again_replaces_and_leaves_one_data_file(store: Store) -> None:
    key = key_of("a")
    shared = torch.ones(3)
    for value in range(3):
        store.put(key, {"x": shared * value, "y": shared}, {"stage": "base"})
    got = store.get(key)
    assert got is not None
    assert got.load()["x"].tolist() == [2.0] * 3
    assert len(list(got.path.parent.iterdir())) == 2
    assert store.size() > got.size


def test_the_size_is_that_of_all_files(store: Store) -> None:
    store.put(key_of("a"), {"x": torch.ones(3)}, {"stage": "base"})
    quarantined = store.root / "quarantine" / "old"
    quarantined.parent.mkdir(exist_ok=True)
    quarantined.write_bytes(bytes(1000))
    before = store.size()
    with store.lock(key_of("b")):
        (lock,) = (store.root / "locks").glob("*.lock")
        assert store.size() == before + lock.stat().st_size > before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def break_entry(path: Path) -> None:
    next(path.parent.glob("*.json")).write_text('{"key": "b2-')


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip, "altered"),
        (truncate, "bytes, expected"),
        (Path.unlink, "cannot be read"),
        (break_entry, "not an index entry"),
    ],
)
def test_damage_is_reported_once_and_quarantined(
    store: Store, harm: Callable[[Path], None], reason: str
) -> None:
    key = key_of("a")
    tensors = {"x": torch.randn(100)}
    harm(store.put(key, tensors, {"stage": "base"}).path)
    reported: list[DamagedArtefact] = []
    assert store.get(key, reported.append) is None
    assert [damage.key for damage in reported] == [key]
    assert reason in reported[0].reason
    assert reported[0].moved_to is not None
    assert reported[0].moved_to.parent == store.root / "quarantine"
    assert store.get(key, reported.append) is None
    assert len(reported) == 1
    store.put(key, tensors, {"stage": "base"})
    assert store.get(key) is not None


def test_verify_counts_the_valid_ones(store: Store) -> None:
    for name in "abc":
        store.put(key_of(name), {"x": torch.randn(10)}, {"stage": "base"})
    broken = store.get(key_of("b"))
    assert broken is not None
    flip(broken.path)
    valid, damages = store.verify()
    assert (valid, [damage.key for damage in damages]) == (2, [key_of("b")])
    assert store.verify() == (2, [])


def test_an_artefact_that_vanishes_before_load_is_a_store_error(store: Store) -> None:
    artefact = store.put(key_of("a"), {"x": torch.zeros(3)}, {"stage": "base"})
    artefact.path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        artefact.load()


def test_a_store_that_cannot_be_created_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    assert store.get(key_of("a")) is None
    assert store.runs.list() == ([], [])
    with pytest.raises(StoreError, match="cannot be written") as caught:
        store.put(key_of("a"), {"x": torch.zeros(3)}, {"stage": "base"})
    assert caught.value.hint
    with pytest.raises(StoreError, match="cannot be written"):
        store.runs.start("make", {})
    with pytest.raises(StoreError, match="cannot be written"), store.lock("x"):
        pass


def test_the_default_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_STORE", "~/somewhere")
    assert default_root() == Path.home() / "somewhere"
    monkeypatch.delenv("LADDER_STORE")
    assert default_root().name == "latent-ladder"


# --- the disk ---


def files_in(store: Store) -> set[str]:
    return {path.name for path in store.root.rglob("*") if path.is_file()}


def assert_full_disk_is_reported(store: Store, big: int) -> None:
    """A small artefact is stored; a big one does not fit and leaves no files."""
    before = files_in(store)
    with pytest.raises(StoreError, match=r"needs .* are free in") as caught:
        store.put(key_of("big"), {"x": torch.zeros(big)}, {"stage": "base"})
    assert caught.value.hint
    assert files_in(store) == before
    assert store.get(key_of("big")) is None
    assert store.get(key_of("small")) is not None


def test_a_file_size_limit_leaves_the_store_as_it_was(store: Store) -> None:
    store.put(key_of("small"), {"x": torch.zeros(10)}, {"stage": "base"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert_full_disk_is_reported(store, 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.put(key_of("big"), {"x": torch.zeros(100_000)}, {"stage": "base"})
    assert store.get(key_of("big")) is not None


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        store = Store(disk / "store")
        store.put(key_of("small"), {"x": torch.zeros(10)}, {"stage": "base"})
        assert_full_disk_is_reported(store, 100_000)
        run = store.runs.start("make", {})
        with pytest.raises(StoreError, match=r"record of run .* are free"):
            store.runs.save(replace(run, error="x" * 1_000_000))
        assert store.runs.find(run.id) == run
    finally:
        subprocess.run(["umount", str(disk)], check=True)


PUT_FOREVER = """
import os, sys, torch
from pathlib import Path
from latent_ladder.storage.artifact_store import Store, artefact_key
store = Store(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):  # torch is slow to import: once, then fork
    if not (pid := os.fork()):
        break
    print(pid, flush=True)
if pid:
    print("ready", flush=True)
    for _ in range(int(sys.argv[2])):
        os.wait()
    sys.exit()
run = store.runs.start("make", {})
n = 0
while True:
    key = artefact_key("base", 1, {"name": str(n % 5)}, [], [])
    store.put(key, {"x": torch.full((50_000,), float(n))}, {"stage": "base", "n": n})
    n += 1
"""


def start_writers(store: Store, count: int) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that forks ``count`` writers and ends with them, and their process ids."""
    process = child(PUT_FOREVER, store.root, count)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "ready\n")
    pids = [int(line) for line in lines]
    assert len(pids) == count
    return process, pids


@pytest.mark.slow
def test_concurrent_writers_that_are_killed_leave_a_valid_store(store: Store) -> None:
    """Six processes write the same five keys; reads are complete or empty; then kill -9."""
    rng = random.Random(7)
    process, pids = start_writers(store, 6)
    reported: list[DamagedArtefact] = []
    seen = 0
    limit = time.monotonic() + 60
    while not any(store.entries()):  # a busy machine lets the writers begin late
        assert time.monotonic() < limit
        time.sleep(0.01)
    for pid in pids:
        end = time.monotonic() + rng.uniform(0.1, 0.25)
        while time.monotonic() < end:
            for n in range(5):
                seen += store.get(key_of(str(n)), reported.append) is not None
        os.kill(pid, signal.SIGKILL)
    wait_for(process)
    assert (seen > 0, reported) == (True, [])
    valid, damages = store.verify()
    assert (valid > 0, damages) == (True, [])
    for entry in store.entries():
        artefact = store.get(entry.key)
        assert artefact is not None
        assert artefact.load()["x"][0] == artefact.meta["n"]
    runs, damaged = store.runs.list()
    assert {run.status for run in runs} == {"interrupted"}
    assert damaged == []


# --- runs ---


def test_a_run_round_trips_through_every_update(store: Store) -> None:
    run = store.runs.start("ladder make", {"prompt": "Füchse", "fps": [24, 1]})
    assert len(run.id) == 8
    run = run.with_stage(StageRecord("base", key_of("a"), False, 1.5, 2**30))
    run = store.runs.save(replace(run, planned=(key_of("b"),), warnings=("slow",)))
    assert store.runs.find(run.id) == run
    assert store.runs.find("last") == run
    done = store.runs.save(replace(run, status="done", output="clip.mp4"))
    assert store.runs.list() == ([done], [])
    assert done.keys == {key_of("a"), key_of("b")}
    with pytest.raises(ValueError, match="status"):
        store.runs.save(replace(run, status="interrupted"))


def test_run_ids_sort_by_time_and_are_found_by_prefix(store: Store) -> None:
    runs = []
    for _ in range(4):
        runs.append(store.runs.start("make", {}))
        time.sleep(0.04)
    assert [run.id for run in store.runs.list()[0]] == [run.id for run in reversed(runs)]
    assert [run.id for run in runs] == sorted(run.id for run in runs)
    assert store.runs.find(runs[2].id[:7].upper()) == runs[2]
    with pytest.raises(StoreError, match="not unique"):
        store.runs.find(runs[0].id[:2])
    with pytest.raises(StoreError, match="there is no run") as caught:
        store.runs.find("zz")
    assert runs[-1].id in str(caught.value.hint)


def test_a_run_whose_process_is_gone_is_interrupted(store: Store) -> None:
    mine = store.runs.start("make", {})
    process = child("pass")
    wait_for(process)
    store.runs.save(replace(mine, id="0000000a", pid=process.pid))
    elsewhere = store.runs.save(replace(mine, id="0000000b", pid=process.pid, host="elsewhere"))
    early = (datetime.now(UTC) - timedelta(days=400)).isoformat()
    store.runs.save(replace(mine, id="0000000c", created=early))
    assert store.runs.find(mine.id).status == "running"
    assert store.runs.find("0000000a").status == "interrupted"
    assert store.runs.find(elsewhere.id).status == "running"
    assert store.runs.find("0000000c").status == "interrupted"  # its process id was reused


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"id": 1}', '{"stages": {}}', '{"stages": [3]}', "\udcff"]
)
def test_a_damaged_record_is_reported_not_fatal(store: Store, text: str) -> None:
    run = store.runs.start("make", {})
    (store.runs.folder / "0damaged.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    runs, damaged = store.runs.list()
    assert runs == [run]
    assert [bad.path.name for bad in damaged] == ["0damaged.json"]
    with pytest.raises(StoreError, match="is damaged"):
        store.runs.find("0dam")


def test_fields_of_a_later_version_are_ignored(store: Store) -> None:
    run = store.runs.start("make", {}).with_stage(StageRecord("base", key_of("a"), True, 0.0))
    store.runs.save(run)
    path = next(store.runs.folder.iterdir())
    data = json.loads(path.read_text())
    data["later"] = data["stages"][0]["later"] = 1
    path.write_text(json.dumps(data))
    assert store.runs.find(run.id) == run


# --- prune ---


def finished_run(store: Store, days: float, *names: str) -> str:
    """A run of ``days`` ago that used the artefacts ``names``, and made the missing ones."""
    run = store.runs.start("make", {})
    for name in names:
        if store.get(key_of(name)) is None:
            store.put(key_of(name), {"x": torch.zeros(1000)}, {"stage": "base"})
        run = run.with_stage(StageRecord("base", key_of(name), False, 0.1))
    created = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
    return store.runs.save(replace(run, status="done", created=created)).id


def names_left(store: Store) -> set[str]:
    return {name for name in "abcdefgh" if store.get(key_of(name)) is not None}


def test_prune_removes_only_artefacts_without_a_run(store: Store) -> None:
    old = finished_run(store, 40, "a", "b")
    time.sleep(0.05)
    new = finished_run(store, 1, "b", "c")
    store.put(key_of("d"), {"x": torch.zeros(1000)}, {"stage": "base"})
    trial = store.prune(keep_days=30, dry_run=True)
    assert names_left(store) == set("abcd")
    pruned = store.prune(keep_days=30)
    assert pruned == trial
    assert pruned.runs == (old,)
    assert set(pruned.artefacts) == {key_of("a"), key_of("d")}
    assert pruned.freed_bytes > 8000
    assert names_left(store) == set("bc")
    assert [run.id for run in store.runs.list()[0]] == [new]
    assert store.prune(keep_days=30).freed_bytes == 0


def test_prune_without_a_rule_keeps_every_run(store: Store) -> None:
    finished_run(store, 400, "a")
    store.put(key_of("b"), {"x": torch.zeros(10)}, {"stage": "base"})
    assert store.prune().artefacts == (key_of("b"),)
    assert names_left(store) == {"a"}


def test_prune_keeps_the_last_ones(store: Store) -> None:
    ids = []
    for name in "abc":
        ids.append(finished_run(store, 100, name))
        time.sleep(0.05)
    assert set(store.prune(keep_last=1, keep_days=500).runs) == set()
    assert store.prune(keep_last=1).runs == (ids[1], ids[0])
    assert names_left(store) == {"c"}
    assert store.prune(keep_last=0).runs == (ids[2],)
    assert names_left(store) == set()


def test_prune_keeps_artefacts_of_running_runs_and_damaged_records(store: Store) -> None:
    store.put(key_of("a"), {"x": torch.zeros(10)}, {"stage": "base"})
    store.put(key_of("b"), {"x": torch.zeros(10)}, {"stage": "base"})
    store.put(key_of("c"), {"x": torch.zeros(10)}, {"stage": "base"})
    time.sleep(1.1)  # artefacts record whole seconds
    run = store.runs.start("make", {})
    store.runs.save(replace(run, planned=(key_of("a"),)))
    (store.runs.folder / "0damaged.json").write_text(f'{{"stages": [{{"key": "{key_of("b")}"')
    store.put(key_of("d"), {"x": torch.zeros(10)}, {"stage": "base"})
    pruned = store.prune(keep_last=0)
    assert names_left(store) == set("abd")
    assert pruned.artefacts == (key_of("c"),)
    assert [bad.path.name for bad in pruned.damaged_runs] == ["0damaged.json"]
    assert pruned.runs == ()


def test_prune_removes_files_of_killed_writers(store: Store) -> None:
    kept = store.put(key_of("a"), {"x": torch.zeros(10)}, {"stage": "base"}).path
    finished_run(store, 0, "a")
    folder = kept.parent
    stale, fresh = (
        folder / f"{PART_PREFIX}x-1.safetensors",
        folder / f"{PART_PREFIX}x-2.safetensors",
    )
    orphan = folder / f"{key_of('a')[:5]}{'0' * 30}.11111111.safetensors"
    for path in (stale, fresh, orphan):
        path.write_bytes(bytes(1000))
    past = time.time() - ABANDONED_S - 10
    os.utime(stale, (past, past))
    store.prune()
    assert (stale.exists(), fresh.exists(), orphan.exists()) == (False, True, True)
    os.utime(orphan, (past, past))
    assert store.prune().freed_bytes == 1000
    assert not orphan.exists()
    assert store.get(key_of("a")) is not None


# --- locks ---

HOLD = """
import sys, time
from pathlib import Path
from latent_ladder.storage.artifact_store import Store
with Store(Path(sys.argv[1])).lock("k"):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def lock_in_other_process(store: Store, seconds: float) -> subprocess.Popen[str]:
    process = child(HOLD, store.root, seconds)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "locked"
    return process


def test_the_second_process_waits_and_reports_the_owner(store: Store) -> None:
    process = lock_in_other_process(store, 1.0)
    pids: list[int] = []
    with store.lock("other", on_wait=pids.append):
        assert pids == []
    with store.lock("k", on_wait=pids.append):
        assert pids == [process.pid]
    wait_for(process)


def test_a_lock_ends_with_its_process(store: Store) -> None:
    process = lock_in_other_process(store, 60)
    process.kill()
    wait_for(process)
    with store.lock("k", timeout=1):
        assert owner_pid(store.root / "locks" / "k.lock") == os.getpid()
    assert list((store.root / "locks").iterdir()) == []


def test_waiting_ends_by_timeout_or_cancellation(store: Store) -> None:
    process = lock_in_other_process(store, 60)

    def stop() -> None:
        raise Cancelled("stopped by the user")

    with (
        pytest.raises(StoreError, match=f"in use by process {process.pid}"),
        store.lock("k", timeout=0.2),
    ):
        pass
    with pytest.raises(Cancelled), store.lock("k", poll=stop):
        pass
    process.kill()
    wait_for(process)


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "t.lock"
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with lock_file(path):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_sizes_are_readable() -> None:
    assert [readable_size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]


def test_the_store_imports_without_torch() -> None:
    code = "import sys, latent_ladder.storage.artifact_store; print('torch' in sys.modules)"
    assert output(child(code)) == "False"


def test_a_run_log_makes_its_folder_when_it_is_used(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "deep" / "runs")
    assert not log.folder.exists()
    log.remove(log.start("make", {}).id)
    assert log.list() == ([], [])
