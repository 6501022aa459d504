"""Sweeps on the tiny checkpoint of the goldens: what is shared, resumed, failed, chosen, shown."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from helpers.request_stages import stages_of
from helpers.tiny_clips import GOLDEN, request_with
from typer.testing import CliRunner, Result

from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.cli.commands import sweep as command
from latent_ladder.drafts.selection import choose
from latent_ladder.errors import Cancelled, MediaError, RequestError
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.pipeline.events import Event, PointDone, StageDone, StageStarted, StepDone
from latent_ladder.pipeline.run import Cancel, RunOptions, prepare
from latent_ladder.storage.artifact_store import Store
from latent_ladder.sweeps.axes import count, parse_axes, settings
from latent_ladder.sweeps.export import check_folder, write_files
from latent_ladder.sweeps.html_report import Report, html
from latent_ladder.sweeps.point_results import PointResult
from latent_ladder.sweeps.recommend import choose_point
from latent_ladder.sweeps.svg_plot import ticks
from latent_ladder.sweeps.sweep_plan import Sweep, plan_sweep
from latent_ladder.sweeps.sweep_run import SweepResult, run_sweep

SETS = ["refine.denoise=0.3:0.7:0.2", "refine.seed=same,other", "refine.lora=0.5,1.0"]
TINY = ["--set", "models.checkpoint=tiny-ltx-2.3.safetensors", "--models", str(GOLDEN)]


# --- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=0.2:0.8:0.1", ("0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8")),
        ("a=0.8:0.2:-0.3", ("0.8", "0.5", "0.2")),
        ("a=0:1:0.4", ("0", "0.4", "0.8")),
        ("a=1:3:1,9,1", ("1", "2", "3", "9")),
        ("a=same,other", ("same", "other")),
        ("a=[0.9,0.5,0],[0.7,0]", ("[0.9,0.5,0]", "[0.7,0]")),
        ('a="x, y",a cat\'s, z', ('"x, y"', "a cat's", "z")),
        ("a=30000/1001", ("30000/1001",)),
    ],
)
def test_values_of_an_axis(text: str, values: tuple[str, ...]) -> None:
    assert parse_axes([text])[0].values == values


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a=0.2:0.8", "without a step", "a=0.2:0.8:STEP"),
        ("a=0.2:0.8:-0.1", "never reaches its end", "0.2:0.8:0.1"),
        ("a=0:1:0", "never reaches its end", "0:1:1"),
        ("a=0:1:0.0000001", "more than 100000", "larger step"),
        ("a=1,,2", "empty value", "comma"),
        ("a=[1,2", "open bracket", "close"),
        ("a", "not path=values", "refine.denoise"),
    ],
)
def test_what_is_no_axis(text: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as refused:
        parse_axes([text])
    assert hint in (refused.value.hint or "")


def test_product_and_zip() -> None:
    axes = parse_axes(["a=1,2,3", "b=x,y,z", "c=0"])
    assert count(axes) == 9
    assert [tuple(s.values()) for s in settings(axes)][:4] == [
        ("1", "x", "0"), ("1", "y", "0"), ("1", "z", "0"), ("2", "x", "0"),
    ]  # fmt: skip
    assert [tuple(s.values()) for s in settings(axes, True)] == [
        ("1", "x", "0"), ("2", "y", "0"), ("3", "z", "0"),
    ]  # fmt: skip
    with pytest.raises(RequestError, match="as many values"):
        count(parse_axes(["a=1,2,3", "b=1,2"]), True)
    with pytest.raises(RequestError, match="swept twice"):
        parse_axes(["a=1", "a=2"])


# --- planning ------------------------------------------------------------------------------------


Swept = tuple[Sweep, SweepResult, list[Event], Store, Path]


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


def planned(library: Library, store: Store, sets: Sequence[str] = SETS, **options: Any) -> Sweep:
    return plan_sweep(prepare(request_with(), library, store), parse_axes(sets), **options)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["refine.denose=0.2,0.3"], "did you mean denoise"),
        (["refine.denoise=0:1:0.5"], "refine.denoise=0"),
        (["refine.denoise=0.3", "refine[3].seed=1"], "no stage refine[3]"),
        (["base.lora=0.5,1"], "base has none"),
    ],
)
def test_fields_and_values_are_judged_before_anything_runs(
    library: Library, tmp_path: Path, sets: Sequence[str], message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        planned(library, Store(tmp_path), sets)
    assert message in f"{refused.value.message} {refused.value.hint}"


def test_many_points_are_asked_about_and_their_cost_is_said(
    library: Library, tmp_path: Path
) -> None:
    many = ["refine.denoise=0.01:1:0.01", "refine.seed=1:100:1"]
    with pytest.raises(RequestError, match=r"10000 points, .* PFLOP") as refused:
        planned(library, Store(tmp_path), many)
    assert "--yes" in (refused.value.hint or "")
    assert len(planned(library, Store(tmp_path), ["refine.seed=1:70:1"], agreed=True).points) == 70


def test_other_is_another_seed_than_the_requests(library: Library, tmp_path: Path) -> None:
    points = planned(library, Store(tmp_path), ["refine.seed=same,other"]).points
    assert points[0].plan.request.stage_seed(2) == 7
    assert points[1].plan.request.stage_seed(2) == 8
    assert points[0].draft is not None
    assert points[1].draft is not None
    assert points[0].draft.key == points[1].draft.key
    assert points[0].key != points[1].key


# --- running -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A finished sweep of twelve points."""
    folder = tmp_path_factory.mktemp("sweep")
    events: list[Event] = []
    store = Store(folder / "store")
    sweep = planned(library, store)
    result = run_sweep(sweep, RunOptions(on_event=events.append), folder / "out")
    return sweep, result, events, store, folder / "out"


@pytest.mark.slow
def test_what_points_share_is_made_once(swept: Swept) -> None:
    _, result, events, _, _ = swept
    done = [e.stage for e in events if isinstance(e, StageDone)]
    assert done == ["prompt", "negative prompt", "base", "upsample", *["refine"] * 12]
    started = [e.stage for e in events if isinstance(e, StageStarted)]
    assert started.count("measure the draft") == 1
    assert sum(name.startswith("measure #") for name in started) == 12
    assert [p.status for p in result.points] == ["done"] * 12
    assert len(result.drafts) == 1


def test_every_point_is_measured_against_the_draft(swept: Swept) -> None:
    _, result, _, _, folder = swept
    for point in result.points:
        kept, similarity, seconds = map(
            point.number_of, ("motion_kept", "structure_similarity", "seconds")
        )
        assert kept is not None and 0 <= kept <= 1
        assert similarity is not None and -1 <= similarity <= 1
        assert seconds is not None and seconds > 0
        assert all((folder / "points" / name).stat().st_size for name in point.frames)
    numbers = {p.number_of("detail_added_db") for p in result.points}
    assert len(numbers) == 12  # every setting makes another clip


def test_again_makes_nothing_and_gives_the_same_numbers(swept: Swept) -> None:
    sweep, first, _, _, folder = swept
    events: list[Event] = []
    again = run_sweep(sweep, RunOptions(on_event=events.append), folder)
    assert not [e for e in events if isinstance(e, StageStarted)]
    assert all(e.reused for e in events if isinstance(e, PointDone))
    assert again.points == first.points


def test_a_point_can_be_gone_on_with(swept: Swept) -> None:
    _, result, _, store, _ = swept
    chosen = choose(store, f"{result.run}:12")
    stage = stages_of(chosen.request)[2]
    assert (stage.denoise, stage.seed, stage.loras[0].strength) == (0.7, 8, 1.0)
    assert store.runs.find(result.run).kind == "sweep"


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(library: Library, tmp_path: Path) -> None:
    store, cancel, sets = Store(tmp_path / "store"), Cancel(), ["refine.denoise=0.3,0.5,0.7"]

    def stop(event: Event) -> None:
        if isinstance(event, PointDone):
            cancel.request()

    with pytest.raises(Cancelled):
        run_sweep(
            planned(library, store, sets), RunOptions(on_event=stop, cancel=cancel), tmp_path / "o"
        )
    assert store.runs.find("last").status == "cancelled"
    events: list[Event] = []
    result = run_sweep(
        planned(library, store, sets), RunOptions(on_event=events.append), tmp_path / "o"
    )
    assert not [e for e in events if isinstance(e, StepDone) and e.sigma is not None]
    assert [e.reused for e in events if isinstance(e, PointDone)] == [True, False, False]
    assert [p.status for p in result.points] == ["done"] * 3


@pytest.mark.slow
def test_a_failing_point_is_shown_and_the_others_go_on(library: Library, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    sweep = planned(library, store, ["refine.denoise=0.3,0.5"])
    # the stored input of the second point's decode has another shape than its request says
    bad = sweep.points[1].plan.latents
    import torch

    tensors = {"video": torch.zeros(1, 5, 2, 2, 2), "audio": torch.zeros(1, 8, 9, 16)}
    store.put(bad.key, tensors, {"stage": "refine", "name": "refine"})
    result = run_sweep(sweep, RunOptions(), tmp_path / "o")
    assert [p.status for p in result.points] == ["done", "failed"]
    assert result.points[1].error
    page = html(Report(sweep, result, choose_point(result.points, result.drafts), tmp_path / "o"))
    assert f'<p class="error">{result.points[1].error[:20]}' in page
    assert store.runs.find(result.run).drafts[1].status == "failed"


# --- choosing ------------------------------------------------------------------------------------


def measured(
    number: int,
    kept: float,
    detail: float,
    flicker: float = 1.0,
    seed: str = "same",
    status: str = "done",
    **fields: Any,
) -> PointResult:
    comparison = {"motion_kept": kept, "detail_added_db": detail, "structure_similarity": 0.9}
    comparison |= {k: fields.pop(k) for k in list(fields) if k in comparison}
    values = {f"refine.{k}": str(v) for k, v in fields.items()} | {"refine.seed": seed}
    if status == "failed":
        return PointResult(f"k{number}", number, values, status=status, error="no")
    metrics = {"flicker": flicker}
    return PointResult(
        f"k{number}", number, values, draft="d", metrics=metrics, comparison=comparison
    )


DRAFTS = {"d": PointResult("d", metrics={"flicker": 1.0})}


def test_most_detail_among_those_that_keep_the_motion() -> None:
    points = [
        measured(1, 0.80, 0.1, denoise=0.1),
        measured(2, 0.75, 1.5, denoise=0.4),
        measured(3, 0.74, 3.0, flicker=2.0, denoise=0.5),  # trembles
        measured(4, 0.40, 5.0, denoise=0.8),  # loses motion
        measured(5, 0, 0, status="failed", denoise=0.9),
        measured(6, 0.79, 4.0, structure_similarity=0.7, denoise=0.7),
    ]
    choice = choose_point(points, DRAFTS)
    assert (choice.outcome, choice.point) == ("recommended", 2)
    assert "denoise=0.4" in choice.why
    assert [s.fault for s in choice.settings] == [
        None, None, "trembles", "loses motion", "another picture",
    ]  # fmt: skip


def test_alike_is_not_told_apart_and_nothing_is_not_recommended() -> None:
    alike = [measured(1, 0.80, 1.1, denoise=0.3), measured(2, 0.78, 1.2, denoise=0.4)]
    choice = choose_point(alike, DRAFTS)
    assert (choice.outcome, choice.point, choice.tied) == ("cannot tell", 1, (2,))
    worse = [measured(1, 0.80, -0.5, denoise=0.3), measured(2, 0.78, -2.0, denoise=0.4)]
    assert choose_point(worse, DRAFTS).outcome == "adds nothing"
    trembling = [measured(1, 0.8, 2.0, flicker=3.0, denoise=0.3)]
    assert choose_point(trembling, DRAFTS).point is None
    assert choose_point([measured(1, 0, 0, status="failed")], {}).outcome == "not measured"
    unlike = choose_point([measured(1, 0.06, 2.0, denoise=0.3)], DRAFTS)
    assert (unlike.outcome, unlike.point) == ("cannot tell", None)


def test_seeds_tell_how_much_is_noise() -> None:
    points = [
        measured(1, 0.8, 1.0, denoise=0.3),
        measured(2, 0.8, 2.0, denoise=0.3, seed="other"),
        measured(3, 0.8, 2.0, denoise=0.4),
        measured(4, 0.8, 3.0, denoise=0.4, seed="other"),
    ]
    choice = choose_point(points, DRAFTS)
    # SD 0.7 within settings, 0.5 of a mean of two, twice that is no difference
    assert choice.noise_db == pytest.approx(1.0)
    assert choice.outcome == "cannot tell"
    assert [s.points for s in choice.settings] == [(1, 2), (3, 4)]


# --- the report ----------------------------------------------------------------------------------


class Links(HTMLParser):
    """Every address that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "poster", "data"):
                self.loaded.append(value or "")
            if name == "id":
                self.ids.append(value)


def test_the_page_holds_everything_itself(swept: Swept) -> None:
    sweep, result, _, _, folder = swept
    choice = choose_point(result.points, result.drafts)
    page = html(Report(sweep, result, choice, folder, "ladder sweep <x>"))
    links = Links()
    links.feed(page)
    assert all(link.startswith(("data:", "#")) for link in links.loaded)
    scripts = re.sub(r"data:[\w/]+;base64,[\w+/=]+", "", page)
    assert "http" not in scripts.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert len(links.ids) == len(set(links.ids))
    assert {f"p{n}" for n in range(1, 13)} <= set(links.ids)
    assert "ladder sweep &lt;x&gt;" in page
    pictures = [link for link in links.loaded if link.startswith("data:image/webp")]
    assert len(pictures) == 13 * 5  # twelve points and the draft
    assert page.count('class="dot') >= 12


def test_csv_and_json_beside_it(swept: Swept, tmp_path: Path) -> None:
    sweep, result, _, _, _ = swept
    choice = choose_point(result.points, result.drafts)
    write_files(tmp_path, sweep, result, choice)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [r["refine.denoise"] for r in rows] == ["0.3"] * 4 + ["0.5"] * 4 + ["0.7"] * 4
    body = json.loads((tmp_path / "sweep.json").read_text())
    assert float(rows[3]["motion_kept"]) == body["points"][3]["comparison"]["motion_kept"]
    check_folder(tmp_path, sweep, overwrite=False)
    (tmp_path / "sweep.json").write_text('{"id": "another"}')
    with pytest.raises(MediaError, match="another sweep"):
        check_folder(tmp_path, sweep, overwrite=False)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-2.4, -0.8, [-2.5, -2, -1.5, -1, -0.5])],
)
def test_ticks_are_round_and_cover_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected)
    assert len(ticks(3.0, 3.0)) > 1


# --- the command ---------------------------------------------------------------------------------


def run(*words: str) -> Result:
    app = typer.Typer()
    command.register(app)
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


@pytest.mark.slow
def test_a_prompt_a_run_and_a_file_can_be_swept(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store"), "-q", "--json"]
    small = ["--size", "64x64", "--frames", "9", "-p", "distilled"]
    request = tmp_path / "r.toml"
    request.write_text(request_with().to_toml())
    first = run(
        "a fox runs", *small, *TINY, "--set", "refine.seed=1", *store, "-o", str(tmp_path / "a")
    )
    body = json.loads(first.stdout)
    assert body["points"][0]["status"] == "done"
    assert (tmp_path / "a" / "report.html").exists()
    again = run(f"{body['run']}:1", "--models", str(GOLDEN), "--set", "refine.seed=1,2", *store,
                "-o", str(tmp_path / "b"))  # fmt: skip
    assert json.loads(again.stdout)["stages_made"] == ["refine"]
    pixels = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    write_video(tmp_path / "any.mp4", [pixels], VideoSpec((32, 32), Fraction(24)))
    found = run(str(tmp_path / "any.mp4"), "-p", "distilled", *TINY, "--set", "refine.denoise=0.3",
                *store, "-o", str(tmp_path / "c"))  # fmt: skip
    body = json.loads(found.stdout)
    assert body["points"][0]["size"] == [64, 64]
    assert "base" in body["stages_made"]  # the video itself
    with pytest.raises(MediaError, match="does not exist"):
        run("missing.mp4", "--set", "refine.denoise=0.3", *store)
    with pytest.raises(RequestError, match="nothing to sweep"):
        run(str(request), *store)
