"""Page of several clips that play side by side, each with its numbers and the command to go on.

A clip is embedded, or a file next to the page. The page runs no script but its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from latent_ladder.pages.parts import BASE_CSS, BASE_JS, HERE, size_and_theme

CARD_PX, SMALL_CARD_PX, MANY_CARDS = 300, 220, 12
"""Width of a card, of one of many, and how many these are."""


@dataclass(frozen=True)
class ClipCard:
    """One clip of the page.

    ``source`` is a ``data:`` address or a path relative to the page, empty for a clip that failed;
    ``poster`` is a ``data:`` address of a picture, shown until the clip plays. ``numbers`` are
    measures by their name; ``flags`` are likely faults, ``error`` the reason of a failure.
    ``command`` continues with the clip. ``facts`` are further columns of the table.
    """

    number: int
    name: str
    prompt: str
    size: tuple[int, int]
    source: str = ""
    poster: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    flags: Sequence[str] = ()
    error: str = ""
    command: str = ""
    has_sound: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipPage:
    """The whole page: ``meta`` are facts about all clips, ``request`` is TOML text."""

    title: str
    meta: Sequence[str]
    cards: Sequence[ClipCard]
    request: str
    footer: str
    with_table: bool = False


def clip_page(page: ClipPage) -> str:
    """The page as HTML text."""
    parts = {name: (HERE / f"clips.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    prompts = {card.prompt for card in page.cards}
    width = CARD_PX if len(page.cards) <= MANY_CARDS else SMALL_CARD_PX
    return Template(parts["html"]).substitute(
        base_css=BASE_CSS.read_text("utf-8"),
        base_js=BASE_JS.read_text("utf-8"),
        css=parts["css"],
        js=parts["js"],
        title=escape(page.title),
        meta=" · ".join(escape(fact) for fact in page.meta),
        orders=_orders(page.cards),
        controls=size_and_theme(width),
        width=width,
        cards="\n".join(_card(card, len(prompts) > 1) for card in page.cards),
        table=_table(page.cards) if page.with_table else "",
        request=escape(page.request),
        footer=escape(page.footer),
    )


def relative_source(path: Path) -> str:
    """The address of a file next to the page."""
    return quote(path.as_posix())


def _number_names(cards: Sequence[ClipCard]) -> list[str]:
    return list(dict.fromkeys(name for card in cards for name in card.numbers))


def _orders(cards: Sequence[ClipCard]) -> str:
    names = _number_names(cards)
    return '<option value="number">number</option>' + "".join(
        f'<option value="n{i}">{escape(name)}</option>' for i, name in enumerate(names)
    )


def _card(card: ClipCard, with_prompt: bool) -> str:
    badge = "".join(f'<span class="badge warn">{escape(flag)}</span>' for flag in card.flags)
    values = "".join(
        f' data-n{i}="{value:.6g}"'
        for i, value in enumerate(card.numbers.values())
        if value is not None
    )
    text = f'<p class="text">{escape(card.prompt)}</p>' if with_prompt else ""
    return (
        f'<article class="card" id="c{card.number}" data-number="{card.number}"{values}>'
        f'{_picture(card)}<header><span class="no">#{card.number}</span>{badge}'
        f'<h3 title="{escape(card.name)}">{escape(card.name)}</h3></header>{text}'
        f"{_numbers(card)}{_command(card)}</article>"
    )


def _picture(card: ClipCard) -> str:
    if card.error:
        return f'<p class="error">{escape(card.error)}</p>'
    width, height = card.size
    shape = f'class="clip" width="{width}" height="{height}" style="aspect-ratio:{width}/{height}"'
    label = f'aria-label="clip {card.number}"'
    if not card.source:
        return f'<img {shape} alt="clip {card.number}" src="{card.poster}">' if card.poster else ""
    poster = f' poster="{card.poster}"' if card.poster else ""
    controls = "controls " if card.has_sound else ""
    return (
        f'<video {shape} {label} {controls}muted loop playsinline preload="metadata"{poster} '
        f'src="{card.source}"></video>'
    )


def _numbers(card: ClipCard) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value:.2f}</dd></div>"
        for name, value in card.numbers.items()
        if value is not None
    )
    return f'<dl class="numbers">{rows}</dl>' if rows else ""


def _command(card: ClipCard) -> str:
    if not card.command:
        return ""
    return (
        f'<div class="command"><code>{escape(card.command)}</code>'
        '<button type="button" data-copy>Copy</button></div>'
    )


def _table(cards: Sequence[ClipCard]) -> str:
    names = _number_names(cards)
    facts = list(dict.fromkeys(name for card in cards for name in card.facts))
    head = "".join(f'<th scope="col" class="text">{escape(n)}</th>' for n in ("clip", *facts))
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for card in cards:
        cells = f'<td class="text"><a href="#c{card.number}">{card.number}</a></td>'
        cells += "".join(f'<td class="text">{escape(card.facts.get(f, ""))}</td>' for f in facts)
        for name in names:
            value = card.numbers.get(name)
            cells += f"<td>{'–' if value is None else f'{value:.2f}'}</td>"
        rows.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
