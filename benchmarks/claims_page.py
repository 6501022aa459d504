"""Write the claims page from the numbers of benchmarks/claims.py: intervals and verdicts.

A verdict compares the 95 % bootstrap interval of a mean over prompts with a threshold that was set
before measuring (the constants below). All comparisons are paired: same prompts and drafts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Literal

import numpy as np

HERE = Path(__file__).parent
Arm = str
BASE_ARM = 0.48
DENOISE = (0.1, 0.2, 0.35, 0.48, 0.55, 0.7, 0.83)
RECOMMENDED = (0.35, 0.48, 0.55)
STRONG = (0.7, 0.83)
WEAKEST = 0.1

KEPT_SHARE = 0.9
"""Motion is kept if `motion_kept` is at least this share of that of the weakest refine."""
NOTHING_DB = 0.5
"""A detail gain below this counts as nothing added."""
RESAMPLES = 10_000

Verdict = Literal["holds", "does not hold", "undecided"]
Body = Mapping[str, Any]


@dataclass(frozen=True)
class Mean:
    """Mean over prompts with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def format(self, digits: int = 2, unit: str = "", *, sign: bool = False) -> str:
        """Format as "0.91 (0.88 to 0.93)"."""
        plus = "+" if sign else ""
        parts = [
            f"{v:{plus}.{digits}f}".replace("-", "−") for v in (self.mean, self.low, self.high)
        ]
        return f"{parts[0]}{unit} ({parts[1]} to {parts[2]})"


def mean_of(values: Sequence[float], share: float = 0.95) -> Mean:
    """Mean and percentile bootstrap interval; the same values give the same interval."""
    data = np.asarray([v for v in values if v is not None and math.isfinite(v)], np.float64)
    if not len(data):
        return Mean(math.nan, -math.inf, math.inf, 0)
    picks = np.random.default_rng(0).integers(0, len(data), (RESAMPLES, len(data)))
    tail = 50.0 * (1.0 - share)
    low, high = np.percentile(data[picks].mean(1), [tail, 100.0 - tail])
    return Mean(float(data.mean()), float(low), float(high), len(data))


def ratio_of(values: Sequence[float], to: Sequence[float]) -> Mean:
    """Ratio of two means over the same prompts, with its interval."""
    a, b = np.asarray(values, np.float64), np.asarray(to, np.float64)
    picks = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    low, high = np.percentile(a[picks].mean(1) / b[picks].mean(1), [2.5, 97.5])
    return Mean(float(a.mean() / b.mean()), float(low), float(high), len(a))


def above(found: Mean, line: float) -> Verdict:
    """Verdict on the claim that the mean is above ``line``."""
    if found.low > line:
        return "holds"
    return "does not hold" if found.high < line else "undecided"


def below(found: Mean, line: float) -> Verdict:
    """Verdict on the claim that the mean is below ``line``."""
    return above(Mean(-found.mean, -found.high, -found.low, found.n), -line)


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdict of a claim with several parts: holds if all hold, does not if one does not."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if all(v == "holds" for v in verdicts) else "undecided"


@dataclass(frozen=True)
class Part:
    """One measured part of a claim."""

    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Numbers:
    """Numbers of all prompts."""

    rows: Sequence[Mapping[str, Any]]

    def of(self, arm: Arm, name: str, table: str = "") -> list[float]:
        """One number of an arm for each prompt; ``table``: key of the comparison, if any."""
        found = [row["arms"][arm] for row in self.rows]
        return [(f[table] if table else f)[name] for f in found]

    def differ(self, a: Arm, b: Arm, name: str, table: str = "") -> Mean:
        """Mean of a - b over prompts."""
        return mean_of(_minus(self.of(a, name, table), self.of(b, name, table)))

    def detail_db(self, arm: Arm) -> list[float]:
        """Detail of the clips of an arm, in dB relative to one level."""
        return [20.0 * math.log10(max(v, 1e-3)) for v in self.of(arm, "detail")]

    def kept_share(self, share: float) -> Mean:
        """Motion kept at a denoise, relative to that of the weakest refine."""
        weakest = self.of(denoise(WEAKEST), "motion_kept", "against")
        return ratio_of(self.of(denoise(share), "motion_kept", "against"), weakest)


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def denoise(share: float) -> Arm:
    """Name of the arm with a denoise."""
    return f"denoise {share:g}"


# --- claims --------------------------------------------------------------------------------------


def keeps_motion(x: Numbers) -> list[Part]:
    """Claim: 0.35 to 0.55 keeps motion."""
    out = []
    for share in RECOMMENDED:
        kept = x.kept_share(share)
        out.append(Part(f"{share:g}: {kept.format()} of the motion", above(kept, KEPT_SHARE)))
    return out


def adds_detail(x: Numbers) -> list[Part]:
    """Claim: 0.35 to 0.55 adds detail."""
    out = []
    for share in RECOMMENDED:
        added = mean_of(x.of(denoise(share), "detail_added_db", "against"))
        out.append(Part(f"{share:g}: {added.format(1, ' dB', sign=True)}", above(added, 0.0)))
    return out


def overrides(x: Numbers) -> list[Part]:
    """Claim: above 0.7 stage 2 replaces the motion."""
    out = []
    for share in STRONG:
        kept = x.kept_share(share)
        out.append(Part(f"{share:g}: {kept.format()} of the motion", below(kept, KEPT_SHARE)))
    return out


def weak_adds_nothing(x: Numbers) -> list[Part]:
    """Claim: below 0.2 nothing is added."""
    added = mean_of(x.of(denoise(WEAKEST), "detail_added_db", "against"))
    verdict = below(added, NOTHING_DB)
    return [Part(f"{WEAKEST:g}: {added.format(1, ' dB', sign=True)}", verdict)]


def beats_more_steps(x: Numbers) -> list[Part]:
    """Claim: 0.35 to 0.48 adds more than doubling the steps of stage 1."""
    start = x.detail_db(denoise(0.35))
    stronger = mean_of(_minus(x.detail_db(denoise(BASE_ARM)), start))
    longer = mean_of(_minus(x.detail_db("twice the steps"), start))
    gain = mean_of(_minus(x.detail_db(denoise(BASE_ARM)), x.detail_db("twice the steps")))
    return [
        Part(f"0.35 to 0.48 adds {stronger.format(2, ' dB', sign=True)}", above(stronger, 0.0)),
        Part(
            f"twice the stage-1 steps add {longer.format(2, ' dB', sign=True)}; the difference is "
            f"{gain.format(2, ' dB', sign=True)}",
            above(gain, 0.0),
        ),
    ]


HURTS: tuple[tuple[str, str, str, int, float, float], ...] = (
    ("motion kept", "motion_kept", "against", 3, -1.0, 0.02),
    ("similarity to the draft", "structure_similarity", "against", 3, -1.0, 0.01),
    ("flicker", "flicker", "", 3, 1.0, 0.05),
    ("warping error", "warping_error", "", 3, 1.0, 0.1),
)
"""Label, number, table, digits, sign that is worse, and the largest difference that is ignored."""


def other_seed_hurts(x: Numbers) -> list[Part]:
    """Claim: another stage-2 seed makes the result worse.

    It holds if one of four numbers is worse (Bonferroni correction) by more than the ignored
    difference, and does not if all are within it.
    """
    out: list[Part] = []
    for label, name, table, digits, worse, nothing in HURTS:
        other, same = x.of("other seed", name, table), x.of(denoise(BASE_ARM), name, table)
        found = mean_of(_minus(other, same), 1.0 - 0.05 / len(HURTS))
        bad = mean_of([worse * v for v in _minus(other, same)], 1.0 - 0.05 / len(HURTS))
        verdict: Verdict = "does not hold" if bad.high < nothing else "undecided"
        if bad.low > 0 and bad.mean > nothing:
            verdict = "holds"
        out.append(Part(f"{label} {found.format(digits, sign=True)}", verdict))
    return out


def any_worse(parts: Sequence[Part]) -> Verdict:
    """Verdict of the seed claim from its parts: holds if any part holds."""
    verdicts = [part.verdict for part in parts]
    if "holds" in verdicts:
        return "holds"
    return "does not hold" if all(v == "does not hold" for v in verdicts) else "undecided"


def against_single(x: Numbers, body: Body) -> list[tuple[str, Part]]:
    """Claims: two stages are better than one pass at the same size, per number."""
    two, one = denoise(BASE_ARM), "single pass"
    clock = clock_of(body)
    time = ratio_of(x.of(one, clock), x.of(two, clock))
    rows = [
        ("faster", Part(f"one pass takes {time.format(2, ' times')} the time", above(time, 1.0)))
    ]
    alone = body["alone"]
    if alone:
        peaks = [[pair[arm]["peak_bytes"] / 2**20 for pair in alone] for arm in (two, one)]
        both = ratio_of(peaks[1], peaks[0])
        text = f"one pass peaks at {both.format(2, ' times')} the memory"
        text = (
            f"{text}: {np.mean(peaks[1]):.0f} against {np.mean(peaks[0]):.0f} MiB, {both.n} clips"
        )
        rows.append(("less memory", Part(text, above(both, 1.0))))
    drift = x.differ(two, one, "color_drift")
    rows.append(("less drift", Part(f"{drift.format(2, ' dE', sign=True)}", below(drift, 0.0))))
    detail = mean_of(_minus(x.detail_db(two), x.detail_db(one)))
    rows.append(("more detail", Part(f"{detail.format(1, ' dB', sign=True)}", above(detail, 0.0))))
    steady = x.differ(two, one, "flicker")
    text = f"flicker {steady.format(2, ' levels', sign=True)}"
    rows.append(("steadier", Part(text, below(steady, 0.0))))
    return rows


def latent_beats_pixels(x: Numbers, body: Body) -> list[tuple[str, Part]]:
    """Claims: latent upsampling is better than Lanczos on frames, both refined in the same way."""
    latent, pixel, table = denoise(BASE_ARM), "pixel upscale", "against stage 1"
    detail = x.differ(latent, pixel, "detail_added_db", table)
    kept = x.differ(latent, pixel, "motion_kept", table)
    alike = x.differ(latent, pixel, "structure_similarity", table)
    name = f"stage_2_{clock_of(body)}"
    time = ratio_of(x.of(pixel, name), x.of(latent, name))
    return [
        ("more detail", Part(detail.format(1, " dB", sign=True), above(detail, 0.0))),
        ("keeps more motion", Part(kept.format(3, sign=True), above(kept, 0.0))),
        (
            "keeps more of the picture",
            Part(f"SSIM {alike.format(3, sign=True)}", above(alike, 0.0)),
        ),
        ("faster", Part(f"pixels take {time.format(1, ' times')} the time", above(time, 1.0))),
    ]


def clock_of(body: Body) -> str:
    """Key of the time to compare: processor time on the CPU, otherwise wall time."""
    return "cpu_s" if body["device"] == "cpu" else "seconds"


# --- page ----------------------------------------------------------------------------------------


def page(body: Body) -> str:
    """Write the whole page in Markdown."""
    x = Numbers(list(body["rows"].values()))
    verdict_text = _verdict_formatter(body)
    claims: list[tuple[str, Verdict, str]] = []

    def claim(text: str, parts: Sequence[Part], join: Callable[..., Verdict] | None = None) -> None:
        verdict = all_of([p.verdict for p in parts]) if join is None else join(parts)
        claims.append((text, verdict, "; ".join(p.text for p in parts)))

    claim("denoise 0.35 to 0.55 keeps the motion", keeps_motion(x))
    claim("denoise 0.35 to 0.55 adds detail", adds_detail(x))
    claim("above 0.7 stage 2 overrides the motion", overrides(x))
    claim("below 0.2 it adds nothing", weak_adds_nothing(x))
    claim("0.35 to 0.48 adds more detail than twice the stage-1 steps", beats_more_steps(x))
    claim("another stage-2 seed hurts", other_seed_hurts(x), any_worse)
    for name, part in against_single(x, body):
        claim(f"two stages against one pass: {name}", [part])
    for name, part in latent_beats_pixels(x, body):
        claim(f"latent upsampling against Lanczos: {name}", [part])
    rows = "\n".join(
        f"| {text} | **{verdict_text(v)}** | {numbers} |" for text, v, numbers in claims
    )
    caveats = "claims_pocket.md" if body["is_pocket"] else "claims_world.md"
    return Template((HERE / "claims_template.md").read_text("utf-8")).substitute(
        head=_head(body, len(x.rows)),
        rows=rows,
        sweep=_sweep(x, body),
        arms=_arms(x, body),
        seeds=_seeds(x),
        nothing=f"{NOTHING_DB:g}",
        kept=f"{KEPT_SHARE:g}",
        weakest=f"{WEAKEST:g}",
        caveats=(HERE / caveats).read_text("utf-8").strip(),
    )


def _verdict_formatter(body: Body) -> Callable[[Verdict], str]:
    where = " on the pocket" if body["is_pocket"] else ""
    return lambda verdict: verdict + (where if verdict == "undecided" else "")


def _head(body: Body, prompts: int) -> str:
    (w, h), (sw, sh), steps = body["size"], body["stage_1"], body["steps"]
    single = prompts < 24
    trial_note = " **Fewer than 24 prompts: a trial, not a result.**" if single else ""
    return (
        f"{prompts} prompts, preset `{body['preset']}`, {sw}x{sh} to {w}x{h}, "
        f"{body['frames']} frames at {body['fps']:g} fps, {steps[0]} + {steps[1]} steps, "
        f"on {body['device']}, {body['made']}.{trial_note}"
    )


def _sweep(x: Numbers, body: Body) -> str:
    lines = []
    for share in DENOISE:
        arm = denoise(share)
        table = "against"
        cells = [
            f"{share:g}",
            f"{body['start_sigmas'][arm]:.3f}",
            mean_of(x.of(arm, "motion_kept", table)).format(),
            x.kept_share(share).format(),
            mean_of(x.of(arm, "detail_added_db", table)).format(1, sign=True),
            mean_of(x.of(arm, "structure_similarity", table)).format(3),
            mean_of(x.of(arm, "flicker")).format(),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seeds(x: Numbers) -> str:
    """Standard deviation of a clip's detail over stage-2 seeds of one draft, in dB."""
    apart = _minus(x.detail_db("other seed"), x.detail_db(denoise(BASE_ARM)))
    return f"{math.sqrt(sum(d * d for d in apart) / len(apart) / 2):.2f}"


def _arms(x: Numbers, body: Body) -> str:
    names = [denoise(BASE_ARM), "other seed", "twice the steps", "single pass", "pixel upscale"]
    lines = []
    for arm in names:
        cells = [arm, mean_of(x.detail_db(arm)).format(1)]
        cells += [
            mean_of(x.of(arm, n)).format() for n in ("flicker", "warping_error", "color_drift")
        ]
        cells.append(
            "–" if arm == "pixel upscale" else mean_of(x.of(arm, clock_of(body))).format(1)
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
