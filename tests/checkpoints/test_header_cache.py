"""The index of model files: what it saves, and that it never says what is no longer so."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import model_folders

from latent_ladder.checkpoints import header_cache as indexing
from latent_ladder.checkpoints.header_cache import Index, Verdict, stamp
from latent_ladder.checkpoints.scan import Library, scan
from latent_ladder.checkpoints.selection import select
from latent_ladder.storage.atomic_write import cache_folder


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "models" / "index"


@pytest.fixture
def folder(tmp_path) -> Path:
    path = model_folders.single(tmp_path / "models")
    model_folders.copy(path, "unet/q8.gguf", "quantized/tiny-ltx-2.3-Q8_0.gguf")
    (path / "other.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    return path


def facts(library: Library):
    return [(r, f.path, f.facts, f.category) for r, found in library.found.items() for f in found]


def test_a_second_look_finds_the_same_and_chooses_the_same(folder, kept):
    first = scan([folder])
    assert len(Index.read().entries) == 6
    before = kept.stat().st_mtime_ns
    second = scan([folder])
    assert kept.stat().st_mtime_ns == before, "nothing new, nothing written"
    assert facts(first) == facts(second)
    assert first.ignored == second.ignored != ()
    one, other = select(first), select(second)
    assert one.transformer.id == other.transformer.id
    assert one.transformer.names == other.transformer.names
    assert one.notes == other.notes


def test_what_was_remembered_is_true_of_the_component(folder):
    scan([folder])
    for _, found in ((r, f) for r, fs in scan([folder]).found.items() for f in fs):
        part, told = found.component, found.facts
        assert (part.role, part.file.path) == (found.role, found.path)
        assert (told.container, told.precision, told.nbytes) == (
            part.file.container, part.precision, part.nbytes,
        )  # fmt: skip


def test_a_header_is_read_only_where_it_is_needed(folder):
    scan([folder])
    library = scan([folder])
    select(library)
    assert [f.path.name for f in library.of("transformer") if not f.file.is_open] == ["q8.gguf"]


def test_a_file_that_was_cut_is_noticed(folder):
    scan([folder])
    path = folder / "loras/tiny-distilled-lora.safetensors"
    os.truncate(path, path.stat().st_size - 10)
    library = scan([folder])
    assert library.of("lora") == ()
    assert [p for p, why in library.unreadable if "truncated" in why] == [path]


def test_a_file_rewritten_in_place_with_its_old_times_is_noticed(folder):
    scan([folder])
    path = folder / "unet/q8.gguf"
    state = path.stat()
    with path.open("r+b") as opened:
        opened.write(b"JUNK")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    library = scan([folder])
    assert all(f.path != path for f in library.of("transformer"))


def test_a_file_that_is_replaced_by_another_is_looked_at_again(folder):
    scan([folder])
    path = folder / "unet/q8.gguf"
    path.unlink()
    model_folders.copy(folder, "unet/q8.gguf", "checkpoints/tiny-ltx-2.0.safetensors")
    [found] = [f for f in scan([folder]).of("transformer") if f.path == path]
    assert (found.facts.family, found.facts.container) == ("2.0", "safetensors")


def test_every_part_of_a_split_file_counts(tmp_path):
    part = model_folders.copy(tmp_path, "a.safetensors", "loras/tiny-distilled-lora.safetensors")
    listed = tmp_path / "m.safetensors.index.json"
    listed.write_text('{"weight_map": {"w": "a.safetensors"}}')
    before = stamp(listed)
    os.utime(part, ns=(1, 1))
    assert None is not stamp(listed) != before


@pytest.mark.parametrize("damage", [b"", b"junk", bytes(16) + b"{}", None])
def test_a_damaged_index_is_left_aside(folder, kept, damage):
    first = scan([folder])
    kept.write_bytes(kept.read_bytes()[:-1] if damage is None else damage)
    assert Index.read().entries == {}
    assert facts(scan([folder])) == facts(first)
    assert Index.read().entries, "and written anew"


def test_a_folder_that_cannot_hold_an_index_is_no_error(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "file"))
    assert scan([folder]).of("transformer")


def test_another_version_of_the_code_judges_anew(folder, monkeypatch):
    scan([folder])
    monkeypatch.setattr(indexing, "_code", lambda: "another")
    assert Index.read().entries == {}


def test_the_index_forgets_files_that_are_gone_and_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "MAX_ENTRIES", 3)
    index = Index.read()
    for number in range(6):
        path = tmp_path / f"{number}.gguf"
        if number:
            path.write_text("x")
        index.put(path, stamp(path) or "gone", Verdict(ignored="x"))
    index.get(tmp_path / "5.gguf", "x")
    index.save()
    names = [Path(path).name for path in Index.read().entries]
    assert names == ["5.gguf", "1.gguf", "2.gguf"]


def test_doctor_reads_every_header_anew(folder, kept):
    """A file system that hides a change cannot hide a damaged file from the one who asks for it."""
    scan([folder])
    index = Index.read()
    path = folder / "unet/q8.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    entry = index.entries[str(path)] | {"stamp": stamp(path)}
    replace(index, entries=index.entries | {str(path): entry}, changed=True).save()
    assert path in [f.path for f in scan([folder]).of("transformer")]
    assert path not in [f.path for f in scan([folder], anew=True).of("transformer")]
