"""What the transformer reads of a prompt, and its disk cache.

A text encoder of 24 GB runs once per prompt ever: its result, 12 MB, is kept by content. Knows
no network; the caller names what the result depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

ALGORITHM = "prompt-1"
"""Part of every key: raise it when the same inputs begin to give other numbers."""


@dataclass(frozen=True)
class Conditioning:
    """Text context of one prompt: ``video`` (1, L, Dv) and ``audio`` (1, L, Da)."""

    video: Tensor
    audio: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """The same numbers elsewhere, or in another dtype."""
        return Conditioning(self.video.to(device, dtype), self.audio.to(device, dtype))


def prompt_key(facts: Mapping[str, str | int]) -> str:
    """The name of an embedding: a hash of everything that decides it.

    ``facts`` holds the prompt, the ids of the model parts, the text length and the dtype.
    """
    text = json.dumps({**facts, "algorithm": ALGORITHM}, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class PromptCache:
    """Embeddings in a folder, one file per key; safe to share between processes."""

    folder: Path

    def path(self, key: str) -> Path:
        """Where the embedding ``key`` lies, whether or not it exists."""
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> Conditioning | None:
        """The stored embedding on the CPU; ``None`` where there is none or it is damaged."""
        try:
            with safe_open(self.path(key), "pt") as opened:
                metadata = opened.metadata() or {}
                found = Conditioning(opened.get_tensor("video"), opened.get_tensor("audio"))
        except (OSError, SafetensorError):
            return None
        found = Conditioning(found.video.clone(), found.audio.clone())
        return found if metadata.get("digest") == _digest(found) else None

    def put(self, key: str, conditioning: Conditioning) -> None:
        """Store an embedding: written beside its place, then renamed, so never seen half done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = conditioning.to("cpu")
        stored = Conditioning(stored.video.contiguous(), stored.audio.contiguous())
        handle, name = tempfile.mkstemp(prefix=f".{key}.", dir=self.folder)
        os.close(handle)
        try:
            save_file(
                {"video": stored.video, "audio": stored.audio}, name, {"digest": _digest(stored)}
            )
            Path(name).replace(self.path(key))
        finally:
            Path(name).unlink(missing_ok=True)


def _digest(conditioning: Conditioning) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (conditioning.video, conditioning.audio):
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
