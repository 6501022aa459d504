"""Routes that ComfyUI's editor asks for, and the files of the editor itself."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.in_process_server import InProcessServer, make_config
from PIL import Image

from latent_ladder.checkpoints.search_paths import model_folders
from latent_ladder.comfyui.conversion import import_workflow
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.errors import RequestError
from latent_ladder.request.presets import preset_names
from latent_ladder.server import editor


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of the editor's package."""
    folder = tmp_path_factory.mktemp("editor") / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>the editor</title>")
    (folder / "assets" / "app-1a2b.js").write_text("start()")
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def server(frontend: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    folder = tmp_path_factory.mktemp("served")
    config = make_config(folder, frontend=frontend, models=model_folders())
    with InProcessServer(config) as running:
        yield running


def test_the_editors_files_are_served(server: InProcessServer) -> None:
    page = server.get("/")
    assert (page.body, page.headers["cache-control"]) == (b"<title>the editor</title>", "no-cache")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    script = server.get("/assets/app-1a2b.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"]


@pytest.mark.parametrize(
    "path", ["/../secret.txt", "/%2e%2e/secret.txt", "/assets/..%2f..%2fsecret.txt", "/assets",
             "/gone.js", "/api/gone", "//etc/passwd", "/%00"],
)  # fmt: skip
def test_nothing_else_is(server: InProcessServer, path: str) -> None:
    answer = server.get(path)
    assert answer.status in (400, 404)
    assert b"secret" not in answer.body.replace(b"secret.txt", b"")


def test_without_editor_there_is_a_page(tmp_path: Path) -> None:
    with InProcessServer(make_config(tmp_path)) as server:
        assert b"latent-ladder" in server.get("/").body
        assert server.get("/index.html").status == 404


def test_lists_for_the_start_of_the_editor(server: InProcessServer) -> None:
    for path in ("/i18n", "/global_subgraphs", "/node_replacements", "/internal/folder_paths"):
        assert server.get(path).json == {}
    for path in ("/extensions", "/api/extensions", "/templates/index.json"):
        assert server.get(path).json == []
    assert server.get("/global_subgraphs/x").status == 404
    folders = server.get("/experiment/models").json
    assert {"name": "loras", "folders": []} in folders
    (lora,) = server.get("/api/experiment/models/loras").json
    assert (lora["name"], lora["pathIndex"]) == ("pocket-distilled-lora.safetensors", 0)
    assert lora["size"] > 1000
    assert server.get("/experiment/models/nowhere").status == 404
    assert server.get("/internal/logs/raw").json["entries"] == []
    subscribed = server.request("PATCH", "/internal/logs/subscribe", b'{"enabled": true}')
    assert subscribed.status == 200


def test_recent_files_are_listed(server: InProcessServer) -> None:
    (server.config.folders.input / "a.png").touch()
    (server.config.folders.input / ".hidden").touch()
    assert server.get("/internal/files/input").json == ["a.png"]
    assert server.get("/internal/files/models").status == 400


def test_presets_are_templates(server: InProcessServer) -> None:
    (names,) = server.get("/workflow_templates").json.values()
    assert sorted(names) == sorted(preset_names())
    assert names[0] == "pocket"
    workflow = server.get("/api/workflow_templates/latent-ladder/pocket.json").json
    imported = import_workflow(workflow_from_document(workflow))
    assert imported.request.preset == "pocket"
    assert "pocket-ltx-2.3.safetensors" in str(workflow)
    published = server.get("/workflow_templates/latent-ladder/distilled.json").json
    assert "pocket" not in str([node["widgets_values"] for node in published["nodes"]])
    picture = server.get("/workflow_templates/latent-ladder/pocket.jpg")
    assert Image.open(io.BytesIO(picture.body)).size == (400, 400)
    for path in ("latent-ladder/gone.json", "other/pocket.json", "latent-ladder/pocket.exe"):
        assert server.get(f"/workflow_templates/{path}").status == 404


def test_a_missing_editor_is_named_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(RequestError) as caught:
        editor.find_editor()
    assert caught.value.hint == "pip install comfyui-frontend-package"
