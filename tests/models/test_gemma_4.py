"""Text encoder of LTX-2.5: tokens, Gemma 4 states, features and contexts against the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gemma_files import gguf_name, golden_tensors
from helpers.goldens import Goldens
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components, find_unused_tensors
from latent_ladder.checkpoints.families import is_stock_gemma_4
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.text_encoder.connectors import project_features
from latent_ladder.models.text_encoder.encode import encode_prompts
from latent_ladder.models.text_encoder.gemma import (
    compute_hidden_states,
    load_layer,
    rotation_table,
)
from latent_ladder.models.text_encoder.gemma_config import read_gemma_config
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer
from latent_ladder.models.weights.dequantize import hadamard_matrix

CPU: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
ENCODER = "text_encoders/tiny-gemma4-with-proj-ltx-2.5.safetensors"
TRANSFORMER = "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors"
TOKENS = ("long", "empty", "default_length", "p0", "p1")


@pytest.fixture(scope="module")
def parts(golden_2_5: Goldens) -> dict[str, Component]:
    """The components of the text encoder's file and of the transformer's."""
    found = components(open_checkpoint(golden_2_5.path(TRANSFORMER)))
    return found | components(open_checkpoint(golden_2_5.path(ENCODER)))


@pytest.fixture(scope="module")
def encoder(parts: dict[str, Component]) -> Component:
    return parts["text_encoder"]


def ids_of(golden: Goldens, encoder: Component, name: str) -> tuple[int, ...]:
    params = golden(f"text.tokens.{name}").params
    return load_tokenizer(encoder).tokenize(params["prompt"], params["max_length"]).ids


def with_tensors(
    golden: Goldens, folder: Path, header: dict[str, str] | None = None, drop: str = "-"
) -> Path:
    """Copy of the tiny text encoder with other metadata or without some tensors."""
    source = open_checkpoint(golden.path(ENCODER))
    with safe_open(source.path, "pt") as opened:
        tensors = {k: opened.get_tensor(k) for k in source.tensors if drop not in k}
    path = folder / "encoder.safetensors"
    save_file(tensors, path, {**source.metadata, **(header or {})})
    return path


@pytest.mark.parametrize("name", TOKENS)
def test_token_ids(golden_2_5: Goldens, encoder: Component, name: str) -> None:
    case = golden_2_5(f"text.tokens.{name}")
    tokenizer, length = load_tokenizer(encoder), case.params["max_length"]
    ids, mask = tokenizer.tokenize(f" {case.params['prompt']}\n", length).pad_left(
        length, tokenizer.pad
    )
    assert ids == case.outputs["input_ids"].flatten().tolist()
    assert mask == case.outputs["attention_mask"].flatten().tolist()


def test_a_typed_bos_token_is_not_doubled(encoder: Component) -> None:
    tokenizer = load_tokenizer(encoder)
    assert tokenizer.tokenize("<bos>a fox", 64).ids == tokenizer.tokenize("a fox", 64).ids


@pytest.mark.parametrize("name", ["p0", "p1"])
def test_hidden_states(golden_2_5: Goldens, encoder: Component, name: str) -> None:
    ids = ids_of(golden_2_5, encoder, name)
    _, hidden = compute_hidden_states([(2,), ids], encoder, **CPU)
    golden_2_5(f"text.hidden.{name}").check("hidden", hidden)


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_one_layer_of_each_kind(golden_2_5: Goldens, encoder: Component, kind: str) -> None:
    case = golden_2_5(f"text.layer.{kind}")
    number, config = case.params["layer"], read_gemma_config(encoder)
    layer = load_layer(encoder, number, config, **CPU)
    x = case.inputs["normed_input"].reshape(-1, config.hidden)
    attention = config.layers[number]
    for name, table in zip(
        ("cos", "sin"), rotation_table(attention.rope, attention.head_dim, x), strict=True
    ):
        case.check(name, torch.cat((table, table), -1)[None])
    case.check("heads", layer.self_attn.attend(x).reshape(case.outputs["heads"].shape))
    (hidden,) = compute_hidden_states([ids_of(golden_2_5, encoder, "p0")], encoder, **CPU)
    after = case.outputs["after_layer"].reshape(-1, config.hidden)
    torch.testing.assert_close(layer(hidden[number]), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["p0", "p1"])
def test_features(golden_2_5: Goldens, parts: dict[str, Component], name: str) -> None:
    case = golden_2_5(f"text.features.{name}")
    hidden = golden_2_5(f"text.hidden.{name}").outputs["hidden"]
    (features,) = project_features([hidden], parts["text_projection"])
    for stream in ("video", "audio"):
        case.check(stream, features[stream].reshape(case.outputs[stream].shape))


def test_prompts_to_contexts(
    golden_2_5: Goldens, tmp_path: Path, parts: dict[str, Component]
) -> None:
    short = components(open_checkpoint(with_tensors(golden_2_5, tmp_path, {"text_length": "256"})))
    prompts = [golden_2_5(f"text.tokens.{n}").params["prompt"] for n in ("p0", "p1")]
    contexts = encode_prompts(
        prompts,
        text_encoder=short["text_encoder"],
        projection=short["text_projection"],
        connectors=parts["connectors"],
        **CPU,
    )
    for name, context in zip(("p0", "p1"), contexts, strict=True):
        golden_2_5(f"text.context.{name}").check("video", context.video)
        golden_2_5(f"text.context.{name}").check("audio", context.audio)


def test_layers_of_both_kinds(encoder: Component) -> None:
    config = read_gemma_config(encoder)
    sliding, full = config.layers[0], config.layers[5]
    assert (sliding.heads, sliding.kv_heads, sliding.head_dim, sliding.window) == (4, 2, 16, 24)
    assert (full.heads, full.kv_heads, full.head_dim, full.window) == (4, 1, 32, None)
    assert (sliding.keys_as_values, full.keys_as_values) == (False, True)
    assert config.norm_offset == 0
    assert config.layer_scalar


def test_an_incomplete_file_is_rejected(golden_2_5: Goldens, tmp_path: Path) -> None:
    path = with_tensors(golden_2_5, tmp_path, drop="layers.3.self_attn.v_proj")
    broken = components(open_checkpoint(path))["text_encoder"]
    with pytest.raises(UnknownLayout, match=r"layer 3 .*v_proj"):
        compute_hidden_states([(2,)], broken, **CPU)


# --- other formats of the file --------------------------------------------------------------------


def int8_convrot(weight: torch.Tensor, group: int = 16) -> tuple[dict[str, torch.Tensor], Any]:
    """A weight as int8 of its rotated columns with a scale per row, and its decoded numbers."""
    hadamard = hadamard_matrix(group, torch.device("cpu"))
    rotated = (weight.float().unflatten(1, (-1, group)) @ hadamard.T).flatten(1)
    scale = rotated.abs().amax(1, keepdim=True) / 127
    codes = (rotated / scale).round().to(torch.int8)
    numbers = ((codes * scale).unflatten(1, (-1, group)) @ hadamard).flatten(1)
    return {"weight": codes, "weight_scale": scale}, numbers


def test_int8_convrot(golden_2_5: Goldens, tmp_path: Path) -> None:
    """As published for ComfyUI: all matrices of the layers, marks per layer."""
    tensors, header = golden_tensors(golden_2_5.path(ENCODER))
    stored, plain = dict(tensors), dict(tensors)
    mark = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    says = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    for name in [n for n in tensors if "layers." in n and "_proj.weight" in n]:
        parts, plain[name] = int8_convrot(tensors[name])
        layer = name.removesuffix(".weight")
        del stored[name]
        stored |= {f"{layer}.{part}": t.contiguous() for part, t in parts.items()}
        stored[f"{layer}.comfy_quant"] = says.clone()
    found = []
    for file, content in (("stored", stored), ("plain", plain)):
        save_file(content, tmp_path / f"{file}.safetensors", header)
        part = components(open_checkpoint(tmp_path / f"{file}.safetensors"))["text_encoder"]
        found.append(compute_hidden_states([(2, 17, 30, 41)], part, **CPU)[0])
        assert (part.precision == "int8") == (file == "stored")
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def gguf_file(golden: Goldens, folder: Path, name: str = "ltx-2.5-gemma.gguf") -> Path:
    """The tiny Gemma 4 with the names and metadata of llama.cpp, in bf16."""
    import gguf

    tensors, header = golden_tensors(golden.path(ENCODER))
    config = json.loads(header["gemma_config"])["text_config"]
    writer = gguf.GGUFWriter(folder / name, "gemma4")
    writer.add_sliding_window(config["sliding_window"])
    kinds = [kind == "sliding_attention" for kind in config["layer_types"]]
    writer.add_array("gemma4.attention.sliding_window_pattern", kinds)
    tokenizer = json.loads(bytes(tensors["tokenizer_json"].numpy().tobytes()))
    vocabulary = tokenizer["model"]["vocab"]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3 if n < 4 else 1 for n in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    bf16 = gguf.GGMLQuantizationType.BF16
    for key, weight in tensors.items():
        if key.startswith("model.") and key.endswith("layer_scalar"):
            number = key.split(".")[2]
            writer.add_tensor(f"blk.{number}.layer_output_scale.weight", weight.float().numpy())
        elif key.startswith("model."):
            data = weight.float().numpy()
            if weight.ndim > 1:
                writer.add_tensor(gguf_name(key), gguf.quantize(data, bf16), raw_dtype=bf16)
            else:
                writer.add_tensor(gguf_name(key), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / name


def test_gguf(golden_2_5: Goldens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    file = open_checkpoint(gguf_file(golden_2_5, tmp_path))
    part, case = components(file)["text_encoder"], golden_2_5("text.tokens.p0")
    assert part.norm_offset == 0
    assert find_unused_tensors(file) == []
    ids = load_tokenizer(part).tokenize(case.params["prompt"], case.params["max_length"])
    assert list(ids.ids) == case.outputs["input_ids"].flatten().tolist()[-len(ids.ids) :]
    (hidden,) = compute_hidden_states([ids.ids], part, **CPU)
    golden_2_5("text.hidden.p0").check("hidden", hidden)
    assert not is_stock_gemma_4(part)


def test_a_gguf_of_a_stock_model_is_refused(golden_2_5: Goldens, tmp_path: Path) -> None:
    file = open_checkpoint(gguf_file(golden_2_5, tmp_path, "gemma-4-12b-it.gguf"))
    assert is_stock_gemma_4(components(file)["text_encoder"])
