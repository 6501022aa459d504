"""Nodes of LTX-2.5: generated keyframes, and the duration that a prompt suggests.

A generated keyframe is one latent frame behind the clip that is denoised with it; its tokens have
the learned mark of keyframes and stand for a single frame of the clip. Their block is recorded in
the conditioning, as the guides are. Source: the behaviour of ComfyUI's ``nodes_lt_keyframes`` and
``LTXVDurationPredictor``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.guides import (
    Guide,
    GuidedLatent,
    append_guide,
    clip_frames,
    guide_positions,
    guided_input,
)
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    DurationHeadFile,
    GuideFrames,
    Latent,
    Model,
    Value,
)
from latent_ladder.latents.shapes import FRAMES_PER_LATENT
from latent_ladder.models.duration_head import clip_frames as frames_for_seconds
from latent_ladder.models.duration_head import load_duration_head

UNMASKED = 1 - 1e-4
"""A latent frame with a mask below this holds an image."""


def add_generated_keyframes(ctx: NodeContext) -> list[Value]:
    """``LTXVAddGeneratedKeyframes``: keyframes to generate, at free places of the clip."""
    clip = guided_input(ctx)
    video = _video(ctx, clip.latent)
    _check_contiguous(ctx, clip.positive)
    frames = (clip_frames(video, clip.positive) - 1) * FRAMES_PER_LATENT + 1
    taken = occupied_frames(clip.latent, clip.positive)
    places = _requested_places(ctx, "frame_indices", frames)
    if places is None:
        interval = ctx.integer("interval_frames") if ctx.has("interval_frames") else 24
        places = [n for n in spaced_places(frames, interval) if n not in taken]
    if not places:
        raise ctx.error("no frame of the clip is free for a keyframe", "use a longer clip")
    if clashes := sorted(set(places) & taken):
        listed = ", ".join(map(str, clashes))
        raise ctx.error(f"frame_indices: {listed} already hold an image, a guide or a keyframe")
    content = _content(ctx, ctx.get_optional("keyframes", Latent), video, places)
    positions = torch.cat(
        [guide_positions(Guide(content[:, :, :1], n, 0, True)) for n in places], 2
    )
    block = GuideFrames(len(places), positions, generated=tuple(places))
    latent = replace(
        clip.latent,
        video=torch.cat([video, content], dim=2),
        video_mask=torch.cat(
            [clip.latent.full_video_mask(), torch.ones(1, 1, len(places), *video.shape[3:])], dim=2
        ),
    )
    return [*_with_block(clip, block), latent]


def _with_block(clip: GuidedLatent, block: GuideFrames) -> list[Conditioning]:
    return [replace(c, guides=(*c.guides, block)) for c in (clip.positive, clip.negative)]


def separate_generated_keyframes(ctx: NodeContext) -> list[Value]:
    """``LTXVSeparateGeneratedKeyframes``: the clip without its generated keyframes, and these."""
    if ctx.has("keyframes_to_batch") and ctx.boolean("keyframes_to_batch"):
        raise ctx.error("keyframes_to_batch is not supported", "switch it off")
    clip = guided_input(ctx)
    video, guides = _video(ctx, clip.latent), clip.positive.guides
    places = clip.positive.generated_keyframes
    if not places:
        raise ctx.error("it has no generated keyframes", "add LTXVAddGeneratedKeyframes before it")
    _check_size(ctx, video, clip.positive)
    frames = clip_frames(video, clip.positive)
    first = frames + sum(guide.frames for guide in guides[: _first_block(guides)])
    inside = slice(first, first + len(places))
    mask = clip.latent.full_video_mask()
    latent = replace(clip.latent, video=_without(video, inside), video_mask=_without(mask, inside))
    canvas = (frames - 1) * FRAMES_PER_LATENT + 1
    keyframes = Latent(video[:, :, inside], keyframe_places=torch.tensor([canvas, *places]))
    conditionings = [
        replace(c, guides=tuple(guide for guide in c.guides if not guide.generated))
        for c in (clip.positive, clip.negative)
    ]
    return [*conditionings, latent, keyframes]


def keyframes_to_guides(ctx: NodeContext) -> list[Value]:
    """``LTXVGeneratedKeyframesToGuides``: keyframes of an earlier stage as guides of a clip."""
    clip, found = guided_input(ctx), ctx.get("keyframes", Latent)
    video, content = _video(ctx, clip.latent), _video(ctx, found)
    if found.keyframe_places is None:
        raise ctx.error(
            "keyframes do not say their frames", "connect LTXVSeparateGeneratedKeyframes"
        )
    if clip.positive.generated_keyframes:
        raise ctx.error(
            "its conditioning still has generated keyframes",
            "connect the conditionings of LTXVSeparateGeneratedKeyframes",
        )
    if content.shape[3:] != video.shape[3:]:
        raise ctx.error(
            f"the keyframes are {content.shape[4]}x{content.shape[3]} latents, the clip "
            f"{video.shape[4]}x{video.shape[3]}",
            "connect the keyframes to LTXVLatentUpsampler before",
        )
    before, *places = found.keyframe_places.tolist()
    frames = (clip_frames(video, clip.positive) - 1) * FRAMES_PER_LATENT + 1
    places = _requested_places(ctx, "override_frame_indices", frames) or rescaled_places(
        places, before, frames
    )
    if len(places) != content.shape[2]:
        raise ctx.error(f"there are {content.shape[2]} keyframes for {len(places)} frames")
    strength = ctx.number("strength")
    outputs: list[Value] = [clip.positive, clip.negative, clip.latent]
    for k, place in enumerate(places):
        guide = Guide(content[:, :, k : k + 1], place, strength, True, attention=strength)
        outputs = append_guide(ctx, guide, GuidedLatent(outputs[0], outputs[1], outputs[2]))
    return outputs


def freeze_latent(ctx: NodeContext) -> list[Value]:
    """``LTXVFreezeLatent``: a video or audio latent that sampling leaves as it is."""
    latent = ctx.get("latent", Latent)
    if latent.is_audio_video:
        raise ctx.error("latent has picture and sound", "add LTXVSeparateAVLatent before it")
    if latent.video is not None:
        return [replace(latent, video_mask=torch.zeros(1, 1, latent.video.shape[2], 1, 1))]
    if latent.audio is None:
        raise TypeError("an empty latent")
    return [replace(latent, audio_mask=torch.zeros(1, 1, latent.audio.shape[2], 1))]


def load_model_patch(ctx: NodeContext) -> list[Value]:
    """``ModelPatchLoader``: a duration head; other patches are not for LTX."""
    return [DurationHeadFile(ctx.engine.component(ctx.text("name"), "duration_head"))]


def predict_duration(ctx: NodeContext) -> list[Value]:
    """``LTXVDurationPredictor``: frames (8k + 1 within the limits) and the predicted seconds."""
    (context,) = ctx.engine.contexts([ctx.get("positive", Conditioning)], ctx.get("model", Model))
    file = ctx.get("duration_head", DurationHeadFile)
    head = load_duration_head(file.component, device=ctx.engine.runtime.device)
    with torch.inference_mode():
        seconds = float(head(context.video.float(), context.audio.float())[0])
    fps = Fraction(ctx.number("frame_rate")).limit_denominator(1001)
    limits = ctx.number("min_seconds"), ctx.number("max_seconds")
    return [frames_for_seconds(seconds, fps, *limits), seconds]


# --- places -------------------------------------------------------------------------------------


def spaced_places(frames: int, interval: int) -> list[int]:
    """Frames about ``interval`` apart up to the last one, without frame 0."""
    count = max(1, round((frames - 1) / interval))
    places = torch.linspace(0, frames - 1, count + 1).round().to(torch.int64).tolist()
    return [place for place in places[1:] if place]


def rescaled_places(places: Sequence[int], before: int, after: int) -> list[int]:
    """The frames of the same moments in a clip of ``after`` frames instead of ``before``."""
    return [round(place * (after - 1) / max(before - 1, 1)) for place in places]


def occupied_frames(latent: Latent, positive: Conditioning) -> set[int]:
    """Frames of the clip that hold an image, a guide or a generated keyframe.

    Without a mask, latent frames that are not zero count as images.
    """
    if latent.video is None:
        return set()
    frames = clip_frames(latent.video, positive)
    if latent.video_mask is None:
        held = (latent.video[:, :, :frames] != 0).any((0, 1, 3, 4))
    else:
        held = (latent.full_video_mask()[:, :, :frames] < UNMASKED).any((0, 1, 3, 4))
    last = (frames - 1) * FRAMES_PER_LATENT
    taken = {min(int(n) * FRAMES_PER_LATENT, last) for n in held.nonzero()[:, 0]}
    for guide in positive.guides:
        taken |= {round(t) for t in guide.positions[0, 0, :, 0].unique().tolist()}
    return taken


def _requested_places(ctx: NodeContext, name: str, frames: int) -> list[int] | None:
    """Frames typed into a node, ``None`` if there are none."""
    text = ctx.text(name).strip() if ctx.has(name) else ""
    if not text:
        return None
    parts = [part for part in re.split(r"[,\s]+", text) if part]
    if not all(re.fullmatch(r"\d+", part) for part in parts):
        raise ctx.error(f"{name} is not a list of frames", "write for example 24, 48")
    places = [int(part) for part in parts]
    if len(set(places)) < len(places) or not all(0 < place < frames for place in places):
        raise ctx.error(f"{name}: frames must differ and lie between 1 and {frames - 1}")
    return places


# --- content ------------------------------------------------------------------------------------


def _content(
    ctx: NodeContext, found: Latent | None, video: Tensor, places: Sequence[int]
) -> Tensor:
    """Start of the keyframes (1, C, K, H, W): zeros, given ones, or frames of a given clip."""
    count = len(places)
    shape = (*video.shape[:2], count, *video.shape[3:])
    if found is None:
        return video.new_zeros(shape)
    given = _video(ctx, found).to(video)
    if (given.shape[1], *given.shape[3:]) != (video.shape[1], *video.shape[3:]):
        got, want = list(given.shape[1:]), list(shape[1:])
        raise ctx.error(f"keyframes are {got}, expected {want}", "upsample them like the clip")
    if given.shape[2] > count and found.keyframe_places is None:
        nearest = [min(round(n / FRAMES_PER_LATENT), given.shape[2] - 1) for n in places]
        return given[:, :, nearest]
    if given.shape[2] > count:
        raise ctx.error(f"there are {given.shape[2]} keyframes for {count} free frames")
    return torch.cat([given, video.new_zeros(shape)[:, :, given.shape[2] :]], dim=2)


def _video(ctx: NodeContext, latent: Latent) -> Tensor:
    if latent.video is None or latent.audio is not None:
        raise ctx.error(
            "generated keyframes need a video latent", "connect it before LTXVConcatAVLatent"
        )
    return latent.video


def _first_block(guides: Sequence[GuideFrames]) -> int:
    return next(i for i, guide in enumerate(guides) if guide.generated)


def _check_contiguous(ctx: NodeContext, positive: Conditioning) -> None:
    guides = positive.guides
    if positive.generated_keyframes and not guides[-1].generated:
        raise ctx.error("a guide follows the generated keyframes", "add guides after all keyframes")


def _check_size(ctx: NodeContext, video: Tensor, positive: Conditioning) -> None:
    block = positive.guides[_first_block(positive.guides)]
    if block.positions.shape[2] != block.frames * video.shape[3] * video.shape[4]:
        raise ctx.error(
            "the latent was resized after its keyframes were added",
            "separate the keyframes before LTXVLatentUpsampler",
        )


def _without(tensor: Tensor, inside: slice) -> Tensor:
    return torch.cat([tensor[:, :, : inside.start], tensor[:, :, inside.stop :]], dim=2)


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LTXVAddGeneratedKeyframes": NodeFunction(add_generated_keyframes),
        "LTXVSeparateGeneratedKeyframes": NodeFunction(separate_generated_keyframes),
        "LTXVGeneratedKeyframesToGuides": NodeFunction(keyframes_to_guides),
        "LTXVFreezeLatent": NodeFunction(freeze_latent),
        "ModelPatchLoader": NodeFunction(load_model_patch),
        "LTXVDurationPredictor": NodeFunction(predict_duration),
    }
)
