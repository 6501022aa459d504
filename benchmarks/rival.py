"""diffusers' LTX-2 transformer with our weights, for comparison in the denoiser benchmarks.

It is called as in its own pipelines (``pipeline_ltx2``, ``pipeline_ltx2_image2video``): a batch of
two for CFG, one forward for spatio-temporal guidance, one for modality guidance, with a text mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_ladder.models.transformer.config import TransformerConfig
from latent_ladder.models.transformer.model import Transformer

NAMES: Mapping[str, str] = {
    "audio_patchify_proj": "audio_proj_in",
    "patchify_proj": "proj_in",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "prompt_adaln_single": "prompt_adaln",
    "audio_adaln_single": "audio_time_embed",
    "adaln_single": "time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


def rival_name(name: str) -> str:
    """Convert our parameter name to diffusers'."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def build_rival(ours: Transformer) -> nn.Module:
    """Build diffusers' transformer on the tensors of ``ours``, which are shared, not copied.

    In bf16 its modulation tables are bf16 too, as it does not support mixed dtypes.
    """
    model = rival_on_meta(ours.config)
    dtype = ours.get_parameter("patchify_proj.weight").dtype
    state = {rival_name(name): t.to(dtype) for name, t in ours.state_dict().items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def rival_on_meta(config: TransformerConfig) -> nn.Module:
    """Build diffusers' transformer of this configuration on the meta device."""
    from diffusers import LTX2VideoTransformer3DModel  # not everywhere this module is imported

    video, audio = config.video, config.audio
    with torch.device("meta"):
        network: nn.Module = LTX2VideoTransformer3DModel(
            in_channels=video.in_channels,
            out_channels=video.out_channels,
            num_attention_heads=video.heads,
            attention_head_dim=video.head_dim,
            cross_attention_dim=video.context_dim,
            gated_attn=config.gated,
            cross_attn_mod=config.text_adaln,
            audio_in_channels=audio.in_channels,
            audio_out_channels=audio.out_channels,
            audio_num_attention_heads=audio.heads,
            audio_attention_head_dim=audio.head_dim,
            audio_cross_attention_dim=audio.context_dim,
            audio_gated_attn=config.gated,
            audio_cross_attn_mod=config.text_adaln,
            num_layers=config.layers,
            rope_type="split",
            use_prompt_embeddings=config.caption_projection,
            perturbed_attn=True,
        )
    return network


@dataclass(frozen=True)
class Workload:
    """Inputs of one step for both sides; the first ``kept`` tokens are clean (conditioning)."""

    video: Tensor
    audio: Tensor
    video_positions: Tensor
    audio_positions: Tensor
    video_context: Tensor
    audio_context: Tensor
    negative_video_context: Tensor
    negative_audio_context: Tensor
    sigma: float
    kept: int = 0

    @property
    def mask(self) -> Tensor:
        """Denoise mask (1, N, 1), 0 for kept tokens."""
        mask = torch.ones(1, self.video.shape[1], 1, device=self.video.device)
        mask[:, : self.kept] = 0
        return mask


def rival_forward(model: nn.Module, work: Workload, batch: int = 1, **how: object) -> list[Tensor]:
    """Call the model as in the pipelines; ``batch`` 2 is CFG, negative prompt first."""
    sigma = torch.full((batch,), work.sigma * 1000, device=work.video.device)
    video_context, audio_context = work.video_context, work.audio_context
    if batch == 2:
        video_context = torch.cat([work.negative_video_context, video_context])
        audio_context = torch.cat([work.negative_audio_context, audio_context])
    text_mask = torch.ones(video_context.shape[:2], dtype=torch.long, device=sigma.device)
    timestep = sigma
    if work.kept:
        timestep = sigma[:, None] * work.mask[:, :, 0]
    velocities = model(
        hidden_states=torch.cat([work.video] * batch).to(video_context.dtype),
        audio_hidden_states=torch.cat([work.audio] * batch).to(video_context.dtype),
        encoder_hidden_states=video_context,
        audio_encoder_hidden_states=audio_context,
        timestep=timestep,
        audio_timestep=sigma,
        sigma=sigma,
        encoder_attention_mask=text_mask,
        audio_encoder_attention_mask=text_mask,
        video_coords=torch.cat([work.video_positions] * batch),
        audio_coords=torch.cat([work.audio_positions] * batch),
        use_cross_timestep=not work.kept,
        return_dict=False,
        **how,
    )
    return [v.float() for v in velocities]


def rival_guided_step(
    model: nn.Module, work: Workload, blocks: list[int], scales: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor]:
    """Compute the guided x0 of both streams; ``scales``: cfg, stg, modality, rescale."""
    both = rival_forward(model, work, 2)
    perturbed = rival_forward(model, work, spatio_temporal_guidance_blocks=blocks)
    isolated = rival_forward(model, work, isolate_modalities=True)
    results = []
    for tokens, pair, ptb, iso in zip(
        (work.video, work.audio), both, perturbed, isolated, strict=True
    ):
        level = work.sigma * (work.mask if tokens is work.video else 1.0)
        uncond, cond, ptb, iso = (tokens - v * level for v in (*pair.chunk(2), ptb, iso))
        cfg, stg, modality, rescale = scales
        guided = cond + (cfg - 1) * (cond - uncond) + stg * (cond - ptb)
        guided = guided + (modality - 1) * (cond - iso)
        ratio = cond.std() / guided.std()
        results.append(guided * (rescale * ratio + 1 - rescale))
    return results[0], results[1]
