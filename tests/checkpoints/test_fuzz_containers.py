"""Damaged headers are read or refused with an error, quickly and with little memory.

Seeded mutations of small real files: replaced bytes, flipped bits, truncation, repeated and removed
bytes, and numbers of four and eight bytes set to extreme values.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.mutations import MUTATIONS

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.errors import CheckpointError

MUTANTS, SECONDS, BYTES = 500, 1.0, 4_000_000


def safetensors_seed() -> tuple[bytes, int]:
    names = [f"blocks.{i}.attn.to_q.weight" for i in range(6)]
    entries = {
        n: {"dtype": "F32", "shape": [4, 4], "data_offsets": [64 * i, 64 * i + 64]}
        for i, n in enumerate(names)
    }
    header: dict[str, object] = {"__metadata__": {"config": '{"transformer": {"a": [1, 2]}}'}}
    text = json.dumps(header | entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64 * 6), 8 + len(text)


def gguf_seed(folder: Path) -> tuple[bytes, int]:
    writer = gguf.GGUFWriter(folder / "seed.gguf", "ltxv")
    writer.add_string("config", '{"transformer": {"a": [1, 2]}}')
    writer.add_token_list([f"word{i}" for i in range(20)])
    writer.add_token_scores([float(i) for i in range(20)])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_array("comfy.gguf.orig_shape.b", [2, 2, 8])
    for name in "abc":
        writer.add_tensor(name, np.ones((4, 8), np.float32))
    writer.add_tensor("q", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = (folder / "seed.gguf").read_bytes()
    return data, len(data) - 4 * 128


def index_seed() -> tuple[bytes, int]:
    weight_map = {f"w{i}": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    data = json.dumps({"metadata": {"total_size": 12}, "weight_map": weight_map}).encode()
    return data, len(data)


def mutants(data: bytes, header: int, repair_length: bool) -> Iterator[bytes]:
    for seed in range(MUTANTS):
        rng = random.Random(seed)
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(MUTATIONS)(rng, mutant, max(1, min(header, len(mutant))))
            if not mutant:
                break
        if repair_length and seed % 2:
            # With a valid length of the header, the damage is in the JSON.
            length = header - 8 + len(mutant) - len(data)
            mutant[:8] = struct.pack("<Q", max(2, length))
        yield bytes(mutant)


def open_and_read(path: Path) -> bool:
    """Open the file and read all its content; ``False`` if it was refused with a reason."""
    try:
        file = open_checkpoint(path)
        for name, info in file.tensors.items():
            data = file.read_bytes(name)
            assert len(data) == info.nbytes <= path.stat().st_size
        assert all(file.kv[key] is not None for key in file.kv)
    except CheckpointError as error:
        assert error.hint
        assert len(error.message) < 1000
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("container", ["safetensors", "gguf", "index"])
def test_damaged_headers_are_read_or_refused_quickly_with_little_memory(
    tmp_path: Path, container: str
) -> None:
    seeds = {
        "safetensors": (safetensors_seed, "x.safetensors"),
        "gguf": (lambda: gguf_seed(tmp_path), "x.gguf"),
        "index": (index_seed, "model.safetensors.index.json"),
    }
    make, name = seeds[container]
    data, header = make()
    path = tmp_path / name
    opened = 0
    tracemalloc.start()
    try:
        for number, mutant in enumerate(mutants(data, header, container == "safetensors")):
            path.write_bytes(mutant)
            tracemalloc.reset_peak()
            before, began = tracemalloc.get_traced_memory()[0], time.process_time()
            opened += open_and_read(path)
            assert time.process_time() - began < SECONDS, f"mutant {number}"
            assert tracemalloc.get_traced_memory()[1] - before < BYTES, f"mutant {number}"
    finally:
        tracemalloc.stop()
    assert opened < MUTANTS * 0.6, "too few mutations did damage"
    if container != "index":  # its shards do not exist
        assert opened > 10, "no mutant was readable: the mutations do too much damage"


OPEN_WITH_MEMORY_LIMIT = """
import resource, sys
from pathlib import Path
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_checkpoint(path)
    except CheckpointError as error:
        assert error.hint
        continue
    raise SystemExit(f"{path.name} was accepted")
"""


def test_counts_of_gigabytes_allocate_nothing(tmp_path: Path) -> None:
    def length(n: int) -> bytes:
        return struct.pack("<Q", n)

    big = {
        "header.safetensors": length(90_000_000) + b"{",
        "beyond.safetensors": length(2 << 30) + b"{",
        "shape.safetensors": length(70)
        + b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'[:70],
        "tensors.gguf": b"GGUF" + struct.pack("<IQQ", 3, 1 << 31, 0) + bytes(64),
        "values.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 31) + bytes(64),
        "text.gguf": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 33) + bytes(64),
        "array.gguf": b"GGUF"
        + struct.pack("<IQQQ", 3, 0, 1, 1)
        + b"k"
        + struct.pack("<IIQ", 9, 6, 1 << 32)
        + bytes(64),
        "strings.gguf": b"GGUF"
        + struct.pack("<IQQQ", 3, 0, 1, 1)
        + b"k"
        + struct.pack("<IIQ", 9, 8, 1 << 32)
        + bytes(64),
    }
    for name, content in big.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", OPEN_WITH_MEMORY_LIMIT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
