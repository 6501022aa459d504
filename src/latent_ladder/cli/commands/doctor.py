"""``ladder doctor``: which models are here, what each preset lacks, how it fits this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands.flags import Folders, Json, MemoryFlags, StoreFolder, flags
from latent_ladder.cli.console import gib, show_error, show_warning, table

if TYPE_CHECKING:
    from latent_ladder.checkpoints.catalog import Published
    from latent_ladder.diagnostics.doctor import Checkup
    from latent_ladder.diagnostics.preset_readiness import PresetState

AskTorch = Annotated[bool, typer.Option("--gpu", help="Ask torch for the GPU (takes seconds).")]

NOTHING_RUNS = 3
"""The exit code when no set of models is whole."""


def register(app: typer.Typer) -> None:
    """Add ``doctor``."""
    app.command("doctor")(flags(doctor))


def doctor(
    memory: MemoryFlags,
    folders: Folders = None,
    store: StoreFolder = None,
    gpu: AskTorch = False,
    as_json: Json = False,
) -> None:
    """Say which models are here, what is missing, what would run and how it would fit.

    Exit code 3 when nothing can run: no whole set of models, or none but the embedded pocket
    although --models named a folder.
    """
    from latent_ladder.diagnostics.doctor import examine, report

    checkup = examine(folders or (), store, memory.options(), memory.device)
    asked = _torch_devices() if gpu else None
    if as_json:
        body = report(checkup) | ({} if asked is None else {"torch": asked})
        print(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        _print(checkup, asked)
    if not checkup.runnable:
        raise typer.Exit(NOTHING_RUNS)


def _torch_devices() -> dict[str, Any]:
    """What torch itself sees; the only thing here that imports it."""
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": facts.name,
                "total_bytes": facts.total_memory,
                "capability": f"{facts.major}.{facts.minor}",
            }
        )
    mps = torch.backends.mps.is_available()
    return {"version": torch.__version__, "cuda": devices, "mps": mps}


def _print(checkup: Checkup, asked: dict[str, Any] | None) -> None:
    _print_files(checkup)
    _print_presets(checkup)
    _print_machine(checkup, asked)
    for wrong in checkup.misplaced:
        show_warning(wrong.message)
    for note in checkup.choice.notes:
        show_warning(note)
    for path, why in checkup.library.unreadable:
        show_warning(f"{path}: {why}")
    if checkup.error is not None:
        show_error(checkup.error)
    elif checkup.only_pocket:
        show_warning(
            "only the embedded pocket model can run; `ladder models get ltx-2.3` gets the real one"
        )


def _print_files(checkup: Checkup) -> None:
    from latent_ladder.diagnostics.doctor import rows

    cells = [
        (
            "*" if row["chosen"] else "",
            row["role"].replace("_", " "),
            row["name"],
            f"{row['precision']}{' gguf' if row['container'] == 'gguf' else ''}",
            row["family"] or "",
            gib(row["bytes"]),
        )
        for row in rows(checkup)
        if checkup.only_pocket or not row["embedded"]
    ]
    table("Models (* would be used)", ("", "role", "file", "precision", "LTX", "size"), cells)
    places = [(str(f.path), f.category or "", f.source) for f in checkup.folders]
    table("Folders searched", ("folder", "holds", "named by"), places)


def _print_presets(checkup: Checkup) -> None:
    cells = [(state.name, _state(state), _details(state)) for state in checkup.presets]
    table("Presets", ("preset", "state", "memory at the peak, or what is missing"), cells)
    wanted = {
        missing.file: missing.why
        for state in checkup.presets
        for missing in state.missing
        if missing.file is not None
    }
    if wanted:
        files = [(*_place(file), why) for file, why in wanted.items()]
        table("Missing files", ("file", "into models/", "size", "page", "found instead"), files)
    for advice in dict.fromkeys(a for state in checkup.presets for a in state.advice):
        names = ", ".join(s.name for s in checkup.presets if advice in s.advice)
        show_warning(f"{names}: {advice}")


def _place(file: Published) -> tuple[str, str, str, str]:
    return file.name, f"{file.folder}/", file.size, f"https://{file.page}"


def _state(state: PresetState) -> str:
    if state.missing:
        return "incomplete"
    return "ready" if state.too_big is None else "too big"


def _details(state: PresetState) -> str:
    if state.missing:
        return ", ".join(" + ".join(m.roles).replace("_", " ") for m in state.missing)
    if state.too_big is not None:
        return state.too_big
    if not state.stages:
        return "memory unknown"
    peak = max(state.stages, key=lambda stage: stage.peak_bytes)
    return f"{gib(peak.peak_bytes)} in {peak.name}; {_worst_holding(state)}"


def _worst_holding(state: PresetState) -> str:
    """How the transformer is held in the stage where least of it stays."""
    held = [s.offload_plan for s in state.stages if s.name not in ("prompt", "decode")]
    return max(held, key=len, default="resident")


def _print_machine(checkup: Checkup, asked: dict[str, Any] | None) -> None:
    table("Machine", ("what", "free", "of"), _machine(checkup, asked))


def _machine(checkup: Checkup, asked: dict[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    import psutil

    for gpu in checkup.gpus:
        yield gpu.name, gib(gpu.free_bytes), gib(gpu.total_bytes)
    if not checkup.gpus:
        yield "GPU: unknown (nvidia-smi does not answer; --gpu asks torch)", "", ""
    if asked is not None:
        for gpu in asked["cuda"]:
            yield f"torch {asked['version']}: {gpu['name']}", "", gib(gpu["total_bytes"])
        if not asked["cuda"]:
            yield f"torch {asked['version']}: {'mps' if asked['mps'] else 'CPU only'}", "", ""
    memory = psutil.virtual_memory()
    yield "RAM", gib(memory.available), gib(memory.total)
    for name, (folder, free) in checkup.disks.items():
        yield f"disk of {name} ({folder})", gib(free), ""
