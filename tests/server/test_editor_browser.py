"""ComfyUI's editor in a real browser: open, run, watch previews, play the result, save, reload.

It runs where playwright, comfyui-frontend-package and Chromium are installed (``make browser``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.browser import PATIENCE_MS, open_browser, skip_or_fail
from helpers.comfyui_server import ComfyUiServer

from latent_ladder.checkpoints.search_paths import model_folders
from latent_ladder.request.model import Request
from latent_ladder.server.preset_graphs import export_request

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@pytest.fixture
def page() -> Iterator[Page]:
    try:
        import comfyui_frontend_package  # noqa: F401
    except ModuleNotFoundError as error:
        skip_or_fail(f"{error.name} is not installed: make browser")
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        # the editor asks for news; the test needs no network
        page.route("https://**", lambda route: route.abort())
        yield page


def store_workflow(folder: Path, name: str) -> None:
    """A saved workflow for a small clip in the user's folder."""
    changes: dict[str, Any] = {"width": 128, "height": 128, "frames": 9, "seed": 3}
    request = Request.from_preset("pocket", prompt="a red ball rolls to the right", **changes)
    workflow = export_request(request, model_folders(), "ui")
    file = folder / "user" / "default" / "workflows" / f"{name}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(workflow))
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False}
    (folder / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))


def open_editor(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function("window.app && window.app.graph")


def open_saved(page: Page, name: str) -> None:
    """Open a saved workflow from the side bar."""
    page.get_by_test_id("workflows-tab-button").click()
    page.get_by_text(name, exact=True).last.click()
    page.wait_for_function("window.app.graph.nodes.length > 10")
    page.get_by_test_id("workflows-tab-button").click()


def test_a_clip_is_made_in_the_editor(page: Page, tmp_path: Path) -> None:
    store_workflow(tmp_path, "small ball")
    failures: list[str] = []
    pictures: list[bytes] = []
    page.on("response", lambda r: failures.append(r.url) if r.status >= 500 else None)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("websocket", lambda ws: ws.on("framereceived", lambda data: _collect(data, pictures)))
    with ComfyUiServer(tmp_path, "--frontend") as server:
        open_editor(page, server.url)
        open_saved(page, "small ball")
        _center_on(page, "SaveVideo")
        page.get_by_test_id("queue-button").first.click()
        _wait_for_jobs(page, server, 1)
        assert pictures, "no previews came"
        video = page.locator("video").first
        video.wait_for(state="attached")
        played = video.evaluate(
            """async v => { v.muted = true; await v.play();
            await new Promise(done => setTimeout(done, 300));
            return [v.videoWidth, v.duration, v.currentTime > 0, v.error]; }"""
        )
        assert played[0] == 128
        assert played[1] == pytest.approx(9 / 24, abs=0.1)
        assert played[2:] == [True, None]
        _set_prompt(page, "a blue square grows")
        page.keyboard.press("Control+s")
        saved = tmp_path / "user" / "default" / "workflows" / "small ball.json"
        _wait(
            page, lambda: "a blue square grows" in saved.read_text(), "the workflow was not saved"
        )
        page.reload()
        open_editor(page, server.url)
        open_saved(page, "small ball")
        assert "a blue square grows" in page.evaluate("JSON.stringify(app.graph.serialize())")
        assert not failures


def _collect(data: Any, pictures: list[bytes]) -> None:
    if isinstance(data, bytes):
        pictures.append(data)


def _center_on(page: Page, kind: str) -> None:
    page.evaluate(
        "kind => { const node = app.graph.nodes.find(n => n.type === kind);"
        "app.canvas.centerOnNode(node); app.canvas.setZoom(0.8); }",
        kind,
    )


def _set_prompt(page: Page, text: str) -> None:
    """Change the prompt as typing does, so that the editor sees a change."""
    page.evaluate(
        "text => { const node = app.graph.nodes.find(n => n.type === 'CLIPTextEncode');"
        "node.widgets[0].value = text; app.extensionManager.workflow.activeWorkflow"
        ".changeTracker.captureCanvasState(); }",
        text,
    )


def _wait_for_jobs(page: Page, server: ComfyUiServer, count: int) -> None:
    def done() -> bool:
        jobs = server.get_json("/api/jobs?status=completed,failed")["jobs"]
        assert all(job["status"] == "completed" for job in jobs), jobs
        return len(jobs) == count

    _wait(page, done, "the job did not end")


def _wait(page: Page, condition: Callable[[], bool], message: str) -> None:
    """Wait inside playwright, which collects the events of the page only there."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < end, message
        page.wait_for_timeout(100)
