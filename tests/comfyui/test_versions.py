"""Meaning of ComfyUI's version: model convention, keys, records, import and text encoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.workflow_graphs import LATENTS, MODELS, ONE_STAGE, SAMPLING, Nodes, engine, graph
from torch import Tensor

from latent_ladder.checkpoints.selection import Library, model_folders, scan
from latent_ladder.comfyui.conversion import export_workflow, import_workflow
from latent_ladder.comfyui.executor import RunOrigin, _GraphRun
from latent_ladder.comfyui.exporter.file_names import file_names_for
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.comfyui.importer.importer import import_graph
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.events import ignore_event
from latent_ladder.comfyui.runtime.values import Conditioning, Latent, TextEncoderFiles
from latent_ladder.comfyui.versions import ModelConvention, comfyui_version, parse_comfyui_version
from latent_ladder.errors import RequestError
from latent_ladder.models.text_encoder.encode import encode_prompts
from latent_ladder.models.text_encoder.gemma import compute_hidden_states
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer, text_length
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.weights.quantized_tensor import read_stored
from latent_ladder.pipeline.run_options import Cancel
from latent_ladder.request.model import Request

SAMPLED: Nodes = {**MODELS, **LATENTS, **SAMPLING}


@pytest.fixture(scope="module")
def library() -> Library:
    return scan(model_folders(environ={}))


@pytest.mark.parametrize(
    ("text", "convention"),
    [
        ("current", "comfyui"), ("0.33", "comfyui"), ("v0.34.1", "comfyui"), ("1.0", "comfyui"),
        ("0.32.9", "comfyui-0.32"), ("0.3.75", "comfyui-0.32"), ("Official", "ltx"),
    ],
)  # fmt: skip
def test_versions_are_conventions(text: str, convention: ModelConvention) -> None:
    assert parse_comfyui_version(text) == convention
    assert parse_comfyui_version(comfyui_version(convention)) == convention or convention == "ltx"


@pytest.mark.parametrize("text", ["", "new", "33", "0.33-beta", "0,33"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not a version of ComfyUI"):
        parse_comfyui_version(text)


def keys(work: Engine, nodes: Nodes) -> dict[str, str]:
    run = _GraphRun(graph(nodes), work, ignore_event, Cancel(), {}, RunOrigin())
    return {name: run._key(name) for name in nodes}


def test_the_version_is_in_the_keys_of_sampling_and_of_what_follows(
    tmp_path: Path, library: Library
) -> None:
    work = engine(tmp_path, library)
    found: dict[str, dict[str, str]] = {}
    conventions: tuple[ModelConvention, ...] = ("comfyui", "comfyui-0.32", "ltx")
    for convention in conventions:
        work.convention = convention
        found[convention] = keys(work, ONE_STAGE)
    for other in ("comfyui-0.32", "ltx"):
        changed = {n for n, key in found[other].items() if key != found["comfyui"][n]}
        assert changed == {"sampled", "parts", "frames", "sound", "clip file", "save"}


def sample(work: Engine, nodes: Nodes, convention: ModelConvention) -> Latent:
    work.convention = convention
    work.clear()
    run = _GraphRun(graph(nodes), work, ignore_event, Cancel(), {}, RunOrigin())
    result = run._result("sampled").values[0]
    assert isinstance(result, Latent)
    return result


def test_the_version_decides_the_sound_and_is_recorded(tmp_path: Path, library: Library) -> None:
    work = engine(tmp_path, library)
    current, before, official = (
        sample(work, SAMPLED, c) for c in ("comfyui", "comfyui-0.32", "ltx")
    )
    assert current.audio is not None and before.audio is not None and official.audio is not None
    assert (current.audio - before.audio).abs().mean() > 1e-4
    # rounded norms change the context in its last digits only
    scale = official.audio.std()
    assert (before.audio - official.audio).abs().mean() < 0.05 * scale
    recorded = {run.request["model_convention"] for run in work.store.runs.list()[0]}
    assert recorded == {"comfyui", "comfyui-0.32", "ltx"}


def test_a_voice_costs_one_more_pass(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``LTXVReferenceAudio``: the prediction with the voice is the one that is sampled."""
    voice = {
        "model": ["model", 0], "positive": ["conditioning", 0], "negative": ["conditioning", 1],
        "reference_audio": ["tone", 0], "audio_vae": ["audio vae", 0],
        "identity_guidance_scale": 2.0,
    }  # fmt: skip
    guider = {"model": ["voice", 0], "positive": ["voice", 1], "negative": ["voice", 2], "cfg": 1.0}
    nodes: Nodes = {
        **SAMPLED,
        "tone": ("EmptyAudio", {"duration": 0.4, "sample_rate": 16000, "channels": 2}),
        "voice": ("LTXVReferenceAudio", voice),
        "guider": ("CFGGuider", guider),
    }
    calls: list[int] = []
    original = Transformer.forward

    def count(self: Transformer, *args: object, **named: object) -> object:
        calls.append(1)
        return original(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "forward", count)
    found = sample(engine(tmp_path, library), nodes, "comfyui")
    assert found.audio is not None and torch.isfinite(found.audio).all()
    assert len(calls) == 2 * 4


def test_nag_is_a_node(tmp_path: Path, library: Library) -> None:
    patch = {"model": ["model", 0], "nag_cond_video": ["negative", 0], "nag_scale": 11.0}
    nodes: Nodes = {
        **SAMPLED,
        "nag": ("LTX2_NAG", patch),
        "guider": ("CFGGuider", {**SAMPLING["guider"][1], "model": ["nag", 0]}),
    }
    work = engine(tmp_path, library)
    plain, guided = sample(work, SAMPLED, "comfyui"), sample(work, nodes, "comfyui")
    assert plain.video is not None and guided.video is not None
    assert (plain.video - guided.video).abs().mean() > 1e-3
    off = {**nodes, "nag": ("LTX2_NAG", {**patch, "nag_scale": 0.0})}
    same = sample(work, off, "comfyui").video
    assert same is not None and torch.equal(same, plain.video)


# --- texts ----------------------------------------------------------------------------------------


def pocket_clip(work: Engine) -> TextEncoderFiles:
    result = _GraphRun(graph(MODELS), work, ignore_event, Cancel(), {}, RunOrigin())._result(
        "prompt"
    )
    found = result.values[0]
    assert isinstance(found, Conditioning)
    return found.clip


def test_prompts_are_tokenized_as_written(tmp_path: Path, library: Library) -> None:
    clip = pocket_clip(engine(tmp_path, library))
    tokenizer, limit = load_tokenizer(clip.text_encoder), text_length(clip.text_encoder)
    text = "a red (circle) moving"
    plain = tokenizer.tokenize_as_comfyui(text)
    assert plain == tokenizer.tokenize(text, limit).ids
    assert tokenizer.tokenize_as_comfyui(r"a red \(circle\) moving") == plain
    assert tokenizer.tokenize_as_comfyui(f"  {text} ") != plain
    long = " ".join(["a red circle"] * limit)
    assert len(tokenizer.tokenize_as_comfyui(long)) > limit
    special = {"<end_of_turn>": 106}
    with_special = type(tokenizer)(
        tokenizer.encode, tokenizer.decode, tokenizer.bos, tokenizer.pad, special
    )
    ids = with_special.tokenize_as_comfyui("a red<end_of_turn>circle")
    parts = [*tokenizer.encode("a red"), 106, *tokenizer.encode("circle")]
    assert list(ids) == [tokenizer.bos, *parts]


def test_a_long_prompt_has_a_longer_context(tmp_path: Path, library: Library) -> None:
    work = engine(tmp_path, library)
    clip = pocket_clip(work)
    assert clip.connectors is not None
    limit = text_length(clip.text_encoder)
    parts = {
        "text_encoder": clip.text_encoder, "projection": clip.projection,
        "connectors": clip.connectors, "device": "cpu", "dtype": torch.float32,
    }  # fmt: skip
    prompts = ["a red circle", "red " * (limit + 10)]
    official = encode_prompts(prompts, **parts)  # type: ignore[arg-type]
    comfyui = encode_prompts(prompts, **parts, as_comfyui=True)  # type: ignore[arg-type]
    assert [c.video.shape[1] for c in official] == [limit, limit]
    assert comfyui[0].video.shape[1] == limit < comfyui[1].video.shape[1]
    assert_close(comfyui[0].video, official[0].video, 0.05)


def assert_close(one: Tensor, other: Tensor, part: float) -> None:
    assert (one - other).abs().mean() < part * other.std()


def test_norms_are_rounded_to_the_stored_type(tmp_path: Path, library: Library) -> None:
    """1 + w in bfloat16 differs from float32, and only where w is stored in 16 bits."""
    clip = pocket_clip(engine(tmp_path, library))
    ids = [load_tokenizer(clip.text_encoder).tokenize_as_comfyui("a red circle")]
    plain, rounded = (
        compute_hidden_states(
            ids, clip.text_encoder, device="cpu", dtype=torch.float32, round_norms=r
        )[0]
        for r in (False, True)
    )
    assert torch.equal(plain[0], rounded[0])
    stored = read_stored(clip.text_encoder, "norm.weight")
    assert isinstance(stored, Tensor)
    relative = (plain - rounded).norm() / plain.norm()
    if stored.dtype == torch.bfloat16:
        assert 1e-6 < relative < 1e-2
    else:
        assert relative < 1e-5


# --- import and export ----------------------------------------------------------------------------


def test_import_takes_the_convention_of_the_switch() -> None:
    document = graph(ONE_STAGE).to_api()
    workflow = workflow_from_document(document)
    assert import_workflow(workflow).request.model_convention == "comfyui"
    assert import_workflow(workflow, convention="ltx").request.model_convention == "ltx"


def test_an_unchanged_export_keeps_its_convention() -> None:
    request = Request.from_preset("balanced", prompt="a red ball")
    files = file_names_for(request, [])
    workflow = workflow_from_document(export_workflow(request, files, "ui"))
    assert import_workflow(workflow).request == request
    changed = import_workflow(workflow, convention="comfyui-0.32").request
    assert changed.model_convention == "comfyui-0.32"


def nag_graph(**patch: object) -> Nodes:
    """A graph of one stage with NAG."""
    inputs = {"model": ["model", 0], "nag_cond_video": ["negative", 0], "nag_scale": 7.0, **patch}
    return {
        **ONE_STAGE,
        "nag": ("LTX2_NAG", inputs),
        "guider": ("CFGGuider", {**SAMPLING["guider"][1], "cfg": 1.0, "model": ["nag", 0]}),
    }


def test_nag_is_imported_by_stream() -> None:
    found = import_graph(graph(nag_graph(nag_tau=3.0)))
    guidance = found.request.stages[0].guidance  # type: ignore[union-attr]
    assert guidance.video.nag is not None and guidance.audio.nag is None
    nag = guidance.video.nag
    assert (nag.scale, nag.tau, nag.alpha) == (7.0, 3.0, 0.25)
    assert [loss.node for loss in found.losses if "noise level" in loss.message] == ["nag"]
    off = import_graph(graph(nag_graph(nag_scale=0.0))).request.stages[0]
    assert off.guidance.video.nag is None  # type: ignore[union-attr]


def test_the_negative_prompt_of_nag_is_used_where_the_guider_needs_none() -> None:
    clip = SAMPLED["negative"][1]["clip"]
    other = {"away": ("CLIPTextEncode", {"clip": clip, "text": "blurry"})}
    nodes: Nodes = {**nag_graph(nag_cond_video=["away", 0]), **other}
    assert import_graph(graph(nodes)).request.negative_prompt == "blurry"
    nodes["guider"][1]["cfg"] = 3.0
    found = import_graph(graph(nodes))
    assert found.request.negative_prompt != "blurry"
    assert any("several negative prompts" in loss.message for loss in found.losses)


def test_nag_is_exported_and_imported() -> None:
    table = Request.from_preset("pocket", prompt="a ball", negative_prompt="blurry").to_dict()
    numbers = {"scale": 5.0, "tau": 2.0, "alpha": 0.5}
    for stream in ("video", "audio"):
        table["stages"][0].setdefault("guidance", {}).setdefault(stream, {})["nag"] = numbers
    request = Request.from_dict(table)
    document = export_workflow(request, file_names_for(request, []), "api")
    (node,) = [one for one in document.values() if one["class_type"] == "LTX2_NAG"]
    assert node["inputs"]["nag_cond_video"] == node["inputs"]["nag_cond_audio"]
    for entry in document.values():  # without the embedded request
        entry["_meta"].pop("latent_ladder", None)
    found = import_workflow(workflow_from_document(document)).request
    guidance = found.stages[0].guidance  # type: ignore[union-attr]
    assert guidance.video.nag is not None and guidance.video.nag.model_dump() == numbers
    assert guidance.audio.nag == guidance.video.nag
    assert found.negative_prompt == "blurry"
