"""``ladder studio``: the server of the web page, and the page in the browser."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import MEMORY_RULES
from latent_ladder.cli.commands.flags import MemoryFlags, open_store
from latent_ladder.cli.commands.options import (
    Folders,
    StoreFolder,
    input_option,
    other_option,
    output_option,
)
from latent_ladder.cli.commands.serve import (
    Hosts,
    InputFolder,
    Listen,
    Token,
    UserFolder,
    choose_secret,
    import_server,
)
from latent_ladder.cli.console import show_note

DEFAULT_PORT = 8288
MIB = 2**20

MOST_USED = (
    "open_browser", "port", "listen", "token", "folders", "results", "store", "device", "comfyui",
)  # fmt: skip
"""Options that ``studio`` lists first in its help."""

StudioPort = Annotated[
    int | None,
    other_option(
        "--port",
        metavar="NUMBER",
        min=0,
        max=65535,
        help=f"Port; 0 takes a free one. Default: {DEFAULT_PORT}, or a free one if it is used.",
    ),
]
OpenBrowser = Annotated[
    bool, other_option("--open/--no-open", help="Open the page in the browser.")
]
ClipFolder = Annotated[
    Path | None,
    output_option(
        "--output-directory",
        metavar="FOLDER",
        help="Folder for clips. Default: studio/clips in the store.",
    ),
]
WithComfyUi = Annotated[bool, other_option("--comfyui", help="Serve ComfyUI's HTTP API, too.")]
StudioUpload = Annotated[
    float,
    input_option("--max-upload-size", metavar="MIB", min=0.001, help="Largest upload, in MiB."),
]


def register(app: typer.Typer) -> None:
    """Add ``studio``."""
    app.command(cls=GroupedCommand)(expand_flags(studio, MOST_USED, MEMORY_RULES))


def studio(
    memory: MemoryFlags,
    open_browser: OpenBrowser = True,
    port: StudioPort = None,
    listen: Listen = "127.0.0.1",
    token: Token = None,
    folders: Folders = None,
    results: ClipFolder = None,
    inputs: InputFolder = Path("input"),
    user: UserFolder = Path("user"),
    store: StoreFolder = None,
    comfyui: WithComfyUi = False,
    hosts: Hosts = None,
    upload: StudioUpload = 4096.0,
) -> None:
    """Open the web page on which you make clips.

    ladder studio --models ~/ComfyUI/models

    The page shows drafts while they are made, refines, compares and sweeps
    them, and lists everything in the store. The queue survives a restart.
    """
    opened = open_store(store)
    opened.check_writable()
    import_server()
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.server.app import run_server
    from latent_ladder.server.config import Limits, ServerConfig
    from latent_ladder.server.data_folders import DataFolders
    from latent_ladder.server.origin_guard import Access
    from latent_ladder.storage.temporary_files import temporary_folder

    secret = choose_secret(listen, token)
    named = tuple(path.resolve() for path in folders or ())
    root = opened.root.resolve()
    clips = (results or root / "studio" / "clips").resolve()
    own_inputs = inputs if comfyui else root / "studio" / "input"
    with temporary_folder() as fresh:
        config = ServerConfig(
            folders=DataFolders(own_inputs.resolve(), clips, fresh.resolve()),
            store=root,
            state_file=root / "studio" / "queue.sqlite3",
            named_models=named,
            models=model_folders(named),
            memory=memory.to_options(),
            device=memory.device,
            port=_choose_port(listen) if port is None else port,
            access=Access(listen, None, tuple(name.lower() for name in hosts or ()), secret),
            limits=Limits(upload=int(upload * MIB)),
            user=user.resolve(),
            shows_token=not token,
            serves_comfyui=comfyui,
            opens_studio=True,
        )
        run_server(config, show_note, _open_page if open_browser else None)


def _choose_port(listen: str) -> int:
    """The usual port, or 0 (a free one) if another program uses it."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    try:
        with socket.create_server((listen, DEFAULT_PORT), family=family):
            return DEFAULT_PORT
    except OSError:
        return 0


def _open_page(address: str) -> None:
    """Open the page; a machine without a browser is no error."""
    import webbrowser

    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        show_note(f"open {address} in a browser")
