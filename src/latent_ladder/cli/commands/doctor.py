"""``ladder doctor``: model files found, files that presets need, memory of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import MEMORY_RULES
from latent_ladder.cli.commands.flags import MemoryFlags
from latent_ladder.cli.commands.options import Folders, Json, StoreFolder, memory_option
from latent_ladder.cli.console import (
    format_bytes,
    print_json,
    print_table,
    print_text,
    show_error,
    show_loading,
    show_warning,
)

if TYPE_CHECKING:
    from latent_ladder.checkpoints.catalog import CatalogFile
    from latent_ladder.diagnostics.doctor import Checkup
    from latent_ladder.diagnostics.preset_readiness import PresetState

AskTorch = Annotated[
    bool, memory_option("--gpu", help="Also ask PyTorch for the GPU, which takes some seconds.")
]

FILE_COLUMNS = ("file", "into models/", "size", "page")
NONE_FOUND = "none found"
"""Reason of a missing file for which nothing else was found."""

NOTHING_RUNS_EXIT_CODE = 3
"""Exit code when no set of models is complete, that of :class:`CheckpointError`."""


def register(app: typer.Typer) -> None:
    """Add ``doctor``."""
    app.command("doctor", cls=GroupedCommand)(expand_flags(doctor, (), MEMORY_RULES))


def doctor(
    memory: MemoryFlags,
    folders: Folders = None,
    store: StoreFolder = None,
    gpu: AskTorch = False,
    as_json: Json = False,
) -> None:
    """Check model files, presets and this machine.

    Lists the files found, what each preset still needs, and the memory it
    would use. Begins with what runs now and which files to get. Exit code 3
    if nothing can run: no complete set of models, or only the embedded
    pocket model although --models names a folder; 8 if the store cannot be
    written.
    """
    show_loading("reading the headers of the model files", as_json)
    from latent_ladder.diagnostics.doctor import examine, report

    checkup = examine(folders or (), store, memory.to_options(), memory.device)
    torch_devices = _ask_torch() if gpu else None
    if as_json:
        body = report(checkup) | ({} if torch_devices is None else {"torch": torch_devices})
        print_json(body)
    else:
        _print_checkup(checkup, torch_devices)
    if checkup.store_error is not None:
        raise typer.Exit(checkup.store_error.exit_code)
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
    found: dict[str, Any] = {"version": torch.__version__, "cuda": devices, "mps": mps}
    return found | ({"attention": _measure_attention()} if devices else {})


def _measure_attention() -> dict[str, Any]:
    """Attention backends on the first GPU at the size of stage 1, and the one `--fast` chooses."""
    import torch

    from latent_ladder.models.device import choose_runtime
    from latent_ladder.models.transformer.attention_backends import fastest, measure_backends

    runtime = choose_runtime("cuda")
    with torch.inference_mode():
        measured = measure_backends(runtime.device, runtime.dtype)
    rows = [{"name": m.name, "seconds": m.seconds, "note": m.note} for m in measured]
    return {"chosen": fastest(measured), "backends": rows}


def _print_attention(attention: dict[str, Any]) -> None:
    rows = [
        (
            row["name"],
            "" if row["seconds"] is None else f"{row['seconds'] * 1e3:.2f} ms",
            "fastest exact one: --fast attention" if row["name"] == attention["chosen"]
            else row["note"],
        )
        for row in attention["backends"]
    ]  # fmt: skip
    print_table("Attention, 8,160 tokens", ("name", "time", "note"), rows)


def _print_checkup(checkup: Checkup, torch_devices: dict[str, Any] | None) -> None:
    print_text(_what_runs(checkup))
    _print_to_get(checkup)
    _print_files(checkup)
    _print_presets(checkup)
    rows = _machine_rows(checkup, torch_devices)
    print_table("Machine", ("what", "free", "of", "folder"), rows, whole=("folder",))
    if torch_devices is not None and "attention" in torch_devices:
        _print_attention(torch_devices["attention"])
    for wrong in checkup.misplaced:
        show_warning(wrong.message)
    for note in dict.fromkeys((*checkup.choice.notes, *_assumptions(checkup))):
        show_warning(note)
    for path, why in checkup.library.unreadable:
        show_warning(f"{path}: {why}")
    for error in (checkup.error, checkup.store_error):
        if error is not None:
            show_error(error)


def _what_runs(checkup: Checkup) -> str:
    """The first paragraph: the presets that can run now, with which model."""
    names = ", ".join(state.name for state in checkup.ready)
    if checkup.store_error is not None:
        return f"Nothing runs now: {checkup.store_error.message}."
    if checkup.error is not None or not names:
        why = "no set of model files is complete" if checkup.error else "nothing fits into memory"
        return f"Nothing runs now: {why}."
    if checkup.only_pocket:
        return f"Runs now: {names}, the tiny model inside this package (coloured shapes only)."
    transformer = checkup.choice.transformer
    with_file = "" if transformer is None else f", with {transformer.path.name}"
    return f"Runs now: {names}{with_file}."


def _print_to_get(checkup: Checkup) -> None:
    """The files that the first preset of the real model still needs, and their sum."""
    state = checkup.wanted
    files = [missing.file for missing in state.missing if missing.file is not None]
    if not files:
        return
    total = readable_total(files)
    print_table(
        f"To get for LTX-{checkup.family} with preset {state.name}: {total} in all",
        FILE_COLUMNS,
        [_file_cells(file) for file in files],
        whole=("file", "page"),
    )
    gated = any(file.gated for file in files)
    print_text(
        f"`ladder models get ltx-{checkup.family}` downloads the model into such folders."
        + (" Accept the licence on its page first." if gated else "")
    )


def _assumptions(checkup: Checkup) -> Iterator[str]:
    """Assumptions about the user's chosen files, which do not say."""
    from latent_ladder.diagnostics.doctor import rows

    for row in rows(checkup):
        if row["chosen"] and row["assumed"] and not row["embedded"]:
            yield row["assumed"]


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
    print_table("Models (* would be used)", columns, cells, whole=("file",))
    folders = [(str(f.path), f.category or "", f.source) for f in checkup.folders]
    print_table("Folders searched", ("folder", "category", "named by"), folders, whole=("folder",))


def _print_presets(checkup: Checkup) -> None:
    cells = [(state.name, _preset_status(state), _details(state)) for state in checkup.presets]
    columns = ("preset", "state", "memory at the peak, or what is missing")
    print_table("Presets", columns, cells)
    _print_other_files(checkup)
    reasons = {
        (missing.file.name, missing.why): None
        for state in checkup.presets
        for missing in state.missing
        if missing.file is not None and missing.why != NONE_FOUND
    }
    for name, why in reasons:
        show_warning(f"{name} is needed: {why}")
    for advice in dict.fromkeys(a for state in checkup.presets for a in state.advice):
        names = ", ".join(s.name for s in checkup.presets if advice in s.advice)
        show_warning(f"{names}: {advice}")


def _print_other_files(checkup: Checkup) -> None:
    """The missing files that only other presets need, with the names of these presets."""
    listed = {missing.file for missing in checkup.wanted.missing}
    presets: dict[CatalogFile, list[str]] = {}
    for state in checkup.presets:
        for file in (missing.file for missing in state.missing):
            if file is not None and file not in listed:
                presets.setdefault(file, []).append(state.name)
    if not presets:
        return
    print_table(
        "Files for other presets",
        (*FILE_COLUMNS, "for"),
        [(*_file_cells(file), ", ".join(dict.fromkeys(names))) for file, names in presets.items()],
        whole=("file", "page"),
        below=("for",),
    )


def _file_cells(file: CatalogFile) -> tuple[str, str, str, str]:
    return file.name, f"{file.folder}/", file.size, f"https://{file.page}"


def readable_total(files: Sequence[CatalogFile]) -> str:
    """The sum of the sizes of files, in GB."""
    return f"{sum(file.bytes for file in files) / 1e9:.3g} GB"


def _preset_status(state: PresetState) -> str:
    if state.missing:
        return "incomplete"
    return "ready" if state.too_big is None else "too big"


def _details(state: PresetState) -> str:
    if state.missing:
        files = [missing.file for missing in state.missing if missing.file is not None]
        unknown = [" + ".join(m.roles).replace("_", " ") for m in state.missing if m.file is None]
        count = f"{len(files)} file{'s' * (len(files) != 1)}, {readable_total(files)}"
        return ", ".join([*([count] if files else []), *unknown])
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
) -> Iterator[tuple[str, str, str, str]]:
    import psutil

    for gpu in checkup.gpus:
        yield gpu.name, format_bytes(gpu.free_bytes), format_bytes(gpu.total_bytes), ""
    if not checkup.gpus:
        yield "GPU unknown (--gpu asks PyTorch)", "", "", ""
    if torch_devices is not None:
        torch = f"torch {torch_devices['version']}"
        for gpu in torch_devices["cuda"]:
            yield f"{torch}: {gpu['name']}", "", format_bytes(gpu["total_bytes"]), ""
        if not torch_devices["cuda"]:
            yield f"{torch}: {'mps' if torch_devices['mps'] else 'CPU only'}", "", "", ""
    memory = psutil.virtual_memory()
    yield "RAM", format_bytes(memory.available), format_bytes(memory.total), ""
    for name, (folder, free) in checkup.disks.items():
        yield f"disk of {name}", format_bytes(free), "", str(folder)
