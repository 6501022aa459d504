"""``ladder doctor``: model files found, files that presets need, memory of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flags import MemoryFlags
from latent_ladder.cli.commands.options import Folders, Json, StoreFolder, memory_option
from latent_ladder.cli.console import (
    format_bytes,
    print_json,
    print_table,
    show_error,
    show_warning,
)

if TYPE_CHECKING:
    from latent_ladder.checkpoints.catalog import CatalogFile
    from latent_ladder.diagnostics.doctor import Checkup
    from latent_ladder.diagnostics.preset_readiness import PresetState

AskTorch = Annotated[
    bool, memory_option("--gpu", help="Also ask PyTorch for the GPU, which takes some seconds.")
]

NOTHING_RUNS_EXIT_CODE = 3
"""Exit code when no set of models is complete, that of :class:`CheckpointError`."""


def register(app: typer.Typer) -> None:
    """Add ``doctor``."""
    app.command("doctor", cls=GroupedCommand)(expand_flags(doctor))


def doctor(
    memory: MemoryFlags,
    folders: Folders = None,
    store: StoreFolder = None,
    gpu: AskTorch = False,
    as_json: Json = False,
) -> None:
    """Check model files, presets and this machine.

    Lists the files found, what each preset still needs, and the memory it
    would use. Exit code 3 if nothing can run: no complete set of models, or
    only the embedded pocket model although --models names a folder.
    """
    from latent_ladder.diagnostics.doctor import examine, report

    checkup = examine(folders or (), store, memory.to_options(), memory.device)
    torch_devices = _ask_torch() if gpu else None
    if as_json:
        body = report(checkup) | ({} if torch_devices is None else {"torch": torch_devices})
        print_json(body)
    else:
        _print_checkup(checkup, torch_devices)
    if not checkup.runnable:
        raise typer.Exit(NOTHING_RUNS_EXIT_CODE)


def _ask_torch() -> dict[str, Any]:
    """Version and devices of PyTorch; the only function here that imports it."""
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": properties.name,
                "total_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    mps = torch.backends.mps.is_available()
    return {"version": torch.__version__, "cuda": devices, "mps": mps}


def _print_checkup(checkup: Checkup, torch_devices: dict[str, Any] | None) -> None:
    _print_files(checkup)
    _print_presets(checkup)
    print_table("Machine", ("what", "free", "of"), _machine_rows(checkup, torch_devices))
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
            "only the embedded pocket model can run; `ladder models get ltx-2.3` downloads the "
            "real model"
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
            format_bytes(row["bytes"]),
        )
        for row in rows(checkup)
        if checkup.only_pocket or not row["embedded"]
    ]
    columns = ("", "role", "file", "precision", "LTX", "size")
    print_table("Models (* would be used)", columns, cells)
    folders = [(str(f.path), f.category or "", f.source) for f in checkup.folders]
    print_table("Folders searched", ("folder", "category", "named by"), folders)


def _print_presets(checkup: Checkup) -> None:
    cells = [(state.name, _preset_status(state), _details(state)) for state in checkup.presets]
    columns = ("preset", "state", "memory at the peak, or what is missing")
    print_table("Presets", columns, cells)
    missing_files = {
        missing.file: missing.why
        for state in checkup.presets
        for missing in state.missing
        if missing.file is not None
    }
    if missing_files:
        files = [(*_file_cells(file), why) for file, why in missing_files.items()]
        header = ("file", "into models/", "size", "page", "found instead")
        print_table("Missing files", header, files)
    for advice in dict.fromkeys(a for state in checkup.presets for a in state.advice):
        names = ", ".join(s.name for s in checkup.presets if advice in s.advice)
        show_warning(f"{names}: {advice}")


def _file_cells(file: CatalogFile) -> tuple[str, str, str, str]:
    return file.name, f"{file.folder}/", file.size, f"https://{file.page}"


def _preset_status(state: PresetState) -> str:
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
    return f"{format_bytes(peak.peak_bytes)} in {peak.name}; {_largest_offload(state)}"


def _largest_offload(state: PresetState) -> str:
    """Offload plan of the stage that offloads most of the transformer."""
    plans = [s.offload_plan for s in state.stages if s.name not in ("prompt", "decode")]
    return max(plans, key=len, default="resident")


def _machine_rows(
    checkup: Checkup, torch_devices: dict[str, Any] | None
) -> Iterator[tuple[str, str, str]]:
    import psutil

    for gpu in checkup.gpus:
        yield gpu.name, format_bytes(gpu.free_bytes), format_bytes(gpu.total_bytes)
    if not checkup.gpus:
        yield "GPU: unknown (nvidia-smi does not answer; --gpu asks PyTorch)", "", ""
    if torch_devices is not None:
        torch = f"torch {torch_devices['version']}"
        for gpu in torch_devices["cuda"]:
            yield f"{torch}: {gpu['name']}", "", format_bytes(gpu["total_bytes"])
        if not torch_devices["cuda"]:
            yield f"{torch}: {'mps' if torch_devices['mps'] else 'CPU only'}", "", ""
    memory = psutil.virtual_memory()
    yield "RAM", format_bytes(memory.available), format_bytes(memory.total)
    for name, (folder, free) in checkup.disks.items():
        yield f"disk of {name} ({folder})", format_bytes(free), ""
