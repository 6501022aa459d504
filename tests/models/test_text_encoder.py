"""Text encoding: tokens, Gemma states, projections, connectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, TensorInfo, open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.models.text_encoder.connectors import (
    Connector,
    load_connector,
    project_features,
    read_connector_settings,
)
from latent_ladder.models.text_encoder.encode import encode_prompts
from latent_ladder.models.text_encoder.gemma import GemmaLayer, compute_hidden_states
from latent_ladder.models.text_encoder.gemma_config import read_gemma_config
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer, text_length, token_report
from latent_ladder.models.weights.loading import EmptyOnMeta

GEMMA = "text_encoders/tiny-gemma-3.safetensors"
CPU: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


def gemma_file(
    golden: Goldens,
    folder: Path,
    header: Mapping[str, str | None] | None = None,
    drop: Sequence[str] = (),
    add: dict[str, torch.Tensor] | None = None,
) -> Component:
    """Copy of the tiny text encoder with another header or other tensors."""
    source = open_checkpoint(golden.path(GEMMA))
    with safe_open(source.path, "pt") as opened:
        tensors = {k: opened.get_tensor(k) for k in source.tensors if k not in drop}
    metadata = {**source.metadata, **(header or {})}
    path = folder / "gemma.safetensors"
    save_file(tensors | (add or {}), path, {k: v for k, v in metadata.items() if v is not None})
    return components(open_checkpoint(path))["text_encoder"]


@pytest.fixture(scope="module")
def gemma(golden: Goldens) -> Component:
    return components(open_checkpoint(golden.path(GEMMA)))["text_encoder"]


@pytest.fixture(scope="module")
def parts(golden: Goldens) -> dict[str, Component]:
    return components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p0", "p1"])
def test_token_ids_equal_the_reference(golden: Goldens, gemma: Component, name: str) -> None:
    case = golden(f"text.tokens.{name}")
    tokenizer = load_tokenizer(gemma)
    prompt = f" \n{case.params['prompt']}  "
    ids, mask = tokenizer.tokenize(prompt, 128).pad_left(128, tokenizer.pad)
    assert ids == case.outputs["input_ids"].flatten().tolist()
    assert mask == case.outputs["attention_mask"].flatten().tolist()


def test_empty_prompt_is_one_bos_token(gemma: Component) -> None:
    assert load_tokenizer(gemma).tokenize("  ", 128).ids == (2,)


def test_report_contains_the_truncated_text(golden: Goldens, tmp_path: Path) -> None:
    short = gemma_file(golden, tmp_path, {"text_length": "12"})
    prompt = "A red fox walks slowly through the snowy forest with soft piano music."
    report = token_report(prompt, short)
    assert (report.n_tokens, report.limit) == (38, 12)
    assert report.kept_text == "A red fox walks slowly"
    assert report.cut_text == " through the snowy forest with soft piano music."
    assert token_report("A red fox", short).cut_text == ""


def test_truncation_inside_a_character_drops_it(golden: Goldens, gemma: Component) -> None:
    tokens = load_tokenizer(gemma).tokenize("blurry, café noise 42!", 12)
    assert (tokens.kept_text, tokens.cut_text) == ("blurry, caf", "é noise 42!")


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("A red fox", ()),
        ("Two red FOXES, the fox's den", ("two", "den")),
        ("zebra, fox; Zebra!", ("zebra",)),
        ("42 fox's", ("42",)),
    ],
)
def test_unknown_words(
    golden: Goldens, tmp_path: Path, prompt: str, unknown: tuple[str, ...]
) -> None:
    words = json.dumps(["a", "the", "red", "fox"])
    listed = gemma_file(golden, tmp_path, {"known_words": words})
    assert token_report(prompt, listed).unknown_words == unknown


def test_without_a_word_list_no_word_is_unknown(gemma: Component) -> None:
    assert token_report("xyzzy", gemma).unknown_words == ()
    assert text_length(gemma) == 1024


@pytest.mark.parametrize("header", [{"known_words": "{"}, {"known_words": "1"}])
def test_a_damaged_word_list_is_reported(
    golden: Goldens, tmp_path: Path, header: dict[str, str]
) -> None:
    with pytest.raises(CorruptCheckpoint, match="known_words"):
        token_report("fox", gemma_file(golden, tmp_path, header))


def test_a_damaged_text_length_is_reported(golden: Goldens, tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint, match="text_length"):
        text_length(gemma_file(golden, tmp_path, {"text_length": "many"}))


def test_vocabulary_may_be_next_to_the_file(
    golden: Goldens, tmp_path: Path, gemma: Component
) -> None:
    bare = gemma_file(golden, tmp_path, drop=("spiece_model",))
    with pytest.raises(UnknownLayout, match="no tokenizer"):
        load_tokenizer(bare)
    stored = gemma.read("spiece_model").numpy().tobytes()
    (tmp_path / "tokenizer.model").write_bytes(stored)
    assert load_tokenizer(bare).tokenize("fox", 9) == load_tokenizer(gemma).tokenize("fox", 9)
    (tmp_path / "tokenizer.model").write_bytes(stored[:100])
    with pytest.raises(CorruptCheckpoint, match="tokenizer"):
        load_tokenizer(bare)


def test_tokenizer_json_is_read(golden: Goldens, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "red": 4, "fox": 5, "jumps": 6}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    data = torch.tensor(list(words.to_str().encode()), dtype=torch.uint8)
    packed = gemma_file(golden, tmp_path, drop=("spiece_model",), add={"tokenizer_json": data})
    tokens = load_tokenizer(packed).tokenize(" red fox jumps", 3)
    assert (tokens.ids, tokens.total) == ((2, 4, 5), 4)
    assert tokens.cut_text.strip() == "jumps"


# --- Gemma ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p0", "p1"])
def test_hidden_states(golden: Goldens, gemma: Component, name: str) -> None:
    ids = load_tokenizer(gemma).tokenize(golden(f"text.tokens.{name}").params["prompt"], 128).ids
    _, hidden = compute_hidden_states([(2,), ids], gemma, **CPU)
    golden(f"text.hidden.{name}").check("hidden", hidden)


def test_without_a_header_gemma_3_is_assumed(
    golden: Goldens, tmp_path: Path, gemma: Component
) -> None:
    """Defaults: full attention every sixth layer, RoPE factor 8; here only the window differs."""
    bare = read_gemma_config(gemma_file(golden, tmp_path, {"gemma_config": None}))
    stated = read_gemma_config(gemma)
    layers = (n if n.window is None else replace(n, window=1024) for n in stated.layers)
    assert bare == replace(stated, layers=tuple(layers))


def test_the_header_spelling_of_older_files(
    golden: Goldens, tmp_path: Path, gemma: Component
) -> None:
    older = json.dumps(
        {
            "sliding_window": 24,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
    )
    settings = read_gemma_config(gemma_file(golden, tmp_path, {"gemma_config": older}))
    assert settings == read_gemma_config(gemma)


def test_header_of_another_model_is_rejected(golden: Goldens, tmp_path: Path) -> None:
    other = gemma_file(golden, tmp_path, {"gemma_config": '{"hidden_size": 48}'})
    with pytest.raises(UnknownLayout, match="hidden_size = 48"):
        read_gemma_config(other)


def test_incomplete_text_encoder_is_rejected(golden: Goldens, tmp_path: Path) -> None:
    part = gemma_file(golden, tmp_path, drop=("model.layers.3.mlp.up_proj.weight",))
    with pytest.raises(UnknownLayout, match=r"layer 3 .*mlp\.up_proj"):
        compute_hidden_states([(2,)], part, **CPU)


def of_shapes(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any] | None = None
) -> CheckpointFile:
    """Checkpoint with the header of a real file, without tensor data."""
    tensors = {name: TensorInfo(shape, "BF16") for name, shape in shapes.items()}
    return CheckpointFile(Path("real.safetensors"), 0, {}, tensors, config or {})


def gemma_12b() -> dict[str, tuple[int, ...]]:
    """The text tensors of Gemma 3 12B (formats reference)."""
    d, inner, q, kv = 3840, 15360, 4096, 2048
    layer = {
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "self_attn.q_norm": (256,),
        "self_attn.k_norm": (256,),
        "mlp.gate_proj": (inner, d),
        "mlp.up_proj": (inner, d),
        "mlp.down_proj": (d, inner),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "pre_feedforward_layernorm": (d,),
        "post_feedforward_layernorm": (d,),
    }
    shapes = {f"model.layers.{n}.{k}.weight": s for n in range(48) for k, s in layer.items()}
    return {"model.embed_tokens.weight": (262208, d), "model.norm.weight": (d,), **shapes}


def test_real_gemma_shapes_match() -> None:
    file = of_shapes(gemma_12b())
    assert len(file.tensors) == 626
    assert sum(t.elements for t in file.tensors.values()) == pytest.approx(11.766e9, rel=1e-4)
    part = components(file)["text_encoder"]
    settings = read_gemma_config(part)
    last = settings.layers[-1]
    full = sum(layer.window is None for layer in settings.layers)
    assert (last.heads, last.kv_heads, full) == (16, 8, 8)
    with EmptyOnMeta():
        built = GemmaLayer(settings, last).state_dict()
    prefix = "layers.47."
    wanted = {k.removeprefix(prefix): v for k, v in part.shapes().items() if k.startswith(prefix)}
    assert {name: tuple(tensor.shape) for name, tensor in built.items()} == wanted


# --- projection and connectors --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p0", "p1"])
def test_projection(golden: Goldens, parts: dict[str, Component], name: str) -> None:
    hidden = golden(f"text.hidden.{name}").outputs["hidden"]
    other = golden("text.hidden.p1").outputs["hidden"][:, :5]
    features = project_features([other, hidden], parts["text_projection"])[1]
    case = golden(f"text.features.{name}")
    for stream in ("video", "audio"):
        case.check(stream, features[stream][None])


def test_projection_for_another_text_encoder_is_rejected(parts: dict[str, Component]) -> None:
    with pytest.raises(UnknownLayout, match=r"needs 224 features per token.* outputs 160"):
        project_features([torch.ones(5, 3, 32)], parts["text_projection"])


@pytest.mark.parametrize("name", ["p0", "p1"])
@pytest.mark.parametrize("stream", ["video", "audio"])
def test_connectors(golden: Goldens, parts: dict[str, Component], name: str, stream: str) -> None:
    features = golden(f"text.features.{name}").outputs[stream][0]
    context = load_connector(parts["connectors"], stream, **CPU)(features, 128)
    golden(f"text.context.{name}").check(stream, context)


def test_the_2_0_text_path(golden: Goldens) -> None:
    old = components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.0.safetensors")))
    case = golden("ltx20.text")
    (features,) = project_features(
        [golden("text.hidden.p0").outputs["hidden"]], old["text_projection"]
    )
    case.check("features", features["video"][None])
    for stream in ("video", "audio"):
        case.check(stream, load_connector(old["connectors"], stream, **CPU)(features[stream], 128))


def test_registers_repeat_over_longer_contexts(parts: dict[str, Component]) -> None:
    connector = load_connector(parts["connectors"], "video", **CPU)
    assert connector(torch.randn(3, 64), 256).shape == (1, 256, 64)
    with pytest.raises(UnknownLayout, match="multiple"):
        connector(torch.randn(3, 64), 100)


def connector_shapes(stream: str, width: int) -> dict[str, tuple[int, ...]]:
    top = f"model.diffusion_model.{stream}_embeddings_connector."
    block = {
        **{f"attn1.{n}_norm.weight": (width,) for n in "qk"},
        **{f"attn1.to_{n}.weight": (width, width) for n in ("q", "k", "v", "out.0")},
        **{f"attn1.to_{n}.bias": (width,) for n in ("q", "k", "v", "out.0")},
        "attn1.to_gate_logits.weight": (32, width),
        "attn1.to_gate_logits.bias": (32,),
        "ff.net.0.proj.weight": (4 * width, width),
        "ff.net.0.proj.bias": (4 * width,),
        "ff.net.2.weight": (width, 4 * width),
        "ff.net.2.bias": (width,),
    }
    names = {f"{top}transformer_1d_blocks.{i}.{k}": s for i in range(8) for k, s in block.items()}
    return {f"{top}learnable_registers": (128, width), **names}


@pytest.mark.parametrize(
    ("stream", "width", "parameters"),
    [("video", 4096, 1_612_546_304), ("audio", 2048, 403_620_096)],
)
def test_real_connector_shapes_match(stream: str, width: int, parameters: int) -> None:
    part = components(of_shapes(connector_shapes(stream, width)))["connectors"]
    settings = read_connector_settings(part, stream)
    assert (settings.heads, settings.layers) == (32, 8)
    with EmptyOnMeta():
        built = Connector(settings).state_dict()
    prefix = f"{stream}_embeddings_connector."
    wanted = {k.removeprefix(prefix): s for k, s in part.shapes().items()}
    assert {name: tuple(tensor.shape) for name, tensor in built.items()} == wanted
    assert sum(tensor.numel() for tensor in built.values()) == parameters


# --- end to end -----------------------------------------------------------------------------------


def whole(
    parts: dict[str, Component],
    text_encoder: Component,
    prompts: Sequence[str],
    dtype: torch.dtype = torch.float32,
) -> list[Conditioning]:
    return encode_prompts(
        prompts,
        text_encoder=text_encoder,
        projection=parts["text_projection"],
        connectors=parts["connectors"],
        device="cpu",
        dtype=dtype,
    )


def test_prompts_to_context(golden: Goldens, tmp_path: Path, parts: dict[str, Component]) -> None:
    short = gemma_file(golden, tmp_path, {"text_length": "128"})
    prompts = [golden(f"text.tokens.{n}").params["prompt"] for n in ("p0", "p1")]
    contexts = whole(parts, short, [*prompts, prompts[0], ""])
    for name, context in zip(("p0", "p1", "p0"), contexts, strict=False):
        golden(f"text.context.{name}").check("video", context.video)
        golden(f"text.context.{name}").check("audio", context.audio)
    assert contexts[3].video.isfinite().all()


def test_prompts_do_not_depend_on_each_other(
    golden: Goldens, tmp_path: Path, parts: dict[str, Component]
) -> None:
    short = gemma_file(golden, tmp_path, {"text_length": "128"})
    together = whole(parts, short, ["a fox runs", "", "blurry, noisy and much longer than that"])
    alone = [whole(parts, short, [p])[0] for p in ("a fox runs", "")]
    for one, other in zip(together, alone, strict=False):
        assert torch.equal(one.video, other.video)
        assert torch.equal(one.audio, other.audio)


def test_bfloat16_stays_close(golden: Goldens, tmp_path: Path, parts: dict[str, Component]) -> None:
    short = gemma_file(golden, tmp_path, {"text_length": "128"})
    (context,) = whole(parts, short, [golden("text.tokens.p0").params["prompt"]], torch.bfloat16)
    assert context.video.dtype == torch.bfloat16
    want = golden("text.context.p0").outputs["video"]
    assert (context.video - want).norm() / want.norm() < 0.05
