"""Drafts on the tiny checkpoint of the goldens: same artefacts as whole clips, chosen, refined."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import SMALL, TINY, environment
from helpers.tiny_clips import CHOICE, GOLDEN, frames, make, request_with, reused
from PIL import Image
from safetensors.torch import load_file, save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.drafts.draft_run import DraftsResult, draft_metrics, plan_drafts, run_drafts
from latent_ladder.drafts.seeds import DraftChoice, all_drafts, parse_seeds, read_prompts
from latent_ladder.drafts.selection import choose, from_stage_1, output_names, with_changes
from latent_ladder.drafts.shared_forwards import Together, group_size, parse_together
from latent_ladder.errors import Cancelled, LadderError, MediaError, RequestError, StoreError
from latent_ladder.latents.comfyui_tiling import split_evenly
from latent_ladder.latents.tiling import one_tile
from latent_ladder.media.video_reader import probe
from latent_ladder.memory.cost_model import StageCost
from latent_ladder.memory.planner import Budget, OffloadPlan, StageMemory
from latent_ladder.pipeline.events import (
    DraftStarted,
    Event,
    Preview,
    StageDone,
    StageStarted,
    StepDone,
    Warned,
)
from latent_ladder.pipeline.run import Cancel, RunOptions, execute, prepare
from latent_ladder.pipeline.stages import denoising
from latent_ladder.request.output import Decode
from latent_ladder.storage.artifact_store import Store

pytestmark = pytest.mark.slow

PROMPTS = ("a red ball rolls to the right", "a blue box")
ASKED = all_drafts(PROMPTS, (7, 8), agreed=False)


Drafted = tuple[DraftsResult, list[Event], Store, Path]


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


def draft(
    library: Library,
    store: Store,
    folder: Path,
    asked: Sequence[DraftChoice] = ASKED,
    kind: str = "rgb",
    **options: Any,
) -> tuple[DraftsResult, list[Event]]:
    events = options.pop("events", [])
    options.setdefault("on_event", events.append)
    session = plan_drafts(prepare(request_with(), library, store), asked, kind)
    return run_drafts(session, RunOptions(**options), folder), events


@pytest.fixture(scope="module")
def drafted(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Drafted:
    """Four drafts: two prompts, two seeds."""
    folder = tmp_path_factory.mktemp("drafts")
    store = Store(folder / "store")
    result, events = draft(library, store, folder / "out")
    return result, events, store, folder


def test_prompts_are_encoded_once_and_only_stage_1_runs(drafted: Drafted) -> None:
    _, events, _, _ = drafted
    done = [e.stage for e in events if isinstance(e, StageDone)]
    assert done == ["prompt", "negative prompt", "prompt", *["base"] * 4]
    numbers = [(e.number, e.of, e.seed) for e in events if isinstance(e, DraftStarted)]
    assert numbers == [(1, 4, 7), (2, 4, 8), (3, 4, 7), (4, 4, 8)]


def test_the_record_lists_the_drafts_and_survives_a_round_trip(drafted: Drafted) -> None:
    result, _, store, _ = drafted
    record = store.runs.find(result.record.id)
    assert record == result.record or record.status == "done"
    assert [(d.number, d.prompt, d.seed, d.status) for d in record.drafts] == [
        (1, PROMPTS[0], 7, "done"),
        (2, PROMPTS[0], 8, "done"),
        (3, PROMPTS[1], 7, "done"),
        (4, PROMPTS[1], 8, "done"),
    ]
    assert len({d.keys[-1] for d in record.drafts}) == 4
    assert set(record.drafts[2].keys) <= record.keys
    assert record.drafts[0].metrics["detail"] > 0
    assert record.kind == "draft"


def test_sheet_and_grid_show_every_draft(drafted: Drafted) -> None:
    _, _, _, folder = drafted
    width, height = size_of(folder / "out" / "sheet.png")
    assert min(width, height) > 4 * 224
    info = probe(folder / "out" / "drafts.mp4")
    assert (info.width, info.height, info.frames) == (448, 448, 9)
    assert (folder / "out" / "live.png").exists()


def test_refining_equals_making_the_clip_and_reuses_its_base(
    drafted: Drafted, library: Library, tmp_path: Path
) -> None:
    drafts, _, store, _ = drafted
    chosen = choose(store, f"{drafts.record.id}:2")
    prepared = from_stage_1(chosen, prepare(chosen.request, library, store))
    result = execute(prepared, tmp_path / "a.mp4", RunOptions())
    assert reused(result)["base"]
    assert not reused(result)["refine"]
    make(request_with(seed=8), library, Store(tmp_path / "other"), tmp_path / "b.mp4")
    assert frames(tmp_path / "a.mp4") == frames(tmp_path / "b.mp4")


def test_a_clip_can_be_refined_again_at_the_cost_of_stage_2(
    drafted: Drafted, library: Library, tmp_path: Path
) -> None:
    _, _, store, _ = drafted
    first, _ = make(request_with(), library, store, tmp_path / "a.mp4")
    assert reused(first)["base"]  # a draft's artefacts are the clip's
    chosen = choose(store, first.run)
    request = with_changes(chosen, ["refine.sigmas=[0.8, 0.4, 0.0]"])
    prepared = from_stage_1(chosen, prepare(request, library, store))
    again = execute(prepared, tmp_path / "b.mp4", RunOptions())
    made = [s.stage for s in again.stages if not s.reused]
    assert made == ["refine", "sound", "decode and write"]


@pytest.mark.parametrize("change", ["base.steps=3", "seed=99", "frames=17", "prompt=a fox"])
def test_a_change_of_stage_1_is_refused(drafted: Drafted, library: Library, change: str) -> None:
    drafts, _, store, _ = drafted
    chosen = choose(store, f"{drafts.record.id}:1")
    with pytest.raises(RequestError, match="changes stage 1") as refused:
        from_stage_1(chosen, prepare(with_changes(chosen, [change]), library, store))
    assert "draft" in (refused.value.hint or "")


def test_a_pruned_draft_is_made_again_and_told(
    drafted: Drafted, library: Library, tmp_path: Path
) -> None:
    drafts, _, store, _ = drafted
    record = choose(store, f"{drafts.record.id}:1").record
    other = Store(tmp_path / "pruned")
    other.runs.save(record)
    chosen = choose(other, f"{record.id}:3")
    prepared = from_stage_1(chosen, prepare(chosen.request, library, other))
    assert "pruned_draft" in {w.code for w in prepared.warnings}
    result = execute(prepared, tmp_path / "a.mp4", RunOptions())
    assert not reused(result)["base"]


def test_again_reuses_every_draft(drafted: Drafted, library: Library, tmp_path: Path) -> None:
    first, _, store, _ = drafted
    result, events = draft(library, store, tmp_path / "out")
    assert all(d.reused for d in result.record.drafts)
    assert not [e for e in events if isinstance(e, StepDone)]
    metrics = [d.metrics for d in first.record.drafts]
    assert [d.metrics for d in result.record.drafts] == metrics


def test_an_interrupted_session_goes_on(library: Library, tmp_path: Path) -> None:
    store, cancel, events = Store(tmp_path / "store"), Cancel(), []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, DraftStarted) and event.number == 2:
            cancel.request()

    with pytest.raises(Cancelled):
        draft(library, store, tmp_path / "out", ASKED[:3], on_event=listen, cancel=cancel)
    record = store.runs.find("last")
    assert record.status == "cancelled"
    assert [d.status for d in record.drafts] == ["done", "planned", "planned"]
    result, _ = draft(library, store, tmp_path / "out", ASKED[:3])
    assert [d.reused for d in result.record.drafts] == [True, False, False]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_draft_that_fails_is_recorded_and_the_others_go_on(
    library: Library, tmp_path: Path
) -> None:
    store, seeds = Store(tmp_path / "store"), []

    def listen(event: Event) -> None:
        if isinstance(event, DraftStarted):
            seeds.append(event.seed)
        if isinstance(event, StepDone) and seeds[-1:] == [8]:
            raise LadderError("the prediction at step 1 holds NaN")

    result, _ = draft(library, store, tmp_path / "out", ASKED[:3], on_event=listen)
    assert [d.status for d in result.record.drafts] == ["done", "failed", "done"]
    assert "NaN" in (result.record.drafts[1].error or "")
    with pytest.raises(RequestError, match="failed"):
        choose(store, "last:2")


def test_weights_that_give_no_numbers_fail_every_draft(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    source = next(GOLDEN.rglob(CHOICE["checkpoint"]))
    tensors = load_file(source)
    name = next(n for n in tensors if n.endswith("diffusion_model.proj_out.weight"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    metadata = dict(open_checkpoint(source).metadata)
    save_file(tensors, folder / CHOICE["checkpoint"], metadata)
    broken = scan([tmp_path / "models", GOLDEN])
    with pytest.raises(LadderError, match="all 2 drafts failed"):
        draft(broken, Store(tmp_path / "store"), tmp_path / "out", ASKED[:2])
    assert (tmp_path / "out" / "sheet.png").exists()


def test_a_full_look_decodes_and_hears(drafted: Drafted, library: Library, tmp_path: Path) -> None:
    _, _, store, _ = drafted
    result, _ = draft(library, store, tmp_path / "out", ASKED[:1], kind="full")
    [one] = result.record.drafts
    assert one.reused
    assert -200 <= one.metrics["sound"]["level_db"] < 6


def test_watching_changes_no_bit(drafted: Drafted, library: Library, tmp_path: Path) -> None:
    _, _, _, _ = drafted
    seen: list[Event] = []
    for name, preview in (("a", None), ("b", tmp_path / "b.png")):
        store = Store(tmp_path / name)
        execute(
            prepare(request_with(), library, store),
            tmp_path / f"{name}.mp4",
            RunOptions(preview=preview, on_event=seen.append),
        )
    assert frames(tmp_path / "a.mp4") == frames(tmp_path / "b.mp4")
    # two latent frames; the last picture is refine's, or base's where nothing was due later
    # each enlarged to a height of 128 px
    assert size_of(tmp_path / "b.png") == (256, 128)
    assert {e.stage for e in seen if isinstance(e, Preview)} <= {"base", "refine"}
    assert any(isinstance(e, Preview) for e in seen)


def test_a_draft_too_small_for_the_tiles_of_its_clip_is_decoded_whole() -> None:
    asked = Decode(grid=(2, 2), overlap_px=192)
    assert asked.tiles((2, 3, 4)) == one_tile(2, 3, 4)
    assert asked.tiles((2, 6, 8)) == split_evenly((2, 6, 8), 2, 2, 6)


def test_an_existing_sheet_is_not_replaced(drafted: Drafted, library: Library) -> None:
    _, _, store, folder = drafted
    with pytest.raises(MediaError, match="already exists"):
        draft(library, store, folder / "out")


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", (10, 11, 12)),
        ("3,17,99", (3, 17, 99)),
        ("10-13", (10, 11, 12, 13)),
        ("3,10-11,3", (3, 10, 11)),
    ],
)
def test_seeds_are_counts_lists_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text, 10) == seeds


@pytest.mark.parametrize("text", ["", "0", "a-b", "5-", "9-3", "1,,2", "-4", "1-99999999999999999"])
def test_malformed_seeds_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="seeds="):
        parse_seeds(text, 10)


def test_many_drafts_need_a_yes() -> None:
    with pytest.raises(RequestError, match="100 drafts") as refused:
        all_drafts(("a",), range(100), agreed=False)
    assert "--yes" in (refused.value.hint or "")
    assert len(all_drafts(("a",), range(100), agreed=True)) == 100


def test_prompt_files_skip_blank_lines_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# two\n\na red ball\n  a fox  \n", "utf-8")
    assert read_prompts(path) == ("a red ball", "a fox")
    path.write_text("# none\n\n")
    with pytest.raises(RequestError, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(RequestError, match="does not exist"):
        read_prompts(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("zzzzzzzz", StoreError, "no run"),
        ("last:9", RequestError, "none of them"),
        ("last:x", RequestError, "none of them"),
        ("{draft}", RequestError, "say which"),
    ],
)
def test_unknown_runs_and_drafts_are_refused(
    drafted: Drafted, name: str, error: type[LadderError], words: str
) -> None:
    result, _, store, _ = drafted
    with pytest.raises(error, match=words):
        choose(store, name.format(draft=result.record.id))


def test_one_file_cannot_hold_two_clips(drafted: Drafted, tmp_path: Path) -> None:
    result, _, store, _ = drafted
    two = [choose(store, f"{result.record.id}:{n}") for n in (1, 2)]
    with pytest.raises(RequestError, match="one file"):
        output_names(two, tmp_path / "a.mp4")
    names = output_names(two, tmp_path / "clips")
    assert len({*names}) == 2


def test_a_tiny_decoder_that_is_not_there_is_refused(library: Library, tmp_path: Path) -> None:
    prepared = prepare(request_with(), library, Store(tmp_path / "store"))
    with pytest.raises(LadderError, match="no preview decoder"):
        plan_drafts(prepared, [DraftChoice("a", 1)], "tae")


def test_flags_for_static_flashing_clipped_and_nan() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 190, (1, 32, 32, 3), dtype=np.uint8)
    still, black = np.repeat(picture, 9, 0), np.zeros((9, 32, 32, 3), np.uint8)
    flash = still.copy()
    flash[4] = 250
    assert draft_metrics([still], 24.0)["flags"] == ["static"]
    assert {"static", "dark"} <= {*draft_metrics([black], 24.0)["flags"]}
    assert "flashing" in draft_metrics([flash], 24.0)["flags"]
    assert draft_metrics([still], 24.0, finite=False)["flags"][0] == "NaN"


def test_the_commands(tmp_path: Path) -> None:
    def ladder(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "latent_ladder", *words],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        return done

    done = ladder("draft", "a ball", "--seeds", "5,6", "-o", "d", "--json", *TINY, *SMALL)
    body = json.loads(done.stdout)
    assert [d["seed"] for d in body["drafts"]] == [5, 6]
    assert (tmp_path / "d" / "sheet.png").exists()
    done = ladder("refine", "last:2", "-o", "clips", "--json")
    [clip] = json.loads(done.stdout)
    assert clip["seed"] == 6
    assert {s["stage"]: s["reused"] for s in clip["stages"]}["base"]
    ladder("refine", "last:9", code=2)
    ladder("draft", "a ball", "--seeds", "a-b", code=2)


def test_drafts_together_equal_single_ones(
    library: Library, drafted: Drafted, tmp_path: Path
) -> None:
    """Two prompts and two seeds in shared forwards: the same keys, latents equal to rounding."""
    result, _, single, _ = drafted
    store, events = Store(tmp_path / "store"), list[Event]()
    session = plan_drafts(prepare(request_with(), library, store), ASKED)
    options = RunOptions(on_event=events.append)
    together = run_drafts(session, options, tmp_path / "out", together=3)
    assert [d.keys for d in together.record.drafts] == [d.keys for d in result.record.drafts]
    assert [d.status for d in together.record.drafts] == ["done"] * 4
    forwards = [e.stage for e in events if isinstance(e, StageStarted) and "base" in e.stage]
    assert forwards == ["base of 3 drafts", "base"]
    for record in together.record.drafts:
        one, other = store.get(record.keys[-1]), single.get(record.keys[-1])
        assert one is not None and other is not None
        wanted = other.load()
        for name, tensor in one.load().items():
            largest = float(wanted[name].abs().max())
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=2e-6 * largest)


def test_a_draft_that_fails_does_not_fail_those_made_with_it(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared forward that runs out of memory is followed by single runs."""

    whole = denoising.denoise_together

    def no_memory(jobs: Any, memory: Any) -> Any:
        if len(jobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(jobs, memory)

    monkeypatch.setattr(denoising, "denoise_together", no_memory)
    events: list[Event] = []
    store = Store(tmp_path / "store")
    session = plan_drafts(prepare(request_with(), library, store), ASKED[:2])
    result = run_drafts(session, RunOptions(on_event=events.append), tmp_path / "out", together=2)
    assert [d.status for d in result.record.drafts] == ["done", "done"]
    assert any(isinstance(e, Warned) and "one by one" in e.message for e in events)


@pytest.mark.parametrize(
    ("asked", "budget_gib", "expected", "warned"),
    [("auto", 80, 4, False), ("auto", 21.5, 3, False), (2, 80, 2, False), (6, 21.5, 3, True)],
)
def test_number_of_drafts_in_a_forward(
    asked: Together, budget_gib: float, expected: int, warned: bool
) -> None:
    """Auto fills one chunk of tokens; memory limits both."""
    cost = StageCost("base", "base", passes=1, window_tokens=1900, audio_tokens=100)
    memory = StageMemory(cost, OffloadPlan(rows=1, chunk_tokens=8192), 20 * 2**30, 2**29)
    budget = Budget("cuda", int(budget_gib * 2**30), 0)
    count, message = group_size(asked, memory, budget)
    assert (count, message is not None) == (expected, warned)


def test_number_of_drafts_is_checked() -> None:
    assert parse_together("auto") == "auto"
    assert parse_together("12") == 12
    for text in ("0", "-1", "two", "1.5"):
        with pytest.raises(RequestError, match="--together"):
            parse_together(text)
