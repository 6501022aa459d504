"""The sound, the pictures and the video that a graph brings in, as fields of a request."""

from __future__ import annotations

from typing import Any

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import GraphWalker, unsupported_node
from latent_ladder.comfyui.importer.output import SavedOutput, find_audio_file, find_audio_latents
from latent_ladder.comfyui.importer.stages import (
    RESIZE_NODES,
    AudioSource,
    ConditioningImage,
    SampledStage,
    StageChain,
    find_audio_source,
)
from latent_ladder.latents import shapes


def audio_fields(
    walker: GraphWalker, chain: StageChain, saved_output: SavedOutput, last: shapes.Resolution
) -> dict[str, Any]:
    """``audio`` and ``audio_in``: whose sound is heard, and whether a file drives the picture."""
    sampled = chain.sampled
    heard = [None if s.audio is None else find_audio_source(walker, s.audio) for s in sampled]
    first = heard[0]
    if first is None:
        if any(h is not None for h in heard):
            raise unsupported_node(sampled[-1].sampling.node, "makes sound in a later stage only")
        return {"audio": "none"}
    _check_audio_sources(walker, chain, heard, last)
    saved = saved_output.sound
    if saved is None:
        walker.report_loss(sampled[-1].sampling.node, "makes sound that is not saved")
    given = next((h.file for h in heard if h is not None and h.kind == "given"), None)
    if given is not None:
        if saved is not None and find_audio_latents(walker, saved) is not None:
            walker.report_loss(saved[0], "decodes the given sound; the clip gets the file's own")
        return {"audio": "refine", "audio_in": given}
    latents = None if saved is None else find_audio_latents(walker, saved)
    if saved is not None and latents is None:
        walker.report_loss(saved[0], f"lays {find_audio_file(walker, saved)} under the clip")
    if latents is None:
        return {"audio": "refine"}
    run = (
        find_audio_source(walker, latents).node
        if latents[0].class_type == "LTXVSeparateAVLatent"
        else latents[0]
    )
    names = [s.sampling.node.id for s in sampled]
    if run.id not in names:
        raise unsupported_node(run, "makes the sound apart from the picture")
    at = names.index(run.id)
    if at == len(names) - 1:
        return {"audio": "refine"}
    if at > 0:
        walker.report_loss(run, "gives the sound from a stage in the middle; taken from the first")
    return {"audio": "keep"}


def _check_audio_sources(
    walker: GraphWalker,
    chain: StageChain,
    heard: list[AudioSource | None],
    last: shapes.Resolution,
) -> None:
    sampled = chain.sampled
    for i, one in enumerate(heard):
        if one is None:
            raise unsupported_node(sampled[i].sampling.node, "drops the sound before it samples")
        if one.kind == "fresh":
            _check_audio_length(walker, one.node, last)
            if i:
                raise unsupported_node(one.node, "begins the sound anew in a later stage")
        elif one.kind == "before" and (i == 0 or one.node.id != sampled[i - 1].sampling.node.id):
            walker.report_loss(
                sampled[i].sampling.node, "takes its sound from another run than the one before"
            )


def _check_audio_length(walker: GraphWalker, node: Node, last: shapes.Resolution) -> None:
    frames, rate = (walker.number(node, n) for n in ("frames_number", "frame_rate"))
    made = round(frames / rate * shapes.AUDIO_LATENTS_PER_SECOND)
    if made != last.audio_latents:
        text = (
            f"makes {made / 25:.2f} s of sound for a clip of "
            f"{float(last.frames / last.fps):.2f} s; a request makes as much as it has picture"
        )
        walker.report_loss(node, text)


def image_fields(
    walker: GraphWalker, chain: StageChain, frames: int, resolutions: list[shapes.Resolution]
) -> list[dict[str, Any]]:
    """The pictures that the stages show, held as the first of them does; others are told.

    Their frames are the last stage's: an earlier one may have fewer frames.
    """
    sampled = [
        (stage, resolution.frames)
        for stage, resolution in zip(chain.stages, resolutions, strict=True)
        if isinstance(stage, SampledStage)
    ]
    finest = next(((s.images, n) for s, n in reversed(sampled) if s.images), ([], 1))
    made = [_image_field(image, frames, finest[1]) for image in finest[0]]
    for image, table in zip(finest[0], made, strict=True):
        if table["frame"] == 0 and image.node.class_type == "LTXVAddGuide":
            walker.report_loss(
                image.node, "guides the first frame; a request puts the picture in its place"
            )
    held: dict[int, dict[str, Any]] = {}
    for stage, count in sampled:
        here: list[int] = []
        for image in stage.images:
            table = _image_field(image, count, count)
            at = [i for i, m in enumerate(made) if _is_same_image(m, table, frames, count)]
            if not at:
                raise unsupported_node(image.node, "shows a picture that other stages do not")
            here.append(at[0])
            first = held.setdefault(at[0], table)
            if told := _describe_difference(first, table):
                walker.report_loss(
                    image.node, f"holds {image.file} with {told}: a request as stage 1 does"
                )
        if set(here) < set(range(len(made))):
            walker.report_loss(
                stage.sampling.node, "does not hold every picture of the other stages"
            )
    return [
        {**one, "strength": held[i]["strength"], "crf": held[i]["crf"]}
        for i, one in enumerate(made)
    ]


def _is_same_image(made: dict[str, Any], here: dict[str, Any], frames: int, count: int) -> bool:
    """Whether a picture of the clip is this one of a stage that has ``count`` frames."""
    at = made["frame"]
    at = round(at * (count - 1) / max(frames - 1, 1)) if at > 0 else at
    return bool((made["file"], at) == (here["file"], here["frame"]))


def video_fields(walker: GraphWalker, chain: StageChain) -> dict[str, Any]:
    """The video that the first stage starts from."""
    encode = chain.video
    if encode is None:
        raise TypeError("there is no video")
    scale, _ = walker.required_source(encode, "pixels")
    cut, _ = walker.required_source(scale, "image")
    return {"file": _find_video_file(walker, cut, "image"), "mode": "v2v"}


def reference_fields(walker: GraphWalker, guide: Node) -> dict[str, Any]:
    """The video that guides the first stage, as the node ``guide`` lays it beside the clip."""
    strength = walker.number(guide, "strength")
    if walker.text(guide, "crop") == "disabled":
        walker.report_loss(guide, "squeezes a video of another shape; a request cuts its sides")
    file = _find_video_file(walker, guide, "image")
    return {"file": file, "mode": "reference", "strength": strength}


def _find_video_file(walker: GraphWalker, node: Node, name: str) -> str:
    """The file behind frames, what scales or cuts them looked through."""
    source, _ = walker.required_source(node, name)
    while source.class_type in ("ImageFromBatch", *RESIZE_NODES):
        source, _ = walker.required_source(source, RESIZE_NODES.get(source.class_type, "image"))
    if source.class_type != "GetVideoComponents":
        raise unsupported_node(source, "gives the frames in another way than a video file")
    loader, _ = walker.required_source(source, "video")
    if loader.class_type != "LoadVideo":
        raise unsupported_node(loader, "gives the video in another way than LoadVideo")
    return walker.text(loader, "file")


def _image_field(image: ConditioningImage, frames: int, stage_frames: int) -> dict[str, Any]:
    at = image.frame
    if at < -1:
        at += stage_frames
    if at > 0:
        at = round(at * (frames - 1) / max(stage_frames - 1, 1))
    return {"file": image.file, "frame": at, "strength": image.strength, "crf": image.crf}


def _describe_difference(stage_1: dict[str, Any], here: dict[str, Any]) -> str:
    values = ("strength", "crf")
    return ", ".join(f"{k} {here[k]:g} ({stage_1[k]:g})" for k in values if here[k] != stage_1[k])
