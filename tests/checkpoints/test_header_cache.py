"""Cache of model file headers: saves reads, and never returns outdated content."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import model_folders

from latent_ladder.checkpoints import header_cache
from latent_ladder.checkpoints.header_cache import FileContent, HeaderCache, fingerprint_files
from latent_ladder.checkpoints.scan import Library, scan
from latent_ladder.checkpoints.selection import select_models
from latent_ladder.storage.atomic_write import cache_folder


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "models" / "index"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = model_folders.single(tmp_path / "models")
    model_folders.copy(path, "unet/q8.gguf", "quantized/tiny-ltx-2.3-Q8_0.gguf")
    (path / "other.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    return path


def library_summary(library: Library) -> list[tuple[Any, ...]]:
    return [(r, f.path, f.summary, f.category) for r, found in library.found.items() for f in found]


def test_a_second_scan_gives_the_same_selection(folder: Path, cache_file: Path) -> None:
    first = scan([folder])
    assert len(HeaderCache.read().entries) == 6
    before = cache_file.stat().st_mtime_ns
    second = scan([folder])
    assert cache_file.stat().st_mtime_ns == before, "nothing new, nothing written"
    assert library_summary(first) == library_summary(second)
    assert first.ignored == second.ignored != ()
    one, other = select_models(first), select_models(second)
    assert one.transformer.id == other.transformer.id
    assert one.transformer.names == other.transformer.names
    assert one.notes == other.notes


def test_cached_summaries_match_the_components(folder: Path) -> None:
    scan([folder])
    for _, found in ((r, f) for r, fs in scan([folder]).found.items() for f in fs):
        part, summary = found.component, found.summary
        assert (part.role, part.file.path) == (found.role, found.path)
        assert (summary.container, summary.precision, summary.nbytes) == (
            part.file.container, part.precision, part.nbytes,
        )  # fmt: skip


def test_only_headers_of_selected_files_are_read(folder: Path) -> None:
    scan([folder])
    library = scan([folder])
    select_models(library)
    assert [f.path.name for f in library.of("transformer") if not f.file.is_open] == ["q8.gguf"]


def test_a_truncated_file_is_noticed(folder: Path) -> None:
    scan([folder])
    path = folder / "loras/tiny-distilled-lora.safetensors"
    os.truncate(path, path.stat().st_size - 10)
    library = scan([folder])
    assert library.of("lora") == ()
    assert [p for p, why in library.unreadable if "truncated" in why] == [path]


def test_a_file_rewritten_in_place_with_its_old_times_is_noticed(folder: Path) -> None:
    scan([folder])
    path = folder / "unet/q8.gguf"
    state = path.stat()
    with path.open("r+b") as opened:
        opened.write(b"JUNK")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    library = scan([folder])
    assert all(f.path != path for f in library.of("transformer"))


def test_a_replaced_file_is_read_again(folder: Path) -> None:
    scan([folder])
    path = folder / "unet/q8.gguf"
    path.unlink()
    model_folders.copy(folder, "unet/q8.gguf", "checkpoints/tiny-ltx-2.0.safetensors")
    [found] = [f for f in scan([folder]).of("transformer") if f.path == path]
    assert (found.summary.family, found.summary.container) == ("2.0", "safetensors")


def test_the_fingerprint_includes_every_shard(tmp_path: Path) -> None:
    part = model_folders.copy(tmp_path, "a.safetensors", "loras/tiny-distilled-lora.safetensors")
    listed = tmp_path / "m.safetensors.index.json"
    listed.write_text('{"weight_map": {"w": "a.safetensors"}}')
    before = fingerprint_files(listed)
    os.utime(part, ns=(1, 1))
    assert None is not fingerprint_files(listed) != before


@pytest.mark.parametrize("damage", [b"", b"junk", bytes(16) + b"{}", None])
def test_a_damaged_cache_is_ignored(folder: Path, cache_file: Path, damage: bytes | None) -> None:
    first = scan([folder])
    cache_file.write_bytes(cache_file.read_bytes()[:-1] if damage is None else damage)
    assert HeaderCache.read().entries == {}
    assert library_summary(scan([folder])) == library_summary(first)
    assert HeaderCache.read().entries, "and written again"


def test_a_cache_that_cannot_be_written_is_ignored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "file"))
    assert scan([folder]).of("transformer")


def test_another_version_of_the_code_ignores_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan([folder])
    monkeypatch.setattr(header_cache, "_code_version", lambda: "another")
    assert HeaderCache.read().entries == {}


def test_the_cache_drops_deleted_files_and_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_cache, "MAX_ENTRIES", 3)
    cache = HeaderCache.read()
    for number in range(6):
        path = tmp_path / f"{number}.gguf"
        if number:
            path.write_text("x")
        cache.put(path, fingerprint_files(path) or "deleted", FileContent(ignored="x"))
    cache.get(tmp_path / "5.gguf", "x")
    cache.save()
    names = [Path(path).name for path in HeaderCache.read().entries]
    assert names == ["5.gguf", "1.gguf", "2.gguf"]


def test_refresh_reads_every_header(folder: Path, cache_file: Path) -> None:
    """A damaged file is found with ``refresh``, even if its fingerprint has not changed."""
    scan([folder])
    cache = HeaderCache.read()
    path = folder / "unet/q8.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    entry = cache.entries[str(path)] | {"stamp": fingerprint_files(path)}
    replace(cache, entries=cache.entries | {str(path): entry}, changed=True).save()
    assert path in [f.path for f in scan([folder]).of("transformer")]
    assert path not in [f.path for f in scan([folder], refresh=True).of("transformer")]
