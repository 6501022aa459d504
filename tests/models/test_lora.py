"""Adapters: the reference's fused weights, all key spellings, and an unchanged base weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.goldens import Goldens
from helpers.transformer_inputs import linear
from safetensors.torch import load_file, save_file
from torch import nn

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.lora_keys import DIFFUSERS_NAMES
from latent_ladder.errors import CheckpointError, CorruptCheckpoint
from latent_ladder.models.lora.attach import attach_loras, detach_loras, temporary_loras
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream
from latent_ladder.models.weights.block_offload import BlockOffload
from latent_ladder.models.weights.linear import Linear, LowRank
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

LORA = "loras/tiny-distilled-lora.safetensors"


@pytest.fixture(scope="module")
def model(golden: Goldens) -> Transformer:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return load_transformer(components(open_checkpoint(path))["transformer"])


@pytest.fixture(scope="module")
def adapter(golden: Goldens) -> Component:
    return components(open_checkpoint(golden.path(LORA)))["lora"]


@pytest.fixture(scope="module")
def tensors(golden: Goldens) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = load_file(golden.path(LORA))
    return stored


def branch(model: Transformer, name: str = "proj_out") -> LowRank:
    """The single adapter branch of the linear layer ``name``."""
    (found,) = linear(model, name).branches
    assert isinstance(found, LowRank)
    return found


def save_lora(path: Path, tensors: dict[str, torch.Tensor]) -> Component:
    """Save tensors as a LoRA file and open it as a component."""
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    opened = open_checkpoint(path)
    return Component("lora", opened, {name: name for name in opened.tensors})


def velocities(
    golden: Goldens, model: Transformer, case: str = "dit.lora_1.0"
) -> tuple[torch.Tensor, torch.Tensor]:
    given = golden(case).inputs
    sides = []
    for name, positions in (
        ("video", video_positions(5, 4, 6, 24)),
        ("audio", audio_positions(34)),
    ):
        stage = prepare_stream(model.config, positions, given[f"{name}_context"])
        sides.append(StreamInput(stage, given[f"{name}_tokens"], given["sigma"]))
    with torch.no_grad():
        both: tuple[torch.Tensor, torch.Tensor] = model(*sides)
        return both


def check(golden: Goldens, got: Sequence[torch.Tensor]) -> None:
    for name, velocity in zip(("video_velocity", "audio_velocity"), got, strict=True):
        golden("dit.lora_1.0").check(name, velocity, rtol=0, atol=1e-4)


def test_reference_at_strength_one(golden: Goldens, model: Transformer, adapter: Component) -> None:
    with temporary_loras(model, [(adapter, 1.0)]) as report:
        check(golden, velocities(golden, model))
    assert report.complete
    assert str(report) == "tiny-distilled-lora.safetensors: 96 of 96 modules at strength 1"


def test_several_at_once_add_up(golden: Goldens, model: Transformer, adapter: Component) -> None:
    with temporary_loras(model, [(adapter, 0.25), (adapter, 0.75)]):
        check(golden, velocities(golden, model))


def test_fused_weights_of_the_reference(
    golden: Goldens, model: Transformer, adapter: Component
) -> None:
    """A branch adds the reference's fused weight minus the base weight."""
    case = golden("lora.fused_0.5")
    with temporary_loras(model, [(adapter, 0.5)]):
        for module in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.audio_ff.net.2"):
            added = branch(model, module)
            fused = linear(model, module).weight + added.strength * added.up @ added.down
            case.check(f"{module.replace('.', '_')}_weight", fused)


def test_detaching_leaves_the_base_weights_unchanged(
    golden: Goldens, model: Transformer, adapter: Component
) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    plain = velocities(golden, model)
    attach_loras(model, [(adapter, 0.7)])
    assert not torch.equal(velocities(golden, model)[0], plain[0])
    detach_loras(model)
    assert all(torch.equal(a, b) for a, b in zip(velocities(golden, model), plain, strict=True))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_temporary_loras_restores_the_adapters_before(
    model: Transformer, adapter: Component
) -> None:
    attach_loras(model, [(adapter, 0.5)])
    with temporary_loras(model, [(adapter, 1.0)]):
        assert branch(model).strength == 1.0
    assert branch(model).strength == 0.5
    detach_loras(model)
    assert linear(model, "proj_out").branches == ()


def test_strength_zero_attaches_nothing(model: Transformer, adapter: Component) -> None:
    attach_loras(model, [(adapter, 0.0)])
    assert linear(model, "proj_out").branches == ()


def _bare(name: str) -> str:
    return name.removeprefix("diffusion_model.")


def _kohya(name: str) -> str:
    module, _, part = _bare(name).removesuffix(".weight").rpartition(".")
    suffix = {"lora_A": "lora_down", "lora_B": "lora_up"}[part]
    return f"lora_unet_{module.replace('.', '_')}.{suffix}.weight"


def _lycoris(name: str) -> str:
    return _kohya(name).replace("lora_unet_", "lycoris_")


def _diffusers(name: str) -> str:
    bare, back = _bare(name), {ours: theirs for theirs, ours in DIFFUSERS_NAMES.items()}
    first, _, rest = bare.partition(".")
    return f"transformer.{back.get(first, first)}.{rest}"


def _peft(name: str) -> str:
    return f"base_model.model.{_bare(name)}".replace(".weight", ".default.weight")


def _with_prefix(prefix: str) -> Callable[[str], str]:
    return lambda name: f"{prefix}.{_bare(name)}"


@pytest.mark.parametrize(
    "spelling",
    [
        _bare,
        _kohya,
        _lycoris,
        _diffusers,
        _peft,
        _with_prefix("transformer"),
        _with_prefix("model.diffusion_model"),
        _with_prefix("base_model.model.diffusion_model"),
    ],
)
def test_spellings(
    golden: Goldens,
    model: Transformer,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    spelling: Callable[[str], str],
) -> None:
    part = save_lora(tmp_path / "l.safetensors", {spelling(n): t for n, t in tensors.items()})
    with temporary_loras(model, [(part, 1.0)]) as report:
        assert report.matches[0].matched == 96
        check(golden, velocities(golden, model))


def test_alpha_scales_by_rank(
    golden: Goldens, model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Alpha of twice the rank at half the strength gives the same result."""
    scaled = {_kohya(n): t for n, t in tensors.items()}
    ranks = {n.split(".")[0]: t.shape[0] for n, t in scaled.items() if "lora_down" in n}
    scaled |= {f"{module}.alpha": torch.tensor(2.0 * r) for module, r in ranks.items()}
    with temporary_loras(model, [(save_lora(tmp_path / "l.safetensors", scaled), 0.5)]):
        check(golden, velocities(golden, model))


def test_partial_match_is_reported(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    foreign = {n.replace("blocks.1.", "blocks.7."): t for n, t in tensors.items()}
    report = attach_loras(model, [(save_lora(tmp_path / "l.safetensors", foreign), 1.0)])
    detach_loras(model)
    (match,) = report.matches
    assert (match.matched, match.total, report.complete) == (62, 96, False)
    assert "62 of 96 modules" in str(report)
    assert "diffusion_model.transformer_blocks.7.attn1.to_gate_logits" in str(report)


def _foreign(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.replace("diffusion_model.", "diffusion_model.my_"): t for n, t in tensors.items()}


def _misshapen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"diffusion_model.proj_out.lora_B.weight": torch.zeros(9, 8)}


def _without_up_matrix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if n != "diffusion_model.proj_out.lora_B.weight"}


def _square_magnitudes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"diffusion_model.proj_out.dora_scale": torch.ones(8, 64)}


def _tucker(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"diffusion_model.proj_out.lokr_t2": torch.ones(8, 8)}


def _orthogonal(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"diffusion_model.proj_out.oft_blocks": torch.ones(8, 8)}


def _other_ranks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"diffusion_model.proj_out.lora_B.weight": torch.zeros(8, 3)}


def _twice(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {
        "transformer.proj_out.lora_A.weight": torch.zeros(8, 64),
        "transformer.proj_out.lora_B.weight": torch.zeros(8, 8),
    }


def _wide_bias(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"diffusion_model.proj_out.diff_b": torch.zeros(9)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_foreign, "0 of 96 modules match"),
        (_misshapen, "proj_out is for a layer of 9 x 64, the model's layer is 8 x 64"),
        (_without_up_matrix, "proj_out has no up matrix"),
        (_square_magnitudes, r"proj_out has DoRA magnitudes of \[8, 64\], expected \[8, 1\]"),
        (_tucker, "lokr_t2 belongs to an unsupported kind of adapter"),
        (_orthogonal, "oft_blocks belongs to an unsupported kind of adapter"),
        (_other_ranks, "matrices of diffusion_model.proj_out do not match"),
        (_twice, "are both for proj_out"),
        (_wide_bias, r"proj_out is for a bias of \[9\], the model's layer has 8"),
    ],
)
def test_unusable_files_change_nothing_and_are_not_read(
    model: Transformer,
    adapter: Component,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attach_loras(model, [(adapter, 0.5)])
    monkeypatch.setattr(CheckpointFile, "read", None)
    with pytest.raises(CheckpointError, match=message):
        attach_loras(model, [(save_lora(tmp_path / "l.safetensors", change(tensors)), 1.0)])
    assert branch(model, "patchify_proj").strength == 0.5
    detach_loras(model)


# --- reading --------------------------------------------------------------------------------------


def test_another_strength_does_not_read_the_file_again(
    golden: Goldens, model: Transformer, adapter: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_loras(model, [(adapter, 0.25)])
    lora_before = branch(model).down
    monkeypatch.setattr(CheckpointFile, "read", None)
    with temporary_loras(model, [(adapter, 1.0)]):
        assert branch(model).down is lora_before
        check(golden, velocities(golden, model))
    detach_loras(model)


def test_matrices_in_the_compute_dtype_stay_memory_mapped(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    part = save_lora(tmp_path / "l.safetensors", {n: t.float() for n, t in tensors.items()})
    with temporary_loras(model, [(part, 1.0)]):
        key = "diffusion_model.proj_out.lora_A.weight"
        assert branch(model).down.data_ptr() == part.read(key).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn, torch.float32])
def test_dtypes_of_the_file(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    stored = {name: t.to(dtype) for name, t in tensors.items()}
    with temporary_loras(model, [(save_lora(tmp_path / "l.safetensors", stored), 1.0)]):
        added = branch(model)
        assert added.down.dtype == torch.float32
        key = "diffusion_model.proj_out.lora_A.weight"
        assert torch.equal(added.down, stored[key].float())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinite_numbers_are_reported(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path, bad: torch.Tensor
) -> None:
    key = "diffusion_model.transformer_blocks.1.attn2.to_v.lora_B.weight"
    broken = tensors[key].clone()
    broken[3, 2] = bad
    part = save_lora(tmp_path / "broken.safetensors", tensors | {key: broken})
    with pytest.raises(CorruptCheckpoint, match=f"broken.safetensors: {key} has NaN"):
        attach_loras(model, [(part, 1.0)])
    assert linear(model, "proj_out").branches == ()


@pytest.mark.parametrize("bad", [torch.tensor(math.nan), torch.ones(3)])
def test_invalid_alpha_is_reported(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path, bad: torch.Tensor
) -> None:
    part = save_lora(tmp_path / "l.safetensors", tensors | {"diffusion_model.proj_out.alpha": bad})
    with pytest.raises(CorruptCheckpoint, match=r"proj_out\.alpha is .* expected one number"):
        attach_loras(model, [(part, 1.0)])


def test_unknown_names_are_reported_and_text_modules_counted(
    model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    text = "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    more = {
        f"{text}.lora_A.weight": torch.zeros(2, 64),
        f"{text}.lora_B.weight": torch.zeros(64, 2),
        "diffusion_model.proj_out.something_new": torch.zeros(3),
    }
    report = attach_loras(model, [(save_lora(tmp_path / "l.safetensors", tensors | more), 1.0)])
    detach_loras(model)
    assert report.matches[0].unmatched == ("diffusion_model.proj_out.something_new",)
    assert "96 of 97 modules" in str(report)
    assert "1 more in the text connectors" in str(report)


# --- every kind against a merged weight -----------------------------------------------------------

OUT, IN = 12, 20


class One(nn.Module):
    """Model with one layer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layer = Linear(IN, OUT, bias)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.requires_grad_(False)


def random_tensors(seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name.replace("__", "."): torch.randn(shape, generator=generator).abs() + 0.1
        if "dora" in name or "magnitude" in name
        else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


Shapes = dict[str, tuple[int, ...]]
"""Names and shapes of the tensors of one layer."""

LORA_PARTS: Shapes = {"lora_A__weight": (3, IN), "lora_B__weight": (OUT, 3), "alpha": ()}
LOKR_FULL: Shapes = {"lokr_w1": (3, 4), "lokr_w2": (4, 5)}
LOKR_SPLIT: Shapes = {
    "lokr_w1_a": (3, 2),
    "lokr_w1_b": (2, 4),
    "lokr_w2_a": (4, 2),
    "lokr_w2_b": (2, 5),
}
LOHA: Shapes = {
    "hada_w1_a": (OUT, 2),
    "hada_w1_b": (2, IN),
    "hada_w2_a": (OUT, 2),
    "hada_w2_b": (2, IN),
}


def delta_of(t: dict[str, torch.Tensor]) -> torch.Tensor:
    """Change of the weight by a file's tensors ``t``, computed in the simplest way."""
    alpha = t.get("alpha")
    if "lora_A.weight" in t:
        delta = t["lora_B.weight"] @ t["lora_A.weight"]
        return delta if alpha is None else delta * alpha / 3
    if "hada_w1_a" in t:
        delta = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return delta if alpha is None else delta * alpha / 2
    if "lokr_w1_a" in t or "lokr_w1" in t:
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        second = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        # Without a factored side there is no rank for alpha to be over.
        scale = alpha / 2 if alpha is not None and "lokr_w2_a" in t else 1.0
        return torch.kron(first, second) * scale
    return t.get("diff", torch.zeros(OUT, IN))


def merge_weight(weight: torch.Tensor, t: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
    """Merge a file's tensors ``t`` into ``weight``."""
    delta = delta_of(t)
    magnitude = t.get("dora_scale", t.get("lora_magnitude_vector"))
    if magnitude is None:
        return weight + strength * delta
    whole = weight + delta
    if tuple(magnitude.shape) == (1, IN):
        target = magnitude * whole / whole.norm(dim=0, keepdim=True)
    else:
        target = magnitude.reshape(OUT, 1) * whole / whole.norm(dim=1, keepdim=True)
    merged: torch.Tensor = weight + strength * (target - weight)
    return merged


CASES: dict[str, Shapes] = {
    "lora": LORA_PARTS,
    "dora": LORA_PARTS | {"dora_scale": (OUT, 1)},
    "dora of PEFT": LORA_PARTS | {"lora_magnitude_vector": (OUT,)},
    "dora by columns": LORA_PARTS | {"dora_scale": (1, IN)},
    "lokr": LOKR_FULL | {"alpha": ()},
    "lokr of products": LOKR_SPLIT | {"alpha": ()},
    "lokr, one a product": {"lokr_w1": (3, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
    "lokr with dora": LOKR_SPLIT | {"dora_scale": (OUT, 1)},
    "loha": LOHA | {"alpha": ()},
    "loha with dora": LOHA | {"dora_scale": (OUT, 1)},
    "diff": {"diff": (OUT, IN)},
    "bias only": {"diff_b": (OUT,)},
    "lora and bias": LORA_PARTS | {"diff_b": (OUT,)},
}


def file_of(tmp_path: Path, name: str, t: dict[str, torch.Tensor]) -> Component:
    keys = {f"diffusion_model.layer.{part}": tensor for part, tensor in t.items()}
    return save_lora(tmp_path / f"{name}.safetensors", keys)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_equals_its_merged_weight(tmp_path: Path, case: str, bias: bool) -> None:
    model, t = One(bias), random_tensors(1, **CASES[case])
    x = torch.randn(2, 7, IN, generator=torch.Generator().manual_seed(2))
    for strength in (1.0, 0.4, -0.5):
        attach_loras(model, [(file_of(tmp_path, "a", t), strength)])
        weight = merge_weight(model.layer.weight, t, strength)
        shift = strength * t["diff_b"] if "diff_b" in t else torch.zeros(OUT)
        want = F.linear(x, weight, shift if model.layer.bias is None else shift + model.layer.bias)
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                torch.testing.assert_close(model.layer(x), want, rtol=1e-4, atol=1e-4)


def test_all_kinds_at_once_add_up_in_any_order(tmp_path: Path) -> None:
    model = One()
    files = {name: random_tensors(n, **parts) for n, (name, parts) in enumerate(CASES.items())}
    assert model.layer.bias is not None
    weight, shift = model.layer.weight.clone(), model.layer.bias.clone()
    for t in files.values():
        weight += merge_weight(model.layer.weight, t, 0.3) - model.layer.weight
        shift += 0.3 * t.get("diff_b", torch.zeros(OUT))
    parts = [(file_of(tmp_path, name, t), 0.3) for name, t in files.items()]
    x = torch.randn(5, IN)
    with torch.no_grad():
        for order in (parts, parts[::-1]):
            attach_loras(model, order)
            torch.testing.assert_close(
                model.layer(x), F.linear(x, weight, shift), rtol=1e-4, atol=2e-4
            )


@pytest.mark.parametrize("case", ["lora", "dora", "dora by columns", "lokr", "loha with dora"])
def test_adapters_on_an_fp8_weight_with_scaled_inputs(tmp_path: Path, case: str) -> None:
    """The base is the dequantised weight; the quantised weight does not change."""
    model, t = One(), random_tensors(3, **CASES[case])
    scale, inputs = torch.tensor(0.02), torch.rand(IN) + 0.5
    stored = (model.layer.weight / scale).to(torch.float8_e4m3fn)
    parts = {"weight": stored, "weight_scale": scale, "pre_quant_scale": inputs}
    model.layer.set_weight(QuantizedTensor("fp8_e4m3", (OUT, IN), parts), torch.float32)
    base = stored.float() * scale * inputs
    x = torch.randn(4, IN)
    with torch.no_grad(), temporary_loras(model, [(file_of(tmp_path, "a", t), 0.7)]):
        want = F.linear(x, merge_weight(base, t, 0.7), model.layer.bias)
        torch.testing.assert_close(model.layer(x), want, rtol=1e-4, atol=1e-4)
    assert model.layer.quantized_weight is not None
    assert model.layer.quantized_weight.parts["weight"] is stored


def test_streamed_blocks_have_their_adapters(
    golden: Goldens, model: Transformer, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Results with streamed and resident blocks are identical for every kind of adapter."""
    generator = torch.Generator().manual_seed(1)
    more = {}
    for name, layer in model.named_modules():
        if name.endswith("attn1.to_q") and isinstance(layer, Linear):
            rows = (layer.out_features, 1)
            more[f"{name}.dora_scale"] = torch.rand(rows, generator=generator) + 0.5
        if name.endswith("ff.net.2") and isinstance(layer, Linear):
            second = (layer.out_features // 4, layer.in_features // 4)
            more[f"{name}.lokr_w1"] = torch.randn(4, 4, generator=generator)
            more[f"{name}.lokr_w2"] = 0.01 * torch.randn(second, generator=generator)
    kept = {n: t for n, t in tensors.items() if ".ff.net.2." not in n and "audio_ff" not in n}
    part = save_lora(tmp_path / "l.safetensors", {_bare(n): t for n, t in kept.items()} | more)
    with temporary_loras(model, [(part, 0.8)]):
        resident = velocities(golden, model)
        with model.offload_blocks(torch.device("cpu"), BlockOffload(resident=0)):
            streamed = velocities(golden, model)
    assert all(torch.equal(a, b) for a, b in zip(streamed, resident, strict=True))


def test_branch_with_and_without_autograd() -> None:
    torch.manual_seed(0)
    layer = Linear(6, 4)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    layer.branches = (LowRank(0.3, down, up), LowRank(0.2, down, up))
    x = torch.randn(3, 5, 6)
    assert layer.bias is not None
    want = x @ (layer.weight + 0.5 * up @ down).T + layer.bias
    torch.testing.assert_close(layer(x), want)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want)
