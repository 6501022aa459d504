"""Time of loading a transformer and of streaming its blocks, on the CPU.

The file has ``--blocks`` blocks of 2.3 at their real widths (0.77 GB each in bf16, random numbers)
and the layers outside the blocks. Each case runs in a separate process, for its own peak memory;
the file is in the page cache; reported are medians of the rounds:

* ``plain read``: the whole file into one allocation;
* ``into modules``: ``load_transformer``, bf16 as stored; its rate relative to the plain read (goal:
  at least 80 %) and its peak memory relative to the stored bytes (goal: at most 5 % above);
* ``resident``, ``streamed``: a forward of ``--tokens`` video tokens with all blocks in memory, and
  with each block read from the file into one of two buffers while the block before is computed.
  The outputs must be bit-identical.

    python benchmarks/reading.py [--blocks 2] [--tokens 1024] [--rounds 5] [--threads 2] [--tiny]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import LoadOptions, Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.weights.block_offload import BlockOffload
from latent_ladder.models.weights.loading import EmptyOnMeta

RESULTS = Path(__file__).parent / "results" / "reading.json"
CASES = ("plain read", "into modules", "resident", "streamed")
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="narrow blocks, to check the script")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        torch.set_num_threads(args.threads)
        print(json.dumps(CASE_FUNCTIONS[args.child](args.file, args.tokens, args.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transformer.safetensors"
        write(path, config(args.blocks, args.tiny))
        report = {case: child(case, path) for case in CASES}
    print_report(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def child(case: str, path: Path) -> dict[str, Any]:
    """Run one case in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", case, "--file", str(path)]
    result: dict[str, Any] = json.loads(subprocess.check_output(command))
    return result


def print_report(report: dict[str, dict[str, Any]]) -> None:
    plain, loaded = report["plain read"], report["into modules"]
    resident, streamed = report["resident"], report["streamed"]
    rate, speed = plain["bytes"] / plain["seconds"] / 1e9, plain["seconds"] / loaded["seconds"]
    peak = loaded["peak_bytes"] / loaded["bytes"]
    print(f"plain read    {plain['seconds']:8.3f} s  {rate:.2f} GB/s")
    print(f"into modules  {loaded['seconds']:8.3f} s  {speed:.0%} of its speed")
    print(f"              peak {peak:.1%} of the stored bytes")
    print(f"resident      {resident['seconds']:8.3f} s a forward, peak {gib(resident)}")
    print(
        f"streamed      {streamed['seconds']:8.3f} s a forward, peak {gib(streamed)}, "
        f"{streamed['seconds'] / resident['seconds'] - 1:+.0%}; identical outputs: "
        f"{streamed['output'] == resident['output']}"
    )


def gib(result: dict[str, Any]) -> str:
    return f"{result['peak_bytes'] / 2**30:.2f} GiB"


def config(blocks: int, tiny: bool) -> TransformerConfig:
    heads, width = (4, 32) if tiny else (32, 128)
    dim, audio_dim = heads * width, heads * width // 2
    return TransformerConfig(
        blocks,
        StreamConfig(128, 128, heads, width, 4 * dim, dim, (20.0, 2048.0, 2048.0)),
        StreamConfig(128, 128, heads, width // 2, 4 * audio_dim, audio_dim, (20.0,)),
    )


def header_config(shape: TransformerConfig) -> str:
    """Header configuration of a checkpoint, with what shapes do not show."""
    header = {
        "num_attention_heads": shape.video.heads,
        "attention_head_dim": shape.video.head_dim,
        "audio_num_attention_heads": shape.audio.heads,
        "audio_attention_head_dim": shape.audio.head_dim,
        "num_layers": shape.layers,
    }
    return json.dumps({"transformer": header})


def write(path: Path, shape: TransformerConfig) -> None:
    """Write a checkpoint of random bf16 numbers, tensor by tensor."""
    with EmptyOnMeta():
        shapes = {n: tuple(t.shape) for n, t in Transformer(shape).state_dict().items()}
    header: dict[str, Any] = {"__metadata__": {"config": header_config(shape)}}
    at = 0
    for name, size in shapes.items():
        end = at + 2 * int(torch.tensor(size).prod())
        entry = {"dtype": "BF16", "shape": size, "data_offsets": [at, end]}
        header[f"model.diffusion_model.{name}"] = entry
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in shapes.items():
            numbers = torch.randn(size, generator=generator) * size[-1] ** -0.5
            tensor = torch.ones(size) if name.endswith("norm.weight") else numbers
            file.write(tensor.bfloat16().view(torch.uint8).numpy().tobytes())


def transformer_of(path: Path) -> Component:
    return components(open_checkpoint(path))["transformer"]


def plain_read(path: Path, _: int, rounds: int) -> dict[str, Any]:
    def read() -> object:
        size = path.stat().st_size
        whole = torch.empty(size, dtype=torch.uint8)
        view = memoryview(whole.numpy().data)
        with path.open("rb", buffering=0) as file:
            while view:
                view = view[file.readinto(view) or size :]
        return whole

    return {"seconds": median(read, rounds), "bytes": path.stat().st_size}


def load_into_modules(path: Path, _: int, rounds: int) -> dict[str, Any]:
    part = transformer_of(path)
    load_transformer(small_component(path), dtype=torch.bfloat16)  # first-use costs of torch
    before = resident_bytes()
    load_transformer(part, dtype=torch.bfloat16)
    peak = peak_bytes() - before
    seconds = median(lambda: load_transformer(transformer_of(path), dtype=torch.bfloat16), rounds)
    return {"seconds": seconds, "bytes": part.nbytes, "peak_bytes": peak}


def small_component(path: Path) -> Component:
    """Write a narrow transformer next to the file and open it."""
    small = path.with_name("small.safetensors")
    write(small, config(1, tiny=True))
    return transformer_of(small)


def forward_case(offload: BlockOffload | None) -> Callable[[Path, int, int], dict[str, Any]]:
    """Case that runs forwards with all blocks in memory (``None``) or with block offloading."""

    def run(path: Path, tokens: int, rounds: int) -> dict[str, Any]:
        load = LoadOptions() if offload is None else LoadOptions(as_stored=True, blocks="file")
        model = load_transformer(transformer_of(path), dtype=torch.bfloat16, load=load)
        call = forward(model, tokens)
        with model.offload_blocks(CPU, offload):
            out = call()
            seconds = median(call, rounds)
        digest = hashlib.blake2b(out.float().numpy().tobytes()).hexdigest()
        return {"seconds": seconds, "peak_bytes": peak_bytes(), "output": digest}

    return run


def forward(model: Transformer, tokens: int) -> Callable[[], Tensor]:
    """Function that runs one plain forward on random inputs of four square latent frames."""
    generator = torch.Generator().manual_seed(1)
    side = round((tokens / 4) ** 0.5)

    def random_tensor(*size: int) -> Tensor:
        return torch.randn(1, *size, generator=generator)

    def stream(positions: Tensor, dim: int) -> DenoiserStream:
        return DenoiserStream(positions, random_tensor(256, dim).bfloat16())

    video = stream(video_positions(4, side, side, 24), model.config.video.dim)
    denoiser = Denoiser(model, video, stream(audio_positions(32), model.config.audio.dim))
    x = denoiser.packing.pack(random_tensor(4 * side * side, 128), random_tensor(32, 128))
    return lambda: denoiser(x, 0.7, 0).denoised


def median(work: Callable[[], object], rounds: int) -> float:
    def time_rounds() -> Iterator[float]:
        for _ in range(rounds):
            began = time.perf_counter()
            result = work()
            yield time.perf_counter() - began
            del result

    return statistics.median(time_rounds())


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


CASE_FUNCTIONS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "plain read": plain_read,
    "into modules": load_into_modules,
    "resident": forward_case(None),
    "streamed": forward_case(BlockOffload(0)),
}


if __name__ == "__main__":
    main()
