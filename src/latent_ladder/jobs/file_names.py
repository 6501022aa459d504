"""Names of output files, made from prompts."""

from __future__ import annotations

from pathlib import Path

from latent_ladder.storage.user_config import configured_path

NAME_WORDS, NAME_CHARACTERS = 6, 24
"""Words of the prompt in a file name, and the longest part of one."""


def prompt_stem(prompt: str) -> str:
    """The first words of a prompt as the stem of a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    return "-".join(word[:NAME_CHARACTERS] for word in words[:NAME_WORDS]) or "clip"


def choose_file_name(prompt: str, suffix: str = ".mp4") -> Path:
    """A path that does not exist yet, named after the prompt.

    It is in the folder of ``LADDER_OUTPUT`` or the config file, else in the working folder.
    """
    folder, stem = configured_path("output") or Path(), prompt_stem(prompt)
    names = (folder / f"{stem}{'' if n == 1 else f'-{n}'}{suffix}" for n in range(1, 10_000))
    return next(name for name in names if not name.exists())
