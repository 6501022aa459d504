"""Search path of model files: order, ComfyUI settings, and errors for invalid folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.model_folders import copy, shards, single

from latent_ladder.checkpoints.scan import scan
from latent_ladder.checkpoints.search_paths import EMBEDDED, model_folders, read_extra_paths
from latent_ladder.errors import CheckpointNotFound, RequestError

GEMMA = "text_encoders/tiny-gemma-3.safetensors"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder in an empty folder."""
    cwd = tmp_path / "above" / "here"
    cwd.mkdir(parents=True)
    monkeypatch.chdir(cwd)
    return cwd


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def paths(
    extra: Sequence[Path] = (),
    environ: Mapping[str, str] | None = None,
    config: Path = Path("none.toml"),
) -> list[Path]:
    return [f.path for f in model_folders(extra, environ or {}, config)]


def test_the_order_is_flags_environment_config_default_folders_pocket(
    here: Path, tmp_path: Path
) -> None:
    flag, first, second, configured = (
        make_folder(tmp_path / n) for n in ("flag", "e1", "e2", "conf")
    )
    default = [
        make_folder(here / "models"),
        make_folder(here / "ComfyUI/models"),
        make_folder(here / "../ComfyUI/models"),
    ]
    config = tmp_path / "config.toml"
    config.write_text('models = ["conf"]')  # relative to the config file
    found = paths([flag], {"LADDER_MODELS": f"{first}{os.pathsep}{second}"}, config)
    wanted = [flag, first, second, configured, *(u.resolve() for u in default), EMBEDDED.resolve()]
    assert found == wanted


def test_a_folder_named_twice_is_searched_once(here: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    assert paths([folder, folder / "../m"], {"LADDER_MODELS": str(folder)})[:-1] == [folder]


def test_every_folder_has_its_source(here: Path, tmp_path: Path) -> None:
    make_folder(here / "models")
    sources = [f.source for f in model_folders([make_folder(tmp_path / "m")], {}, Path("none"))]
    assert sources == ["--models", "./models", "embedded"]


@pytest.mark.parametrize("named", ["flag", "environ", "config"])
def test_a_named_folder_must_exist(here: Path, tmp_path: Path, named: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text('models = ["/nowhere"]' if named == "config" else "")
    extra = ["/nowhere"] if named == "flag" else []
    environ = {"LADDER_MODELS": "/nowhere"} if named == "environ" else {}
    source = {"flag": "--models", "environ": "LADDER_MODELS", "config": "c.toml"}[named]
    with pytest.raises(CheckpointNotFound, match=rf"/nowhere \(.*{source}\) does not exist"):
        model_folders(extra, environ, config)


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointNotFound, match="is a file"):
        model_folders([tmp_path / "x.safetensors"], {})


@pytest.mark.parametrize("text", ["models = [", "models = 3", "models = [3]"])
def test_an_invalid_config_file_is_an_error(here: Path, tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    with pytest.raises(RequestError, match=r"config\.toml"):
        model_folders([], {}, config)


@pytest.mark.parametrize("inside", ["models", "ComfyUI/models"])
def test_the_root_of_comfyui_gives_its_models_folder(
    here: Path, tmp_path: Path, inside: str
) -> None:
    make_folder(tmp_path / "root" / inside / "checkpoints")
    assert paths([tmp_path / "root"])[0] == (tmp_path / "root" / inside).resolve()


# --- extra_model_paths.yaml ----------------------------------------------------------------------

YAML = """
first:
    base_path: $DISK/one
    checkpoints: ckpt
    unet: |
        nets
        {absolute}
    custom_nodes: nodes
    embeddings: emb
empty:
second:
    is_default: true
    loras: |

        lo ras

    clip: gone
"""


@pytest.fixture
def extra_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISK", str(tmp_path))
    for name in ("one/ckpt", "one/nets", "one/nodes", "one/emb", "elsewhere", "conf/lo ras"):
        make_folder(tmp_path / name)
    path = tmp_path / "conf" / "extra_model_paths.yaml"
    path.write_text(YAML.format(absolute=tmp_path / "elsewhere"))
    return path


def test_extra_model_paths_are_read_as_by_comfyui(extra_paths: Path, tmp_path: Path) -> None:
    found = [(f.path, f.category) for f in read_extra_paths(extra_paths)]
    assert found == [
        (tmp_path / "conf/lo ras", "loras"),  # is_default; relative to the file
        (tmp_path / "conf/gone", "text_encoders"),
        (tmp_path / "one/ckpt", "checkpoints"),
        (tmp_path / "one/nets", "diffusion_models"),
        (tmp_path / "elsewhere", "diffusion_models"),
    ]


def test_a_yaml_file_is_accepted_as_a_folder(here: Path, extra_paths: Path, tmp_path: Path) -> None:
    found = model_folders([extra_paths], {}, Path("none"))
    assert [f.path.name for f in found] == ["lo ras", "ckpt", "nets", "elsewhere", "models"]
    assert found[0].source == f"{extra_paths} [second]"


def test_a_yaml_file_next_to_the_models_folder_is_read(here: Path, extra_paths: Path) -> None:
    make_folder(here / "ComfyUI/models")
    shutil.copy(extra_paths, here / "ComfyUI/extra_model_paths.yaml")
    names = [p.name for p in paths()]
    assert names == [
        "models",
        "ckpt",
        "nets",
        "elsewhere",
        "models",
    ]  # `lo ras` does not exist there


def test_a_yaml_file_without_existing_folders_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "paths.yaml"
    path.write_text("a:\n  base_path: /nowhere\n  checkpoints: x\n")
    with pytest.raises(CheckpointNotFound, match="none of the 1 model folders"):
        model_folders([path], {})


@pytest.mark.parametrize(
    "text",
    ["a: [", "- a\n- b", "a: text", "a: !!python/object/apply:os.mkdir [made]", "a: \x00"],
)
def test_an_invalid_yaml_file_is_refused_and_runs_no_code(
    here: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "paths.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"paths\.yaml"):
        model_folders([path], {})
    assert not Path("made").exists()


def test_names_are_relative_to_the_folder_in_the_yaml_file(
    here: Path, extra_paths: Path, tmp_path: Path
) -> None:
    copy(tmp_path, "one/ckpt/sub/x.safetensors", "checkpoints/tiny-ltx-2.3.safetensors")
    (found,) = scan(model_folders([extra_paths], {}, Path("none"))[:-1]).of("transformer")
    assert (found.name, found.category) == ("sub/x.safetensors", "checkpoints")


# --- content of the folders --------------------------------------------------------------------


def test_a_cycle_of_links_ends(tmp_path: Path) -> None:
    copy(tmp_path, "a/x.safetensors", GEMMA)
    (tmp_path / "a/b").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to("self")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert len(scan([tmp_path]).of("text_encoder")) == 1


def test_linked_folders_are_searched(tmp_path: Path) -> None:
    copy(tmp_path, "disk/x.safetensors", GEMMA)
    (make_folder(tmp_path / "models/text_encoders") / "far").symlink_to(tmp_path / "disk")
    (found,) = scan([tmp_path / "models"]).of("text_encoder")
    assert found.name == "text_encoders/far/x.safetensors"


def test_snapshots_in_the_hub_cache_count_once(tmp_path: Path) -> None:
    hub = tmp_path / "models--Comfy-Org--ltx-2"
    copy(hub, "blobs/0123abcd", GEMMA)
    for revision in ("r1", "r2"):
        snapshot = make_folder(hub / f"snapshots/{revision}")
        (snapshot / "gemma.safetensors").symlink_to("../../blobs/0123abcd")
    (found,) = scan([hub]).of("text_encoder")
    assert found.path.name == "gemma.safetensors"


def test_a_split_checkpoint_counts_once(tmp_path: Path) -> None:
    shards(tmp_path / "text_encoders/gemma-hf")
    library = scan([tmp_path])
    (found,) = library.of("text_encoder")
    assert found.path.name == "model.safetensors.index.json"
    assert not library.unreadable


@contextmanager
def not_root() -> Iterator[None]:
    """Run the block as another user, since root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder with access for other users, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_folder_without_read_permission_is_an_error(open_folder: Path) -> None:
    secret = make_folder(open_folder / "secret")
    secret.chmod(0)
    with (
        not_root(),
        pytest.raises(CheckpointNotFound, match="secret cannot be read: permission"),
    ):
        model_folders([secret], {}, Path("none"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_unreadable_subfolders_and_files_are_listed_and_the_rest_is_used(open_folder: Path) -> None:
    single(open_folder)
    (open_folder / "loras").chmod(0)
    gemma = open_folder / "text_encoders/tiny-gemma.safetensors"
    gemma.chmod(0)
    with not_root():
        library = scan([open_folder])
    assert {path.name for path, _ in library.unreadable} == {"loras", gemma.name}
    assert library.of("transformer")
