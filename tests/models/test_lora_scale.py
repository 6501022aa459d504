"""Alpha and rank that only a header states, and names of LoRA modules from other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.goldens import Goldens
from helpers.transformer_inputs import linear
from safetensors.torch import load_file, save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.lora_keys import describe_scales
from latent_ladder.checkpoints.text_loras import TextLoras
from latent_ladder.errors import CheckpointError
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.text_encoder.connectors import load_connector, project_features
from latent_ladder.models.text_encoder.encode import encode_prompts
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.weights.linear import LowRank
from latent_ladder.pipeline.artifact_keys import prompt_key

LORA = "loras/tiny-distilled-lora.safetensors"
MODULE = "transformer_blocks.0.attn1.to_q"
OTHER = "transformer_blocks.1.ff.net.2"
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def model(golden: Goldens) -> Transformer:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return load_transformer(components(open_checkpoint(path))["transformer"])


@pytest.fixture(scope="module")
def tensors(golden: Goldens) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = load_file(golden.path(LORA))
    return {
        name.removeprefix("diffusion_model."): tensor
        for name, tensor in stored.items()
        if MODULE + "." in name or OTHER + "." in name
    }


def save(folder: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> Component:
    path = folder / "l.safetensors"
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, header)
    return components(open_checkpoint(path))["lora"]


def scales(model: Transformer, lora: Component) -> tuple[float, float]:
    """The scales with which the two modules act."""
    with temporary_loras(model, [(lora, 1.0)]):
        found = [linear(model, name).branches for name in (MODULE, OTHER)]
    both = [branch for (branch,) in found]
    assert all(isinstance(branch, LowRank) for branch in both)
    return both[0].strength, both[1].strength


def diffusers(**settings: object) -> dict[str, str]:
    return {
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})
    }


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"transformer.lora_alpha": "4", "transformer.r": "16"}, (0.25, 0.25)),
        ({"lora_alpha": "1e1", "lora_rank": "+2.0e1"}, (0.5, 0.5)),
        ({"lora_alpha": ".5", "rank": "1"}, (0.5, 0.5)),
        ({"lora_alpha": "-8", "r": "8"}, (-1, -1)),
        ({"alpha": "4", "rank": "16"}, (0.25, 0.25)),
        ({"alpha": "4"}, (1, 1)),
        ({"network_alpha": "4", "network_dim": "8"}, (0.5, 0.5)),
        ({"lora_alpha": "4"}, (0.5, 0.5)),  # the file's rank is 8
        ({"lora_alpha": "450", "lora_rank": "450"}, (1, 1)),
        ({"diffusion_model.lora_alpha": "2", "diffusion_model.r": "8"}, (0.25, 0.25)),
        ({"adapter_config": json.dumps({"r": 8, "lora_alpha": 2})}, (0.25, 0.25)),
        ({"lora_adapter_metadata": json.dumps({"transformer": {"r": 8, "lora_alpha": 2}})},
         (0.25, 0.25)),
        (diffusers(r=16, lora_alpha=4), (0.25, 0.25)),
        (diffusers(r=16, lora_alpha=4, use_rslora=True), (1, 1)),
        (diffusers(r=16, lora_alpha=8, use_rslora=True), (2, 2)),
        (diffusers(r=8, lora_alpha=8, alpha_pattern={OTHER: 2}), (1, 0.25)),
        (diffusers(r=8, lora_alpha=8, alpha_pattern={f"^{OTHER}": 2, "net.2": 4}), (1, 0.25)),
        (diffusers(r=8, lora_alpha=8, alpha_pattern={r"blocks\.\d+\.attn1.to_q": 2}), (1, 1)),
        (diffusers(r=8, lora_alpha=8, alpha_pattern={r".*\.attn1\.to_[qk]": 2}), (0.25, 1)),
        (diffusers(r=8, lora_alpha=8, rank_pattern={"to_q": 32}), (0.25, 1)),
        ({**diffusers(r=8, lora_alpha=2), "lora_alpha": "6"}, (0.25, 0.25)),
        ({"text_encoder.lora_alpha": "1", "text_encoder.r": "8"}, (1, 1)),
    ],
)  # fmt: skip
def test_the_header_states_the_scale(
    model: Transformer,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    header: dict[str, str],
    expected: tuple[float, float],
) -> None:
    plain = save(tmp_path, tensors, {}).id
    lora = save(tmp_path, tensors, header)
    assert scales(model, lora) == pytest.approx(expected)
    said = describe_scales(lora)
    assert bool(said) == (expected != (1, 1))
    assert not said or "alpha" in said[0]
    assert plain.count(":") == 1
    if expected != (1, 1):
        assert lora.id.count(":") == 2, "stored results of the other strength are not taken"


def test_an_alpha_tensor_wins(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    more = {f"{name}.alpha": torch.tensor(2.0) for name in (MODULE, OTHER)}
    lora = save(tmp_path, tensors | more, {"lora_alpha": "16", "lora_rank": "8"})
    assert scales(model, lora) == (0.25, 0.25)
    assert describe_scales(lora) == ()
    assert lora.id.count(":") == 1


def test_kohyas_alpha_counts_for_kohyas_names(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    header = {"ss_network_alpha": "2", "ss_network_dim": "8"}
    renamed = {
        n.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): t for n, t in tensors.items()
    }
    assert scales(model, save(tmp_path, renamed, header)) == (0.25, 0.25)
    folded = save(tmp_path, tensors, header)
    assert scales(model, folded) == (1, 1)
    assert "alpha 2" in describe_scales(folded)[0]
    none = {"ss_network_alpha": "None", "ss_network_dim": "Dynamic"}
    assert scales(model, save(tmp_path, renamed, none)) == (1, 1)


def test_pefts_file_next_to_the_adapter(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 2, "peft_type": "LORA"}')
    save(tmp_path, tensors, {})
    other = components(open_checkpoint(tmp_path / "l.safetensors"))["lora"]
    own = (tmp_path / "l.safetensors").rename(tmp_path / "adapter_model.safetensors")
    adapter = components(open_checkpoint(own))["lora"]
    assert (other.lora_scales.general, scales(model, adapter)) == (None, (0.25, 0.25))


@pytest.mark.parametrize(
    "header",
    [
        {"lora_alpha": "four", "lora_rank": "8"},
        {"lora_alpha": "4", "lora_rank": "nan"},
        {"lora_adapter_metadata": "{"},
        {"lora_adapter_metadata": "[" * 5000},
        diffusers(r=8, lora_alpha=8, alpha_pattern={"(a+)+$": 2}),
        diffusers(r=8, lora_alpha=8, alpha_pattern={"x": "y"}),
        diffusers(r=8, lora_alpha=8, alpha_pattern=[1]),
    ],
)
def test_what_is_not_understood_is_said(
    tensors: dict[str, torch.Tensor], tmp_path: Path, header: dict[str, str]
) -> None:
    lora = save(tmp_path, tensors, header)
    assert any("not used" in note for note in lora.lora_scales.notes)
    assert any("not used" in note for note in describe_scales(lora))


# --- names ----------------------------------------------------------------------------------------


def _old(name: str) -> str:
    return name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")


def _flat(name: str) -> str:
    module, _, part = name.partition(".lora")
    return f"lycoris_unet_{module.replace('.', '_')}.lora{part}"


def _layer(name: str) -> str:
    return name.replace("lora_A", "lora_linear_layer.down").replace(
        "lora_B", "lora_linear_layer.up"
    )


@pytest.mark.parametrize(
    "spelling",
    [
        lambda n: f"unet.{n}",
        lambda n: f"net.dit.{n}",
        lambda n: f"my_trainer.model.diffusion_model.{n}",
        _flat,
        _old,
        _layer,
        lambda n: f"transformer.{_old(n)}",
        lambda n: n.replace(".weight", ".default.weight"),
        lambda n: n.replace(".weight", ".default"),
        lambda n: n.replace(".weight", ""),
    ],
)  # fmt: skip
def test_names_of_other_programs(
    model: Transformer,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    spelling: Callable[[str], str],
) -> None:
    lora = save(tmp_path, {spelling(name): t for name, t in tensors.items()}, {})
    with temporary_loras(model, [(lora, 1.0)]) as report:
        assert (report.matches[0].matched, report.complete) == (2, True)


def test_two_adapters_in_one_file_are_refused(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    both = {
        n.replace(".weight", f".{a}.weight"): t.clone()
        for n, t in tensors.items()
        for a in ("a", "b")
    }
    with (
        pytest.raises(CheckpointError, match="has two adapters"),
        temporary_loras(model, [(save(tmp_path, both, {}), 1.0)]),
    ):
        pass


# --- text connectors and projection ---------------------------------------------------------------


def _pair(name: str, shape: tuple[int, int], seed: int) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    down = torch.randn(4, shape[1], generator=noise) / math.sqrt(shape[1])
    up = torch.randn(shape[0], 4, generator=noise)
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


@pytest.mark.parametrize("family", ["2.0", "2.3"])
@pytest.mark.parametrize("spelling", ["original", "diffusers"])
def test_connectors_and_projection_equal_merged_weights(
    golden: Goldens, tmp_path: Path, family: str, spelling: str
) -> None:
    path = golden.path(f"checkpoints/tiny-ltx-{family}.safetensors")
    parts = components(open_checkpoint(path))
    connectors, projection = parts["connectors"], parts["text_projection"]
    layer = "video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    embed = "aggregate_embed" if family == "2.0" else "video_aggregate_embed"
    sizes = {layer: connectors.shape(f"{layer}.weight"), embed: projection.shape(f"{embed}.weight")}
    pairs = {name: _pair(name, shape, 3) for name, shape in sizes.items()}  # type: ignore[arg-type]
    renamed = {
        "original": (f"diffusion_model.{layer}", f"text_embedding_projection.{embed}"),
        "diffusers": (
            "connectors.video_connector.transformer_blocks.0.attn1.to_q",
            "connectors." + embed.replace("aggregate_embed", "text_proj_in"),
        ),
    }[spelling]
    stored = {
        key.replace(name, new): t
        for (name, pair), new in zip(pairs.items(), renamed, strict=True)
        for key, t in pair.items()
    }
    lora = save(tmp_path, stored, {})
    chosen = TextLoras.select([(lora, 0.5)], [(lora, 0.5)])
    assert (len(chosen.connectors), len(chosen.projection)) == (1, 1)

    hidden = torch.randn(7, 5, 32, generator=torch.Generator().manual_seed(1))
    down, up = pairs[embed].values()
    weights = {
        f"text_embedding_projection.{key}": projection.read(key).float() for key in projection.names
    }
    merged_name = f"text_embedding_projection.{embed}.weight"
    weights[merged_name] = weights[merged_name] + 0.5 * up @ down
    save_file(weights, tmp_path / "merged.safetensors")
    merged_projection = components(open_checkpoint(tmp_path / "merged.safetensors"))
    (changed,) = project_features([hidden], projection, chosen.projection)
    (expected,) = project_features([hidden], merged_projection["text_projection"])
    torch.testing.assert_close(changed["video"], expected["video"], atol=2e-4, rtol=1e-5)

    adapted = load_connector(connectors, "video", loras=chosen.connectors, **CPU)  # type: ignore[arg-type]
    merged = load_connector(connectors, "video", **CPU)  # type: ignore[arg-type]
    down, up = pairs[layer].values()
    merged.transformer_1d_blocks[0].attn1.to_q.weight.data += 0.5 * up @ down  # type: ignore[union-attr,operator]
    features = torch.randn(5, sizes[layer][0], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(adapted(features, 128), merged(features, 128), atol=2e-5, rtol=0)


def test_the_key_of_a_prompt_moves_with_its_loras_only(golden: Goldens, tmp_path: Path) -> None:
    parts = components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))
    layer = "video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    shape = parts["connectors"].shape(f"{layer}.weight")
    lora = save(tmp_path, _pair(layer, shape, 1), {})  # type: ignore[arg-type]
    three = (parts["text_projection"], parts["text_projection"], parts["connectors"])
    plain = prompt_key("a", *three)
    assert prompt_key("a", *three, TextLoras()) == plain
    keys = {prompt_key("a", *three, TextLoras.select([(lora, s)], [])) for s in (0.5, 1.0)}
    assert len(keys | {plain}) == 3


def test_modules_that_the_connectors_lack_are_refused(golden: Goldens, tmp_path: Path) -> None:
    parts = components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))
    lora = save(
        tmp_path,
        _pair("video_embeddings_connector.transformer_1d_blocks.9.attn1.to_q", (8, 8), 1),
        {},
    )
    with pytest.raises(CheckpointError, match=r"1 of its 1 modules for the connectors are not in"):
        encode_prompts(
            ["a"],
            text_encoder=parts["connectors"],
            projection=parts["text_projection"],
            connectors=parts["connectors"],
            loras=TextLoras.select([(lora, 1.0)], []),
            **CPU,  # type: ignore[arg-type]
        )
