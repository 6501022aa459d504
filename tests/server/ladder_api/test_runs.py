"""The gallery: lists, files, stars, deletion, sweeps, comparison and export of stored runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.stored_runs import add_clip, add_drafts, add_run, pocket_request, write_clip
from helpers.studio_server import StudioServer

from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.video_reader import probe
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.storage.artifact_store import Store, artefact_key
from latent_ladder.storage.run_records import DraftRecord, StageRecord


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StudioServer]:
    """A server that runs nothing."""
    with StudioServer(tmp_path) as running:
        yield running


def ids(server: StudioServer, query: str = "") -> list[str]:
    """The ids of a list of runs."""
    return [run["id"] for run in server.get(f"/ladder/runs{query}").json["runs"]]


def test_runs_of_the_command_line_are_listed_with_their_kind(
    server: StudioServer, tmp_path: Path
) -> None:
    store, clips = server.config.store, tmp_path / "films"
    made = add_clip(store, clips)
    drafts = add_drafts(store, tmp_path / "drafts")
    refined = add_clip(store, clips, "r.mp4", command=f"ladder refine {drafts.id}:1 -o r.mp4")
    add_run(store, status="failed", error="broke")
    add_run(store, output=None)
    found = server.get("/ladder/runs").json
    assert [(run["id"], run["kind"], run["parent"]) for run in found["runs"]] == [
        (refined.id, "refine", drafts.id),
        (drafts.id, "drafts", None),
        (made.id, "make", None),
    ]
    assert (found["total"], found["next"]) == (3, None)
    clips_found = found["runs"][1]["clips"]
    assert [clip["state"] for clip in clips_found] == ["done", "failed"]
    assert clips_found[0]["flags"] == ["dark"] and clips_found[1]["url"] is None


def test_filters_and_pages(server: StudioServer, tmp_path: Path) -> None:
    store = server.config.store
    for number in range(5):
        request = pocket_request(f"a ball number {number} Über", seed=number)
        add_clip(store, tmp_path, f"{number}.mp4", request=request)
    first = server.get("/ladder/runs?limit=2").json
    second = server.get(f"/ladder/runs?limit=2&cursor={first['next']}").json
    third = server.get(f"/ladder/runs?limit=2&cursor={second['next']}").json
    pages = [run["seed"] for page in (first, second, third) for run in page["runs"]]
    assert pages == [4, 3, 2, 1, 0]
    assert first["total"] == 5 and third["next"] is None
    assert len(ids(server, "?text=NUMBER%20%C3%9CBER%202")) == 1
    assert len(ids(server, "?seed=3")) == 1
    assert len(ids(server, "?seed=33")) == 0
    assert len(ids(server, "?preset=pocket")) == 5
    assert len(ids(server, "?kind=refine")) == 0
    assert len(ids(server, "?since=2999-01-01")) == 0
    assert len(ids(server, "?until=2999-01-01")) == 5
    for wrong in ("seed=x", "kind=x", "since=x", "limit=9999", "order=x"):
        assert server.get(f"/ladder/runs?{wrong}").status == 422


def test_a_changed_and_a_removed_record_are_seen_at_once(
    server: StudioServer, tmp_path: Path
) -> None:
    record = add_clip(server.config.store, tmp_path)
    assert ids(server) == [record.id]
    log = Store(server.config.store).runs
    time.sleep(0.01)
    log.save(replace(record, request=pocket_request("another text")))
    assert server.get("/ladder/runs").json["runs"][0]["prompt"] == "another text"
    log.remove(record.id)
    assert ids(server) == []


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    with StudioServer(tmp_path) as server:
        record = add_clip(server.config.store, tmp_path)
        assert ids(server) == [record.id]
    (tmp_path / "store" / "studio" / "gallery.sqlite3").write_bytes(b"no database" * 1000)
    with StudioServer(tmp_path) as server:
        assert ids(server) == [record.id]


def test_files_have_ranges_and_tags(server: StudioServer, tmp_path: Path) -> None:
    record = add_clip(server.config.store, tmp_path, "a ball ä.mp4")
    data = (tmp_path / "a ball ä.mp4").read_bytes()
    output = server.get(f"/ladder/runs/{record.id}").json["outputs"][0]
    assert (output["name"], output["bytes"], output["playable"]) == (
        "a ball ä.mp4",
        len(data),
        True,
    )
    whole = server.get(output["url"])
    assert whole.body == data and whole.headers["content-type"] == "video/mp4"
    part = server.get(output["url"], Range="bytes=4-7")
    assert (part.status, part.body) == (206, data[4:8])
    again = server.request("GET", output["url"], None, {"If-None-Match": whole.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert server.request("HEAD", output["url"]).body == b""
    saved = server.get(f"{output['url']}?download=1").headers["content-disposition"]
    assert saved.startswith("attachment;")
    clip = f"/ladder/runs/{record.id}/clips/1"
    assert server.get(f"{clip}/video").body == data
    assert server.get(f"{clip}/thumbnail").body[8:12] == b"WEBP"
    assert server.get(f"/ladder/runs/{record.id}/clips/2/video").status == 404
    assert server.get(f"/ladder/runs/{record.id}/files/..%2Fx").status == 404
    assert server.get("/ladder/runs/zzzzzzzz").status == 404
    (tmp_path / "a ball ä.mp4").unlink()
    gone = server.get(output["url"])
    assert gone.status == 404 and "moved or deleted" in gone.json["error"]["hint"]
    assert server.get(f"/ladder/runs/{record.id}").json["missing"] is True


def test_a_proxy_is_made_once_of_what_browsers_cannot_play(
    server: StudioServer, tmp_path: Path
) -> None:
    path = tmp_path / "deep.mp4"
    frames = np.zeros((5, 64, 66, 3), np.uint8)
    settings = EncoderSettings("h265", None, None, "yuv420p10le")
    write_video(path, [frames], VideoSpec((66, 64), Fraction(8), settings))
    request = pocket_request(output={"codec": "h265", "pix_fmt": "yuv420p10le"})
    record = add_run(server.config.store, output=str(path), request=request)
    clip = server.get(f"/ladder/runs/{record.id}").json["clips"][0]
    assert clip["playable"] is False
    answer = server.get(clip["proxy_url"])
    assert (answer.status, answer.json) == (202, {"state": "making"})
    end = time.monotonic() + 60
    while (answer := server.get(clip["proxy_url"])).status == 202 and time.monotonic() < end:
        time.sleep(0.05)
    assert answer.status == 200
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(answer.body)
    info = probe(copy)
    assert (info.width, info.height, info.frames) == (66, 64, 5)


def test_a_proxy_of_numbered_pictures(server: StudioServer, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (32, 32), (number * 90, 0, 0)).save(folder / f"{number:05d}.png")
    record = add_run(server.config.store, output=str(folder / "%05d.png"))
    clip = server.get(f"/ladder/runs/{record.id}").json["clips"][0]
    assert server.get(clip["url"]).status == 404
    end = time.monotonic() + 60
    while (answer := server.get(clip["proxy_url"])).status == 202 and time.monotonic() < end:
        time.sleep(0.05)
    assert answer.status == 200 and answer.headers["content-type"] == "video/mp4"


def test_stars_stay(tmp_path: Path) -> None:
    with StudioServer(tmp_path) as server:
        drafts = add_drafts(server.config.store, tmp_path / "drafts")
        add_clip(server.config.store, tmp_path)
        answer = server.post(f"/ladder/runs/{drafts.id}/star", {"starred": True, "clip": 1})
        assert [clip["starred"] for clip in answer.json["clips"]] == [True, False]
        assert answer.json["starred"] is False
        assert server.post(f"/ladder/runs/{drafts.id}/star", {"starred": 1, "x": 2}).status == 422
        assert (
            server.post(f"/ladder/runs/{drafts.id}/star", {"starred": True, "clip": 9}).status
            == 404
        )
    with StudioServer(tmp_path) as server:
        assert ids(server, "?starred=1") == [drafts.id]
        server.post(f"/ladder/runs/{drafts.id}/star", {"starred": False, "clip": 1})
        assert ids(server, "?starred=1") == []


def test_deletion_keeps_what_other_runs_use_and_files_elsewhere(
    server: StudioServer, tmp_path: Path
) -> None:
    import torch

    store = Store(server.config.store)
    keys = [artefact_key("test", 1, {"n": n}, (), ()) for n in range(2)]
    for key in keys:
        store.put(key, {"x": torch.zeros(1000)}, {"stage": "base"})
    stages = [StageRecord("base", key, False, 1.0) for key in keys]
    own = server.config.folders.output
    first = add_clip(store.root, own, "own.mp4", stages=tuple(stages))
    second = add_clip(store.root, tmp_path, "elsewhere.mp4", stages=(stages[1],))
    plan = server.get(f"/ladder/runs/{first.id}/deletion").json
    size = (own / "own.mp4").stat().st_size
    assert plan["artifacts"] == 1 and plan["frees_bytes"] == store.bytes_of(keys[0]) + size
    assert (plan["files"], plan["kept_by"]) == (["own.mp4"], [second.id])
    assert server.request("DELETE", f"/ladder/runs/{first.id}").json == plan
    assert store.get(keys[0]) is None and store.get(keys[1]) is not None
    assert not (own / "own.mp4").exists()
    last = server.request("DELETE", f"/ladder/runs/{second.id}").json
    assert last["kept_files"] == [str(tmp_path / "elsewhere.mp4")]
    assert (tmp_path / "elsewhere.mp4").exists() and store.get(keys[1]) is None
    assert ids(server) == []


def test_a_run_under_way_is_not_deleted(server: StudioServer, tmp_path: Path) -> None:
    running = add_run(
        server.config.store, status="running", output=str(write_clip(tmp_path / "x.mp4"))
    )
    assert server.request("DELETE", f"/ladder/runs/{running.id}").status == 409


def test_provenance_names_inputs_and_model_files(server: StudioServer, tmp_path: Path) -> None:
    import torch

    store = Store(server.config.store)
    key = artefact_key("test", 1, {}, (), ())
    meta = {"stage": "base", "name": "base", "inputs": ["b2-" + "0" * 32], "checkpoints": ["m"]}
    store.put(key, {"x": torch.zeros(2)}, {**meta, "sigmas": [1.0, 0.0]})
    record = add_clip(store.root, tmp_path, stages=(StageRecord("base", key, False, 2.0, 7),))
    stage = server.get(f"/ladder/runs/{record.id}").json["stages"][0]
    assert (stage["kind"], stage["stored"], stage["seconds"]) == ("base", True, 2.0)
    assert stage["inputs"] == meta["inputs"] and stage["checkpoints"] == ["m"]
    assert stage["settings"]["sigmas"] == [1.0, 0.0]


def sweep_report(folder: Path) -> None:
    """The files of a sweep with two points."""
    (folder / "points").mkdir(parents=True)
    write_clip(folder / "points" / "b2-1.mp4")
    point: dict[str, Any] = {"settings": {"refine.denoise": "0.3"}, "sets": ["refine.denoise=0.3"]}
    point |= {"metrics": {"detail": 1.0}, "comparison": {"motion_kept": 0.9}, "seconds": 2.0}
    bad = {**point, "settings": {"refine.denoise": "0.6"}, "sets": ["refine.denoise=0.6"]}
    body = {
        "request": pocket_request(),
        "axes": [{"path": "refine.denoise", "values": ["0.3", "0.6"]}],
        "choice": {"point": 1, "why": "it is sharp", "outcome": "recommended", "noise_db": 0.5,
                   "least_kept": 0.9},
        "points": [{**point, "number": 1, "clip": "b2-1.mp4", "error": None},
                   {**bad, "number": 2, "clip": None, "error": "broke"}],
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(body))


def test_a_sweep_is_shown_and_applied(server: StudioServer, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep_report(folder)
    drafts = tuple(DraftRecord(n, "a", n, status=s) for n, s in ((1, "done"), (2, "failed")))
    run = add_run(server.config.store, kind="sweep", output=str(folder), drafts=drafts)
    report = server.get(f"/ladder/runs/{run.id}/sweep").json
    assert [point["recommended"] for point in report["points"]] == [True, False]
    assert report["points"][0]["metrics"]["motion_kept"] == 0.9
    assert report["points"][1]["error"] == "broke"
    assert server.get(report["points"][0]["video_url"]).status == 200
    applied = server.post(f"/ladder/runs/{run.id}/sweep/apply", {"point": 2}).json["request"]
    assert [s["denoise"] for s in applied["stages"] if s["kind"] == "refine"] == [0.6]
    assert server.post(f"/ladder/runs/{run.id}/sweep/apply", {"point": 3}).status == 404
    made = add_clip(server.config.store, tmp_path)
    assert server.get(f"/ladder/runs/{made.id}/sweep").status == 404


def test_two_clips_are_compared(server: StudioServer, tmp_path: Path) -> None:
    first = add_clip(server.config.store, tmp_path, "1.mp4")
    second = add_clip(server.config.store, tmp_path, "2.mp4")
    body = {"a": {"run": first.id, "clip": 1}, "b": {"run": second.id}}
    found = server.post("/ladder/compare", body).json
    assert (found["frames"], found["fps"], found["width"]) == (9, 8.0, 64)
    assert found["metrics"]["structure_similarity"] > 0.99
    assert server.post("/ladder/compare", {"a": body["a"]}).status == 422


@pytest.mark.parametrize(
    ("form", "start"),
    [("comfyui", b"{"), ("comfyui-api", b"{"), ("toml", b"prompt"), ("json", b"{")],
)
def test_a_run_is_exported(server: StudioServer, tmp_path: Path, form: str, start: bytes) -> None:
    record = add_clip(server.config.store, tmp_path)
    answer = server.get(f"/ladder/runs/{record.id}/export?as={form}")
    assert answer.status == 200 and answer.body.startswith(start)
    assert answer.headers["content-disposition"].startswith("attachment")
