"""Import of the audio, images and videos of a graph as fields of a request."""

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
    """Return the request fields ``audio`` and ``audio_in``.

    ``audio`` says which stage's audio is saved, ``audio_in`` is the file that drives the video.
    """
    sampled = chain.sampled_stages
    sources = [None if s.audio is None else find_audio_source(walker, s.audio) for s in sampled]
    if sources[0] is None:
        if any(source is not None for source in sources):
            node = sampled[-1].sampling.node
            raise unsupported_node(node, "generates audio in a later stage only")
        return {"audio": "none"}
    _check_audio_sources(walker, chain, sources, last)
    saved = saved_output.audio
    if saved is None:
        walker.report_loss(sampled[-1].sampling.node, "generates audio that is not saved")
    file = next((s.file for s in sources if s is not None and s.kind == "file"), None)
    if file is not None:
        if saved is not None and find_audio_latents(walker, saved) is not None:
            text = "decodes the encoded input audio; the clip gets the audio of the file"
            walker.report_loss(saved[0], text)
        return {"audio": "refine", "audio_in": file}
    latents = None if saved is None else find_audio_latents(walker, saved)
    if saved is not None and latents is None:
        file = find_audio_file(walker, saved)
        walker.report_loss(saved[0], f"replaces the audio of the clip by {file}")
    if latents is None:
        return {"audio": "refine"}
    run = (
        find_audio_source(walker, latents).node
        if latents[0].class_type == "LTXVSeparateAVLatent"
        else latents[0]
    )
    names = [s.sampling.node.id for s in sampled]
    if run.id not in names:
        raise unsupported_node(run, "generates audio separately from the video")
    position = names.index(run.id)
    if position == len(names) - 1:
        return {"audio": "refine"}
    if position > 0:
        text = "takes the audio of a middle stage; a request takes that of the first"
        walker.report_loss(run, text)
    return {"audio": "keep"}


def _check_audio_sources(
    walker: GraphWalker,
    chain: StageChain,
    sources: list[AudioSource | None],
    last: shapes.Resolution,
) -> None:
    nodes = [stage.sampling.node for stage in chain.sampled_stages]
    for i, source in enumerate(sources):
        if source is None:
            raise unsupported_node(nodes[i], "samples without audio, unlike the first stage")
        if source.kind == "empty":
            _check_audio_length(walker, source.node, last)
            if i:
                raise unsupported_node(source.node, "starts new audio in a later stage")
        elif source.kind == "previous" and (i == 0 or source.node.id != nodes[i - 1].id):
            text = "takes its audio from another sampling node than the previous one"
            walker.report_loss(nodes[i], text)


def _check_audio_length(walker: GraphWalker, node: Node, last: shapes.Resolution) -> None:
    frames, rate = (walker.number(node, n) for n in ("frames_number", "frame_rate"))
    latents = round(frames / rate * shapes.AUDIO_LATENTS_PER_SECOND)
    if latents != last.audio_latents:
        text = (
            f"generates {latents / 25:.2f} s of audio for a clip of "
            f"{float(last.frames / last.fps):.2f} s; a request generates audio of the clip's length"
        )
        walker.report_loss(node, text)


def image_fields(
    walker: GraphWalker, chain: StageChain, frames: int, resolutions: list[shapes.Resolution]
) -> list[dict[str, Any]]:
    """Return the ``images`` of a request, with strength and crf of the first stage that uses them.

    Their frame indices are those of the last stage; earlier stages may have fewer frames.
    Differences between stages are recorded as losses.
    """
    sampled = [
        (stage, resolution.frames)
        for stage, resolution in zip(chain.stages, resolutions, strict=True)
        if isinstance(stage, SampledStage)
    ]
    images, count = next(((s.images, n) for s, n in reversed(sampled) if s.images), ([], 1))
    tables = [_image_field(image, frames, count) for image in images]
    for image, table in zip(images, tables, strict=True):
        if table["frame"] == 0 and image.node.class_type == "LTXVAddGuide":
            text = "uses the image as a guide for the first frame; a request replaces the frame"
            walker.report_loss(image.node, text)
    first_use: dict[int, dict[str, Any]] = {}
    for stage, stage_frames in sampled:
        used: set[int] = set()
        for image in stage.images:
            table = _image_field(image, stage_frames, stage_frames)
            index = next(
                (i for i, t in enumerate(tables) if _is_same_image(t, table, frames, stage_frames)),
                None,
            )
            if index is None:
                raise unsupported_node(image.node, "uses an image that the other stages do not use")
            used.add(index)
            first = first_use.setdefault(index, table)
            if difference := _describe_difference(first, table):
                text = f"uses {image.file} with {difference}; a request uses the values of stage 1"
                walker.report_loss(image.node, text)
        if used < set(range(len(tables))):
            text = "does not use every image of the other stages"
            walker.report_loss(stage.sampling.node, text)
    return [
        {**table, "strength": first_use[i]["strength"], "crf": first_use[i]["crf"]}
        for i, table in enumerate(tables)
    ]


def _is_same_image(
    image: dict[str, Any], stage_image: dict[str, Any], frames: int, stage_frames: int
) -> bool:
    """Return whether an image of the clip is an image of a stage that has ``stage_frames``."""
    frame = image["frame"]
    frame = round(frame * (stage_frames - 1) / max(frames - 1, 1)) if frame > 0 else frame
    return bool((image["file"], frame) == (stage_image["file"], stage_image["frame"]))


def video_fields(walker: GraphWalker, chain: StageChain) -> dict[str, Any]:
    """Return the ``video`` table for a video that the first stage starts from."""
    encode = chain.video
    if encode is None:
        raise TypeError("there is no video")
    scale, _ = walker.required_source(encode, "pixels")
    batch, _ = walker.required_source(scale, "image")
    return {"file": _find_video_file(walker, batch, "image"), "mode": "v2v"}


def reference_fields(walker: GraphWalker, guide: Node) -> dict[str, Any]:
    """Return the ``video`` table for the reference video of the node ``guide``."""
    strength = walker.number(guide, "strength")
    if walker.text(guide, "crop") == "disabled":
        walker.report_loss(guide, "stretches a video of another aspect ratio; a request crops it")
    file = _find_video_file(walker, guide, "image")
    return {"file": file, "mode": "reference", "strength": strength}


def _find_video_file(walker: GraphWalker, node: Node, name: str) -> str:
    """Return the video file of frames, through nodes that resize or truncate them."""
    source, _ = walker.required_source(node, name)
    while source.class_type in ("ImageFromBatch", *RESIZE_NODES):
        source, _ = walker.required_source(source, RESIZE_NODES.get(source.class_type, "image"))
    if source.class_type != "GetVideoComponents":
        raise unsupported_node(source, "supplies frames that are not those of a video file")
    loader, _ = walker.required_source(source, "video")
    if loader.class_type != "LoadVideo":
        raise unsupported_node(loader, "loads the video with a node other than LoadVideo")
    return walker.text(loader, "file")


def _image_field(image: ConditioningImage, frames: int, stage_frames: int) -> dict[str, Any]:
    frame = image.frame
    if frame < -1:
        frame += stage_frames
    if frame > 0:
        frame = round(frame * (frames - 1) / max(stage_frames - 1, 1))
    return {"file": image.file, "frame": frame, "strength": image.strength, "crf": image.crf}


def _describe_difference(stage_1: dict[str, Any], image: dict[str, Any]) -> str:
    values = ("strength", "crf")
    return ", ".join(f"{k} {image[k]:g} ({stage_1[k]:g})" for k in values if image[k] != stage_1[k])
