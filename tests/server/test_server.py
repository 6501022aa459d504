"""``ladder serve --comfyui`` with real clients: a process, HTTP and a web socket."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import aiohttp
import psutil
import pytest
from helpers.comfyui_server import ENDLESS, ComfyUiServer, clip_graph, number_graph, picture_graph
from helpers.waiting import wait_until, wait_until_dead
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from latent_ladder.cli.app import app
from latent_ladder.errors import LadderError
from latent_ladder.media.video_reader import probe
from latent_ladder.server.route_table import ROUTES

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
Messages = list[Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUiServer]:
    with ComfyUiServer(tmp_path_factory.mktemp("served"), "--max-upload-size", "1") as running:
        yield running


def submit(server: ComfyUiServer, graph: dict[str, Any], **more: Any) -> str:
    status, answer = server.post("/prompt", {"prompt": graph, **more})
    assert status == 200, answer
    assert answer["node_errors"] == {}
    return str(answer["prompt_id"])


def wait_for_entry(server: ComfyUiServer, job: str) -> dict[str, Any]:
    """Wait for a job to finish; its history entry."""
    entry: dict[str, Any] = server.wait_for_history(job)[job]
    return entry


def run_and_collect(
    server: ComfyUiServer,
    graph: dict[str, Any],
    flags: dict[str, Any] | None = None,
    at: Callable[[dict[str, Any]], None] | None = None,
) -> Messages:
    """Submit a graph and collect all messages of a web socket until the job has ended."""
    client = uuid4().hex

    async def talk() -> Messages:
        messages: Messages = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId={client}") as ws,
        ):
            if flags is not None:
                await ws.send_json({"type": "feature_flags", "data": flags})
            asked = await session.post(
                f"{server.url}/api/prompt", json={"prompt": graph, "client_id": client}
            )
            assert asked.status == 200, await asked.text()
            job = (await asked.json())["prompt_id"]
            async for message in ws:
                if message.type is aiohttp.WSMsgType.BINARY:
                    messages.append(message.data)
                    continue
                body = json.loads(message.data)
                messages.append(body)
                if at is not None:
                    await asyncio.to_thread(at, body)
                data = body["data"]
                if body["type"] == "executing" and data["node"] is None:
                    assert data["prompt_id"] == job
                    return messages
        raise AssertionError("the socket closed before the job ended")

    return asyncio.run(asyncio.wait_for(talk(), 180))


def message_types(messages: Messages) -> list[str]:
    return [message["type"] for message in messages if isinstance(message, dict)]


def messages_of_type(messages: Messages, kind: str) -> list[dict[str, Any]]:
    return [m["data"] for m in messages if isinstance(m, dict) and m["type"] == kind]


# --- a job from start to end ----------------------------------------------------------------------


def test_a_clip_is_made_reported_and_downloaded(server: ComfyUiServer) -> None:
    graph = clip_graph(steps=3)
    messages = run_and_collect(server, graph, {"supports_preview_metadata": True})
    order = [kind for kind in message_types(messages) if kind not in ("status", "progress_state")]
    assert order[0] == "feature_flags"
    assert order[1:3] == ["execution_start", "execution_cached"]
    assert order[-2:] == ["execution_success", "executing"]
    sampled = [p for p in messages_of_type(messages, "progress") if p["node"] == "6"]
    assert [p["value"] for p in sampled][-1] == sampled[-1]["max"] == 3
    states = messages_of_type(messages, "progress_state")[-1]["nodes"]
    assert states["6"]["state"] == "finished"
    (executed,) = messages_of_type(messages, "executed")
    (file,) = executed["output"]["images"]
    assert executed["node"] == "9"
    assert executed["output"]["animated"] == [True]
    assert (file["filename"], file["subfolder"], file["type"]) == (
        "ball_00001_.mp4", "video", "output",
    )  # fmt: skip
    status, clip = server.get("/view?" + urlencode(file))
    assert status == 200
    path = server.folder / "output" / "video" / "ball_00001_.mp4"
    assert clip == path.read_bytes()
    assert probe(path).frames == 9
    entry = wait_for_entry(server, executed["prompt_id"])
    assert entry["outputs"]["9"] == executed["output"]
    assert entry["prompt"][2] == graph
    assert entry["status"]["status_str"] == "success"


def test_the_example_of_the_documentation_works(
    server: ComfyUiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), re.M | re.S)
    assert "http://127.0.0.1:8188" in example
    (tmp_path / "graph_api.json").write_text(json.dumps(picture_graph("example")))
    monkeypatch.chdir(tmp_path)
    exec(example.replace("http://127.0.0.1:8188", server.url), {})
    with Image.open(tmp_path / "example_00001_.png") as picture:
        assert picture.size == (64, 32)


def test_every_route_is_documented() -> None:
    page = DOCS.read_text("utf-8")
    for route in ROUTES:
        assert f"/{route.path.split('/')[1]}" in page, route.path


def test_stored_results_are_reported_as_cached(server: ComfyUiServer) -> None:
    run_and_collect(server, clip_graph(steps=3))
    messages = run_and_collect(server, clip_graph(steps=3))
    assert "6" in messages_of_type(messages, "execution_cached")[0]["nodes"]
    assert not [p for p in messages_of_type(messages, "progress") if p["node"] == "6"]
    assert wait_for_entry(server, messages_of_type(messages, "execution_start")[0]["prompt_id"])[
        "outputs"
    ]["9"]


def test_a_video_is_served_in_ranges(server: ComfyUiServer) -> None:
    run_and_collect(server, clip_graph(steps=3))
    path = "/view?filename=ball_00001_.mp4&subfolder=video"
    status, whole = server.get(path)
    status, part = server.get(path, {"Range": "bytes=4-11"})
    assert (status, part) == (206, whole[4:12])
    assert part.startswith(b"ftyp")


def test_previews_have_both_formats(server: ComfyUiServer) -> None:
    """Event 1 is a number and a picture; event 4 has metadata before the picture."""
    plain = [m for m in run_and_collect(server, clip_graph(40, seed=1)) if isinstance(m, bytes)]
    assert plain
    event, kind = struct.unpack(">II", plain[0][:8])
    assert (event, kind in (1, 2)) == (1, True)
    assert Image.open(io.BytesIO(plain[0][8:])).width > 0
    messages = run_and_collect(server, clip_graph(40, seed=2), {"supports_preview_metadata": True})
    rich = next(m for m in messages if isinstance(m, bytes))
    event, length = struct.unpack(">II", rich[:8])
    about = json.loads(rich[8 : 8 + length])
    assert event == 4
    assert about["node_id"] == "6"
    assert Image.open(io.BytesIO(rich[8 + length :])).width > 0


def test_an_interrupt_stops_after_the_step_and_the_server_continues(server: ComfyUiServer) -> None:
    stopped: list[int] = []

    def stop(message: dict[str, Any]) -> None:
        if message["type"] == "progress" and not stopped:
            stopped.append(server.post("/interrupt", {"prompt_id": "another"})[0])
            stopped.append(server.post("/interrupt")[0])

    messages = run_and_collect(server, clip_graph(ENDLESS, seed=3), at=stop)
    assert stopped == [200, 200]
    (interrupted,) = messages_of_type(messages, "execution_interrupted")
    assert interrupted["node_id"] == "6"
    assert interrupted["node_type"] == "KSampler"
    assert max(p["value"] for p in messages_of_type(messages, "progress")) < ENDLESS
    status = wait_for_entry(server, interrupted["prompt_id"])["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    assert wait_for_entry(server, submit(server, number_graph()))["outputs"]["2"]["text"] == ["5"]


def test_a_failed_job_reports_its_node_and_error(server: ComfyUiServer) -> None:
    graph = clip_graph()
    graph["5"]["inputs"]["width"] = graph["5"]["inputs"]["height"] = 8192
    graph["5"]["inputs"]["length"] = 16001
    messages = run_and_collect(server, graph)
    (failed,) = messages_of_type(messages, "execution_error")
    assert failed["node_id"]
    assert failed["node_type"] == graph[failed["node_id"]]["class_type"]
    assert failed["exception_message"]
    assert failed["traceback"]
    assert wait_for_entry(server, failed["prompt_id"])["status"]["status_str"] == "error"


def test_a_killed_worker_fails_only_its_job(server: ComfyUiServer) -> None:
    def kill(message: dict[str, Any]) -> None:
        if message["type"] == "progress":
            for child in psutil.Process(server.process.pid).children():
                child.kill()

    (failed,) = messages_of_type(
        run_and_collect(server, clip_graph(ENDLESS, seed=4), at=kill), "execution_error"
    )
    assert "SIGKILL" in failed["exception_message"]
    assert failed["node_id"] == "6"
    assert wait_for_entry(server, submit(server, number_graph(6)))["outputs"]["2"]["text"] == ["6"]


def test_a_reconnected_client_gets_the_state_of_its_job(server: ComfyUiServer) -> None:
    async def talk() -> list[Any]:
        address = f"{server.url}/ws?clientId=returning"
        async with aiohttp.ClientSession() as session:
            body = {"prompt": clip_graph(ENDLESS, seed=5), "client_id": "returning"}
            async with session.ws_connect(address) as ws:
                await session.post(f"{server.url}/prompt", json=body)
                while json.loads((await ws.receive()).data)["type"] != "progress":
                    pass
            async with session.ws_connect(address) as ws:
                greeting = [await ws.receive_json() for _ in range(2)]
            await session.post(f"{server.url}/interrupt")
        return greeting

    status, now = asyncio.run(asyncio.wait_for(talk(), 180))
    assert status["data"]["sid"] == "returning"
    assert status["data"]["status"]["exec_info"]["queue_remaining"] == 1
    assert now["type"] == "executing"
    assert now["data"]["node"] == "6"
    wait_until(lambda: not server.get_json("/queue")["queue_running"], "the job does not end")


# --- the queue ------------------------------------------------------------------------------------


def test_the_queue_is_ordered_and_can_be_changed(server: ComfyUiServer) -> None:
    slow = submit(server, clip_graph(ENDLESS, seed=6))
    first, second = (submit(server, number_graph(n)) for n in (1, 2))
    front = submit(server, number_graph(3), front=True)
    placed = submit(server, number_graph(4), number=-1000, prompt_id="mine")
    assert placed == "mine"
    assert server.post("/prompt", {"prompt": number_graph(), "prompt_id": "mine"})[0] == 400
    wait_until(lambda: bool(server.get_json("/queue")["queue_running"]), "no job runs")
    queue = server.get_json("/queue")
    assert queue["queue_running"][0][1] == slow
    assert [item[1] for item in queue["queue_pending"]] == ["mine", front, first, second]
    assert server.get_json("/prompt")["exec_info"]["queue_remaining"] == 5
    server.post("/queue", {"delete": [second, slow]})
    server.post("/queue", {"clear": True})
    queue = server.get_json("/queue")
    assert queue["queue_pending"] == []
    states = {job["id"]: job["status"] for job in server.get_json("/api/jobs?limit=2")["jobs"]}
    assert states[slow] == "in_progress"
    server.post("/interrupt", {"prompt_id": slow})
    assert wait_for_entry(server, slow)["status"]["messages"][-1][0] == "execution_interrupted"
    assert server.get_json(f"/api/jobs/{slow}")["status"] == "cancelled"


def test_the_history_has_pages_and_can_be_deleted(server: ComfyUiServer) -> None:
    jobs = [submit(server, number_graph(n)) for n in (10, 11, 12)]
    for job in jobs:
        wait_for_entry(server, job)
    assert list(server.get_json("/history?max_items=2")) == jobs[1:]
    oldest = list(server.get_json("/history"))[:1]
    assert list(server.get_json("/history?max_items=1&offset=0")) == oldest
    assert server.get("/history?max_items=many")[0] == 400
    server.post("/history", {"delete": [jobs[1]]})
    assert server.get_json(f"/history/{jobs[1]}") == {}
    server.post("/history", {"clear": True})
    assert server.get_json("/history") == {}


def test_the_queue_survives_ctrl_c_and_kill_9(tmp_path: Path) -> None:
    with ComfyUiServer(tmp_path) as running:
        done = submit(running, number_graph(1))
        wait_for_entry(running, done)
        jobs = [submit(running, clip_graph(ENDLESS, seed=7)), submit(running, number_graph(2))]
        wait_until_running(running, jobs)
        assert running.stop(signal.SIGINT) == 0
        assert "2 queued jobs are kept" in "".join(running.stderr_lines)
    with ComfyUiServer(tmp_path) as running:
        assert list(running.get_json("/history")) == [done]
        worker = wait_until_running(running, jobs)
        assert running.stop(signal.SIGKILL) == -9
        wait_until_dead(worker)
    with ComfyUiServer(tmp_path) as running:
        wait_until_running(running, jobs)
        running.post("/interrupt")
        assert wait_for_entry(running, jobs[1])["outputs"]["2"]["text"] == ["2"]
        assert list(running.get_json("/history")) == [done, *jobs]


def wait_until_running(server: ComfyUiServer, jobs: list[str]) -> psutil.Process:
    """Wait until the first of ``jobs`` runs and the others are queued; the worker process."""
    wait_until(lambda: bool(server.get_json("/queue")["queue_running"]), "no job runs")
    queue = server.get_json("/queue")
    assert [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])] == jobs
    return psutil.Process(server.process.pid).children()[0]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "node", "kind"),
    [
        ({"6": {"model": None}}, "6", "required_input_missing"),
        ({"6": {"sampler_name": "eular"}}, "6", "value_not_in_list"),
        ({"1": {"ckpt_name": "gone.safetensors"}}, "1", "value_not_in_list"),
        ({"6": {"steps": 0}}, "6", "value_smaller_than_min"),
        ({"6": {"denoise": 1.5}}, "6", "value_bigger_than_max"),
        ({"6": {"steps": "many"}}, "6", "invalid_input_type"),
        ({"6": {"model": ["1", 2]}}, "6", "return_type_mismatch"),
    ],
)
def test_wrong_inputs_are_reported_in_comfyuis_format(
    server: ComfyUiServer, change: dict[str, dict[str, Any]], node: str, kind: str
) -> None:
    graph = clip_graph()
    for name, inputs in change.items():
        for key, value in inputs.items():
            if value is None:
                del graph[name]["inputs"][key]
            else:
                graph[name]["inputs"][key] = value
    status, answer = server.post("/prompt", {"prompt": graph})
    assert status == 400
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"
    assert set(answer["error"]) == {"type", "message", "details", "extra_info"}
    about = answer["node_errors"][node]
    assert about["class_type"] == graph[node]["class_type"]
    assert about["dependent_outputs"] == ["9"]
    assert kind in [error["type"] for error in about["errors"]]
    assert all(error["extra_info"]["input_name"] for error in about["errors"])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "no_prompt"),
        ({"prompt": "text"}, "no_prompt"),
        ({"prompt": {}}, "prompt_no_outputs"),
        ({"prompt": {"1": number_graph()["1"]}}, "prompt_no_outputs"),
        ({"prompt": number_graph(), "partial_execution_targets": ["1"]}, "prompt_no_outputs"),
        ({"prompt": {"1": {"inputs": {}}}}, "missing_node_type"),
        (
            {"prompt": {"1": {"class_type": "Nowhere", "inputs": {}},
                "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}},
            "missing_node_type",
        ),
        ({"prompt": number_graph(), "number": "first"}, "invalid_prompt"),
        ({"prompt": number_graph(), "extra_data": []}, "invalid_prompt"),
    ],
)  # fmt: skip
def test_invalid_prompts_are_refused(
    server: ComfyUiServer, body: dict[str, Any], kind: str
) -> None:
    status, answer = server.post("/prompt", body)
    assert status == 400
    assert answer["error"]["type"] == kind


def test_cycles_and_broken_links_name_the_node(server: ComfyUiServer) -> None:
    cycle = number_graph(["2", 0])
    status, answer = server.post("/prompt", {"prompt": cycle})
    assert status == 400
    assert "cycle" in json.dumps(answer)
    gone = number_graph()
    gone["2"]["inputs"]["source"] = ["99", 0]
    status, answer = server.post("/prompt", {"prompt": gone})
    assert status == 400
    assert "99" in json.dumps(answer)


def test_valid_outputs_run_although_others_are_invalid(server: ComfyUiServer) -> None:
    graph = number_graph(20) | {
        "3": {"class_type": "EmptyImage", "inputs": {"width": -1, "height": 8}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    status, answer = server.post("/prompt", {"prompt": graph})
    assert status == 200
    assert answer["node_errors"]["3"]["dependent_outputs"] == ["4"]
    entry = wait_for_entry(server, answer["prompt_id"])
    assert list(entry["outputs"]) == ["2"]
    assert entry["prompt"][4] == ["2"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[" * 10**5, b'{"prompt": NaN}', b'{"prompt": 1e999}', b"\xff\xfe"],
)
def test_bodies_that_are_not_a_json_object(server: ComfyUiServer, body: bytes) -> None:
    for path in ("/prompt", "/queue", "/history"):
        status, answer = server.post(path, body)
        assert status == 400
        assert answer["error"]["message"]


def test_bodies_have_a_limit(server: ComfyUiServer) -> None:
    assert server.post("/prompt", b" " * (33 * 2**20))[0] == 413
    assert server.upload("big.png", b"\0" * (2**20 + 1))[0] == 413
    assert not list((server.folder / "input").glob(".part-*"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Origin": "null"},
    ],
)
def test_pages_of_other_sites_are_refused(server: ComfyUiServer, headers: dict[str, str]) -> None:
    assert server.get("/queue", headers)[0] == 403
    assert server.post("/interrupt", None, headers)[0] == 403
    assert server.get("/ws", headers)[0] == 403


# --- files ----------------------------------------------------------------------------------------


def png(colour: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return out.getvalue()


def test_uploads_get_unique_names(server: ComfyUiServer) -> None:
    red, blue = png("red"), png("blue")
    assert server.upload("a.png", red) == (200, {"name": "a.png", "subfolder": "", "type": "input"})
    assert server.upload("a.png", red)[1]["name"] == "a.png"
    assert server.upload("a.png", blue)[1]["name"] == "a (1).png"
    assert server.upload("a.png", blue, overwrite="true")[1]["name"] == "a.png"
    status, answer = server.upload("ü b.png", red, subfolder="deep/er", type="temp")
    assert (status, answer) == (200, {"name": "ü b.png", "subfolder": "deep/er", "type": "temp"})
    assert server.get("/view?" + urlencode({"filename": "ü b.png", **answer}))[1] == red
    assert server.get("/view?filename=a.png&type=input")[1] == blue
    info = server.get_json("/object_info/LoadImage")["LoadImage"]
    assert "a (1).png" in info["input"]["required"]["image"][0]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("../x.png", {}),
        ("a/x.png", {}),
        ("..", {}),
        ("", {}),
        ("x.png", {"subfolder": "../.."}),
        ("x.png", {"subfolder": "a/../../b"}),
        ("x.png", {"type": "models"}),
    ],
)
def test_uploads_do_not_leave_their_folder(
    server: ComfyUiServer, name: str, fields: dict[str, str]
) -> None:
    before = sorted(server.folder.rglob("*"))
    assert server.upload(name, b"x", **fields)[0] == 400
    assert sorted(server.folder.rglob("*")) == before


def test_an_absolute_path_is_stored_below_its_folder(server: ComfyUiServer) -> None:
    answer = server.upload("/rooted.png", b"x", subfolder="/etc")
    assert answer == (200, {"name": "rooted.png", "subfolder": "etc", "type": "input"})
    assert (server.folder / "input" / "etc" / "rooted.png").is_file()


def test_invalid_forms_are_refused(server: ComfyUiServer) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for body, headers in ((b"{}", {}), (b"--x--\r\n", form), (b"nothing", form)):
        assert server.post("/upload/image", body, headers)[0] == 400


def test_a_mask_becomes_the_alpha_channel(server: ComfyUiServer) -> None:
    server.upload("below.png", png("red"))
    mask = png("#00000040", (4, 4), "RGBA")
    reference = json.dumps({"filename": "below.png", "type": "input", "subfolder": ""})
    status, answer = server.upload("m.png", mask, "/upload/mask", original_ref=reference)
    assert status == 200
    body = server.get("/view?" + urlencode({"filename": answer["name"], "type": "input"}))[1]
    assert Image.open(io.BytesIO(body)).getpixel((2, 2)) == (255, 0, 0, 0x40)
    assert server.upload("m.png", mask, "/upload/mask", original_ref="[]")[0] == 400
    alpha = server.get("/view?filename=m.png&type=input&channel=a")[1]
    assert Image.open(io.BytesIO(alpha)).getpixel((0, 0)) == (0, 0, 0, 0x40)
    rgb = server.get("/view?filename=m.png&type=input&channel=rgb")[1]
    assert Image.open(io.BytesIO(rgb)).mode == "RGB"


def test_a_preview_is_converted_and_a_page_is_not_shown(server: ComfyUiServer) -> None:
    wait_for_entry(server, submit(server, picture_graph("seen")))
    _, small = server.get("/view?filename=seen_00001_.png&preview=webp;50")
    assert Image.open(io.BytesIO(small)).format == "WEBP"
    server.upload("page.html", b"<script>alert(1)</script>")

    async def head() -> Mapping[str, str]:
        async with aiohttp.ClientSession() as session:
            answer = await session.head(f"{server.url}/view?filename=page.html&type=input")
            return answer.headers

    headers = asyncio.run(head())
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"


PATHS = st.lists(
    st.sampled_from(
        ["..", "%2e%2e", "/", "\\", "%2f", "%5c", "a", "link", "secret", "\0", ".", "", "loras"]
    ),
    max_size=6,
).map("/".join)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=PATHS, folder=PATHS, encode=st.booleans())
def test_no_address_leaves_the_folders(
    server: ComfyUiServer, name: str, folder: str, encode: bool
) -> None:
    secret = server.folder / "secret"
    secret.write_text("secret")
    link = server.folder / "output" / "link"
    if not link.is_symlink():
        link.symlink_to(server.folder)
    twice = quote if encode else str
    for kind in ("output", "input", "temp"):
        query = urlencode({"filename": twice(name), "subfolder": twice(folder), "type": kind})
        status, body = server.get(f"/view?{query}")
        assert status in (400, 404), (query, body)
    assert server.get("/view_metadata/" + quote(folder, safe="") + f"?filename={quote(name)}")[
        0
    ] in (400, 404)


# --- what there is --------------------------------------------------------------------------------


def test_object_info_has_comfyuis_format(server: ComfyUiServer) -> None:
    info = server.get_json("/object_info")
    sampler = info["KSampler"]
    assert sampler["input"]["required"]["steps"] == [
        "INT", {"default": 20, "min": 1, "max": 10000, "step": 1},
    ]  # fmt: skip
    assert sampler["input"]["required"]["seed"][1]["control_after_generate"] is True
    assert "euler" in sampler["input"]["required"]["sampler_name"][0]
    assert sampler["input_order"]["required"][0] == "model"
    assert (sampler["output"], sampler["output_node"]) == (["LATENT"], False)
    assert info["SaveVideo"]["output_node"] is True
    files = info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert files == ["pocket-ltx-2.3.safetensors"]
    dynamic = info["ResizeImageMaskNode"]["input"]["required"]["resize_type"]
    assert dynamic[0] == "COMFY_DYNAMICCOMBO_V3"
    longer = next(o for o in dynamic[1]["options"] if o["key"] == "scale longer dimension")
    assert list(longer["inputs"]["required"]) == ["longer_size"]
    rate = info["LTXVEmptyLatentAudio"]["input"]["required"]["frame_rate"]
    assert (rate[0], rate[1]["widgetType"]) == ("FLOAT,INT", "FLOAT")
    assert "Does not run here" in info["GemmaAPITextEncode"]["description"]
    assert server.get_json("/object_info/KSampler") == {"KSampler": sampler}
    assert server.get_json("/object_info/DWPreprocessor") == {}


def test_models_and_machine(server: ComfyUiServer) -> None:
    assert "latent_upscale_models" in server.get_json("/models")
    assert server.get_json("/api/models/loras") == ["pocket-distilled-lora.safetensors"]
    assert server.get("/models/nowhere")[0] == 404
    name = "pocket-ltx-2.3.safetensors"
    assert server.get_json(f"/view_metadata/checkpoints?filename={name}")["config"]
    assert server.get_json("/embeddings") == server.get_json("/extensions") == []
    assert server.get_json("/features")["supports_preview_metadata"] is True
    stats = server.get_json("/system_stats")
    assert stats["system"]["ram_total"] > 0
    assert stats["devices"][0]["type"] == "cpu"
    assert b"latent-ladder" in server.get("/")[1]
    assert server.get("/nothing")[0] == 404


def test_free_restarts_the_worker(server: ComfyUiServer) -> None:
    """The last test that needs the worker, because loading it again takes seconds."""
    wait_for_entry(server, submit(server, number_graph(7)))
    (before,) = psutil.Process(server.process.pid).children()
    assert server.post("/free", {"unload_models": True})[0] == 200
    wait_until_dead(before)
    wait_until(lambda: bool(psutil.Process(server.process.pid).children()), "no new worker")


# --- starting -------------------------------------------------------------------------------------


def run_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> LadderError:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LADDER_STORE", str(folder / "store"))
    result = CliRunner().invoke(app, ["serve", *flags])
    assert isinstance(result.exception, LadderError), result.output
    return result.exception


def test_a_used_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = run_refused(tmp_path, monkeypatch, "--comfyui", "--port", str(port))
    assert f"port {port}" in error.message
    assert f"--port {port + 1}" in str(error.hint)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--comfyui"),
        (["--comfyui", "--map", "old"], "OLD=NEW"),
        (["--comfyui", "--models", "nowhere"], "does not exist"),
        (["--comfyui", "--listen", "nowhere.invalid"], "cannot be listened on"),
        (["--comfyui", "--output-directory", "file"], "--output-directory"),
        (["--comfyui", "--vram", "-1"], "is not a size"),
    ],
)
def test_wrong_flags_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    (tmp_path / "file").touch()
    error = run_refused(tmp_path, monkeypatch, "--port", "0", *flags)
    assert said in f"{error.message} {error.hint}"


def test_without_aiohttp_the_error_names_the_pip_command(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None; sys.argv[1:] = ['serve', '--comfyui']; "
        "from latent_ladder.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'latent-ladder[serve]'" in done.stderr


def test_a_preview_of_a_bomb_is_refused_in_words(server: ComfyUiServer) -> None:
    out = io.BytesIO()
    Image.new("1", (12_000, 10_001)).save(out, "PNG")
    server.upload("bomb.png", out.getvalue())
    status, body = server.get("/view?filename=bomb.png&type=input&preview=webp;80")
    assert status == 400
    assert b"bomb.png has 12000x10001 pixels, expected at most 120,000,000" in body
    reference = json.dumps({"filename": "bomb.png", "type": "input", "subfolder": ""})
    mask = png("#00000040", (4, 4), "RGBA")
    assert server.upload("n.png", mask, "/upload/mask", original_ref=reference)[0] == 400
