"""The parts of the server that need no socket: folders, queue, history, access, messages."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from helpers.comfyui_server import clip_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.checkpoints.search_paths import EMBEDDED, ModelFolder
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.runtime.events import (
    NodeDone,
    NodePreview,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarned,
)
from latent_ladder.errors import RequestError, StoreError
from latent_ladder.server.app import application
from latent_ladder.server.app_context import Context
from latent_ladder.server.client_messages import Picture, Telling
from latent_ladder.server.config import Setup
from latent_ladder.server.data_folders import Places, annotated, confined, file_name
from latent_ladder.server.file_listing import Listing
from latent_ladder.server.job_loop import Jobs
from latent_ladder.server.job_store import Job, Kept, is_number
from latent_ladder.server.origin_guard import Access
from latent_ladder.server.prompt_requests import Refused, read_prompt
from latent_ladder.server.websockets import Sockets
from latent_ladder.server.worker_process import Worker
from latent_ladder.server.worker_protocol import LENGTHS, event_of, pack_event

PARTS = st.lists(
    st.sampled_from(
        ["..", ".", "", "/", "\\", "a", "b.png", "link", "out", "%2e%2e", "C:", "~", "\0", "..\\",
         "a..b", " ", "\udcff", "x" * 300, "…", "loop"]
    ),
    max_size=6,
).map("/".join)  # fmt: skip


@pytest.fixture(scope="module")
def fenced(tmp_path_factory):
    """A folder with a link to the outside, a link to itself, and a secret beside it."""
    base = tmp_path_factory.mktemp("fence")
    root = base / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "b.png").write_bytes(b"inside")
    (base / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(base)
    (root / "loop").symlink_to(root / "loop")
    (root / "out").symlink_to(base / "secret")
    (root / "alias").symlink_to(root / "a")
    return root


@settings(max_examples=250, deadline=None)
@given(folder=PARTS | st.text(max_size=12), name=PARTS | st.text(max_size=12))
def test_no_path_leaves_its_folder(fenced, folder, name):
    try:
        path = confined(fenced, folder, name)
    except RequestError:
        return
    assert path.resolve().is_relative_to(fenced.resolve())
    assert "secret" not in path.parts
    assert not path.is_file() or path.read_bytes() == b"inside"


def test_links_inside_a_folder_are_followed(fenced):
    assert confined(fenced, "alias", "b.png").read_bytes() == b"inside"


@pytest.mark.parametrize(
    "text", ["../a", "/etc/passwd", "a\\b", "link/secret", "out", "a/../../secret", "a\0b", "loop"]
)
def test_escapes_are_refused(fenced, text):
    with pytest.raises(RequestError, match="is not a path below the folder"):
        confined(fenced, text)


@pytest.mark.parametrize("text", ["", "..", ".", "a/b.png", "con", "LPT1.txt", "x" * 201, "a\nb"])
def test_names_of_files_are_plain(text):
    with pytest.raises(RequestError):
        file_name(text)


def test_annotations_choose_the_folder(tmp_path):
    assert annotated("x.png [input]", "output") == ("x.png", "input")
    assert annotated("x.png", "temp") == ("x.png", "temp")
    places = Places(tmp_path / "i", tmp_path / "o", tmp_path / "t")
    places.make()
    assert places.path("temp", "a", "b.png") == (tmp_path / "t" / "a" / "b.png").resolve()
    with pytest.raises(RequestError, match="is no folder"):
        places.path("models", "", "x")


# --- the queue and the history --------------------------------------------------------------------


def job(name: str, number: float = 0) -> Job:
    return Job(number, name, {"1": {"class_type": "X", "inputs": {}}}, {"client_id": "c"}, ("1",))


def test_the_queue_is_ordered_and_survives(tmp_path):
    path = tmp_path / "deep" / "state.sqlite3"
    with closing(Kept(path)) as kept:
        assert [kept.next_number() for _ in range(2)] == [0, 1]
        assert all(kept.add(job(*one)) for one in (("b", 5), ("a", 1), ("c", 5), ("front", -7.5)))
        assert not kept.add(job("a", 9))
    with closing(Kept(path)) as kept:
        assert [one.id for one in kept.pending()] == ["front", "a", "b", "c"]
        assert kept.next_number() == 2
        assert kept.first() == job("front", -7.5)
        kept.drop(["a", "front"], but="front")
        assert [one.id for one in kept.pending()] == ["front", "b", "c"]
        kept.drop(None, but="front")
        assert kept.count() == 1
        assert kept.waits("front")


def test_the_history_is_paged_and_capped(tmp_path):
    with closing(Kept(tmp_path / "s.sqlite3", most=4)) as kept:
        for number in range(6):
            kept.add(job(str(number)))
            kept.finish(str(number), {"n": number}, {"id": str(number)})
    with closing(Kept(tmp_path / "s.sqlite3", most=4)) as kept:
        assert list(kept.history()) == ["2", "3", "4", "5"]
        assert list(kept.history(2)) == ["4", "5"]
        assert list(kept.history(2, 1)) == ["3", "4"]
        assert kept.history(0) == {}
        assert kept.entry("5") == {"n": 5}
        assert kept.count() == 0
        kept.forget(["3"])
        assert [one["id"] for one in kept.summaries()] == ["2", "4", "5"]
        kept.forget(None)
        assert kept.history() == {}


def test_one_server_owns_the_file(tmp_path):
    with (
        closing(Kept(tmp_path / "s.sqlite3")),
        pytest.raises(StoreError, match="cannot be opened") as told,
    ):
        Kept(tmp_path / "s.sqlite3")
    assert "another server" in told.value.hint


def test_a_damaged_file_is_moved_away_and_named(tmp_path):
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with closing(Kept(path)) as kept:
        assert Path(kept.moved).read_bytes().startswith(b"no database")
        assert kept.count() == 0


def test_a_half_written_change_is_undone(tmp_path):
    path = tmp_path / "s.sqlite3"
    with closing(Kept(path)) as kept:
        kept.add(job("a"))
    pid = os.fork()
    if pid == 0:  # dies in the middle of a transaction
        base = sqlite3.connect(path)
        base.execute("DELETE FROM pending")
        os._exit(9)
    os.waitpid(pid, 0)
    with closing(Kept(path)) as kept:
        assert kept.waits("a")


def test_numbers_of_clients():
    assert [is_number(n) for n in (0, -1.5, True, "1", None, 2**60, float("nan"))] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


# --- who may talk ---------------------------------------------------------------------------------

LOCAL = {"Host": "127.0.0.1:8188"}


@pytest.mark.parametrize(
    ("access", "headers", "allowed"),
    [
        (Access(), LOCAL, True),
        (Access(), {"Host": "localhost:8188"}, True),
        (Access(), {"Host": "[::1]:8188"}, True),
        (Access(), {"Host": "evil.example:8188"}, False),
        (Access(), {"Host": ""}, False),
        (Access(), {"Host": "[bad"}, False),
        (Access(), {**LOCAL, "Origin": "http://127.0.0.1:8188"}, True),
        (Access(), {**LOCAL, "Origin": "http://evil.example"}, False),
        (Access(), {**LOCAL, "Origin": "http://127.0.0.1:9999"}, False),
        (Access(), {**LOCAL, "Origin": "null"}, False),
        (Access(), {**LOCAL, "Sec-Fetch-Site": "cross-site"}, False),
        (Access(), {**LOCAL, "Sec-Fetch-Site": "same-origin"}, True),
        (Access(cors="*"), {**LOCAL, "Origin": "http://evil.example"}, True),
        (Access(cors="*"), {"Host": "evil.example"}, False),
        (Access(hosts=("studio",)), {"Host": "studio:8188"}, True),
        (Access("0.0.0.0"), {"Host": "studio:8188"}, True),
        (Access("0.0.0.0"), {"Host": "studio:8188", "Origin": "http://evil.example"}, False),
    ],
)
def test_pages_of_other_sites_are_refused(access, headers, allowed):
    assert (access.refusal(headers) is None) is allowed


async def answers(setup: Setup, *asked: tuple[str, str, dict[str, str]]) -> list[tuple[int, Any]]:
    """Status and headers of requests to an application that runs here."""
    with closing(Kept(setup.state)) as kept:
        jobs = Jobs(kept, Worker(setup.worker, {}), Sockets({}), lambda _: None)
        listing = Listing(setup.models, setup.places.input)
        runner = web.AppRunner(application(Context(setup, listing, jobs, Sockets({}))))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        found = []
        async with aiohttp.ClientSession() as session:
            for method, path, headers in asked:
                async with session.request(method, address + path, headers=headers) as answer:
                    found.append((answer.status, answer.headers))
        await runner.cleanup()
    return found


def test_a_page_that_may_is_told_so(tmp_path):
    page = {"Origin": "http://editor.example"}
    places = Places(tmp_path, tmp_path, tmp_path)
    setup = Setup(places, tmp_path, tmp_path / "s.sqlite3", access=Access(cors=page["Origin"]))
    (asked, preflight), (read, body) = asyncio.run(
        answers(setup, ("OPTIONS", "/prompt", page), ("GET", "/api/queue", page))
    )
    assert (asked, read) == (204, 200)
    for headers in (preflight, body):
        assert headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert headers["Vary"] == "Origin"
    assert "POST" in preflight["Access-Control-Allow-Methods"]


# --- prompts --------------------------------------------------------------------------------------

ODD = (
    None, True, 0, -1, 1e300, 2**70, "", "x", "../a", [], ["1", 0], ["1", -1], ["1", 99], ["9", 0],
    [1, 0], ["1", "0"], {}, {"__value__": [1]}, [[]], ["1", True], "a\0b", "\ud800", ["6", 0],
)  # fmt: skip
FIELDS = ("client_id", "prompt_id", "number", "extra_data", "partial_execution_targets")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_prompt_is_a_job_or_a_refusal(data):
    """Whatever is changed in a graph; and both can be written as JSON."""
    body: dict[str, Any] = {"prompt": clip_graph()}
    odd = st.sampled_from(ODD).map(copy.deepcopy)
    for _ in range(data.draw(st.integers(1, 3))):
        node = body["prompt"][data.draw(st.sampled_from(sorted(clip_graph())))]
        at = data.draw(st.sampled_from(["class_type", "inputs", "input", "body"]))
        if at == "body":
            body[data.draw(st.sampled_from(FIELDS))] = data.draw(odd)
        elif at == "input" and isinstance(node["inputs"], dict) and node["inputs"]:
            node["inputs"][data.draw(st.sampled_from(sorted(node["inputs"])))] = data.draw(odd)
        elif at != "input":
            node[at] = data.draw(odd | st.sampled_from(sorted(NODE_TYPES)))
    try:
        asked = read_prompt(body, Listing((ModelFolder(EMBEDDED),), Path("nowhere")))
    except Refused as refused:
        assert refused.body["error"]["type"]
        json.dumps(refused.body)
    else:
        assert asked.wanted == ("9",)
        json.dumps(asked.job(lambda: 1).item())


# --- messages -------------------------------------------------------------------------------------

EVENTS = [
    NodesCached(("1", "2"), {"2": {"images": [{"filename": "x"}]}}),
    NodeStarted("3"),
    NodeProgress("3", 2, 8),
    NodePreview("3", "JPEG", b"\xff\xd8picture"),
    NodeWarned("3", "size", "704, not 720"),
    NodeDone("3", {"images": [{"filename": "y", "subfolder": "", "type": "output"}]}, 0.5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_events_travel_whole(event):
    frame = pack_event(event)
    first, second = LENGTHS.unpack(frame[: LENGTHS.size])
    text, raw = frame[LENGTHS.size :][:first], frame[LENGTHS.size + first :]
    assert len(raw) == second
    assert event_of(json.loads(text), raw) == event


def test_a_job_is_told_in_comfyuis_words():
    telling = Telling(job("j"))
    sent = [*telling.begin(), *(m for event in EVENTS for m in telling.on(event))]
    sent += telling.succeed()
    kinds = ["picture" if isinstance(m, Picture) else m.type for m in sent]
    assert kinds == [
        "execution_start", "execution_cached", "executed", "executing", "progress_state",
        "progress", "progress_state", "picture", "ladder_warning", "progress_state", "executed",
        "execution_success",
    ]  # fmt: skip
    entry = telling.entry()
    assert entry["outputs"]["3"]["images"][0]["filename"] == "y"
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    assert [kind for kind, _ in entry["status"]["messages"]] == [
        "execution_start", "execution_cached", "ladder_warning", "execution_success",
    ]  # fmt: skip
    assert telling.summary()["preview_output"]["filename"] == "y"


def test_previews_are_packed_for_both_kinds_of_clients():
    picture = Picture("PNG", b"data", {"node_id": "3"})
    assert picture.packed(False) == struct.pack(">II", 1, 2) + b"data"
    packed = picture.packed(True)
    event, length = struct.unpack(">II", packed[:8])
    assert event == 4
    assert json.loads(packed[8 : 8 + length]) == {"node_id": "3", "image_type": "image/png"}
    assert packed[8 + length :] == b"data"


# --- a worker that does not listen ----------------------------------------------------------------

DEAF = "import time; time.sleep(600)"


def test_who_interrupts_twice_ends_the_worker(tmp_path, monkeypatch):
    monkeypatch.setattr("latent_ladder.server.job_loop.PATIENCE_S", 0.0)
    said: list[str] = []

    async def talk(kept: Kept) -> None:
        worker = Worker((sys.executable, "-c", DEAF), {})
        jobs = Jobs(kept, worker, Sockets({}), said.append)
        working = asyncio.create_task(jobs.work())
        jobs.add(job("deaf"))
        while jobs.running is None:
            await asyncio.sleep(0.01)
        assert not jobs.interrupt("another")
        assert jobs.interrupt()
        await asyncio.sleep(0.05)
        assert kept.entry("deaf") is None
        assert jobs.interrupt("deaf")
        while kept.entry("deaf") is None:
            await asyncio.sleep(0.01)
        await jobs.close()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    with closing(Kept(tmp_path / "s.sqlite3")) as kept:
        asyncio.run(asyncio.wait_for(talk(kept), 30))
        entry = kept.entry("deaf")
    assert entry is not None
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert "ending the worker that does not stop deaf" in said


# --- names of files -------------------------------------------------------------------------------


def test_models_are_listed_by_folder(tmp_path):
    for name in ("unet/a.gguf", "diffusion_models/sub/b.safetensors", "loras/c.txt", "loras/.d.pt"):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.safetensors").touch()
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "photo.png").touch()
    folders = (ModelFolder(tmp_path / "m"), ModelFolder(tmp_path / "elsewhere", "loras"))
    replaced = {"published.gguf": "a.gguf", "gone.gguf": "nowhere"}
    listing = Listing(folders, tmp_path / "input", replaced)
    assert listing.names("diffusion_models") == ["a.gguf", "published.gguf", "sub/b.safetensors"]
    assert listing.names("unet") == listing.names("diffusion_models")
    assert listing.names("loras") == ["e.safetensors"]
    assert listing.names("loras,unet") == [
        "a.gguf", "e.safetensors", "published.gguf", "sub/b.safetensors",
    ]  # fmt: skip
    assert listing.names("input") == ["photo.png"]
    assert listing.find("loras", "e.safetensors") == tmp_path / "elsewhere" / "e.safetensors"
    assert listing.find("loras", "../input/photo.png") is None
    before = listing.state()
    assert listing.state() == before
    (tmp_path / "elsewhere" / "new.safetensors").touch()
    assert len(listing.state()) == len(before) + 1
