"""Model files and uploads that clients can choose."""

from __future__ import annotations

from pathlib import Path

from latent_ladder.checkpoints.search_paths import ModelFolder
from latent_ladder.server.file_listing import FileListing


def test_models_are_listed_by_folder(tmp_path: Path) -> None:
    for name in ("unet/a.gguf", "diffusion_models/sub/b.safetensors", "loras/c.txt", "loras/.d.pt"):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.safetensors").touch()
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "photo.png").touch()
    folders = (ModelFolder(tmp_path / "m"), ModelFolder(tmp_path / "elsewhere", "loras"))
    replaced = {"published.gguf": "a.gguf", "gone.gguf": "nowhere"}
    listing = FileListing(folders, tmp_path / "input", replaced)
    assert listing.names("diffusion_models") == ["a.gguf", "published.gguf", "sub/b.safetensors"]
    assert listing.names("unet") == listing.names("diffusion_models")
    assert listing.names("loras") == ["e.safetensors"]
    assert listing.names("loras,unet") == [
        "a.gguf", "e.safetensors", "published.gguf", "sub/b.safetensors",
    ]  # fmt: skip
    assert listing.names("input") == ["photo.png"]
    assert listing.find("loras", "e.safetensors") == tmp_path / "elsewhere" / "e.safetensors"
    assert listing.find("loras", "../input/photo.png") is None
    before = listing.state()
    assert listing.state() == before
    (tmp_path / "elsewhere" / "new.safetensors").touch()
    assert len(listing.state()) == len(before) + 1
