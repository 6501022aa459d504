"""Files that users name: pipes, devices, long and broken names are refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latent_ladder.checkpoints.search_paths import expand_model_folder
from latent_ladder.drafts.seeds import read_prompts
from latent_ladder.errors import CheckpointNotFound, LadderError, MediaError, RequestError
from latent_ladder.media.audio_input import check_audio
from latent_ladder.media.image_files import open_image
from latent_ladder.media.video_input import check_video
from latent_ladder.request.files import read_request
from latent_ladder.storage.read_file import is_pseudo_folder, read_small_file


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def open_picture(path: Path) -> None:
    with open_image(path):
        pass


@pytest.mark.parametrize(
    "read", [read_prompts, read_request, check_audio, check_video, open_picture]
)
def test_a_pipe_a_device_or_an_impossible_name_is_refused(pipe: Path, read: object) -> None:
    assert callable(read)
    names = (pipe, Path("/dev/zero"), pipe.with_name("n" * 304), pipe.with_name("a\0b"), Path("/"))
    for path in names:
        with pytest.raises(LadderError) as caught:
            read(path)
        assert caught.value.hint
        assert len(caught.value.message) < 1000


def test_a_request_through_a_pipe_with_a_suffix_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(RequestError, match="is a pipe, not a file"):
        read_request(tmp_path / "pipe.toml")


def test_a_file_is_read_up_to_its_limit_and_not_beyond(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_small_file(path, 5, MediaError) == b"12345"
    with pytest.raises(MediaError, match="5 bytes, expected at most 4"):
        read_small_file(path, 4, MediaError)


def test_folders_of_processes_and_devices_are_no_model_folders(tmp_path: Path) -> None:
    for folder in ("/proc/self", "/sys", "/dev"):
        with pytest.raises(CheckpointNotFound, match="processes or devices"):
            expand_model_folder(Path(folder), "--models")
    link = tmp_path / "models"
    link.symlink_to("/proc/self")
    assert is_pseudo_folder(link)
    assert not is_pseudo_folder(Path("/dev/shm/models"))
    assert not is_pseudo_folder(tmp_path)
