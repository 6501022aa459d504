"""Damaged model files, media files, requests and workflows."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from helpers.mutations import mutate, mutate_document
from helpers.tiny_clips import FIELDS
from helpers.workflow_ui_graphs import two_stage
from PIL import Image

from campaign.trials import Trial, refused
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.checkpoints.scan import Library
from latent_ladder.comfyui.analysis.check import check_workflow
from latent_ladder.comfyui.formats.read import parse_workflow, workflow_from_document
from latent_ladder.errors import (
    CheckpointError,
    LadderError,
    MediaError,
    RequestError,
    UnknownLayout,
    WorkflowError,
)
from latent_ladder.media.audio_input import check_audio
from latent_ladder.media.image_files import open_image
from latent_ladder.media.image_sequence import write_audio
from latent_ladder.media.video_reader import probe, read_metadata
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.request.files import clip_metadata, read_request
from latent_ladder.request.model import Request

Read = Callable[[Path], object]
HEADER = 600
"""Bytes at the start of a media file in which most mutations are."""


@contextmanager
def containers(folder: Path) -> Iterator[Trial]:
    """safetensors and GGUF files: opened, every tensor read, components looked for."""
    names = [f"blocks.{i}.attn.to_q.weight" for i in range(4)]
    entries = {
        n: {"dtype": "F32", "shape": [4, 4], "data_offsets": [64 * i, 64 * i + 64]}
        for i, n in enumerate(names)
    }
    head: dict[str, Any] = {"__metadata__": {"config": '{"transformer": {"a": [1, 2]}}'}}
    text = json.dumps(head | entries).encode()
    seeds = {
        "x.safetensors": (struct.pack("<Q", len(text)) + text + bytes(256), 8 + len(text)),
        "x.gguf": _gguf(folder),
    }

    def trial(rng: random.Random) -> str:
        name = rng.choice(sorted(seeds))
        path = folder / name
        path.write_bytes(mutate(rng, *seeds[name]))
        try:
            file = open_checkpoint(path)
            for tensor, info in file.tensors.items():
                assert len(file.read_bytes(tensor)) == info.nbytes
        except CheckpointError as error:
            return refused(error)
        with suppress(UnknownLayout):  # the files are no model, but damaged ones say so too
            components(file)
        return "ok"

    yield trial


@contextmanager
def indexes(folder: Path) -> Iterator[Trial]:
    """The index of a model in two files: its JSON or its bytes are damaged."""
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, key in zip(names, "ab", strict=True):
        head = json.dumps({key: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
    document = {"metadata": {"total_size": 32}, "weight_map": dict(zip("ab", names, strict=True))}
    text = json.dumps(document).encode()
    index = folder / "model.safetensors.index.json"

    def trial(rng: random.Random) -> str:
        if rng.random() < 0.5:
            data = mutate(rng, text, len(text))
        else:
            damaged = mutate_document(document, rng)
            data = json.dumps(damaged).encode("utf-8", "surrogatepass")
        index.write_bytes(data)
        try:
            file = open_checkpoint(rng.choice((folder, index, folder / names[0])))
            for tensor, info in file.tensors.items():
                assert len(file.read_bytes(tensor)) == info.nbytes
        except CheckpointError as error:
            return refused(error)
        return "ok"

    yield trial


def _gguf(folder: Path) -> tuple[bytes, int]:
    import gguf

    writer = gguf.GGUFWriter(folder / "seed.gguf", "ltxv")
    writer.add_string("config", '{"transformer": {"a": [1, 2]}}')
    writer.add_token_list([f"word{i}" for i in range(20)])
    writer.add_array("nested", [1, 2, 3])
    writer.add_tensor("a", np.ones((4, 8), np.float32))
    writer.add_tensor("q", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = (folder / "seed.gguf").read_bytes()
    return data, len(data) - 200


@contextmanager
def media(folder: Path) -> Iterator[Trial]:
    """Videos, sound and pictures: measured, decoded, their tags read."""
    readers = _media_seeds(folder)
    data = {path: path.read_bytes() for path in readers}

    def trial(rng: random.Random) -> str:
        source = rng.choice(sorted(data))
        path = folder / f"damaged{source.suffix}"
        path.write_bytes(mutate(rng, data[source], rng.choice((HEADER, len(data[source])))))
        try:
            readers[source](path)
            read_metadata(path)
        except MediaError as error:
            return refused(error)
        return "ok"

    yield trial


def _media_seeds(folder: Path) -> dict[Path, Read]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 32, 48, 3), np.uint8)
    sound = rng.uniform(-0.5, 0.5, (2, 9600)).astype(np.float32), 48_000
    tags = clip_metadata(Request.from_dict(FIELDS))
    seeds: dict[Path, Read] = {}
    for suffix in (".mp4", ".mkv", ".webm", ".gif"):
        path = folder / f"seed{suffix}"
        write_video(path, [frames], VideoSpec((48, 32), Fraction(24)), audio=sound, metadata=tags)
        seeds[path] = probe
    write_audio(folder / "seed.wav", sound, Fraction(1, 5))
    seeds[folder / "seed.wav"] = check_audio
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff"):
        path = folder / f"picture{suffix}"
        Image.fromarray(frames[0]).save(path)
        seeds[path] = _decode_image
    return seeds


def _decode_image(path: Path) -> None:
    with open_image(path) as image:
        image.convert("RGB")


@contextmanager
def requests(folder: Path) -> Iterator[Trial]:
    """Requests as data, as TOML and JSON files, and in the tags of clips."""
    whole = Request.from_dict(FIELDS | {"images": [{"file": "a.png"}], "audio_in": "b.wav"})
    texts = {".toml": whole.to_toml().encode(), ".json": whole.to_json().encode()}

    def trial(rng: random.Random) -> str:
        suffix = rng.choice((".toml", ".json", "data"))
        try:
            if suffix == "data":
                found = Request.from_dict(mutate_document(whole.to_dict(), rng))
            else:
                path = folder / f"request{suffix}"
                path.write_bytes(mutate(rng, texts[suffix], len(texts[suffix])))
                found = read_request(path)
        except RequestError as error:
            return refused(error)
        assert Request.from_dict(found.to_dict()) == found
        return "ok"

    yield trial


@contextmanager
def workflows(_: Path) -> Iterator[Trial]:
    """ComfyUI graphs: damaged documents and damaged bytes, read and checked."""
    document, library = two_stage(), Library((), {})
    text = json.dumps(document).encode()

    def trial(rng: random.Random) -> str:
        try:
            if rng.random() < 0.5:
                found = workflow_from_document(mutate_document(document, rng))
            else:
                found = parse_workflow(mutate(rng, text, len(text)))
            json.dumps(check_workflow(found, library).to_dict(), default=str)
        except WorkflowError as error:
            return refused(error)
        return "ok"

    yield trial


@contextmanager
def names(folder: Path) -> Iterator[Trial]:
    """Strange names and kinds of files wherever a file is read."""
    import os

    (folder / "folder.png").mkdir(exist_ok=True)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.toml").symlink_to(folder / "loop.toml")
    (folder / "empty.wav").touch()
    readers: tuple[Read, ...] = (
        probe, check_audio, _decode_image, read_request, read_metadata, open_checkpoint,
        lambda path: parse_workflow(path.name.encode("utf-8", "surrogateescape")),
    )  # fmt: skip
    strange = ("n" * 300, "a\0b", "\udcff\udcfe", "\x1b[2J", "\u202egpj", "..", "", "concat:a|b")

    def trial(rng: random.Random) -> str:
        fixed = ["folder.png", "pipe.mp4", "loop.toml", "empty.wav", "/dev/zero", "/proc/self/mem"]
        path = folder / rng.choice([*fixed, *(f"{s}.mp4" for s in strange), *strange])
        try:
            rng.choice(readers)(path)
        except LadderError as error:
            return refused(error)
        return "ok"

    yield trial
