"""Information about the machine, this server and model files, for clients. No torch."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from latent_ladder._version import __version__
from latent_ladder.checkpoints.mmap_file import MappedFile, refusing_damage
from latent_ladder.checkpoints.safetensors import read_safetensors_header
from latent_ladder.comfyui.versions import ModelConvention, comfyui_version
from latent_ladder.errors import CheckpointError
from latent_ladder.memory.gpus import Gpu, gpus

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>latent-ladder</title>
<body style="font:16px/1.5 system-ui;max-width:44em;margin:3em auto;padding:0 1em">
<h1>latent-ladder {version}</h1>
<p>This is <code>ladder serve --comfyui</code>. It has ComfyUI's HTTP API and runs LTX-2.3
workflows with the engine of latent-ladder. It has no editor. Point a client that was written
for ComfyUI to this address, or send a workflow in the API format to <code>/prompt</code>.</p>
<p><a href="queue">queue</a> &middot; <a href="history">history</a> &middot;
<a href="object_info">node types</a> &middot; <a href="models">model folders</a> &middot;
<a href="system_stats">machine</a></p></body></html>
"""


def build_page() -> str:
    """The HTML page at ``/``."""
    return PAGE.format(version=__version__)


def server_features(max_upload: int) -> dict[str, Any]:
    """Features of this server: ``/features``, and the first message on ``/ws``."""
    return {
        "supports_preview_metadata": True,
        "max_upload_size": max_upload,
        "latent_ladder": __version__,
    }


def system_stats(device: str, convention: ModelConvention) -> dict[str, Any]:
    """Memory and versions now. Asks the GPU driver, which takes some milliseconds.

    ``comfyui_version`` is the version that graphs are computed like (``--comfyui-version``).
    """
    memory = psutil.virtual_memory()
    return {
        "system": {
            "os": sys.platform if os.name != "nt" else "nt",
            "ram_total": memory.total,
            "ram_free": memory.available,
            "comfyui_version": comfyui_version(convention),
            "latent_ladder_version": __version__,
            "python_version": sys.version,
            "pytorch_version": _torch_version(),
            "embedded_python": False,
            "argv": ["ladder", "serve", "--comfyui"],
        },
        "devices": _device_stats(device, memory.total, memory.available),
    }


def _device_stats(device: str, total: int, free: int) -> list[dict[str, Any]]:
    cards = () if device in ("cpu", "mps") else gpus()
    if not cards:
        kind = "mps" if device == "mps" else "cpu"
        return [_device_dict(kind, None, Gpu(_processor_name(), total, free))]
    return [_device_dict(card.kind, index, card) for index, card in enumerate(cards)]


def _device_dict(kind: str, index: int | None, card: Gpu) -> dict[str, Any]:
    return {
        "name": card.name,
        "type": kind,
        "index": index,
        "vram_total": card.total_bytes,
        "vram_free": card.free_bytes,
        "torch_vram_total": card.total_bytes,
        "torch_vram_free": card.free_bytes,
    }


def _processor_name() -> str:
    return platform.processor() or platform.machine() or "cpu"


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"


def read_file_metadata(path: Path) -> dict[str, str] | None:
    """The ``__metadata__`` of a safetensors file; ``None`` for one without, or a damaged one."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return None
    try:
        with refusing_damage(path):
            header = read_safetensors_header(MappedFile.from_path(path))
    except (CheckpointError, OSError):  # also a disk that fails while the header is read
        return None
    return dict(header.metadata) or None
