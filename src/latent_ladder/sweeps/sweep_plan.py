"""Plan of a sweep: its points, each with a planned run. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from latent_ladder.checkpoints.selection import ModelSet, select_models
from latent_ladder.errors import RequestError
from latent_ladder.memory.hardware import read_rates
from latent_ladder.pipeline.plan import PlannedStage, RunPlan, make_plan
from latent_ladder.pipeline.run import Prepared
from latent_ladder.pipeline.video_decoder import with_decoder
from latent_ladder.request.fields import MAX_SEED
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.problems import Found, report
from latent_ladder.storage.artifact_store import artefact_key
from latent_ladder.sweeps.axes import MANY, MOST, Axis, Settings, count, describe, settings

VERSION = 1
"""Part of all point keys: raise it when equal points are measured or shown in another way."""

OTHER = "other"
"""Value of a seed axis that stands for another seed than the request's."""


@dataclass(frozen=True)
class Point:
    """One setting of a sweep: ``sets`` as ``--set`` takes them, and the plan without sound.

    ``draft`` is what it is measured against: the input stage of its first refine stage, i.e. the
    upsampled draft before refining. ``None`` if nothing is refined.
    """

    number: int
    settings: Settings
    sets: tuple[str, ...]
    plan: RunPlan
    draft: PlannedStage | None

    @property
    def key(self) -> str:
        """Key of the point: equal keys mean equal numbers and images."""
        plan, draft = self.plan, self.draft
        ids = [plan.models.decoding_vae.id, *([plan.upscale.id] if plan.upscale else [])]
        inputs = [plan.latents.key, *([draft.key] if draft else [])]
        return artefact_key("point", VERSION, plan.request.clip_fields(), inputs, ids)

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        """All stages that the point needs."""
        return self.plan.stages


@dataclass(frozen=True)
class Sweep:
    """Checked points. ``prepared`` is the unchanged clip, ``source`` the argument of the user."""

    prepared: Prepared
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    source: str = ""

    @cached_property
    def id(self) -> str:
        """Id of the sweep: equal for the same points in the same order."""
        keys = [point.key for point in self.points]
        numbered = {"settings": [list(p.sets) for p in self.points]}
        return artefact_key("sweep", VERSION, numbered, keys, ())

    def stages(self) -> dict[str, PlannedStage]:
        """All stages of all points by key."""
        return {stage.key: stage for point in self.points for stage in point.stages}

    def describe(self, point: Point) -> str:
        """A point's settings in a line, without those that all points share."""
        return describe(point.settings, self.axes)


def plan_sweep(
    prepared: Prepared,
    axes: Sequence[Axis],
    *,
    zipped: bool = False,
    agreed: bool = False,
    source: str = "",
) -> Sweep:
    """Plan every point of the axes on the clip that ``prepared`` would make.

    Raises :class:`RequestError` for fields and values that the request refuses, and for more than
    :data:`MANY` points unless ``agreed``.
    """
    many = count(axes, zipped)
    request = prepared.request
    _check_values(request, axes)
    if many > MOST:
        raise RequestError(f"this makes {many} points, more than {MOST}", "remove some values")
    if many > MANY and not agreed:
        hint = "add --yes to make them all, or remove some values"
        raise RequestError(f"this makes {many} points, {_cost(prepared, many)}", hint)
    wanted = [(point, apply_settings(request, point)) for point in settings(axes, zipped)]
    return Sweep(prepared, tuple(axes), plan_points(prepared, wanted), source)


def plan_points(
    prepared: Prepared, wanted: Iterable[tuple[Settings, Request]]
) -> tuple[Point, ...]:
    """Points of any requests, named by their settings. Raises what ``make_plan`` raises."""
    planner = _Planner(prepared)
    return tuple(
        planner.point(number, point, request) for number, (point, request) in enumerate(wanted, 1)
    )


def apply_settings(request: Request, point: Settings) -> Request:
    """The request with the settings of a point. Raises :class:`RequestError`."""
    return Request.from_dict(apply_sets(request.to_dict(), as_sets(request, point)))


def as_sets(request: Request, point: Settings) -> tuple[str, ...]:
    """The settings as ``--set`` takes them; the seed ``other`` becomes a number."""
    return tuple(f"{path}={_seed_value(request, path, value)}" for path, value in point.items())


def _seed_value(request: Request, path: str, value: str) -> str:
    if value != OTHER or path.rpartition(".")[2] != "seed":
        return value
    return str(request.seed - 1 if request.seed == MAX_SEED else request.seed + 1)


def _check_values(request: Request, axes: Sequence[Axis]) -> None:
    """Check every value with the first ones of the other axes; report all problems at once.

    Of a long axis only the first values are checked: each point is checked when it is planned.
    """
    first = {axis.path: axis.values[0] for axis in axes}
    problems: dict[Found, None] = {}
    for axis in axes:
        for value in islice(axis.values, MANY):
            try:
                apply_settings(request, first | {axis.path: value})
            except RequestError as error:
                problems |= dict.fromkeys(error.problems)
    if problems:
        raise report(list(problems))


def _cost(prepared: Prepared, points: int) -> str:
    """Least cost of so many points, in words: stages after stage 1 and the decoding of each."""
    machine = read_rates(prepared.memory.budget.rates_name)
    stages = [s for s in prepared.memory.stages if s.cost.kind in ("upsample", "refine", "decode")]
    pflops = points * sum(stage.cost.flops for stage in stages) / 1e15
    work = f"{pflops:.3g} PFLOP of refining and decoding"
    if machine is None:
        return f"each refined and decoded: {work} (run `ladder bench` once to get times)"
    hours = points * sum(machine.seconds(s) for s in stages if s.cost.flops) / 3600
    return f"each refined and decoded: {work}, about {hours:.2g} h on this machine"


@dataclass
class _Planner:
    """Plans points; models are selected once for each choice of models."""

    prepared: Prepared
    known: dict[tuple[tuple[str, str], ...], ModelSet] = field(default_factory=dict)
    """Models by choices and decoder; points with the same ones share the object."""

    def point(self, number: int, point: Settings, request: Request) -> Point:
        choices = request.models.choices
        named = (("decode.decoder", request.decode.decoder), *sorted(choices.items()))
        if named not in self.known:
            found = select_models(self.prepared.library, choices, request.preset)
            self.known[named] = with_decoder(found, request, lambda: self.prepared.memory.budget)
        plan = make_plan(request, self.known[named], self.prepared.library)
        silent = tuple(stage for stage in plan.stages if stage.kind != "sound")
        sets = as_sets(self.prepared.request, point)
        return Point(number, point, sets, replace(plan, stages=silent), _draft(plan))


def _draft(plan: RunPlan) -> PlannedStage | None:
    """The stage whose latents enter the first refine stage."""
    refine = next((s for s in plan.stages if s.kind == "refine"), None)
    return None if refine is None else plan.stage(refine.inputs[0])
