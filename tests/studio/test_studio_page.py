"""The page of the studio as people use it, in a real browser, with the pocket model."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.browser import PATIENCE_MS, open_browser
from helpers.comfyui_server import ComfyUiServer
from helpers.stored_runs import add_run, write_clip
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

COMMAND = ("studio", "--no-open")
SCREENS = (
    "make", "drafts", "gallery", "queue", "timeline", "compare", "sweep", "models", "app",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
FAULTS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUiServer]:
    with ComfyUiServer(tmp_path_factory.mktemp("studio"), command=COMMAND) as running:
        yield running


class Watch:
    """A page, and what must not happen on it: errors, and requests to other places."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.faults: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("response", lambda answer: self._judge(answer.status, answer.url))
        page.on("request", lambda request: self._check(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:
            self.faults.append(text)

    def _judge(self, status: int, url: str) -> None:
        # a live preview may be gone when the browser asks for it
        if status >= 400 and "/preview?" not in url:
            self.faults.append(f"{status} for {url}")

    def _check(self, url: str) -> None:
        if not url.startswith((self.address, "blob:", "data:")):
            self.faults.append(f"asked for {url}")

    def show(self, path: str) -> None:
        self.page.goto(f"{self.address}/studio/#/{path}")
        self.page.locator("main h1, main h2").first.wait_for()


@contextmanager
def opened(browser: Browser, server: ComfyUiServer, **options: Any) -> Iterator[Watch]:
    context = browser.new_context(**options)
    watch = Watch(context.new_page(), server.url)
    try:
        yield watch
    finally:
        context.close()
    assert watch.faults == []


def fill_form(page: Page, prompt: str, drafts: int) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Number of drafts").fill(str(drafts))
    page.get_by_label("Seed").fill("5")


def test_from_a_prompt_to_a_refined_clip(
    browser: Browser, server: ComfyUiServer, tmp_path: Path
) -> None:
    """Drafts with a reload in between, a star, refining, comparing, and the run's own page."""
    with opened(browser, server) as watch:
        page = watch.page
        watch.show("make")
        fill_form(page, "a red ball rolls to the right", 2)
        page.get_by_text("512x512").wait_for()
        page.get_by_role("button", name="Draft 2").click()
        page.get_by_role("button", name="Stop draft 2").wait_for()
        page.reload()
        page.get_by_role("button", name="Star draft 2").wait_for()
        page.locator("video").nth(1).wait_for(state="attached")
        page.keyboard.press("2")
        page.locator("button[aria-label='Star draft 2'][aria-pressed=true]").wait_for()
        page.get_by_role("button", name="Choose draft 1").click()
        page.get_by_role("button", name="Choose draft 2").click()
        page.get_by_role("button", name="Compare two").click()
        page.get_by_role("button", name="Difference").click()
        page.locator("output", has_text="/ 25").wait_for()
        page.get_by_role("button", name="Frame on").click()
        page.locator("output", has_text="2 / 25").wait_for()
        page.go_back()
        page.get_by_role("button", name="Choose draft 2").click()
        page.get_by_role("button", name="Refine chosen").click()
        page.get_by_label("Denoise").fill("0.3")
        page.get_by_role("button", name="Refine", exact=True).click()
        page.locator(".job", has_text="Refining").locator(".state.done").wait_for()
        page.locator(".job", has_text="Refining").get_by_role("link").first.click()
        page.get_by_role("button", name="Again with a new seed").wait_for()
        page.locator("video").evaluate(
            "async v => { v.muted = true; await v.play(); return v.videoWidth; }"
        )
        with page.expect_download() as download:
            page.get_by_text("Export as ComfyUI graph").click()
        download.value.save_as(tmp_path / "graph.json")
        watch.show("app")
        page.locator("input[type=file]").set_input_files(tmp_path / "graph.json")
        page.get_by_role("button", name="Run").wait_for()
        assert page.locator("fieldset").count() >= 2


def test_two_pages_show_the_same_queue_and_a_killed_server_comes_back(
    browser: Browser, tmp_path: Path
) -> None:
    first = ComfyUiServer(tmp_path, command=COMMAND)
    port = first.url.rpartition(":")[2]
    second = None
    context = browser.new_context()
    try:
        pages = [context.new_page(), context.new_page()]
        for page in pages:
            page.set_default_timeout(PATIENCE_MS)
            page.goto(f"{first.url}/studio/#/queue")
        first.post("/ladder/queue/pause")
        request = {"prompt": "a red ball rolls to the right", "preset": "pocket"}
        status, _ = first.post("/ladder/jobs", {"kind": "make", "request": request})
        assert status == 201
        for page in pages:
            page.get_by_text("The queue is paused").wait_for()
            page.get_by_text("a red ball rolls to the right").wait_for()
        first.stop(signal.SIGKILL)
        pages[0].get_by_text("The connection to the server is lost").wait_for()
        second = ComfyUiServer(tmp_path, "--port", port, command=COMMAND)
        assert second.url == first.url
        for page in pages:
            page.locator(".offline").wait_for(state="detached")
            page.get_by_text("a red ball rolls to the right").wait_for()
        pages[1].get_by_role("button", name="Stop this job").click()
        pages[0].locator(".state.cancelled").wait_for()
    finally:
        context.close()
        first.stop()
        if second is not None:
            second.stop()


def test_a_picture_is_dropped_and_moved_on_the_timeline(
    browser: Browser, server: ComfyUiServer, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), (200, 40, 40)).save(tmp_path / "first.png")
    (tmp_path / "not a picture.png").write_bytes(b"nothing")
    with opened(browser, server) as watch:
        page = watch.page
        watch.show("make")
        chooser = page.locator("input[type=file]").first
        chooser.set_input_files(tmp_path / "first.png")
        page.get_by_text("first.png").wait_for()
        watch.show("timeline")
        key = page.get_by_role("button", name=re.compile("first.png at frame 0"))
        key.focus()
        page.keyboard.press("ArrowRight")
        page.get_by_role("button", name=re.compile("first.png at frame 1")).wait_for()
        page.reload()
        page.get_by_role("button", name=re.compile("first.png at frame 1")).wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "not a picture.png")
        page.locator(".note.error").wait_for()
        watch.faults.clear()  # the browser itself reports the refusal


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_screen_is_accessible(browser: Browser, server: ComfyUiServer, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, server, color_scheme=scheme, bypass_csp=True) as watch:
        found = []
        for path in SCREENS:
            watch.show(path)
            watch.page.locator(".skeleton").first.wait_for(state="detached")
            report = Axe().run(watch.page).response["violations"]
            found += [
                (path, fault["id"], fault["nodes"][0]["html"][:200])
                for fault in report if fault["impact"] in FAULTS
            ]  # fmt: skip
        assert found == []


def test_a_phone_shows_every_screen_without_scrolling_sideways(
    browser: Browser, server: ComfyUiServer
) -> None:
    with opened(browser, server, viewport=PHONE) as watch:
        for path in SCREENS:
            watch.show(path)
            width = watch.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], path
            inner = watch.page.evaluate("document.getElementById('main').scrollWidth")
            assert inner <= PHONE["width"], path


def test_a_gallery_of_2000_runs_draws_only_what_is_seen(browser: Browser, tmp_path: Path) -> None:
    run = add_run(tmp_path / "store", output=str(write_clip(tmp_path / "ball.mp4")))
    records = tmp_path / "store" / "runs"
    text = (records / f"{run.id}.json").read_text()
    for number in range(1, 2000):
        other = f"0{number:07d}"
        (records / f"{other}.json").write_text(text.replace(run.id, other))
    with (
        ComfyUiServer(tmp_path, command=COMMAND) as server,
        opened(browser, server) as watch,
    ):
        watch.show("gallery")
        watch.page.locator(".card").first.wait_for()
        watch.page.get_by_text("2000 runs").wait_for()
        for _ in range(6):
            watch.page.locator("main").evaluate("m => m.scrollTo(0, m.scrollHeight)")
            watch.page.wait_for_timeout(200)
        assert 0 < watch.page.locator(".card").count() < 100
        assert watch.page.locator("main").evaluate("m => m.scrollTop") > 3000


def test_a_page_of_another_site_can_do_nothing(browser: Browser, server: ComfyUiServer) -> None:
    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>hostile</title>")

        def log_message(self, *_: object) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{site.server_address[1]}/")
        outcome = page.evaluate(
            """async address => {
                const said = [];
                const tries = [["/ladder/queue/pause", "POST"], ["/ladder/state", "GET"]];
                for (const [path, method] of tries) {
                    const sent = fetch(address + path, {method, mode: "no-cors"});
                    said.push(await sent.then(answer => answer.type, () => "refused"));
                }
                said.push(await new Promise(done => {
                    const events = address.replace("http", "ws") + "/ladder/events";
                    const socket = new WebSocket(events);
                    socket.onmessage = () => done("events");
                    socket.onerror = () => done("refused");
                }));
                return said; }""",
            server.url,
        )
        assert outcome[2] == "refused"
        assert "events" not in outcome
        assert server.get_json("/ladder/state")["queue"]["paused"] is False
    finally:
        context.close()
        site.shutdown()
        site.server_close()
