"""``/v1/videos`` with OpenAI's own client, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.comfyui_server import ComfyUiServer
from helpers.in_process_server import InProcessServer, make_config
from PIL import Image

from latent_ladder.checkpoints.search_paths import model_folders
from latent_ladder.media.video_reader import probe

PROMPT = "a red ball rolls to the right over a striped floor"
SMALL = {"prompt": PROMPT, "size": "128x128", "seconds": "0.3", "model": "pocket"}


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    config = make_config(tmp_path_factory.mktemp("videos"), models=model_folders())
    with InProcessServer(config) as running:
        yield running


def picture(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_openais_client_makes_lists_remixes_and_deletes_videos(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs openai")
    token = "a-token-for-openai"
    with (
        ComfyUiServer(tmp_path, "--token", token) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=token) as client,
    ):
        assert "pocket" in [model.id for model in client.models.list()]
        more = {"seed": 7}
        video = client.videos.create_and_poll(**SMALL, extra_body=more, poll_interval_ms=200)
        assert (video.status, video.progress, video.error) == ("completed", 100, None)
        assert (video.prompt, video.size, video.model) == (PROMPT, "128x128", "pocket")
        assert float(video.seconds) == pytest.approx(9 / 24, abs=1e-3)
        client.videos.download_content(video.id).write_to_file(tmp_path / "clip.mp4")
        assert probe(tmp_path / "clip.mp4").frames == 9
        still = client.videos.download_content(video.id, variant="thumbnail").read()
        assert Image.open(io.BytesIO(still)).size == (128, 128)
        sheet = client.videos.download_content(video.id, variant="spritesheet").read()
        assert Image.open(io.BytesIO(sheet)).size == (5 * 128, 2 * 128)
        remix = client.videos.remix(video.id, prompt="a blue ball rolls to the right")
        assert remix.remixed_from_video_id == video.id
        assert client.videos.poll(remix.id, poll_interval_ms=200).status == "completed"
        started = client.videos.create(**SMALL, input_reference=("a.png", picture(), "image/png"))
        assert client.videos.poll(started.id, poll_interval_ms=200).status == "completed"
        assert [v.id for v in client.videos.list(limit=2)] == [started.id, remix.id, video.id]
        files = list((tmp_path / "output" / "video").glob("*.mp4"))
        assert len(files) == 3
        assert client.videos.delete(video.id).deleted
        assert len(list((tmp_path / "output" / "video").glob("*.mp4"))) == 2
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)
        with pytest.raises(openai.BadRequestError) as caught:
            client.videos.create(prompt=PROMPT, model="gone")
        assert "pocket" in str(caught.value.body)
    with ComfyUiServer(tmp_path) as server:
        listed = server.get_json("/v1/videos")["data"]
        assert [v["id"] for v in listed] == [started.id, remix.id]


def test_a_video_is_a_job_of_the_queue(routes: InProcessServer) -> None:
    answer = routes.post("/v1/videos", {**SMALL, "seed": 2**64 - 1})
    assert answer.status == 200, answer.body
    video = answer.json
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert video["seed"] == 2**64 - 1
    job = routes.get(f"/api/jobs/{video['id']}").json
    nodes = job["workflow"]["prompt"].values()
    assert str(2**64 - 1) in str([node["inputs"] for node in nodes])
    assert routes.get(f"/v1/videos/{video['id']}/content").status == 400
    assert routes.post(f"/api/jobs/{video['id']}/cancel").json == {"cancelled": True}
    cancelled = routes.get(f"/v1/videos/{video['id']}").json
    assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
    assert routes.request("DELETE", f"/v1/videos/{video['id']}").json["deleted"] is True
    assert routes.get(f"/v1/videos/{video['id']}").status == 404


def test_other_jobs_are_no_videos(routes: InProcessServer) -> None:
    from helpers.comfyui_server import number_graph

    job = routes.post("/prompt", {"prompt": number_graph()}).json["prompt_id"]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/remix")):
        answer = routes.request(method, f"/v1/videos/{job}{path}", b'{"prompt": "x"}')
        assert answer.status == 404
    assert job not in str(routes.get("/v1/videos").json)


@pytest.mark.parametrize("model", ["sora-2", "sora-2-pro", "", None])
def test_openais_model_names_mean_the_installed_model(routes: InProcessServer, model: Any) -> None:
    video = routes.post("/v1/videos", {**SMALL, "model": model}).json
    assert video["model"] == "pocket"


def test_pages(routes: InProcessServer) -> None:
    for _ in range(3):
        routes.post("/v1/videos", SMALL)
    ids = [video["id"] for video in routes.get("/v1/videos?limit=100").json["data"]]
    page = routes.get("/v1/videos?limit=2").json
    assert ([video["id"] for video in page["data"]], page["has_more"]) == (ids[:2], True)
    rest = routes.get(f"/v1/videos?limit=100&after={ids[1]}").json
    assert ([video["id"] for video in rest["data"]], rest["has_more"]) == (ids[2:], False)
    oldest = routes.get("/v1/videos?order=asc&limit=1").json["data"][0]["id"]
    assert oldest == ids[-1]


def test_a_picture_in_json_is_a_data_address(routes: InProcessServer) -> None:
    address = "data:image/png;base64," + base64.b64encode(picture()).decode()
    answer = routes.post("/v1/videos", {**SMALL, "input_reference": {"image_url": address}})
    assert answer.status == 200, answer.body
    stored = routes.config.folders.input / f"{answer.json['id']}.png"
    assert stored.read_bytes() == picture()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"size": "big"}, "size"),
        ({"size": "7x7"}, "width"),
        ({"seconds": "many"}, "seconds"),
        ({"seconds": "-1"}, "duration_s"),
        ({"seconds": "nan"}, "duration_s"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"model": "gone"}, "distilled"),
        ({"model": "distilled"}, ""),
        ({"input_reference": {"image_url": "http://example.org/a.png"}}, "input_reference"),
        ({"input_reference": {"image_url": "data:image/svg+xml;base64,AAAA"}}, "PNG"),
        ({"input_reference": {"image_url": "data:image/png;base64,!!"}}, "base64"),
        ({"input_reference": "a.png"}, "input_reference"),
    ],
)
def test_bodies_are_checked(routes: InProcessServer, change: dict[str, Any], said: str) -> None:
    before = routes.get("/prompt").json
    answer = routes.post("/v1/videos", {**SMALL, **change})
    assert answer.status == 400
    error = answer.json["error"]
    assert said in f"{error['message']} {error['details']}"
    assert routes.get("/prompt").json == before
