"""State, presets, fields, plans, models, graphs, the page's files, and the OpenAPI document."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from helpers.comfyui_server import clip_graph, number_graph
from helpers.studio_server import PROMPT, StudioServer

from latent_ladder.server.ladder_api import studio_page
from latent_ladder.server.ladder_api.openapi import build_document
from latent_ladder.server.ladder_api.route_table import ROUTES, definitions
from latent_ladder.server.origin_guard import Access


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StudioServer]:
    """A server that runs nothing, with a config folder of its own."""
    monkeypatch.setenv("LADDER_CONFIG", str(tmp_path / "config" / "config.toml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with StudioServer(tmp_path) as running:
        yield running


def test_the_state_is_answered_before_and_after_the_models_are_read(server: StudioServer) -> None:
    first = server.get("/ladder/state").json
    assert first["default_preset"] is None or first["default_preset"] == "pocket"
    server.get("/ladder/models")
    state = server.get("/ladder/state").json
    assert (state["default_preset"], state["pocket_only"]) == ("pocket", True)
    assert state["device"]["kind"] == "cpu" and state["device"]["memory_bytes"] > 0
    assert state["store"]["path"] == str(server.config.store)


def test_presets_are_listed_with_what_they_need(server: StudioServer) -> None:
    rows = {row["name"]: row for row in server.get("/ladder/presets").json}
    pocket, large = rows["pocket"], rows["distilled"]
    assert pocket["ready"] and pocket["fits"] and pocket["stages"][0] == "base"
    assert (pocket["width"], pocket["frames"]) == (512, 25)
    assert "ball" in pocket["world"]["objects"]
    assert not large["ready"] and large["missing"][0]["bytes"] > 10**9
    assert large["missing"][0]["page"].startswith("https://")


def test_own_presets_are_saved_changed_and_deleted(server: StudioServer) -> None:
    body = {"request": {"preset": "pocket", "width": 256, "height": 256}, "description": "small"}
    data = json.dumps(body).encode()
    saved = server.request("PUT", "/ladder/presets/mine", data)
    assert saved.status == 200, saved.body
    assert saved.json["request"]["width"] == 256 and saved.json["own"] is True
    assert server.request("PUT", "/ladder/presets/mine", data).status == 422
    rows = {row["name"]: row for row in server.get("/ladder/presets").json}
    assert rows["mine"]["own"] and rows["mine"]["description"] == "small"
    assert (
        server.post("/ladder/plan", {"request": {"preset": "mine", "prompt": PROMPT}}).json[
            "request"
        ]["width"]
        == 256
    )
    assert server.request("DELETE", "/ladder/presets/mine").json == {"done": True}
    assert server.get("/ladder/presets/mine").status == 404
    assert server.request("PUT", "/ladder/presets/pocket", data).status == 422
    assert server.get("/ladder/presets/..%2Fx.toml").status == 404


def test_fields_have_ranges_and_texts(server: StudioServer) -> None:
    rows = {row["path"]: row for row in server.get("/ladder/fields").json}
    assert rows["refine.denoise"]["description"]
    assert rows["audio"]["choices"] == ["refine", "keep", "none"]
    assert rows["seed"]["default"] == 10
    assert all(row["description"] for path, row in rows.items() if "." not in path)


def test_a_plan_says_stages_models_and_warnings(server: StudioServer) -> None:
    plan = server.post("/ladder/plan", {"request": {"prompt": "a zebra with a red ball"}}).json
    assert [stage["kind"] for stage in plan["stages"]][-1] == "decode"
    assert plan["peak_bytes"] > 0 and plan["budget_bytes"] > plan["peak_bytes"]
    assert any(w["code"] == "unknown_words" for w in plan["warnings"])
    assert {model["role"] for model in plan["models"]} >= {"transformer", "text_encoder"}
    drafts = {"kind": "drafts", "request": {"prompt": PROMPT}, "count": 3}
    plan = server.post("/ladder/plan", drafts).json
    assert plan["stages"][-1]["kind"] == "base" and len(plan["clips"]) == 3


def test_a_plan_lists_all_problems_by_field(server: StudioServer) -> None:
    request = {"prompt": PROMPT, "frames": 100, "width": 33}
    answer = server.post("/ladder/plan", {"request": request})
    assert answer.status == 422
    problems = {problem["field"]: problem["hint"] for problem in answer.json["error"]["problems"]}
    assert set(problems) == {"frames", "width"} and "97" in problems["frames"]


def test_models_have_a_catalogue_and_fits(server: StudioServer) -> None:
    body = server.get("/ladder/models?fresh=1").json
    assert any(file["embedded"] and file["chosen"] for file in body["files"])
    fits = {fit["preset"]: fit for fit in body["fits"]}
    assert fits["pocket"]["fits"] and fits["pocket"]["peak_bytes"] < 10**9
    entry = body["catalog"][0]
    body = {"kind": "download", "entries": [entry["id"]]}
    job = server.job(server.post("/ladder/jobs", body))
    assert job["title"] == entry["title"]


def test_a_graph_becomes_a_form(server: StudioServer) -> None:
    report = server.post("/ladder/graphs/inspect", {"graph": clip_graph()}).json
    inputs = {f"{row['node']}.{row['name']}": row for row in report["inputs"]}
    assert inputs["6.seed"]["type"] == "int" and inputs["6.seed"]["min"] == 0
    assert (
        inputs["6.sampler_name"]["type"] == "choice"
        and "euler" in inputs["6.sampler_name"]["choices"]
    )
    assert inputs["3.text"]["value"] == "a red ball rolls to the right"
    assert inputs["1.ckpt_name"]["type"] == "file"
    assert report["can_run"] and report["outputs"][0]["frames"] == 9
    mystery = {"class_type": "Mystery", "inputs": {"x": ["1", 0]}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    odd = number_graph() | {"3": mystery, "4": shown}
    report = server.post("/ladder/graphs/inspect", {"graph": odd}).json
    assert [node["type"] for node in report["unsupported"]] == ["Mystery"]
    assert server.post("/ladder/graphs/inspect", {"graph": {"x": 1}}).status == 422


def test_saved_workflows_are_listed(server: StudioServer) -> None:
    data = json.dumps(number_graph()).encode()
    server.post("/userdata/workflows%2Fa%20b.json", data)
    rows = server.get("/ladder/graphs").json
    assert [row["name"] for row in rows] == ["a b.json"]
    assert server.get(rows[0]["url"]).body == data


# --- the page's files -----------------------------------------------------------------------------


def test_the_page_is_served_with_a_policy_and_a_tag(server: StudioServer) -> None:
    page = server.get("/studio/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    again = server.request("GET", "/studio/", None, {"If-None-Match": page.headers["etag"]})
    assert again.status == 304
    assert server.get("/studio").headers["location"] == "/studio/"
    assert server.get("/").headers["location"] == "/studio/"


def test_no_other_file_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "a.js").write_text("1")
    (folder / "secret.py").write_text("1")
    (tmp_path / "out.js").write_text("1")
    (folder / "link.js").symlink_to(tmp_path / "out.js")
    assert studio_page.find_file(folder, "app/a.js") == folder / "app" / "a.js"
    for name in ("../out.js", "app/../../out.js", "secret.py", "link.js", "app", "/etc/passwd",
                 "app\\a.js", "C:/x.js", "a\0.js", "app/b.js"):  # fmt: skip
        assert studio_page.find_file(folder, name) is None, name


# --- documents ------------------------------------------------------------------------------------


def test_the_openapi_document_has_every_route_and_no_other(server: StudioServer) -> None:
    document = server.get("/ladder/openapi.json").json
    assert document["openapi"].startswith("3.1")
    documented = {
        (method.upper(), path) for path, rows in document["paths"].items() for method in rows
    }
    app = web.Application()
    app.add_routes(definitions())
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method not in ("HEAD", "*") and route.resource is not None
    }
    assert documented == served
    assert len({row["operationId"] for rows in document["paths"].values() for row in rows.values()}
               ) == len(documented)  # fmt: skip
    text = json.dumps(document)
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in document["components"]["schemas"], name


def test_every_route_has_a_summary_and_parameters() -> None:
    document = build_document(ROUTES)
    for path, rows in document["paths"].items():
        for row in rows.values():
            assert row["summary"].endswith(".") or row["summary"].endswith(":"), path
            named = {p["name"] for p in row.get("parameters", ()) if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_comfyui_is_served_only_where_it_is_asked_for(tmp_path: Path) -> None:
    with StudioServer(tmp_path, serves_comfyui=False) as server:
        assert server.get("/prompt").status == 404
        assert server.get("/api/object_info").status == 404
        assert server.get("/ladder/state").json["comfyui"] is False
        (server.config.folders.output / "x.png").write_bytes(b"x")
        assert server.get("/view?filename=x.png").body == b"x"


def test_a_token_is_needed_where_one_is_set(tmp_path: Path) -> None:
    access = Access(token="a-long-secret-token")
    with StudioServer(tmp_path, access=access) as server:
        assert server.get("/ladder/state").status == 401
        assert server.post("/ladder/queue/pause").status == 401
        good = server.get("/ladder/state", Authorization="Bearer a-long-secret-token")
        assert good.status == 200
        assert server.gate is not None
        cookie = server.get(server.gate.link).headers["set-cookie"].partition(";")[0]
        assert server.get("/ladder/state", Cookie=cookie).status == 200


def test_the_process_that_answers_does_not_import_torch() -> None:
    code = (
        "import sys; import latent_ladder.server.app; import latent_ladder.jobs.planning; "
        "import latent_ladder.jobs.run_job; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
