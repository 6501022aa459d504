"""Transformer against the reference, and shared rows against separate passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from helpers.transformer_inputs import inputs_of, linear

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.transformer import streams
from latent_ladder.models.transformer.adaln import sinusoid
from latent_ladder.models.transformer.config import TransformerConfig
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.noise_levels import LevelRun, NoiseLevels
from latent_ladder.models.transformer.pass_batching import (
    BlockRows,
    ForwardSpec,
    PassSpec,
    SublayerRows,
    group_rows,
    plan_rows,
)
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, attention_bias, prepare_stream

FILES = {
    "2.0": "checkpoints/tiny-ltx-2.0.safetensors",
    "2.3": "checkpoints/tiny-ltx-2.3.safetensors",
    "2.5": "diffusion_models/tiny-ltx-2.5-transformer.safetensors",
}
STG = PassSpec(stg_video=frozenset({1}), stg_audio=frozenset({1}))
ATOL = 1e-5


@pytest.fixture(scope="module")
def models(golden: Goldens) -> dict[str, Transformer]:
    return {v: load_transformer(component(golden, path)) for v, path in FILES.items()}


@pytest.fixture(scope="module")
def model(models: dict[str, Transformer]) -> Transformer:
    return models["2.3"]


def component(golden: Goldens, path: str) -> Component:
    return components(open_checkpoint(golden.path(path)))["transformer"]


def check(case: GoldenCase, video: torch.Tensor | None, audio: torch.Tensor | None) -> None:
    for name, got in (("video_velocity", video), ("audio_velocity", audio)):
        if name in case.outputs:
            case.check(name, got, rtol=0, atol=ATOL)


CASES = [
    ("dit.uniform", "2.3", PassSpec()),
    ("dit.sigma1", "2.3", PassSpec()),
    ("dit.per_token", "2.3", PassSpec()),
    ("dit.stg", "2.3", STG),
    ("dit.stg_video_only", "2.3", PassSpec(stg_video=frozenset({1}))),
    ("dit.isolated", "2.3", PassSpec(isolated=True)),
    ("dit.self_mask", "2.3", PassSpec()),
    ("dit.video_only", "2.3", PassSpec()),
    ("dit.audio_only", "2.3", PassSpec()),
    ("dit.video_disabled", "2.3", PassSpec()),
    ("dit.audio_disabled", "2.3", PassSpec()),
    ("dit.audio_frozen", "2.3", PassSpec()),
    ("ltx20.forward", "2.0", PassSpec()),
    ("ltx25.forward", "2.5", PassSpec()),
]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])
@pytest.mark.parametrize(("name", "family", "spec"), CASES)
def test_reference(
    golden: Goldens,
    models: dict[str, Transformer],
    name: str,
    family: str,
    spec: PassSpec,
    grad: bool,
) -> None:
    case, model = golden(name), models[family]
    with torch.set_grad_enabled(grad):
        check(case, *model(*inputs_of(model.config, case), [spec]))


@pytest.mark.parametrize("chunk_tokens", [7, 50])
@pytest.mark.parametrize(("name", "family", "spec"), [CASES[i] for i in (2, 3, 6, 8, 13)])
def test_reference_in_small_chunks(
    golden: Goldens,
    models: dict[str, Transformer],
    name: str,
    family: str,
    spec: PassSpec,
    chunk_tokens: int,
) -> None:
    case, model = golden(name), models[family]
    model.set_chunk_tokens(chunk_tokens)
    with torch.no_grad():
        check(case, *model(*inputs_of(model.config, case), [spec]))
    model.set_chunk_tokens(1024)


def batch_of_two(
    golden: Goldens, config: TransformerConfig, mask: torch.Tensor | None = None
) -> tuple[GoldenCase, StreamInput, StreamInput]:
    case = golden("dit.batch2")
    texts = [golden(f"text.context.p{i}").outputs for i in (0, 1)]
    sides = []
    for name, positions in (
        ("video", video_positions(5, 4, 6, 24)),
        ("audio", audio_positions(34)),
    ):
        context = torch.cat([t[name] for t in texts])
        stream_mask = mask if name == "video" else None
        prepared = prepare_stream(config, positions, context, mask=stream_mask)
        sides.append(StreamInput(prepared, case.inputs[f"{name}_tokens"], case.inputs["sigma"]))
    return case, sides[0], sides[1]


def test_batch_with_two_sigmas_and_prompts(golden: Goldens, model: Transformer) -> None:
    case, video, audio = batch_of_two(golden, model.config)
    with torch.no_grad():
        check(case, *model(video, audio))


def test_batch_of_passes_with_two_sigmas(golden: Goldens, model: Transformer) -> None:
    """Passes times batch items with different sigmas equal separate forwards."""
    _, video, audio = batch_of_two(golden, model.config)
    specs = [PassSpec(), STG, PassSpec(isolated=True), PassSpec(context=0)]
    with torch.no_grad():
        together = model(video, audio, specs)
        for k, spec in enumerate(specs):
            for b in range(2):
                one = [only(s, b) for s in (video, audio)]
                alone = model(*one, [replace(spec, context=b if spec.context is None else 0)])
                for many, single in zip(together, alone, strict=True):
                    torch.testing.assert_close(many[2 * k + b], single[0], rtol=0, atol=ATOL)


def only(s: StreamInput, b: int) -> StreamInput:
    return StreamInput(s.prepared, s.tokens[b : b + 1], s.sigma[b : b + 1])


@pytest.mark.parametrize("chunk_tokens", [384, 60])
def test_passes_together_equal_passes_alone(
    golden: Goldens, model: Transformer, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharing rows is exact: the passes of a guided step in one forward equal separate forwards."""
    monkeypatch.setattr(model.transformer_blocks[0], "chunk_tokens", chunk_tokens)
    monkeypatch.setattr(model.transformer_blocks[1], "chunk_tokens", chunk_tokens)
    case = golden("dit.per_token")
    video, audio = inputs_of(model.config, case)
    assert video is not None
    assert audio is not None
    video, audio = (
        replace(s, prepared=replace(s.prepared, contexts=torch.cat([c, c.flip(1)])))
        for s, c in ((s, s.prepared.contexts) for s in (video, audio))
    )
    specs = [replace(STG, context=0), PassSpec(0), PassSpec(0, isolated=True), PassSpec(1)]
    with torch.no_grad():
        together = model(video, audio, specs)
        for k, spec in enumerate(specs):
            for many, alone in zip(together, model(video, audio, [spec]), strict=True):
                torch.testing.assert_close(many[k], alone[0], rtol=0, atol=ATOL)


def test_fragmented_masks_are_sorted_and_equal(
    golden: Goldens, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = golden("dit.uniform")
    video, audio = inputs_of(model.config, case)
    assert video is not None
    torch.manual_seed(0)
    mask = torch.randint(0, 4, (1, 120, 1)) / 3
    bias = attention_bias(torch.rand(1, 120, 120))
    arguments = (model.config, case.inputs["video_positions"], case.inputs["video_context"])
    results = []
    for limit in (10_000, 8):
        monkeypatch.setattr(streams, "MAX_RUNS", limit)
        prepared = prepare_stream(*arguments, mask=mask, bias=bias)
        assert (prepared.order is None) == (limit > 8)
        with torch.no_grad():
            results.append(model(replace(video, prepared=prepared), audio))
    for plain, ordered in zip(*results, strict=True):
        torch.testing.assert_close(plain, ordered, rtol=0, atol=ATOL)


def test_first_block_and_embeddings(golden: Goldens, model: Transformer) -> None:
    """Inputs of block 0 and residuals after it."""
    case, blocks = golden("dit.uniform"), golden("dit.uniform_blocks")
    seen: dict[str, torch.Tensor] = {}
    hook = model.transformer_blocks[0].register_forward_hook(
        lambda m, args, out: seen.update(video=args[0].x.clone(), audio=args[1].x.clone())
    )
    with torch.no_grad():
        model(*inputs_of(model.config, case))
        sigma = case.inputs["sigma"][:, None] * 1000
        rows, embedded = model.get_submodule("adaln_single")(sigma)
        gate, _ = model.get_submodule("av_ca_a2v_gate_adaln_single")(sigma)
        cross, _ = model.get_submodule("av_ca_video_scale_shift_adaln_single")(sigma)
        prompt, _ = model.get_submodule("prompt_adaln_single")(sigma)
        patched = linear(model, "patchify_proj")(case.inputs["video_tokens"])
    hook.remove()
    for name, got in {
        "video_block0": seen["video"],
        "audio_block0": seen["audio"],
        "video_timestep_emb": embedded,
        "video_adaln": rows.flatten(2),
        "video_cross_gate": gate.flatten(2),
        "video_cross_scale_shift": cross.flatten(2),
        "video_prompt_adaln": prompt.flatten(2),
        "video_patchified": patched[:, : blocks.outputs["video_patchified"].shape[1]],
    }.items():
        blocks.check(name, got, rtol=1e-5, atol=1e-4)


def test_keys_are_those_of_the_file(golden: Goldens, models: dict[str, Transformer]) -> None:
    for family, path in FILES.items():
        names = set(component(golden, path).names)
        assert set(models[family].state_dict()) == names


def test_config_from_shapes_alone(golden: Goldens, models: dict[str, Transformer]) -> None:
    """Files without a header give the same configuration (2.3 and 2.5)."""
    for family in ("2.3", "2.5"):
        part = component(golden, FILES[family])
        assert TransformerConfig.from_shapes(part.shapes(), {}) == models[family].config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_layers", 3, "num_layers=3 in the header, 2 in the shapes"),
        ("rope_type", "interleaved", "rope_type=interleaved, supported: split"),
    ],
)
def test_contradicting_header_is_rejected(
    golden: Goldens, key: str, value: str | int, message: str
) -> None:
    part = component(golden, FILES["2.3"])
    with pytest.raises(UnknownLayout, match=message):
        TransformerConfig.from_shapes(part.shapes(), {**part.config, key: value})


def test_missing_tensor_is_reported(golden: Goldens) -> None:
    shapes = component(golden, FILES["2.3"]).shapes()
    del shapes["proj_out.weight"]
    with pytest.raises(UnknownLayout, match=r"proj_out\.weight is missing"):
        TransformerConfig.from_shapes(shapes, {})


def test_training_gradients(golden: Goldens) -> None:
    """Autograd agrees with finite differences, with mixed noise levels and two sigmas."""
    model = load_transformer(component(golden, FILES["2.3"]), dtype=torch.float64)
    model.double().train().requires_grad_(True)
    mask = torch.ones(2, 120)
    mask[0, :24], mask[1, :24] = 0.0, 0.3
    _, video, audio = batch_of_two(golden, model.config, mask)
    video, audio = (replace(s, tokens=s.tokens.double()) for s in (video, audio))

    def loss() -> torch.Tensor:
        v, a = model(video, audio)
        total: torch.Tensor = v.double().square().mean() + a.double().square().mean()
        return total

    loss().backward()
    assert all(p.grad is not None for p in model.parameters())
    weight = linear(model, "transformer_blocks.0.attn1.to_q").weight
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        ends = []
        for step in (1e-2, -1e-2):
            weight.add_(step * direction)
            ends.append(loss().item())
            weight.sub_(step * direction)
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(weight.grad.norm().item(), rel=2e-2)


def test_bfloat16_stays_close(golden: Goldens, model: Transformer) -> None:
    half = load_transformer(component(golden, FILES["2.3"]), dtype=torch.bfloat16)
    assert half.transformer_blocks[0].scale_shift_table.dtype == torch.float32
    case = golden("dit.per_token")
    with torch.no_grad():
        for got, want in zip(
            half(*inputs_of(half.config, case)), model(*inputs_of(model.config, case)), strict=True
        ):
            assert got.dtype == torch.float32
            assert (got - want).std() < 0.02 * want.std()


def test_backends_agree(golden: Goldens, model: Transformer) -> None:
    case = golden("dit.self_mask")
    model.use_attention("plain")
    with torch.no_grad():
        check(case, *model(*inputs_of(model.config, case)))
    model.use_attention("sdpa")
    with pytest.raises(ValueError, match=r"use sdpa, .*plain"):
        model.use_attention("other")


def test_initialised_weights_are_seeded_and_start_at_zero_output(model: Transformer) -> None:
    nets = [Transformer(model.config) for _ in range(2)]
    for net in nets:
        net.initialise(3)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()
    assert not linear(nets[0], "proj_out").weight.any()


def all_of(block: BlockRows) -> list[SublayerRows]:
    """Rows of every sublayer of a block; none is absent."""
    assert None not in block
    return [rows for rows in block if rows is not None]


def test_passes_share_rows_until_they_differ() -> None:
    """Rows per block of the default four passes with STG in block 2 of 4."""
    stg = frozenset({2})
    passes = (
        PassSpec(0),
        PassSpec(0, stg_video=stg, stg_audio=stg),
        PassSpec(0, isolated=True),
        PassSpec(1),
    )
    rows = plan_rows(ForwardSpec(4, passes, 1, False, True, True, True))
    first, second, third, fourth = rows.blocks
    assert [len(s.keys) for s in all_of(first)] == [1, 1, 2, 2, 3, 3]
    assert [len(s.keys) for s in all_of(second)] == [3] * 6
    assert [len(s.keys) for s in all_of(third)] == [4] * 6
    assert third.video_self is not None
    assert third.video_self.keys == (0, None, 2, 3)
    assert fourth.a2v is not None
    assert fourth.a2v.keys == (0, 1, None, 3)
    assert rows.contexts == ((0, 0), (1, 0))
    assert rows.video == rows.audio == (0, 1, 2, 3)


def test_equal_passes_are_one_row() -> None:
    rows = plan_rows(ForwardSpec(2, (PassSpec(0), PassSpec(0)), 3, False, True, False, False))
    assert rows.video == (0, 1, 2, 0, 1, 2)
    assert rows.blocks
    for block in rows.blocks:
        assert block.video_self is not None
        assert len(block.video_self.keys) == 3


@pytest.mark.parametrize(
    ("keys", "limit", "groups"),
    [
        ((0, 0, 0, 1), 9, [(0, 3, 0, 1), (3, 4, 1, 2)]),
        ((0, 1, 2), 9, [(0, 3, 0, 3)]),
        ((0, 1, 2), 2, [(0, 2, 0, 2), (2, 3, 2, 3)]),
        ((0, None, None, 3), 9, [(0, 1, 0, 1), (1, 3, None, None), (3, 4, 3, 4)]),
        ((0, 1, 1), 9, [(0, 2, 0, 2), (2, 3, 1, 2)]),
    ],
)
def test_row_groups(
    keys: tuple[int | None, ...], limit: int, groups: list[tuple[int | None, ...]]
) -> None:
    got = [
        (
            g.rows.start,
            g.rows.stop,
            *((None, None) if g.keys is None else (g.keys.start, g.keys.stop)),
        )
        for g in group_rows(keys, limit)
    ]
    assert got == groups


def test_levels_of_a_mask() -> None:
    levels = NoiseLevels.from_mask(torch.tensor([[0, 0, 1, 1, 0.5], [0.2, 0.2, 1, 1, 1]]))
    assert [r.level for r in levels.runs] == [0, 2, 1]
    assert levels.runs[1] == LevelRun(2, 4, 2)
    assert levels.values.T.tolist() == [
        pytest.approx([0, 0.2]),
        pytest.approx([0.5, 1]),
        pytest.approx([1, 1]),
    ]


def test_sinusoid_starts_with_cosines() -> None:
    wave = sinusoid(torch.tensor([0.0]), 8)
    assert wave.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
