"""Recommendation of a point of a sweep with its reason, or the statement that there is none.

The rule (docs/guide/sweeps.md): the most detail among the points that keep the motion and do not
flicker. Points that differ only in seeds count as one setting; the spread between them is the
noise, and smaller differences between settings are ignored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from latent_ladder.sweeps.point_results import PointResult

KEPT_SHARE = 0.9
"""A point keeps the motion if its ``motion_kept`` is at least this share of the sweep's highest.

A share, because a part of the loss is an error of measurement: the optical flow of plain areas is
a guess in both clips.
"""
LEAST_MEASURED = 0.2
"""If all points keep less, the flows have nothing in common and motion could not be measured."""
LESS_ALIKE = 0.1
"""A point shows another picture if its similarity to the draft is this far below the highest."""
MOST_FLICKER = 1.5
"""A point "trembles" if its flicker is more than this many times its draft's."""

NOISE_DB = 0.5
"""Noise of the detail in dB if no seeds were swept: a fixed guess, not a measurement."""

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
        """True if the setting may be recommended."""
        return self.fault is None


@dataclass(frozen=True)
class Choice:
    """The outcome: ``point`` is the recommended one, if any; ``why`` is the reason in words.

    ``noise_db`` is the difference of detail that counts as none, ``least_kept`` the share of
    motion that had to be kept, ``tied`` the numbers of points as good as ``point``.
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
    points: Sequence[PointResult], drafts: dict[str, PointResult], kept_share: float = KEPT_SHARE
) -> Choice:
    """The recommended point of the measured ones."""
    groups = _group_by_setting(points)
    shared = _shared_fields(points)
    settings = [s for group in groups if (s := _setting(group, drafts, shared)) is not None]
    if not settings:
        return Choice(
            "not measured",
            "No point can be compared: none was refined from a draft.",
        )
    noise, most = _noise_db(groups), max(s.motion_kept for s in settings)
    least = kept_share * most
    alike_least = max(s.similarity for s in settings) - LESS_ALIKE
    judged = tuple(replace(s, fault=_fault(s, least, alike_least)) for s in settings)
    fitting = [s for s in judged if s.fits]
    if most < LEAST_MEASURED or not fitting:
        why = UNMEASURED.format(most) if most < LEAST_MEASURED else FLICKERS
        return Choice("cannot tell", why, None, (), noise, least, judged)
    best = max(fitting, key=lambda s: s.detail_added_db)
    alike = [s for s in fitting if best.detail_added_db - s.detail_added_db <= noise]
    gentle = max(alike, key=lambda s: s.motion_kept)
    tied = tuple(n for s in alike if s is not gentle for n in s.points)
    outcome, why = _explain(gentle, alike, judged, noise)
    return Choice(outcome, why, _most_detailed(gentle, points), tied, noise, least, judged)


PLURAL: Mapping[Fault, str] = {
    "loses motion": "lose motion",
    "another picture": "show another picture",
    "trembles": "flicker",
}
UNMEASURED = (
    "No recommendation: no point keeps more than {:.2f} of the draft's motion, which is too little "
    "to compare. Compare the clips by eye."
)
FLICKERS = (
    f"No recommendation: every point that keeps the draft's motion flickers more than "
    f"{MOST_FLICKER:g} times as much as the draft. Compare the clips by eye."
)


def _group_by_setting(points: Sequence[PointResult]) -> list[list[PointResult]]:
    groups: dict[str, list[PointResult]] = {}
    for point in points:
        groups.setdefault(_name(point, ()), []).append(point)
    return list(groups.values())


def _name(point: PointResult, shared: Collection[str]) -> str:
    """The settings without seeds and without those that all points share."""
    named = (f"{p}={v}" for p, v in point.settings.items() if not _is_seed(p) and p not in shared)
    return ", ".join(named)


def _shared_fields(points: Sequence[PointResult]) -> set[str]:
    """The fields that have one value in all of several points."""
    paths = points[0].settings if len(points) > 1 else ()
    return {path for path in paths if len({p.settings.get(path) for p in points}) == 1}


def _is_seed(path: str) -> bool:
    return path.rpartition(".")[2] == "seed"


def _setting(
    group: Sequence[PointResult], drafts: dict[str, PointResult], shared: Collection[str]
) -> Setting | None:
    """Means of a group's measured points; ``None`` if none was measured."""
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
        _name(done[0], shared) or "the unchanged clip",
        _mean([p.number_of("motion_kept") or 0.0 for p in done]),
        _mean([p.number_of("detail_added_db") or 0.0 for p in done]),
        _mean(ratios) if ratios else None,
        _mean([p.number_of("structure_similarity") or 0.0 for p in done]),
    )


def _fault(setting: Setting, least_kept: float, least_alike: float) -> Fault | None:
    """The reason not to recommend a setting, ``None`` if there is none."""
    if setting.motion_kept < least_kept:
        return "loses motion"
    if setting.similarity < least_alike:
        return "another picture"
    ratio = setting.flicker_ratio
    return "trembles" if ratio is not None and ratio > MOST_FLICKER else None


def _noise_db(groups: Sequence[Sequence[PointResult]]) -> float:
    """Twice the standard error of a setting's mean detail, pooled over settings with several seeds.

    :data:`NOISE_DB` if no setting has more than one seed.
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


def _most_detailed(setting: Setting, points: Sequence[PointResult]) -> int:
    """Number of the point with the most detail of a setting."""
    found = {p.number: p.number_of("detail_added_db") for p in points if p.number in setting.points}
    detail = {number: value for number, value in found.items() if value is not None}
    return max(detail, key=detail.__getitem__)


def _explain(
    gentle: Setting, alike: Sequence[Setting], judged: Sequence[Setting], noise: float
) -> tuple[Outcome, str]:
    """The outcome and its reason as sentences."""
    numbers = f"{gentle.detail_added_db:+.1f} dB of detail, {gentle.motion_kept:.2f} motion kept"
    faults = Counter(s.fault for s in judged if s.fault is not None)
    out = [f"{count} {PLURAL[fault]}" for fault, count in faults.items()]
    left = f" Not considered, of {len(judged)} settings: {', '.join(out)}." if out else ""
    if max(s.detail_added_db for s in alike) <= noise:
        return "adds nothing", (
            f"No setting that keeps the draft's motion adds over {noise:.1f} dB of fine detail. "
            f"{gentle.name} keeps most of the motion ({numbers}).{left}"
        )
    if len(alike) > 1:
        others = "one other setting" if len(alike) == 2 else f"{len(alike) - 1} other settings"
        return "cannot tell", (
            f"{gentle.name} ({numbers}) and {others} are equally good: their detail differs by "
            f"{noise:.1f} dB or less. {gentle.name} keeps the most motion of them.{left}"
        )
    return "recommended", (
        f"{gentle.name} adds the most detail of the settings that keep the draft's motion "
        f"({numbers}).{left}"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
