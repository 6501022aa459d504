"""The Comfy API v2 with its real clients: comfy-sdk, alone and through comfy-api-proxy."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.comfyui_server import ENDLESS, ComfyUiServer, clip_graph, number_graph, picture_graph
from helpers.in_process_server import InProcessServer, make_config
from PIL import Image

pytestmark = pytest.mark.slow

comfy_sdk = pytest.importorskip("comfy_sdk", reason="needs comfy-sdk")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUiServer]:
    with ComfyUiServer(tmp_path_factory.mktemp("v2")) as running:
        yield running


@contextmanager
def connect(address: str, **options: Any) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMFY_BASE_URL", address)
        patch.delenv("COMFY_API_KEY", raising=False)
        client = comfy_sdk.Comfy(**options)
    with client:
        yield client


@contextmanager
def run_proxy(address: str, folder: Path) -> Iterator[str]:
    """comfy-api-proxy in front of a server."""
    pytest.importorskip("comfy_api_proxy", reason="needs comfy-api-proxy")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["run", "--port", str(port), "--comfyui", address, "--state-dir", str(folder)]
    state = {"COMFY_API_PROXY_STATE_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "comfy_api_proxy.cli", *flags], env=os.environ | state, cwd=folder
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def red_picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(out, "PNG")
    return out.getvalue()


def copy_graph(asset: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": asset}},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "copies/red"},
        },
    }


@pytest.mark.parametrize("through_proxy", [False, True], ids=["direct", "proxy"])
def test_an_asset_is_uploaded_used_and_fetched(
    server: ComfyUiServer, tmp_path: Path, through_proxy: bool
) -> None:
    if not through_proxy:
        check_asset_and_outputs(server.url, tmp_path)
        return
    with run_proxy(server.url, tmp_path) as address:
        check_asset_and_outputs(address, tmp_path)


def check_asset_and_outputs(address: str, folder: Path) -> None:
    (folder / "red.png").write_bytes(red_picture())
    with connect(address) as client:
        graph = copy_graph(client.assets.from_file(folder / "red.png"))
        job = client.run(client.workflows.from_json(graph))
        assert job.status == "succeeded"
        (output,) = job.get_outputs("2")
        assert output.type == "image"
        data = output.to_bytes()
        assert Image.open(io.BytesIO(data)).getpixel((5, 5)) == (255, 0, 0)
        assert output.to_bytes(range=(0, 3)) == data[:4]
        again = client.assets.from_bytes(red_picture(), filename="other name.png")
        again.commit()
        assert again.created_new is False
        assert job.get_workflow().graph["2"]["class_type"] == "SaveImage"


def test_events_show_progress_previews_and_outputs(server: ComfyUiServer) -> None:
    with connect(server.url) as client:
        job = client.submit(client.workflows.from_json(clip_graph(12, seed=3)))
        events = list(job.events())
        kinds = {type(event).__name__ for event in events}
        assert {"StatusChange", "Progress", "Preview", "OutputReady"} <= kinds
        values = [event.value for event in events if isinstance(event, comfy_sdk.Progress)]
        assert values == sorted(values)
        assert 0 < values[-1] <= 1
        picture = next(event for event in events if isinstance(event, comfy_sdk.Preview))
        assert Image.open(io.BytesIO(picture.data)).width > 0
        states = [event.status for event in events if isinstance(event, comfy_sdk.StatusChange)]
        assert states[-1] == "succeeded"
        assert job.refresh().outputs[0].type == "video"


def test_jobs_are_cancelled_before_and_while_they_run(server: ComfyUiServer) -> None:
    with connect(server.url) as client:
        running = client.submit(client.workflows.from_json(clip_graph(ENDLESS, seed=5)))
        waiting = client.submit(client.workflows.from_json(number_graph(1)))
        while running.refresh().status != "running":
            time.sleep(0.05)
        assert waiting.refresh().status == "queued"
        assert waiting.cancel().status == "canceled"
        assert running.cancel().status in ("canceling", "canceled")
        assert running.wait(60).status == "canceled"
        assert waiting.refresh().status == "canceled"
        assert server.get_json(f"/api/jobs/{waiting.id}")["status"] == "cancelled"
        assert waiting.cancel().status == "canceled"


def test_jobs_are_listed_by_label_in_pages(server: ComfyUiServer) -> None:
    with connect(server.url) as client:
        workflow = client.workflows.from_json(number_graph(2))
        made = [client.submit(workflow, metadata={"group": "pages"}).id for _ in range(5)]
        client.submit(workflow, metadata={"group": "others"})
        listed = [job.id for job in client.list_jobs(metadata={"group": "pages"}, limit=2)]
        assert sorted(listed) == sorted(made)


def test_failures_and_refusals_are_named(server: ComfyUiServer) -> None:
    with connect(server.url) as client:
        graph = picture_graph()
        graph["1"]["inputs"]["width"] = -5
        with pytest.raises(comfy_sdk.ComfyError) as caught:
            client.submit(client.workflows.from_json(graph))
        assert caught.value.code == "invalid_workflow"
        assert "1" in str(caught.value.details)
        with pytest.raises(comfy_sdk.ComfyError) as caught:
            client.jobs.get("no-such-job")
        assert caught.value.http_status == 404
        key = "one-submission"
        client.submit(client.workflows.from_json(number_graph(8)), idempotency_key=key)
        with pytest.raises(comfy_sdk.ComfyError) as caught:
            client.submit(client.workflows.from_json(number_graph(8)), idempotency_key=key)
        assert caught.value.code == "idempotency_key_reuse"
        graph = clip_graph()
        graph["5"]["inputs"]["width"] = graph["5"]["inputs"]["height"] = 8192
        graph["5"]["inputs"]["length"] = 16001
        failed = client.submit(client.workflows.from_json(graph)).wait(60)
        assert failed.status == "failed"
        assert failed.error.message
        assert failed.error.node_id


def test_the_token_is_the_api_key(tmp_path: Path) -> None:
    token = "a-token-for-the-sdk"
    with ComfyUiServer(tmp_path, "--token", token) as running:
        with connect(running.url, api_key=token) as client:
            job = client.submit(client.workflows.from_json(number_graph(3)))
            assert job.status == "queued"
        with connect(running.url) as client, pytest.raises(comfy_sdk.ComfyError) as caught:
            client.jobs.get(job.id)
        assert caught.value.http_status == 401


# --- without a client -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with InProcessServer(make_config(tmp_path_factory.mktemp("routes"))) as running:
        yield running


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_workflow"),
        ({"workflow": {"nodes": [], "links": []}}, 422, "workflow_format_ui"),
        ({"workflow": {"1": {"__type": "core/ASSET", "info": {"id": "x"}}}}, 422, "missing_asset"),
        ({"workflow": number_graph(), "webhook_url": "http://x"}, 422, "invalid_workflow"),
        ({"workflow": number_graph(), "metadata": {"a": 1}}, 422, "metadata_invalid"),
        ({"workflow": number_graph(), "metadata": dict.fromkeys("abcdefghijklmnopqr", "")}, 422,
         "metadata_invalid"),
        ({"workflow": number_graph(), "priority": "high"}, 422, "invalid_request"),
        ({"workflow": number_graph(), "priority": True}, 422, "invalid_request"),
    ],
)  # fmt: skip
def test_bodies_are_checked(
    routes: InProcessServer, body: dict[str, Any], status: int, code: str
) -> None:
    answer = routes.post("/api/v2/jobs", body)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)


def test_priority_decides_the_order(routes: InProcessServer) -> None:
    ids = [
        routes.post("/api/v2/jobs", {"workflow": number_graph(), "priority": priority}).json["id"]
        for priority in (0, -1, 5)
    ]
    queue = [item[1] for item in routes.get("/queue").json["queue_pending"]]
    assert queue == [ids[2], ids[0], ids[1]]
    job = routes.get(f"/api/v2/jobs/{ids[0]}").json
    assert (job["status"], job["queue_position"]) == ("queued", 1)
    for job_id in ids:
        assert routes.post(f"/api/v2/jobs/{job_id}/cancel").json["status"] == "canceled"


def test_an_upload_has_to_have_its_hash_and_a_safe_path(routes: InProcessServer) -> None:
    def upload(**fields: str) -> Any:
        parts = [
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        head = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = "".join([*parts, head, "data\r\n--x--\r\n"]).encode()
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        return routes.request("POST", "/api/v2/assets", body, form)

    assert upload(file_path="a.png", expected_hash="blake3:00").status == 409
    for path in ("../a.png", "/etc/a.png", "input/../../a.png", "a/", "con.png", "a\\b.png"):
        assert upload(file_path=path).status in (400, 422), path
    made = upload(file_path="input/deep/er/a.png")
    assert (made.status, made.json["file_path"]) == (201, "deep/er/a.png")
    asset = made.json["id"]
    assert routes.request("HEAD", f"/api/v2/assets/by-hash/{made.json['hash']}").status == 200
    assert routes.get(f"/api/v2/assets/{asset}/content").body == b"data"
    (routes.config.folders.input / "deep/er/a.png").write_bytes(b"changed")
    assert routes.request("HEAD", f"/api/v2/assets/by-hash/{made.json['hash']}").status == 404
    assert routes.request("DELETE", f"/api/v2/assets/{asset}").status == 204
    assert routes.request("DELETE", f"/api/v2/assets/{asset}").status == 404
    assert not list((routes.config.folders.input / "deep/er").iterdir())
