"""LTX-2 transformer for video and audio (2.0, 2.3, 2.5); modules are named as in the checkpoints.

One forward runs all guidance passes of a step: identical rows are computed once
(:mod:`pass_batching`), text keys once per distinct prompt, modulation once per distinct noise
level. Under autograd the same code runs on new tensors, without chunks.

Dtypes: the residual stream and all matrices have the weights' dtype; modulation tables, noise
levels and rotation tables are float32. Source: LTX-2 reference (``model.py`` of ltx-core).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.network_configs import CHUNK_TOKENS_CPU, chunk_tokens
from latent_ladder.models.transformer.adaln import AdaLn
from latent_ladder.models.transformer.attention import Attention, FeedForward
from latent_ladder.models.transformer.attention_backends import BACKENDS
from latent_ladder.models.transformer.block import TransformerBlock
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.noise_levels import Affine, apply_affine, clip_runs
from latent_ladder.models.transformer.norms import layer_norm
from latent_ladder.models.transformer.pass_batching import (
    ForwardSpec,
    PassSpec,
    RowPlan,
    plan_rows,
)
from latent_ladder.models.transformer.streams import (
    NagState,
    StreamInput,
    StreamState,
    pick_rows,
    select_items,
)
from latent_ladder.models.weights.block_offload import (
    BlockIterator,
    BlockOffload,
    ResidentBlocks,
    StreamedBlocks,
)
from latent_ladder.models.weights.block_placement import BlockPlacement
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.loading import (
    WeightLocation,
    WeightStorage,
    load_module,
    tensor_readers,
)
from latent_ladder.models.weights.quantize_fp8 import Fp8TensorReader, is_fp8_weight


class Transformer(nn.Module):
    """Transformer: token latents in, velocities out. Loaded with :func:`load_transformer`.

    ``Transformer(config)`` has undefined weights; :meth:`initialise` sets random ones for
    training.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_tokens = CHUNK_TOKENS_CPU
        self.fused = self.graphs = False
        self.fast_switches: frozenset[str] = frozenset()
        for prefix, stream in (("", config.video), ("audio_", config.audio)):
            self._add_stream(prefix, stream)
        video, audio, step = config.video.dim, config.audio.dim, config.timestep_dim
        self.av_ca_video_scale_shift_adaln_single = AdaLn(video, 4, step)
        self.av_ca_audio_scale_shift_adaln_single = AdaLn(audio, 4, step)
        self.av_ca_a2v_gate_adaln_single = AdaLn(video, 1, step)
        self.av_ca_v2a_gate_adaln_single = AdaLn(audio, 1, step)
        if config.keyframe_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.empty(1, video))
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.layers)
        )
        self.block_iterator: BlockIterator = ResidentBlocks(list(self.transformer_blocks))
        self._block_placement: BlockPlacement | None = None

    def _add_stream(self, prefix: str, stream: StreamConfig) -> None:
        config, dim = self.config, stream.dim
        self.add_module(f"{prefix}patchify_proj", Linear(stream.in_channels, dim))
        self.add_module(f"{prefix}proj_out", Linear(dim, stream.out_channels))
        rows = config.table_rows
        self.add_module(f"{prefix}adaln_single", AdaLn(dim, rows, config.timestep_dim))
        if config.prompt_adaln:
            self.add_module(f"{prefix}prompt_adaln_single", AdaLn(dim, 2, config.timestep_dim))
        if config.caption_projection:
            layers = {"linear_1": Linear(stream.context_dim, dim), "linear_2": Linear(dim, dim)}
            self.add_module(f"{prefix}caption_projection", nn.ModuleDict(layers))
        table = nn.Parameter(torch.empty(2, dim))
        self.register_parameter(f"{prefix}scale_shift_table", table)

    def forward(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        passes: Sequence[PassSpec] = (PassSpec(),),
        *,
        updated_video: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Predict the velocities of all passes; ``None`` for an absent stream.

        Each result is float32 (passes * B, N, C), pass-major. ``updated_video``: in each block the
        audio attends to the video that has already attended to the audio, as in ComfyUI since
        0.33, not to the video before that, as in the official code.
        """
        both = [s for s in (video, audio) if s is not None]
        rows = plan_rows(
            ForwardSpec(
                layers=self.config.layers,
                passes=tuple(passes),
                batch=max(len(s.tokens) for s in both),
                per_item_sigma=any(len(s.timesteps()) > 1 or len(s.sigma) > 1 for s in both),
                video=video is not None and video.enabled,
                audio=audio is not None and audio.enabled,
                cross=len(both) == 2,
                updated_video=updated_video,
            )
        )
        v = None if video is None else self._embed_stream("", video, audio, rows)
        a = None if audio is None else self._embed_stream("audio_", audio, video, rows)
        for block, plan in zip(self.block_iterator.blocks(), rows.blocks, strict=True):
            block(v, a, plan, updated_video)
        return (
            None if v is None else self._project_out("", v, rows.video),
            None if a is None else self._project_out("audio_", a, rows.audio),
        )

    def _embed_stream(
        self, prefix: str, s: StreamInput, other: StreamInput | None, rows: RowPlan
    ) -> StreamState:
        """Embed the tokens of a stream and compute what depends only on noise level and prompt."""
        config, prepared = self.config, s.prepared
        tokens = s.tokens if prepared.order is None else s.tokens[:, prepared.order]
        project = self._linear(f"{prefix}patchify_proj")
        x = project(tokens.to(project.compute_dtype))
        if config.keyframe_embedding and prepared.keyframe_mask is not None and not prefix:
            x = x + (prepared.keyframe_mask > 0).to(x.dtype) * self.keyframes_abs_pos_embedding
        timesteps = s.timesteps() * config.timestep_scale
        ada, embedded = self._embed_timesteps(f"{prefix}adaln_single", timesteps)
        cross = gate = prompt = None
        if other is not None:
            stream, direction = ("audio", "v2a") if prefix else ("video", "a2v")
            cross, _ = self._embed_timesteps(f"av_ca_{stream}_scale_shift_adaln_single", timesteps)
            other_sigma = other.sigma[:, None] * config.cross_timestep_scale
            gate, _ = self._embed_timesteps(f"av_ca_{direction}_gate_adaln_single", other_sigma)
            gate = gate[:, :, 0]
        if config.prompt_adaln:
            own_sigma = s.sigma[:, None] * config.timestep_scale
            table, _ = self._embed_timesteps(f"{prefix}prompt_adaln_single", own_sigma)
            prompt = select_items(table[:, 0], [b for _, b in rows.contexts])
        return StreamState(
            x=x,
            prepared=prepared,
            items=tuple(range(len(x))),
            enabled=s.enabled,
            ada=ada,
            embedded=embedded,
            cross=cross,
            gate=gate,
            prompt=prompt,
            context=self._select_contexts(prefix, s, rows),
            fused=self.fused,
            nag=self._nag_state(prefix, s, rows),
        )

    def _nag_state(self, prefix: str, s: StreamInput, rows: RowPlan) -> NagState | None:
        nag = s.prepared.nag
        if nag is None:
            return None
        applies = tuple(context == 0 for context, _ in rows.contexts)
        return NagState(self._project_contexts(prefix, nag.context), nag.scales, applies)

    def _project_contexts(self, prefix: str, contexts: Tensor) -> Tensor:
        contexts = contexts.to(self._linear(f"{prefix}patchify_proj").compute_dtype)
        if self.config.caption_projection:
            layers = cast(nn.ModuleDict, self._modules[f"{prefix}caption_projection"])
            first, second = layers["linear_1"], layers["linear_2"]
            contexts = second(F.gelu(first(contexts), approximate="tanh"))
        return contexts

    def _select_contexts(self, prefix: str, s: StreamInput, rows: RowPlan) -> Tensor:
        contexts = self._project_contexts(prefix, s.prepared.contexts)
        context_rows = [c for c, _ in rows.contexts]
        return (
            contexts
            if context_rows == list(range(len(contexts)))
            else pick_rows(contexts, context_rows)
        )

    def _project_out(self, prefix: str, s: StreamState, items: tuple[int, ...]) -> Tensor:
        """Normalise and project all rows to velocities, then return one row per (pass, item)."""
        table = cast(Tensor, self._parameters[f"{prefix}scale_shift_table"])
        shift, scale = (table + s.embedded[:, :, None]).unbind(2)
        modulation = Affine((1 + scale).to(s.x.dtype), shift.to(s.x.dtype))
        project = self._linear(f"{prefix}proj_out")
        budget = self.chunk_tokens
        outputs = []
        for rows in s.row_chunks(budget):
            token_outputs = []
            for chunk in s.chunks(rows, budget):
                x = layer_norm(s.x[chunk.rows, chunk.tokens], self.config.norm_eps)
                row_modulation = Affine(
                    *(s.select_items(cast(Tensor, t), rows) for t in modulation)
                )
                runs = list(clip_runs(s.prepared.levels.runs, chunk.tokens))
                token_outputs.append(project(apply_affine(x, row_modulation, runs)).float())
            outputs.append(torch.cat(token_outputs, 1))
        out = torch.cat(outputs)
        if s.prepared.order is not None:
            out = out[:, s.prepared.order.argsort()]
        return out if items == tuple(range(len(out))) else pick_rows(out, items)

    def _linear(self, name: str) -> Linear:
        return cast(Linear, self._modules[name])

    def _embed_timesteps(self, name: str, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        rows, embedded = cast(AdaLn, self._modules[name])(timesteps)
        return rows.float(), embedded.float()

    @contextmanager
    def offload_blocks(self, device: torch.device, offload: BlockOffload | None) -> Iterator[None]:
        """Stream the blocks that are not resident to ``device`` inside the ``with`` block.

        ``None``: all blocks stay where they are. LoRAs must be attached before.
        """
        if offload is None:
            yield
            return
        previous = self.block_iterator
        self.block_iterator = StreamedBlocks(self._placement(), device, offload)
        try:
            yield
        finally:
            self.block_iterator.close()
            self.block_iterator = previous

    def give_back(self, offload: BlockOffload) -> None:
        """Free the resident blocks that ``offload`` does not keep; call before attaching LoRAs."""
        placement = self._placement()
        placement.free(offload.streamed(len(placement.blocks)))

    def _placement(self) -> BlockPlacement:
        if self._block_placement is None:
            self._block_placement = BlockPlacement(list(self.transformer_blocks))
        return self._block_placement

    def use_attention(self, backend: str) -> None:
        """Use an entry of :data:`.attention_backends.BACKENDS` in all attention layers.

        Raises ``ValueError`` for an unknown name.
        """
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention backend {backend!r}, use {', '.join(BACKENDS)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def use_fused(self, fused: bool) -> None:
        """Use the kernels of :mod:`.fused` in all blocks, or the plain operations."""
        self.fused = fused
        for module in self.modules():
            if isinstance(module, Attention | Linear):
                module.fused = fused

    def use_fp8_products(self, native: bool) -> None:
        """Multiply fp8 by fp8 in the layers of all blocks whose weight and device support it."""
        for module in self.transformer_blocks.modules():
            if isinstance(module, Linear):
                module.native_fp8 = native

    def use_fp4_products(self, native: bool) -> None:
        """Multiply NVFP4 by NVFP4 in the layers of all blocks whose weight and device allow it."""
        for module in self.transformer_blocks.modules():
            if isinstance(module, Linear):
                module.native_fp4 = native

    def set_chunk_tokens(self, tokens: int) -> None:
        """Set the tokens per chunk: more is faster, up to a point, and needs more memory."""
        self.chunk_tokens = tokens
        for block in self.transformer_blocks:
            cast(TransformerBlock, block).chunk_tokens = tokens

    def compile_regions(self, **options: object) -> None:
        """Compile all attention and feed-forward modules in place; ``options`` of torch.compile."""
        for module in self.modules():
            if isinstance(module, Attention | FeedForward):
                module.compile(**options)

    def initialise(self, seed: int) -> None:
        """Set random weights for training: small normal matrices, open gates, zero output."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                _initialise_weight(name, weight, generator)


def _initialise_weight(name: str, weight: Tensor, generator: torch.Generator) -> None:
    if name.endswith("norm.weight"):
        weight.fill_(1)
    elif name.endswith(".bias") or "proj_out." in name or "to_gate_logits." in name:
        weight.zero_()
    else:
        fan = weight.shape[-1]
        weight.copy_(torch.randn(weight.shape, generator=generator) * fan**-0.5)


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a transformer's weights.

    ``precision``: ``stored``, or ``fp8`` to convert float matrices to fp8 while loading.
    ``as_stored``: float matrices of the blocks keep the file's dtype and are converted at each
    use, with bit-identical results. ``blocks``: location of the blocks' matrices: ``device``;
    ``pinned`` (CPU memory, not the file mapping); ``file`` (the memory-mapped file).
    """

    precision: Literal["stored", "fp8"] = "stored"
    as_stored: bool = False
    blocks: WeightLocation = "device"


def load_transformer(
    component: Component,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    load: LoadOptions = LoadOptions(),
) -> Transformer:
    """Load the transformer of a checkpoint; modulation tables stay float32.

    Quantised matrices keep their stored form and are dequantised at each use. Raises
    :class:`UnknownLayout` if names, shapes and header do not match,
    :class:`UnsupportedQuantization` and :class:`CorruptCheckpoint` with the tensor's name.
    """
    config = TransformerConfig.from_component(component)
    read = tensor_readers(component)
    if load.precision == "fp8":
        read |= {
            name: Fp8TensorReader(component, name, device) for name in filter(is_fp8_weight, read)
        }
    block_storage = WeightStorage(load.as_stored, load.blocks)
    model = load_module(
        lambda: Transformer(config),
        read,
        device=device,
        dtype=dtype,
        keep_float32=lambda name: "scale_shift_table" in name,
        storage=lambda name: (
            block_storage if name.startswith("transformer_blocks.") else WeightStorage()
        ),
        label=f"{component.file.path.name} (transformer)",
    )
    model.set_chunk_tokens(chunk_tokens(torch.device(device).type))
    return model
