"""``ladder serve``: other programs use the engine over HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from latent_ladder.cli.commands.flags import Folders, MemoryFlags, StoreFolder, flags
from latent_ladder.cli.console import show_note, show_warning
from latent_ladder.errors import RequestError

PORT = 8188
Listen = Annotated[
    str, typer.Option("--listen", help="Address to answer on; 0.0.0.0 for the whole network.")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")]
Comfy = Annotated[
    bool, typer.Option("--comfyui", help="Speak ComfyUI's HTTP API, the only one there is yet.")
]
Input = Annotated[Path, typer.Option("--input-directory", help="Where uploads are kept.")]
Results = Annotated[Path, typer.Option("--output-directory", help="Where results go.")]
Temp = Annotated[
    Path | None, typer.Option("--temp-directory", help="Where previews go (else a fresh folder).")
]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", help="OLD=NEW: a file name in workflows, and yours (repeatable)."),
]
Cors = Annotated[
    str | None,
    typer.Option("--enable-cors-header", help="Origin whose pages may use the server; * for all."),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--allow-host", help="Name of this machine behind a proxy (repeatable)."),
]
Upload = Annotated[float, typer.Option("--max-upload-size", min=0.001, help="Largest upload, MiB.")]
History = Annotated[int, typer.Option("--history", min=1, help="Finished jobs remembered.")]
NoMetadata = Annotated[
    bool, typer.Option("--disable-metadata", help="Keep workflows out of results.")
]

Preview = Annotated[
    str, typer.Option("--preview-method", help="Pictures while sampling: rgb or none.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(flags(serve))


def serve(
    memory: MemoryFlags,
    comfyui: Comfy = False,
    listen: Listen = "127.0.0.1",
    port: Port = PORT,
    folders: Folders = None,
    maps: Maps = None,
    inputs: Input = Path("input"),
    results: Results = Path("output"),
    temp: Temp = None,
    store: StoreFolder = None,
    cors: Cors = None,
    hosts: Hosts = None,
    upload: Upload = 100.0,
    history: History = 10_000,
    no_metadata: NoMetadata = False,
    preview: Preview = "rgb",
) -> None:
    """Answer ComfyUI's HTTP API, so that clients written for it can use the engine."""
    if not comfyui:
        raise RequestError("whose API to speak was not said", "use ladder serve --comfyui")
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.storage.artifact_store import default_root

    try:
        from latent_ladder.server.app import serve as answer
        from latent_ladder.server.config import Limits, Setup
        from latent_ladder.server.data_folders import Places
        from latent_ladder.server.origin_guard import Access, is_loopback
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise RequestError(
            "the server needs aiohttp, which is not installed",
            "pip install 'latent-ladder[serve]'",
        ) from error
    if preview not in ("rgb", "none"):
        raise RequestError(f"preview-method={preview} is unknown", "use rgb or none")
    if not is_loopback(listen):
        show_warning(
            f"--listen {listen}: whoever reaches this machine can run jobs and read results; "
            "there is no password"
        )
    named = tuple(path.resolve() for path in folders or ())
    root = (store or default_root()).resolve()
    with tempfile.TemporaryDirectory(prefix="ladder-") as fresh:
        setup = Setup(
            places=Places(inputs.resolve(), results.resolve(), (temp or Path(fresh)).resolve()),
            store=root,
            state=root / "serve" / f"{port}.sqlite3",
            named=named,
            models=model_folders(named),
            names=_names(maps or ()),
            memory=memory.options(),
            device=memory.device,
            port=port,
            access=Access(listen, cors, tuple(name.lower() for name in hosts or ())),
            limits=Limits(upload=int(upload * 2**20)),
            history=history,
            metadata=not no_metadata,
            previews=preview == "rgb",
        )
        answer(setup, show_note)


def _names(maps: Sequence[str]) -> dict[str, str]:
    """``OLD=NEW`` as a table. Raises :class:`RequestError`."""
    found = {}
    for text in maps:
        old, equals, new = text.partition("=")
        if not (equals and old and new):
            raise RequestError(f"map={text} is not OLD=NEW", "use --map old.safetensors=mine.gguf")
        found[old] = new
    return found
