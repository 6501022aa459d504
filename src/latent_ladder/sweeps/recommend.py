"""Which point of a sweep to take, and why; or that the numbers cannot tell.

The rule (docs/guide/sweeps.md): the most detail among the points that keep the motion and do
not tremble. Points that differ only in seeds are one setting tried several times; their spread is
the noise below which settings are not told apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from latent_ladder.sweeps.point_results import Measured

KEPT_SHARE = 0.9
"""A point keeps the motion if its ``motion_kept`` is at least this share of the sweep's highest.

A share, because not all of the loss is one: flow of plain areas is a guess, in either clip.
"""
LEAST_MEASURED = 0.2
"""If no point keeps so much, the flows have nothing in common: motion was not measured."""
LESS_ALIKE = 0.1
"""A point is another picture if its similarity to the draft is so much below the highest."""
MOST_FLICKER = 1.5
"""A point trembles if its flicker is more than this many times its draft's."""

NOISE_DB = 0.5
"""Differences of detail that tell nothing where no seeds were swept: a guess, no measurement."""

Outcome = Literal["recommended", "cannot tell", "adds nothing", "not measured"]
Fault = Literal["loses motion", "another picture", "trembles"]


@dataclass(frozen=True)
class Setting:
    """Points that differ only in seeds, and their mean numbers."""

    points: tuple[int, ...]
    name: str
    motion_kept: float
    detail_added_db: float
    flicker_ratio: float | None
    similarity: float
    fault: Fault | None = None

    @property
    def fits(self) -> bool:
        """Whether it may be recommended."""
        return self.fault is None


@dataclass(frozen=True)
class Choice:
    """The outcome: ``point`` is the one to take, where there is one; ``why`` says it in words.

    ``noise_db`` is what counted as no difference of detail, ``least_kept`` the motion that had to
    be kept, ``tied`` the numbers of points that cannot be told from ``point``.
    """

    outcome: Outcome
    why: str
    point: int | None = None
    tied: tuple[int, ...] = ()
    noise_db: float = NOISE_DB
    least_kept: float | None = None
    settings: tuple[Setting, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def choose_point(
    points: Sequence[Measured], drafts: dict[str, Measured], kept_share: float = KEPT_SHARE
) -> Choice:
    """The recommended point of the measured ones."""
    groups = _grouped(points)
    shared = _shared(points)
    settings = [s for group in groups if (s := _setting(group, drafts, shared)) is not None]
    if not settings:
        return Choice(
            "not measured",
            "There is nothing to choose from: no point was refined from a draft that it could be "
            "measured against.",
        )
    noise, most = _noise_db(groups), max(s.motion_kept for s in settings)
    least = kept_share * most
    alike_least = max(s.similarity for s in settings) - LESS_ALIKE
    judged = tuple(replace(s, fault=_fault(s, least, alike_least)) for s in settings)
    fitting = [s for s in judged if s.fits]
    if most < LEAST_MEASURED or not fitting:
        why = UNMEASURED.format(most) if most < LEAST_MEASURED else TREMBLE
        return Choice("cannot tell", why, None, (), noise, least, judged)
    best = max(fitting, key=lambda s: s.detail_added_db)
    alike = [s for s in fitting if best.detail_added_db - s.detail_added_db <= noise]
    gentle = max(alike, key=lambda s: s.motion_kept)
    tied = tuple(n for s in alike if s is not gentle for n in s.points)
    outcome, why = _words(gentle, alike, judged, noise)
    return Choice(outcome, why, _fullest(gentle, points), tied, noise, least, judged)


PLURAL: Mapping[Fault, str] = {
    "loses motion": "losing motion",
    "another picture": "another picture",
    "trembles": "trembling",
}
UNMEASURED = (
    "Cannot tell: no point keeps more than {:.2f} of the draft's motion, so little that the flows "
    "have nothing in common. Look at the clips yourself."
)
TREMBLE = (
    f"Cannot tell: every point that keeps the draft trembles more than {MOST_FLICKER:g} times as "
    "much as it. Look at them yourself."
)


def _grouped(points: Sequence[Measured]) -> list[list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for point in points:
        groups.setdefault(_name(point, ()), []).append(point)
    return list(groups.values())


def _name(point: Measured, shared: Collection[str]) -> str:
    """The settings but for seeds and what all points share."""
    named = (f"{p}={v}" for p, v in point.settings.items() if not _is_seed(p) and p not in shared)
    return ", ".join(named)


def _shared(points: Sequence[Measured]) -> set[str]:
    """The fields that have one value in all of several points."""
    paths = points[0].settings if len(points) > 1 else ()
    return {path for path in paths if len({p.settings.get(path) for p in points}) == 1}


def _is_seed(path: str) -> bool:
    return path.rpartition(".")[2] == "seed"


def _setting(
    group: Sequence[Measured], drafts: dict[str, Measured], shared: Collection[str]
) -> Setting | None:
    """The mean of a group's measured points; ``None`` where there is none."""
    done = [p for p in group if p.number_of("motion_kept") is not None]
    if not done:
        return None
    ratios = []
    for point in done:
        before = None if point.draft is None else drafts.get(point.draft)
        flicker = point.number_of("flicker")
        base = None if before is None else before.number_of("flicker")
        if flicker is not None and base:
            ratios.append(flicker / base)
    return Setting(
        tuple(p.number for p in done),
        _name(done[0], shared) or "the clip as it is",
        _mean([p.number_of("motion_kept") or 0.0 for p in done]),
        _mean([p.number_of("detail_added_db") or 0.0 for p in done]),
        _mean(ratios) if ratios else None,
        _mean([p.number_of("structure_similarity") or 0.0 for p in done]),
    )


def _fault(setting: Setting, least_kept: float, least_alike: float) -> Fault | None:
    """Why it may not be recommended."""
    if setting.motion_kept < least_kept:
        return "loses motion"
    if setting.similarity < least_alike:
        return "another picture"
    ratio = setting.flicker_ratio
    return "trembles" if ratio is not None and ratio > MOST_FLICKER else None


def _noise_db(groups: Sequence[Sequence[Measured]]) -> float:
    """Twice the standard error of a setting's mean detail, pooled over settings with several seeds.

    :data:`NOISE_DB` where no setting was tried with more than one.
    """
    squares, degrees, most = 0.0, 0, 1
    for group in groups:
        found = [p.number_of("detail_added_db") for p in group]
        values = [value for value in found if value is not None]
        if len(values) > 1:
            mean = _mean(values)
            squares += sum((value - mean) ** 2 for value in values)
            degrees += len(values) - 1
            most = max(most, len(values))
    return 2.0 * math.sqrt(squares / degrees / most) if degrees else NOISE_DB


def _fullest(setting: Setting, points: Sequence[Measured]) -> int:
    """Of a setting's points the one with the most detail."""
    found = {p.number: p.number_of("detail_added_db") for p in points if p.number in setting.points}
    detail = {number: value for number, value in found.items() if value is not None}
    return max(detail, key=detail.__getitem__)


def _words(
    gentle: Setting, alike: Sequence[Setting], judged: Sequence[Setting], noise: float
) -> tuple[Outcome, str]:
    """The outcome and its reason, for people."""
    numbers = f"{gentle.detail_added_db:+.1f} dB of detail, {gentle.motion_kept:.2f} motion kept"
    faults = Counter(s.fault for s in judged if s.fault is not None)
    out = [f"{PLURAL[fault]} {count}" for fault, count in faults.items()]
    left = f" Left out of {len(judged)} settings: {', '.join(out)}." if out else ""
    if max(s.detail_added_db for s in alike) <= noise:
        return "adds nothing", (
            f"No setting that keeps the draft adds fine detail to it beyond {noise:.1f} dB. "
            f"{gentle.name} keeps most of the motion ({numbers}).{left}"
        )
    if len(alike) > 1:
        others = "one other setting" if len(alike) == 2 else f"{len(alike) - 1} other settings"
        return "cannot tell", (
            f"{gentle.name} ({numbers}) cannot be told from {others}: their detail differs by "
            f"{noise:.1f} dB or less. It is the one that keeps the most motion.{left}"
        )
    return "recommended", (
        f"{gentle.name} adds the most detail of the settings that keep the draft ({numbers}).{left}"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
