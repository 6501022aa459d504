"""Which point of a sweep to take, and why; or that the numbers cannot tell.

The rule, in words in docs/sweeps.md: the most detail among the points that keep the motion and do
not tremble. Points that differ only in seeds are one setting tried several times; their spread is
the noise below which settings are not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from latent_ladder.sweeps.results import Measured

KEPT_SHARE = 0.9
"""A point keeps the motion if its ``motion_kept`` is at least this share of the sweep's highest.

A share, because not all of the loss is one: flow of plain areas is a guess, in either clip.
"""
MOST_FLICKER = 1.5
"""A point trembles if its flicker is more than this many times its draft's."""

NOISE_DB = 0.5
"""Differences of detail that tell nothing where no seeds were swept: a guess, no measurement."""

TREMBLE = (
    "Cannot tell: every point that keeps the motion trembles more than "
    f"{MOST_FLICKER:g} times as much as its draft. Look at them yourself."
)

Outcome = Literal["recommended", "cannot tell", "adds nothing", "not measured"]


@dataclass(frozen=True)
class Setting:
    """Points that differ only in seeds, and their mean numbers."""

    points: tuple[int, ...]
    name: str
    motion_kept: float
    detail_added_db: float
    flicker_ratio: float | None
    keeps_motion: bool = True
    trembles: bool = False

    @property
    def fits(self) -> bool:
        """Whether it may be recommended."""
        return self.keeps_motion and not self.trembles


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
    noise = _noise_db(groups)
    least = kept_share * max(s.motion_kept for s in settings)
    judged = tuple(_judged(s, least) for s in settings)
    fitting = [s for s in judged if s.fits]
    if not fitting:
        return Choice("cannot tell", TREMBLE, None, (), noise, least, judged)
    best = max(fitting, key=lambda s: s.detail_added_db)
    alike = [s for s in fitting if best.detail_added_db - s.detail_added_db <= noise]
    gentle = max(alike, key=lambda s: s.motion_kept)
    tied = tuple(n for s in alike if s is not gentle for n in s.points)
    point = _nearest(gentle, points)
    outcome, why = _words(gentle, alike, judged, noise, kept_share)
    return Choice(outcome, why, point, tied, noise, least, judged)


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
    )


def _judged(setting: Setting, least: float) -> Setting:
    ratio = setting.flicker_ratio
    trembles = ratio is not None and ratio > MOST_FLICKER
    return replace(setting, keeps_motion=setting.motion_kept >= least, trembles=trembles)


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


def _nearest(setting: Setting, points: Sequence[Measured]) -> int:
    """Of a setting's points the one with the most detail."""
    mine = [p for p in points if p.number in setting.points]
    return max(mine, key=lambda p: p.number_of("detail_added_db") or -math.inf).number


def _words(
    gentle: Setting,
    alike: Sequence[Setting],
    judged: Sequence[Setting],
    noise: float,
    kept_share: float,
) -> tuple[Outcome, str]:
    """The outcome and its reason, for people."""
    numbers = f"{gentle.detail_added_db:+.1f} dB of detail, {gentle.motion_kept:.2f} motion kept"
    lost = [s for s in judged if not s.keeps_motion]
    left = (
        f" {len(lost)} settings keep less than {kept_share:.0%} of the most motion kept."
        if lost
        else ""
    )
    trembling = [s for s in judged if s.keeps_motion and s.trembles]
    left += f" {len(trembling)} settings tremble." if trembling else ""
    if max(s.detail_added_db for s in alike) <= noise:
        return "adds nothing", (
            f"No point that keeps the motion adds fine detail to the upsampled draft beyond "
            f"{noise:.1f} dB. {gentle.name} loses least of the motion ({numbers}).{left}"
        )
    if len(alike) > 1:
        others = len(alike) - 1
        return "cannot tell", (
            f"{gentle.name} ({numbers}) cannot be told from {others} other "
            f"{'setting' if others == 1 else 'settings'}: their detail differs by {noise:.1f} dB "
            f"or less. It is the one that keeps the most motion.{left}"
        )
    return "recommended", (
        f"{gentle.name} adds the most detail of the points that keep the motion ({numbers}).{left}"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
