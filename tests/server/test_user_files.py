"""Settings and workflows of the editor's user, as ComfyUI's editor reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers.in_process_server import Answer, InProcessServer, make_config


@pytest.fixture
def server(tmp_path: Path) -> Iterator[InProcessServer]:
    with InProcessServer(make_config(tmp_path)) as running:
        yield running


def path_of(name: str, **query: str) -> str:
    options = "&".join(f"{key}={value}" for key, value in query.items())
    return f"/api/userdata/{quote(name, safe='')}?{options}"


def store(server: InProcessServer, name: str, data: bytes = b"{}", **query: str) -> Answer:
    return server.post(path_of(name, **query), data)


def names(server: InProcessServer, query: str) -> list[str]:
    listed: list[str] = server.get(f"/userdata?{query}").json
    return listed


def test_workflows_are_saved_listed_read_moved_and_deleted(server: InProcessServer) -> None:
    assert server.get("/userdata?dir=workflows").status == 404
    saved = store(server, "workflows/clips/ball.json", b'{"nodes": []}', full_info="true")
    assert saved.json["path"] == "workflows/clips/ball.json"
    assert saved.json["size"] == 13
    assert saved.json["modified"] > 1.7e12
    assert store(server, "workflows/a ü.json").json == "workflows/a ü.json"
    assert server.get(path_of("workflows/clips/ball.json")).body == b'{"nodes": []}'
    assert names(server, "dir=workflows") == ["a ü.json"]
    assert names(server, "dir=workflows&recurse=true") == ["a ü.json", "clips/ball.json"]
    split = server.get("/userdata?dir=workflows&recurse=true&split=true").json
    assert split[1] == ["clips/ball.json", "clips", "ball.json"]
    (_, full) = server.get("/userdata?dir=workflows&recurse=true&full_info=true").json
    assert (full["path"], full["size"]) == ("clips/ball.json", 13)
    source, target = (quote(f"workflows/{n}", safe="") for n in ("clips/ball.json", "new/b.json"))
    moved = server.post(f"/userdata/{source}/move/{target}?overwrite=false&full_info=true")
    assert (moved.status, moved.json["path"]) == (200, "workflows/new/b.json")
    assert server.get(path_of("workflows/clips/ball.json")).status == 404
    assert server.request("DELETE", path_of("workflows/new/b.json")).status == 204
    assert server.request("DELETE", path_of("workflows/new/b.json")).status == 404
    assert not list((server.config.user / "default").rglob(".part-*"))


def test_nothing_is_overwritten_unasked(server: InProcessServer) -> None:
    store(server, "workflows/a.json", b"1")
    store(server, "workflows/b.json", b"2")
    assert store(server, "workflows/a.json", b"3", overwrite="false").status == 409
    move = "/userdata/workflows%2Fa.json/move/workflows%2Fb.json"
    assert server.post(f"{move}?overwrite=false").status == 409
    assert server.get(path_of("workflows/b.json")).body == b"2"
    assert server.post(f"{move}?overwrite=true").status == 200
    assert server.get(path_of("workflows/b.json")).body == b"1"


def test_folders_are_listed_with_their_entries(server: InProcessServer) -> None:
    store(server, "workflows/clips/ball.json")
    store(server, "workflows/.index.json")
    (folder,) = server.get("/v2/userdata?path=workflows").json
    assert (folder["name"], folder["type"]) == ("clips", "directory")
    (file,) = server.get("/v2/userdata?path=workflows/clips").json
    assert (file["path"], file["type"]) == ("workflows/clips/ball.json", "file")
    assert names(server, "dir=workflows&recurse=true") == ["clips/ball.json"]


@pytest.mark.parametrize(
    "name",
    ["../x.json", "a/../../x", "/etc/x", "a\\..\\b", "con.json", "a/", "", ".", "x" * 201, "a\0b",
     "/".join("abcdefghijklmnopq"), "workflows"],
)  # fmt: skip
def test_no_file_is_written_outside_or_under_a_bad_name(server: InProcessServer, name: str) -> None:
    store(server, "workflows/a.json", b"1")
    before = sorted(path for path in server.config.user.parent.rglob("*"))
    assert store(server, name).status in (400, 404, 405)
    move = f"/userdata/workflows%2Fa.json/move/{quote(name, safe='')}"
    assert server.post(move).status in (400, 404, 405)
    assert sorted(path for path in server.config.user.parent.rglob("*")) == before


def test_links_do_not_lead_out(server: InProcessServer, tmp_path: Path) -> None:
    root = server.config.user / "default"
    (root / "workflows").mkdir(parents=True)
    (tmp_path / "secret.json").write_text("secret")
    (root / "workflows" / "link").symlink_to(tmp_path)
    for method in ("GET", "DELETE"):
        answer = server.request(method, path_of("workflows/link/secret.json"))
        assert answer.status == 400
    assert store(server, "workflows/link/new.json").status == 400
    assert names(server, "dir=workflows&recurse=true") == []
    assert (tmp_path / "secret.json").read_text() == "secret"


def test_settings_are_merged_and_survive(server: InProcessServer) -> None:
    assert server.get("/settings").json == {}
    assert server.get("/settings/Comfy.ColorPalette").json is None
    assert server.post("/settings/Comfy.ColorPalette", "light").status == 200
    assert server.post("/settings", {"a": 1, "b": [True]}).status == 200
    assert server.get("/api/settings/Comfy.ColorPalette").json == "light"
    assert server.get("/settings").json == {"Comfy.ColorPalette": "light", "a": 1, "b": [True]}
    file = server.config.user / "default" / "comfy.settings.json"
    assert json.loads(file.read_text()) == server.get("/settings").json


def test_damaged_settings_are_kept_aside(server: InProcessServer) -> None:
    folder = server.config.user / "default"
    folder.mkdir(parents=True)
    (folder / "comfy.settings.json").write_text('{"mine": ')
    assert server.get("/settings").json == {}
    server.post("/settings/a", 1)
    (damaged,) = folder.glob("*.damaged-*")
    assert damaged.read_text() == '{"mine": '
    assert server.get("/settings").json == {"a": 1}


def test_a_style_sheet_is_served_as_one(server: InProcessServer) -> None:
    empty = server.get("/user.css")
    assert (empty.status, empty.body) == (200, b"")
    store(server, "user.css", b"body { color: red }")
    for path in ("/user.css", "/api/userdata/user.css"):
        answer = server.get(path)
        assert answer.headers["content-type"].startswith("text/css")
        assert answer.body == b"body { color: red }"
