"""Pages of clips: self-contained, escaped, with the clips, numbers and commands of all cards."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from latent_ladder.pages.clip_page import ClipCard, ClipPage, clip_page, relative_source
from latent_ladder.pages.parts import bytes_uri, data_uri, write_html

HOSTILE = '<script>alert(1)</script>" onload="x'


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page(*cards: ClipCard, with_table: bool = False) -> str:
    return clip_page(ClipPage("A page", ["2 clips"], cards, "seed = 1", "foot", with_table))


CARDS = (
    ClipCard(1, "seed 3", "a ball", (64, 32), source="data:video/mp4;base64,AA==",
             numbers={"motion": 1.5, "detail": None}, command="ladder refine x:1"),
    ClipCard(2, HOSTILE, HOSTILE, (64, 32), error=HOSTILE, flags=(HOSTILE,)),
)  # fmt: skip


def test_clips_numbers_and_commands_are_on_the_page() -> None:
    text = page(*CARDS, with_table=True)
    elements = Elements(text)
    (video,) = elements.of("video")
    assert video["src"] == "data:video/mp4;base64,AA==" and "muted" in video
    assert len(elements.of("article")) == 2
    assert "<code>ladder refine x:1</code>" in text
    assert "1.50" in text and "–" in text
    assert {a.get("value") for a in elements.of("option")} >= {"number", "n0", "n1"}


def test_texts_of_users_are_escaped_and_nothing_is_loaded() -> None:
    text = page(*CARDS, with_table=True)
    elements = Elements(text)
    assert len(elements.of("script")) == 2
    assert not any("onload" in attributes for _, attributes in elements.found)
    assert not re.search(r"https?://", text)
    policy = next(a["content"] for a in elements.of("meta") if "content" in a and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_files_next_to_the_page_are_named_safely() -> None:
    assert relative_source(Path('a b#1?"<.mp4')) == "a%20b%231%3F%22%3C.mp4"


def test_files_as_data(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"ab")
    assert data_uri(tmp_path / "x", "image/png") == bytes_uri(b"ab", "image/png")
    assert bytes_uri(b"ab", "image/png") == "data:image/png;base64,YWI="
    assert write_html(tmp_path / "p.html", "a\ud800").read_text("utf-8") == "a?"


@pytest.mark.slow
def test_a_page_of_drafts_embeds_every_clip_and_its_command(tmp_path: Path) -> None:
    from fractions import Fraction

    from latent_ladder.drafts.draft_page import write_draft_page
    from latent_ladder.media.contact_sheet import Cell
    from latent_ladder.request.model import Request
    from latent_ladder.storage.run_records import DraftRecord, RunRecord

    request = Request.from_preset("pocket", prompt="a ball", seed=1).to_dict()
    metrics = {"motion": 2.0, "flags": ["static"]}
    drafts = (
        DraftRecord(1, "a ball", 1, status="done", metrics=metrics),
        DraftRecord(2, "a box", 2, status="failed", error="no memory"),
    )
    record = RunRecord("0abc", "2026-01-01T00:00:00+00:00", "ladder draft", request, drafts=drafts)
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    cells = [Cell(1, 1, "a ball", frames), Cell(2, 2, "a box", frames[:0], "no memory")]
    path = tmp_path / "sheet.html"
    write_draft_page(path, record, cells, Fraction(24), store=tmp_path / "s p")
    elements = Elements(text := path.read_text("utf-8"))
    (video,) = elements.of("video")
    assert str(video["src"]).startswith("data:video/mp4;base64,")
    assert str(video["poster"]).startswith("data:image/webp;base64,")
    assert f"ladder refine 0abc:1 -o draft-1.mp4 --store &#x27;{tmp_path}/s p&#x27;" in text
    assert "0abc:2" not in text and "no memory" in text and "static" in text
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.html"]
