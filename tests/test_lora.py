"""Adapters: the reference's fused numbers, every spelling, and a base that is never touched."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_ladder.checkpoints.files import open_checkpoint
from latent_ladder.checkpoints.layout import Component, components
from latent_ladder.errors import CheckpointError
from latent_ladder.models import lora
from latent_ladder.models.linear import Branch, Linear
from latent_ladder.models.rope import audio_positions, video_positions
from latent_ladder.models.streams import StreamInput, stream_stage
from latent_ladder.models.transformer import load_transformer

LORA = "loras/tiny-distilled-lora.safetensors"


@pytest.fixture(scope="module")
def model(golden):
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return load_transformer(components(open_checkpoint(path))["transformer"])


@pytest.fixture(scope="module")
def adapter(golden):
    return components(open_checkpoint(golden.path(LORA)))["lora"]


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden.path(LORA))


def written(path, tensors):
    """A LoRA component of these tensors."""
    save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    opened = open_checkpoint(path)
    return Component("lora", opened, {name: name for name in opened.tensors})


def velocities(golden, model, case="dit.lora_1.0"):
    given = golden(case).inputs
    sides = []
    for name, positions in (
        ("video", video_positions(5, 4, 6, 24)),
        ("audio", audio_positions(34)),
    ):
        stage = stream_stage(model.config, positions, given[f"{name}_context"])
        sides.append(StreamInput(stage, given[f"{name}_tokens"], given["sigma"]))
    with torch.no_grad():
        return model(*sides)


def check(golden, got):
    for name, velocity in zip(("video_velocity", "audio_velocity"), got, strict=True):
        golden("dit.lora_1.0").check(name, velocity, rtol=0, atol=1e-4)


def test_reference_at_strength_one(golden, model, adapter):
    with lora.attached(model, [(adapter, 1.0)]) as report:
        check(golden, velocities(golden, model))
    assert report.complete
    assert str(report) == "tiny-distilled-lora.safetensors: 96 of 96 modules at strength 1"


def test_several_at_once_add_up(golden, model, adapter):
    with lora.attached(model, [(adapter, 0.25), (adapter, 0.75)]):
        check(golden, velocities(golden, model))


def test_fused_weights_of_the_reference(golden, model, adapter):
    """What a branch adds is the reference's fused weight minus the base."""
    case = golden("lora.fused_0.5")
    with lora.attached(model, [(adapter, 0.5)]):
        for module in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.audio_ff.net.2"):
            layer = model.get_submodule(module)
            (branch,) = layer.branches
            fused = layer.weight + branch.strength * branch.up @ branch.down
            case.check(f"{module.replace('.', '_')}_weight", fused)


def test_detaching_leaves_the_base_bit_for_bit(golden, model, adapter):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    plain = velocities(golden, model)
    lora.attach(model, [(adapter, 0.7)])
    assert not torch.equal(velocities(golden, model)[0], plain[0])
    lora.detach(model)
    assert all(torch.equal(a, b) for a, b in zip(velocities(golden, model), plain, strict=True))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_context_restores_what_was_attached(model, adapter):
    lora.attach(model, [(adapter, 0.5)])
    with lora.attached(model, [(adapter, 1.0)]):
        assert model.proj_out.branches[0].strength == 1.0
    assert model.proj_out.branches[0].strength == 0.5
    lora.detach(model)
    assert model.proj_out.branches == ()


def test_strength_zero_costs_nothing(model, adapter):
    lora.attach(model, [(adapter, 0.0)])
    assert model.proj_out.branches == ()


def _bare(name):
    return name.removeprefix("diffusion_model.")


def _kohya(name):
    module, _, part = _bare(name).removesuffix(".weight").rpartition(".")
    suffix = {"lora_A": "lora_down", "lora_B": "lora_up"}[part]
    return f"lora_unet_{module.replace('.', '_')}.{suffix}.weight"


def _peft(name):
    return f"base_model.model.{_bare(name)}".replace(".weight", ".default.weight")


@pytest.mark.parametrize("spelling", [_bare, _kohya, lambda n: f"transformer.{_bare(n)}", _peft])
def test_spellings(golden, model, tensors, tmp_path, spelling):
    part = written(tmp_path / "l.safetensors", {spelling(n): t for n, t in tensors.items()})
    with lora.attached(model, [(part, 1.0)]) as report:
        assert report.matches[0].found == 96
        check(golden, velocities(golden, model))


def test_alpha_scales_by_rank(golden, model, tensors, tmp_path):
    """Alpha of twice the rank at half the strength is the same."""
    scaled = {_kohya(n): t for n, t in tensors.items()}
    ranks = {n.split(".")[0]: t.shape[0] for n, t in scaled.items() if "lora_down" in n}
    scaled |= {f"{module}.alpha": torch.tensor(2.0 * r) for module, r in ranks.items()}
    with lora.attached(model, [(written(tmp_path / "l.safetensors", scaled), 0.5)]):
        check(golden, velocities(golden, model))


def test_partial_match_is_reported(model, tensors, tmp_path):
    foreign = {n.replace("blocks.1.", "blocks.7."): t for n, t in tensors.items()}
    report = lora.attach(model, [(written(tmp_path / "l.safetensors", foreign), 1.0)])
    lora.detach(model)
    (match,) = report.matches
    assert (match.found, match.total, report.complete) == (62, 96, False)
    assert "62 of 96 modules" in str(report)
    assert "diffusion_model.transformer_blocks.7.attn1.to_gate_logits" in str(report)


def _foreign(tensors):
    return {f"unet.{n}": t for n, t in tensors.items()}


def _misshapen(tensors):
    return tensors | {"diffusion_model.proj_out.lora_B.weight": torch.zeros(9, 8)}


def _halved(tensors):
    return {n: t for n, t in tensors.items() if n != "diffusion_model.proj_out.lora_B.weight"}


def _dora(tensors):
    return tensors | {"diffusion_model.proj_out.dora_scale": torch.ones(8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_foreign, "fits 0 of 96 modules"),
        (_misshapen, "proj_out amends 9 x 64, the layer is 8 x 64"),
        (_halved, "proj_out has no up matrix"),
        (_dora, "dora_scale is no plain LoRA tensor"),
    ],
)
def test_unusable_files_change_nothing(model, adapter, tensors, tmp_path, change, message):
    lora.attach(model, [(adapter, 0.5)])
    with pytest.raises(CheckpointError, match=message):
        lora.attach(model, [(written(tmp_path / "l.safetensors", change(tensors)), 1.0)])
    assert model.patchify_proj.branches[0].strength == 0.5
    lora.detach(model)


def test_branch_with_and_without_autograd():
    torch.manual_seed(0)
    layer = Linear(6, 4)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    layer.branches = (Branch(down, up, 0.3), Branch(down, up, 0.2))
    x = torch.randn(3, 5, 6)
    want = x @ (layer.weight + 0.5 * up @ down).T + layer.bias
    torch.testing.assert_close(layer(x), want)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want)
