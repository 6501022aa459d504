"""Artefact keys: every request field changes the keys from the first stage that reads it on.

The table below has a row for every field of a request; a new field without one is an error. A
moved key means work done again, a key that should have moved and did not means a stale picture.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.checkpoints.selection import ModelSet, scan, select_models
from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import duration
from latent_ladder.pipeline.artifact_keys import VERSIONS, copied_sound_key
from latent_ladder.pipeline.input_files import InputFile
from latent_ladder.pipeline.plan import make_plan
from latent_ladder.request.model import Request
from latent_ladder.request.stages import STAGE_TABLES
from latent_ladder.sampling.schedules import DISTILLED_STAGE_1
from latent_ladder.storage.artifact_store import artefact_key

GOLDEN = Path(__file__).parents[1] / "golden"

REQUEST: dict[str, Any] = {
    "prompt": "A fox runs through the snow.",
    "negative_prompt": "blurry",
    "seed": 7,
    "width": 320,
    "height": 180,
    "frames": 17,
    "fps": "24",
    "stages": [
        {
            "kind": "base",
            "schedule": {"name": "ltx", "steps": 4},
            "guidance": {"video": {"cfg": 3.0}},
            "loras": [{"name": "tiny-distilled-lora.safetensors", "strength": 0.5}],
        },
        {"kind": "upsample", "factor": 2.0},
        {
            "kind": "refine",
            "schedule": {"name": "ltx", "steps": 4},
            "denoise": 0.5,
            "loras": [{"role": "distilled", "strength": 0.8}],
        },
    ],
}

CLIP = frozenset({"clip"})
SOUND = CLIP | {"sound"}
REFINE = SOUND | {"refine"}
UPSAMPLE = REFINE | {"upsample"}
BASE = UPSAMPLE | {"base"}
ALL = BASE | {"prompt", "negative prompt"}
NOTHING = frozenset[str]()


@dataclass(frozen=True)
class Row:
    """Set ``changes`` on the request (after ``given``): exactly the keys of ``moves`` move."""

    changes: Mapping[str, Any]
    moves: frozenset[str]
    given: Mapping[str, Any] = field(default_factory=dict)


def twin(role: str) -> str:
    """The file name of the twin that the library fixture makes."""
    return f"twin-{role}.safetensors"


def row(path: str, value: object, moves: frozenset[str]) -> tuple[str, Row]:
    return path, Row({path: value}, moves)


def sampling_rows(stage: str, moves: frozenset[str]) -> dict[str, Row]:
    """The rows of a base or refine stage, whose own and later keys are ``moves``."""

    def schedule(name: str, **fields: object) -> dict[str, object]:
        return {"name": name, "steps": 4, **fields}

    rows: dict[str, Row] = {
        f"{stage}.{path}": Row({f"{stage}.{path}": value}, moves)
        for path, value in {
            "sampler": "heun",
            "options.eta": 0.5,
            "options.s_noise": 0.5,
            "options.gamma": 1.5,
            "options.bong": False,
            "schedule.name": "simple",
            "schedule.steps": 5,
            "schedule.tokens": "actual",
            "schedule.max_shift": 2.5,
            "schedule.stretch": False,
            "schedule.terminal": 0.2,
            "seed": 8,
            "loras.strength": 0.7,
        }.items()
    }
    for name, known, changed in (
        # base_shift is the shift at 1024 tokens, and says nothing at the default of 4096
        ("base_shift", schedule("ltx", tokens=99), schedule("ltx", tokens=99, base_shift=0.5)),
        ("shift", schedule("simple"), schedule("simple", shift=3.0)),
        ("alpha", schedule("beta"), schedule("beta", alpha=0.9)),
        ("beta", schedule("beta"), schedule("beta", beta=0.9)),
        ("rho", schedule("karras"), schedule("karras", rho=5.0)),
        ("threshold", schedule("linear_quadratic"), schedule("linear_quadratic", threshold=0.1)),
    ):
        where = f"{stage}.schedule"
        rows[f"{where}.{name}"] = Row({where: changed}, moves, {where: known})
    for stream in ("video", "audio"):
        guidance = f"{stage}.guidance.{stream}"
        blocks = {f"{guidance}.stg_blocks": [1]}
        for name, value in {
            "cfg": 2.0,
            "stg": 1.0,
            "modality": 2.0,
            "rescale": 0.5,
            "stg_blocks": [0],
            "skip_step": 1,
            "sigma_low": 0.2,
            "sigma_high": 0.9,
        }.items():
            rows[f"{guidance}.{name}"] = Row({f"{guidance}.{name}": value}, moves, blocks)
        nag = {f"{guidance}.nag": {"scale": 5.0}}
        for name, value in (("scale", 7.0), ("tau", 2.0), ("alpha", 0.5)):
            path = f"{guidance}.nag.{name}"
            rows[path] = Row({path: value}, moves, nag)
    known = {f"{stage}.{path}": None for path in ("schedule", "denoise")}
    rows[f"{stage}.sigmas"] = Row(
        {f"{stage}.sigmas": [0.9, 0.5, 0.0]}, moves, {**known, f"{stage}.sigmas": [0.9, 0.6, 0.0]}
    )
    rows[f"{stage}.loras.name"] = Row({f"{stage}.loras": [{"name": twin("lora")}]}, moves)
    rows[f"{stage}.loras.role"] = Row(
        {f"{stage}.loras": [{"role": "distilled"}]}, moves, {f"{stage}.loras": []}
    )
    rows[f"{stage}.batch_passes"] = Row({f"{stage}.batch_passes": 1}, NOTHING)
    return rows


ROWS: dict[str, Row] = dict(
    [
        row("prompt", "A wolf.", ALL - {"negative prompt"}),
        row("negative_prompt", "dark", ALL - {"prompt"}),
        row("preset", "mine", NOTHING),
        row("seed", 8, BASE),
        row("width", 448, BASE),
        row("height", 184, CLIP),  # the same canvas of 192, cropped differently
        row("fps", "25", BASE),
        row("frames", 25, BASE),
        row("duration_s", 17 / 24, NOTHING),
        row("audio", "keep", SOUND),
        row("noise_order", "ltx", BASE),
        row("mask_convention", "ltx", BASE),
        row("model_convention", "comfyui", ALL),
        row("hdr", "acescct", CLIP),
        row("image_crf", 18, NOTHING),  # that of the images, of which there are none
        row("image_resize", "ltx", NOTHING),  # that of the images, of which there are none
        row("models.precision", "fp8", BASE),
        row("models.checkpoint", twin("checkpoint"), ALL),
        row("models.transformer", twin("transformer"), BASE),
        row("models.connectors", twin("connectors"), ALL),
        row("models.text_projection", twin("text_projection"), ALL),
        row("models.text_encoder", twin("text_encoder"), ALL),
        row("models.video_vae", twin("video_vae"), UPSAMPLE),
        row("models.audio_vae", twin("audio_vae"), SOUND),
        row("models.vocoder", twin("vocoder"), SOUND),
        row("models.latent_upsampler", twin("latent_upsampler"), UPSAMPLE),
        row("models.distilled_lora", twin("lora"), REFINE),
        row("models.folders", ["/elsewhere"], NOTHING),
        row("upsample.factor", 1.5, BASE),  # the clip keeps its size, so the base changes its own
        row("upsample.axis", "temporal", BASE),
        row("upsample.adain", 0.5, UPSAMPLE),
        row("upsample.file", twin("latent_upsampler"), UPSAMPLE),
        row("refine.denoise", 0.6, REFINE),
        row("decode.tile_px", 256, CLIP),
        row("decode.overlap_px", 64, CLIP),
        row("decode.tile_frames", 32, CLIP),
        row("decode.overlap_frames", 8, CLIP),
        row("decode.grid", [2, 1], CLIP),
        row("decode.decoder", "conv", NOTHING),  # the id of its file counts
        row("decode.noise", "comfyui", CLIP),
        row("decode.steps", 2, CLIP),
        row("output.codec", "h265", CLIP),
        row("output.crf", 25, CLIP),
        row("output.preset", "fast", CLIP),
        row("output.pix_fmt", "yuv444p", CLIP),
        row("output.transfer", "pq", CLIP),
        row("output.poster", True, NOTHING),
        row("output.sheet", True, NOTHING),
    ]
)
WINDOWS = {"frames": 33, "windows": {"frames": 25, "overlap_frames": 8}}
ROWS |= {
    "windows.frames": Row({"windows.frames": 17}, BASE, WINDOWS),
    "windows.overlap_frames": Row(
        {"windows.overlap_frames": 8},
        BASE,
        {"frames": 49, "windows": {"frames": 33, "overlap_frames": 16}},
    ),
    "windows.strength": Row({"windows.strength": 0.5}, BASE, WINDOWS),
}
ROWS |= sampling_rows("base", BASE) | sampling_rows("refine", REFINE)

ONE_VALUE: set[str] = set()
"""Fields that can have one value only."""


ELSEWHERE = {"images", "audio_in", "video"}
"""Inputs from files, whose stages exist only where there is one: see test_inputs_*."""
TILES = {"refine.tiles.px", "refine.tiles.overlap_px"}
"""In a key only where a canvas needs them: see test_rungs."""


def table_fields(table: type[BaseModel], path: str = "") -> Iterator[str]:
    """The paths of all fields below ``table``, those of lists of tables as if there were one."""
    for name, info in table.model_fields.items():
        inner = list(tables_in(info.annotation))
        if inner and name != "stages":
            yield from table_fields(inner[0], f"{path}{name}.")
        elif name not in ("stages", "kind"):
            yield f"{path}{name}"


def tables_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from tables_in(argument)


def test_every_field_has_a_row() -> None:
    known = set(table_fields(Request))
    for kind, table in STAGE_TABLES.items():
        if kind != "upscale":  # decides no stage: see test_upscale
            known |= set(table_fields(table, f"{kind}."))
    files = {name for name in known if name.split(".")[0] in ELSEWHERE}
    # an automatic duration becomes a number of frames before any key is made
    newest = {"base.keyframes", "refine.keyframes"}  # see test_keyframes_first
    newest |= {"base.generated_keyframes", "auto_duration.min_s", "auto_duration.max_s"}
    assert known - files - TILES == set(ROWS) | ONE_VALUE | newest


def test_generated_keyframes_decide_the_base_stage() -> None:
    """They need a transformer of LTX-2.5, which the library of the other rows does not have."""
    request = Request.from_preset("pocket", prompt="a")
    base = [request.stages[0].model_copy(update={"generated_keyframes": n}) for n in (0, 2, 3)]
    fields = [
        request.model_copy(update={"stages": (stage, *request.stages[1:])}).stage_fields(0)
        for stage in base
    ]
    assert "generated_keyframes" not in fields[0]  # keys of earlier versions stay valid
    assert [f["generated_keyframes"] for f in fields[1:]] == [2, 3]


def assign(request: dict[str, Any], path: str, value: object) -> None:
    """Set one field in place; ``refine.loras.strength`` is that of the first LoRA."""
    names = path.split(".")
    at: Any = request
    if names[0] in STAGE_TABLES:
        kind = names.pop(0)
        at = next(stage for stage in request["stages"] if stage["kind"] == kind)
    for name in names[:-1]:
        at = at.setdefault(name, {})
        at = at[0] if isinstance(at, list) else at
    if value is None:
        at.pop(names[-1], None)
    else:
        at[names[-1]] = value


def changed(rows: Iterable[Mapping[str, Any]]) -> Request:
    table = copy.deepcopy(REQUEST)
    for changes in rows:
        for path, value in changes.items():
            assign(table, path, value)
    return Request.from_dict(table)


KeysOf = Callable[[Request], dict[str, str]]


def write_twins(source: Path, folder: Path) -> None:
    """Each part of a file, and all of it, as a file of its own: equal tensors, another file."""
    file = open_checkpoint(source)
    parts = {role: set(part.names.values()) for role, part in components(file).items()}
    if "transformer" in parts:
        parts["checkpoint"] = set(file.tensors)
    with safe_open(source, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in file.tensors}
    for role, names in parts.items():
        part = {name: tensor for name, tensor in tensors.items() if name in names}
        save_file(part, folder / twin(role), {**file.metadata, "twin": role})


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeysOf:
    """Gives the key of every stage of a request, and the one that names the run."""
    twins = tmp_path_factory.mktemp("twins")
    for source in (
        "checkpoints/tiny-ltx-2.3.safetensors",
        "text_encoders/tiny-gemma-3.safetensors",
        "latent_upscale_models/tiny-spatial-x2.safetensors",
        "loras/tiny-distilled-lora.safetensors",
    ):
        write_twins(GOLDEN / source, twins)
    folders = ("checkpoints", "text_encoders", "latent_upscale_models", "loras")
    library = scan([*(GOLDEN / name for name in folders), twins])
    chosen: dict[str, ModelSet] = {}  # select() takes longer than all the keys

    def keys_of(request: Request) -> dict[str, str]:
        choices = request.models.choices
        if (known := repr(choices)) not in chosen:
            chosen[known] = select_models(library, choices)
        plan = make_plan(request, chosen[known], library)
        return {stage.name: stage.key for stage in plan.stages} | {"clip": plan.run_key}

    return keys_of


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.slow
@pytest.mark.parametrize("path", ROWS)
def test_a_field_moves_the_keys_from_its_first_reader_on(path: str, keys: KeysOf) -> None:
    row = ROWS[path]
    before = changed([row.given])
    after = changed([row.given, row.changes])
    assert before != after
    assert moved(keys(before), keys(after)) == row.moves


@settings(max_examples=30, deadline=None)
@given(chosen=st.lists(st.sampled_from(sorted(ROWS)), min_size=2, max_size=4, unique=True))
def test_fields_changed_together_move_what_each_would(chosen: list[str], keys: KeysOf) -> None:
    rows = [ROWS[path] for path in chosen]
    touched = [path for row in rows for path in (*row.given, *row.changes)]
    assume(not any(a != b and f"{a}.".startswith(f"{b}.") for a in touched for b in touched))
    assume(len(touched) == len(set(touched)))
    try:
        before = changed(row.given for row in rows)
        after = changed([*(row.given for row in rows), *(row.changes for row in rows)])
    except RequestError:
        assume(False)
    expected = frozenset[str]().union(*(row.moves for row in rows))
    assert moved(keys(before), keys(after)) == expected


EQUAL: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "a schedule and the sigmas it gives": (
        {"base.schedule": {"name": "distilled"}},
        {"base.schedule": None, "base.sigmas": list(DISTILLED_STAGE_1)},
    ),
    "the default of a parameter": (
        {},
        {"base.schedule.max_shift": 2.05, "base.guidance.video.stg": 0.0},
    ),
    "white space around the prompt": ({}, {"prompt": "\n  A fox runs through the snow. "}),
    "a seed of its own that is the same": ({}, {"refine.seed": 7}),
    "a negative prompt that nothing reads": (
        {"base.guidance.video.cfg": 1.0},
        {"base.guidance.video.cfg": 1.0, "negative_prompt": "dark"},
    ),
    "the file that the library would choose": (
        {},
        {"models.checkpoint": "tiny-ltx-2.3.safetensors"},
    ),
    "sigmas that differ in the last bits, as exp does between machines": (
        {"base.schedule": None, "base.sigmas": [0.9, 0.5, 0.0]},
        {"base.schedule": None, "base.sigmas": [0.9, 0.5000000000000001, 0.0]},
    ),
    "a frame rate written otherwise": ({"fps": 24}, {"fps": "24/1"}),
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_work_has_equal_keys(case: str, keys: KeysOf) -> None:
    one, other = (changed([changes]) for changes in EQUAL[case])
    assert keys(one) == keys(other)


def test_a_silent_clip_has_no_sound_to_make(keys: KeysOf) -> None:
    before, after = changed([]), changed([{"audio": "none"}])
    assert moved(keys(before), keys(after)) == BASE
    assert "sound" not in keys(after)


def test_every_stage_has_a_key_of_its_own(keys: KeysOf) -> None:
    found = keys(changed([]))
    assert set(found) == ALL
    assert len(set(found.values())) == len(found)


def test_results_of_the_earlier_media_reader_are_not_reused(tmp_path: Path) -> None:
    """Mono sound was 3 dB quieter, late sound early: keys of version 1 must not be found again."""
    file = InputFile(tmp_path / "a.wav", "audio_in", "content")
    request = Request.from_preset("pocket", prompt="a")
    length = str(duration(request.frames, request.fps))
    fields = {"file": file.fields(), "duration": length}
    assert copied_sound_key(file, request) != artefact_key("sound", 1, fields, (), ())
    assert [VERSIONS[kind] for kind in ("audio_in", "video_in", "source")] == [2, 2, 2]
