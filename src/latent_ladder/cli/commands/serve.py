"""``ladder serve``: an HTTP server with ComfyUI's API in front of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import MEMORY_RULES
from latent_ladder.cli.commands.flags import MemoryFlags
from latent_ladder.cli.commands.options import (
    Folders,
    StoreFolder,
    input_option,
    model_option,
    other_option,
    output_option,
)
from latent_ladder.cli.commands.workflow_run import ComfyUiVersion
from latent_ladder.cli.console import show_note, show_warning
from latent_ladder.errors import RequestError

DEFAULT_PORT = 8188
PREVIEW_METHODS = ("rgb", "none")

MOST_USED = (
    "comfyui", "frontend", "listen", "port", "token", "folders", "inputs", "results", "user",
    "maps", "hosts", "cors", "device",
)  # fmt: skip
"""Options that ``serve`` lists first in its help."""

ComfyUi = Annotated[
    bool,
    other_option("--comfyui", help="Serve ComfyUI's HTTP API. Required."),
]
Frontend = Annotated[
    bool,
    other_option(
        "--frontend",
        help="Serve ComfyUI's editor, too: pip install comfyui-frontend-package.",
    ),
]
Token = Annotated[
    str | None,
    other_option(
        "--token",
        metavar="TEXT",
        envvar="LADDER_TOKEN",
        help="Secret that every request must have. Other users of this machine can see it in the "
        "list of processes: better set LADDER_TOKEN. Default: none on this machine, a random one, "
        "which is printed, with --listen.",
    ),
]
UserFolder = Annotated[
    Path,
    input_option(
        "--user-directory", metavar="FOLDER", help="Folder for the editor's settings and workflows."
    ),
]
Listen = Annotated[
    str,
    other_option(
        "--listen", metavar="ADDRESS", help="Address to serve; 0.0.0.0 for the whole network."
    ),
]
Port = Annotated[
    int,
    other_option("--port", metavar="NUMBER", min=0, max=65535, help="Port; 0 takes a free one."),
]
InputFolder = Annotated[
    Path, input_option("--input-directory", metavar="FOLDER", help="Folder for uploaded files.")
]
ResultFolder = Annotated[
    Path, output_option("--output-directory", metavar="FOLDER", help="Folder for results.")
]
TempFolder = Annotated[
    Path | None,
    output_option(
        "--temp-directory",
        metavar="FOLDER",
        help="Folder for previews. Default: a temporary folder, deleted at the end.",
    ),
]
Maps = Annotated[
    list[str] | None,
    model_option(
        "--map",
        metavar="OLD=NEW",
        help="Use the model file NEW where a workflow names OLD. Repeatable.",
    ),
]
Cors = Annotated[
    str | None,
    other_option(
        "--enable-cors-header",
        metavar="ORIGIN",
        help="Web site whose pages may use the server, such as http://editor.example; * for all. "
        "Default: none.",
    ),
]
Hosts = Annotated[
    list[str] | None,
    other_option("--allow-host", metavar="NAME", help="Another name of this machine. Repeatable."),
]
MaxUpload = Annotated[
    float,
    input_option("--max-upload-size", metavar="MIB", min=0.001, help="Largest upload, in MiB."),
]
History = Annotated[
    int,
    other_option("--history", metavar="NUMBER", min=1, help="Finished jobs to remember."),
]
NoMetadata = Annotated[
    bool, output_option("--disable-metadata", help="Do not store workflows in result files.")
]
PreviewMethod = Annotated[
    str,
    output_option(
        "--preview-method",
        metavar="MODE",
        autocompletion=completion.offer(PREVIEW_METHODS),
        help="Preview pictures while sampling: rgb or none.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``serve``."""
    app.command(cls=GroupedCommand)(expand_flags(serve, MOST_USED, MEMORY_RULES))


def serve(
    memory: MemoryFlags,
    comfyui: ComfyUi = False,
    frontend: Frontend = False,
    token: Token = None,
    listen: Listen = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    folders: Folders = None,
    maps: Maps = None,
    inputs: InputFolder = Path("input"),
    results: ResultFolder = Path("output"),
    temp: TempFolder = None,
    user: UserFolder = Path("user"),
    store: StoreFolder = None,
    cors: Cors = None,
    hosts: Hosts = None,
    upload: MaxUpload = 100.0,
    history: History = 10_000,
    no_metadata: NoMetadata = False,
    preview: PreviewMethod = "rgb",
    version: ComfyUiVersion = None,
) -> None:
    """Run an HTTP server for programs that use ComfyUI.

    ladder serve --comfyui --models ~/ComfyUI/models
    """
    if not comfyui:
        raise RequestError("no API was chosen", "use `ladder serve --comfyui`")
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.comfyui.analysis.required_files import parse_file_name_map
    from latent_ladder.comfyui.versions import parse_comfyui_version
    from latent_ladder.storage.artifact_store import default_root
    from latent_ladder.storage.temporary_files import temporary_folder

    import_server()
    from latent_ladder.server.app import run_server
    from latent_ladder.server.config import Limits, ServerConfig
    from latent_ladder.server.data_folders import DataFolders
    from latent_ladder.server.editor import find_editor
    from latent_ladder.server.origin_guard import Access

    if preview not in PREVIEW_METHODS:
        raise RequestError(f"preview-method={preview} is unknown", "use rgb or none")
    editor = find_editor() if frontend else None
    secret = choose_secret(listen, token)
    named = tuple(path.resolve() for path in folders or ())
    root = (store or default_root()).resolve()
    with temporary_folder() as fresh:
        config = ServerConfig(
            folders=DataFolders(inputs.resolve(), results.resolve(), (temp or fresh).resolve()),
            store=root,
            state_file=root / "serve" / f"{port}.sqlite3",
            named_models=named,
            models=model_folders(named),
            file_names=parse_file_name_map(maps or ()),
            memory=memory.to_options(),
            device=memory.device,
            port=port,
            access=Access(listen, cors, tuple(name.lower() for name in hosts or ()), secret),
            limits=Limits(upload=int(upload * 2**20)),
            history=history,
            metadata=not no_metadata,
            previews=preview == "rgb",
            convention=parse_comfyui_version(version or "current"),
            user=user.resolve(),
            frontend=editor,
            shows_token=not token,
        )
        run_server(config, show_note)


def choose_secret(listen: str, token: str | None) -> str:
    """The token of a server: the user's, a new one off loopback with a warning, else none.

    Raises :class:`RequestError` for a weak one.
    """
    from latent_ladder.server.access_token import check_token, new_token
    from latent_ladder.server.origin_guard import is_loopback

    is_public = not is_loopback(listen)
    if is_public:
        show_warning(
            f"--listen {listen}: the address is open to the network, and without encryption; "
            "everyone who has the token can run jobs and read results"
        )
    return check_token(token) if token else new_token() if is_public else ""


def import_server() -> None:
    """Import what the server needs. Raises :class:`RequestError` if it is not installed."""
    try:
        import aiohttp  # noqa: F401
        import blake3  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("aiohttp", "blake3"):
            raise
        raise RequestError(
            f"the server needs {error.name}, which is not installed",
            "pip install 'latent-ladder[serve]'",
        ) from error
