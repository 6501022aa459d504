"""Time of opening large model files and of reading one, compared with common libraries.

* ``gguf``: a file with Gemma's vocabulary (262,144 tokens, scores and types) and 626 tensors of its
  shapes in Q8_0; compared with gguf-py's ``GGUFReader``;
* ``safetensors``: 5,947 tensors in 46 GB, like the 2.3 checkpoint; compared with ``safe_open``.
  Ours checks every entry and returns shapes and dtypes, ``safe_open`` only lists the names;
* ``memory``: copying every tensor of a file into memory, compared with one plain read of the same
  bytes into one allocation (page cache warm; median of the rounds).

The first two files are sparse: they take no disk space and contain zeros.

    python benchmarks/open_files.py [--gib 1.5] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint

RESULTS = Path(__file__).parent / "results" / "open_files.json"
VOCABULARY, LAYERS, HIDDEN, INNER = 262_144, 48, 3840, 15_360
Q8_0, F32 = 8, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.5, help="size of the file read into memory")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for found in measure(Path(folder), args.gib, args.rounds):
            print("{case:12} {what:44} {seconds:9.4f} s  {note}".format(**found), flush=True)
            rows.append(found)
    for found in rows:
        if math.isnan(found["seconds"]):
            found["seconds"] = None
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": sys.version.split()[0], "torch": torch.__version__,
               "machine": platform.machine()}  # fmt: skip
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measure(folder: Path, gib: float, rounds: int) -> Iterator[dict[str, Any]]:
    path = write_gemma_gguf(folder / "gemma.gguf")
    yield row("gguf", "ours: open", median(lambda: open_checkpoint(path), rounds))
    yield row("gguf", "ours: open and list the tokens", median(lambda: tokens(path), rounds))
    yield row("gguf", "gguf-py: GGUFReader", median(lambda: gguf.GGUFReader(path), 1))
    path = write_sparse_checkpoint(folder / "ltx.safetensors")
    yield row("safetensors", "ours: open", median(lambda: open_checkpoint(path), rounds))
    for framework in ("pt", "np"):
        yield safe_open_row(path, framework, rounds)
    path = write_random_matrices(folder / "filled.safetensors", gib)
    yield from into_memory(path, rounds)


def into_memory(path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Compare ways to read a file into memory; they alternate in every round."""
    ways: Sequence[tuple[str, Callable[[Path], object]]] = (
        ("plain read into one allocation", plain_read),
        ("ours: load every tensor", load_all),
        ("ours: read (mapped) and clone every tensor", clone_all),
        ("safe_open: get_tensor and clone every tensor", safe_clone_all),
    )
    plain_read(path)
    times: dict[str, list[float]] = {what: [] for what, _ in ways}
    for _ in range(rounds):
        for what, way in ways:
            times[what].append(time_call(partial(way, path)))
    size, plain = path.stat().st_size, statistics.median(times[ways[0][0]])
    for what, found in times.items():
        seconds = statistics.median(found)
        note = f"{size / seconds / 1e9:.2f} GB/s, {plain / seconds:.0%} of the plain read"
        yield row("memory", what, seconds, note)


def plain_read(path: Path) -> object:
    size = path.stat().st_size
    whole = torch.empty(size, dtype=torch.uint8)
    view = memoryview(whole.numpy().data)
    with path.open("rb", buffering=0) as file:
        while view:
            view = view[file.readinto(view) or size :]
    return whole


def load_all(path: Path) -> object:
    file = open_checkpoint(path)
    return [file.load(name) for name in file.tensors]


def clone_all(path: Path) -> object:
    file = open_checkpoint(path)
    return [file.read(name).clone() for name in file.tensors]


def safe_clone_all(path: Path) -> object:
    with safe_open(path, "pt") as file:
        return [file.get_tensor(name).clone() for name in file.keys()]  # noqa: SIM118


def tokens(path: Path) -> list[str]:
    found: list[str] = open_checkpoint(path).kv["tokenizer.ggml.tokens"]
    assert len(found) == VOCABULARY
    return found


def names(path: Path, framework: str) -> list[str]:
    with safe_open(path, framework) as file:
        return list(file.keys())


def safe_open_row(path: Path, framework: str, rounds: int) -> dict[str, Any]:
    """Measure ``safe_open``; for torch its private mapping fails for files larger than RAM."""
    what = f"safe_open ({framework}): open and list the names"
    try:
        return row("safetensors", what, median(lambda: names(path, framework), rounds))
    except RuntimeError as error:
        return row("safetensors", what, math.nan, f"refused: {str(error).rsplit(':', 1)[-1]}")


def time_call(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    del result
    return seconds


def median(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(time_call(work) for _ in range(rounds))


def row(case: str, what: str, seconds: float, note: str = "") -> dict[str, Any]:
    return {"case": case, "what": what, "seconds": round(seconds, 4), "note": note}


def write_gemma_gguf(path: Path) -> Path:
    """Write a sparse GGUF file with the header of Gemma 3 12B in Q8_0."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (HIDDEN, VOCABULARY)}
    for i in range(LAYERS):
        for part, shape in (
            ("attn_q", (HIDDEN, 4096)), ("attn_k", (HIDDEN, 2048)), ("attn_v", (HIDDEN, 2048)),
            ("attn_output", (4096, HIDDEN)), ("ffn_gate", (HIDDEN, INNER)),
            ("ffn_up", (HIDDEN, INNER)), ("ffn_down", (INNER, HIDDEN)),
            ("attn_q_norm", (256,)), ("attn_k_norm", (256,)), ("attn_norm", (HIDDEN,)),
            ("ffn_norm", (HIDDEN,)), ("post_attention_norm", (HIDDEN,)),
            ("post_ffw_norm", (HIDDEN,)),
        ):  # fmt: skip
            shapes[f"blk.{i}.{part}.weight"] = shape
    shapes["output_norm.weight"] = (HIDDEN,)
    words = b"".join(text(f"\u2581word{i}") for i in range(VOCABULARY))
    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("gemma3"),
        array("tokenizer.ggml.tokens", 8, words),
        array("tokenizer.ggml.scores", 6, bytes(4 * VOCABULARY)),
        array("tokenizer.ggml.token_type", 5, struct.pack("<i", 1) * VOCABULARY),
    ]
    entries, at = [], 0
    for name, sides in shapes.items():
        kind, elements = (F32 if len(sides) == 1 else Q8_0), 1
        for n in sides:
            elements *= n
        entries.append(text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, at))
        size = elements * 4 if kind == F32 else elements // 32 * 34
        at += -(-size // 32) * 32
    header = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(values))
    header += b"".join(values) + b"".join(entries)
    return write_sparse(path, header + bytes(-len(header) % 32), at)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def array(key: str, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, VOCABULARY) + data


def write_sparse_checkpoint(path: Path, count: int = 5947, size: int = 46_000_000_000) -> Path:
    """Write a sparse safetensors file of ``size`` bytes with ``count`` bf16 tensors."""
    rows = size // (2 * 4096 * count)
    entries = {
        f"model.diffusion_model.transformer_blocks.{i // 86}.audio_to_video_attn.{i % 86}.weight": {
            "dtype": "BF16",
            "shape": [rows, 4096],
            "data_offsets": [i * rows * 8192, (i + 1) * rows * 8192],
        }
        for i in range(count)
    }
    header = json.dumps(entries).encode()
    return write_sparse(path, struct.pack("<Q", len(header)) + header, count * rows * 8192)


def write_sparse(path: Path, header: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    return path


def write_random_matrices(path: Path, gib: float) -> Path:
    """Write random bf16 matrices of 32 MiB, the size of attention weights of the 2.3 model."""
    count = max(1, round(gib * 32))
    save_file({f"w{i}": torch.randn(4096, 4096).bfloat16() for i in range(count)}, path)
    return path


if __name__ == "__main__":
    main()
