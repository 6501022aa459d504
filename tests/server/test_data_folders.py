"""Paths that clients name stay below their folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.errors import RequestError
from latent_ladder.server.data_folders import (
    DataFolders,
    check_file_name,
    resolve_inside,
)

PATHS = st.lists(
    st.sampled_from(
        ["..", ".", "", "/", "\\", "a", "b.png", "link", "out", "%2e%2e", "C:", "~", "\0", "..\\",
         "a..b", " ", "\udcff", "x" * 300, "…", "loop"]
    ),
    max_size=6,
).map("/".join)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to the outside and to itself, next to a secret file."""
    base = tmp_path_factory.mktemp("base")
    root = base / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b.png").write_bytes(b"inside")
    (base / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(base)
    (root / "loop").symlink_to(root / "loop")
    (root / "out").symlink_to(base / "secret")
    (root / "alias").symlink_to(root / "a")
    return root


@settings(max_examples=250, deadline=None)
@given(folder=PATHS | st.text(max_size=12), name=PATHS | st.text(max_size=12))
def test_no_path_leaves_its_folder(root: Path, folder: str, name: str) -> None:
    try:
        path = resolve_inside(root, folder, name)
    except RequestError:
        return
    assert path.resolve().is_relative_to(root.resolve())
    assert "secret" not in path.parts
    assert not path.is_file() or path.read_bytes() == b"inside"


def test_links_inside_a_folder_are_followed(root: Path) -> None:
    assert resolve_inside(root, "alias", "b.png").read_bytes() == b"inside"


@pytest.mark.parametrize(
    "text", ["../a", "/etc/passwd", "a\\b", "link/secret", "out", "a/../../secret", "a\0b", "loop"]
)
def test_paths_that_leave_the_folder_are_refused(root: Path, text: str) -> None:
    with pytest.raises(RequestError, match="is not a path below the folder"):
        resolve_inside(root, text)


@pytest.mark.parametrize("text", ["", "..", ".", "a/b.png", "con", "LPT1.txt", "x" * 201, "a\nb"])
def test_invalid_file_names_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        check_file_name(text)


def test_a_type_selects_the_folder(tmp_path: Path) -> None:
    folders = DataFolders(tmp_path / "i", tmp_path / "o", tmp_path / "t")
    folders.create()
    assert folders.path("temp", "a", "b.png") == (tmp_path / "t" / "a" / "b.png").resolve()
    with pytest.raises(RequestError, match="is not a folder"):
        folders.path("models", "", "x")
