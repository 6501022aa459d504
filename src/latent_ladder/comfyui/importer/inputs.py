"""The sound, the pictures and the video that a graph brings in, as fields of a request."""

from __future__ import annotations

from typing import Any

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import Trail, does_not_fit
from latent_ladder.comfyui.importer.output import Shown, audio_file, sound_latents
from latent_ladder.comfyui.importer.stages import (
    SCALERS,
    Climb,
    Heard,
    HeldImage,
    SampledStage,
    read_sound,
)
from latent_ladder.latents import shapes


def sound_fields(
    trail: Trail, climbed: Climb, shown: Shown, last: shapes.Resolution
) -> dict[str, Any]:
    """``audio`` and ``audio_in``: whose sound is heard, and whether a file drives the picture."""
    sampled = climbed.sampled
    heard = [None if s.audio is None else read_sound(trail, s.audio) for s in sampled]
    first = heard[0]
    if first is None:
        if any(h is not None for h in heard):
            raise does_not_fit(sampled[-1].sampling.node, "makes sound in a later stage only")
        return {"audio": "none"}
    _check_sound(trail, climbed, heard, last)
    saved = shown.sound
    if saved is None:
        trail.lose(sampled[-1].sampling.node, "makes sound that is not saved")
    given = next((h.file for h in heard if h is not None and h.kind == "given"), None)
    if given is not None:
        if saved is not None and sound_latents(trail, saved) is not None:
            trail.lose(saved[0], "decodes the given sound; the clip gets the file's own")
        return {"audio": "refine", "audio_in": given}
    latents = None if saved is None else sound_latents(trail, saved)
    if saved is not None and latents is None:
        trail.lose(saved[0], f"lays {audio_file(trail, saved)} under the clip")
    if latents is None:
        return {"audio": "refine"}
    run = (
        read_sound(trail, latents).node
        if latents[0].class_type == "LTXVSeparateAVLatent"
        else latents[0]
    )
    names = [s.sampling.node.id for s in sampled]
    if run.id not in names:
        raise does_not_fit(run, "makes the sound apart from the picture")
    at = names.index(run.id)
    if at == len(names) - 1:
        return {"audio": "refine"}
    if at > 0:
        trail.lose(run, "gives the sound from a stage in the middle; taken from the first")
    return {"audio": "keep"}


def _check_sound(
    trail: Trail, climbed: Climb, heard: list[Heard | None], last: shapes.Resolution
) -> None:
    sampled = climbed.sampled
    for i, one in enumerate(heard):
        if one is None:
            raise does_not_fit(sampled[i].sampling.node, "drops the sound before it samples")
        if one.kind == "fresh":
            _check_length(trail, one.node, last)
            if i:
                raise does_not_fit(one.node, "begins the sound anew in a later stage")
        elif one.kind == "before" and (i == 0 or one.node.id != sampled[i - 1].sampling.node.id):
            trail.lose(
                sampled[i].sampling.node, "takes its sound from another run than the one before"
            )


def _check_length(trail: Trail, node: Node, last: shapes.Resolution) -> None:
    frames, rate = (trail.number(node, n) for n in ("frames_number", "frame_rate"))
    made = round(frames / rate * shapes.AUDIO_LATENTS_PER_SECOND)
    if made != last.audio_latents:
        text = (
            f"makes {made / 25:.2f} s of sound for a clip of "
            f"{float(last.frames / last.fps):.2f} s; a request makes as much as it has picture"
        )
        trail.lose(node, text)


def image_fields(
    trail: Trail, climbed: Climb, frames: int, resolutions: list[shapes.Resolution]
) -> list[dict[str, Any]]:
    """The pictures that the stages show, held as the first of them does; others are told.

    Their frames are the last stage's: an earlier one may have fewer frames.
    """
    sampled = [
        (stage, resolution.frames)
        for stage, resolution in zip(climbed.stages, resolutions, strict=True)
        if isinstance(stage, SampledStage)
    ]
    finest = next(((s.images, n) for s, n in reversed(sampled) if s.images), ([], 1))
    made = [_image(image, frames, finest[1]) for image in finest[0]]
    for image, table in zip(finest[0], made, strict=True):
        if table["frame"] == 0 and image.node.class_type == "LTXVAddGuide":
            trail.lose(
                image.node, "guides the first frame; a request puts the picture in its place"
            )
    held: dict[int, dict[str, Any]] = {}
    for stage, count in sampled:
        here: list[int] = []
        for image in stage.images:
            table = _image(image, count, count)
            at = [i for i, m in enumerate(made) if _same_place(m, table, frames, count)]
            if not at:
                raise does_not_fit(image.node, "shows a picture that other stages do not")
            here.append(at[0])
            first = held.setdefault(at[0], table)
            if told := _difference(first, table):
                trail.lose(image.node, f"holds {image.file} with {told}: a request as stage 1 does")
        if set(here) < set(range(len(made))):
            trail.lose(stage.sampling.node, "does not hold every picture of the other stages")
    return [
        {**one, "strength": held[i]["strength"], "crf": held[i]["crf"]}
        for i, one in enumerate(made)
    ]


def _same_place(made: dict[str, Any], here: dict[str, Any], frames: int, count: int) -> bool:
    """Whether a picture of the clip is this one of a stage that has ``count`` frames."""
    at = made["frame"]
    at = round(at * (count - 1) / max(frames - 1, 1)) if at > 0 else at
    return bool((made["file"], at) == (here["file"], here["frame"]))


def video_fields(trail: Trail, climbed: Climb) -> dict[str, Any]:
    """The video that the first stage starts from."""
    encode = climbed.video
    if encode is None:
        raise TypeError("there is no video")
    scale, _ = trail.needed(encode, "pixels")
    cut, _ = trail.needed(scale, "image")
    return {"file": _video_file(trail, cut, "image"), "mode": "v2v"}


def reference_fields(trail: Trail, guide: Node) -> dict[str, Any]:
    """The video that guides the first stage, as the node ``guide`` lays it beside the clip."""
    strength = trail.number(guide, "strength")
    if trail.text(guide, "crop") == "disabled":
        trail.lose(guide, "squeezes a video of another shape; a request cuts its sides")
    file = _video_file(trail, guide, "image")
    return {"file": file, "mode": "reference", "strength": strength}


def _video_file(trail: Trail, node: Node, name: str) -> str:
    """The file behind frames, what scales or cuts them looked through."""
    source, _ = trail.needed(node, name)
    while source.class_type in ("ImageFromBatch", *SCALERS):
        source, _ = trail.needed(source, SCALERS.get(source.class_type, "image"))
    if source.class_type != "GetVideoComponents":
        raise does_not_fit(source, "gives the frames in another way than a video file")
    loader, _ = trail.needed(source, "video")
    if loader.class_type != "LoadVideo":
        raise does_not_fit(loader, "gives the video in another way than LoadVideo")
    return trail.text(loader, "file")


def _image(image: HeldImage, frames: int, stage_frames: int) -> dict[str, Any]:
    at = image.frame
    if at < -1:
        at += stage_frames
    if at > 0:
        at = round(at * (frames - 1) / max(stage_frames - 1, 1))
    return {"file": image.file, "frame": at, "strength": image.strength, "crf": image.crf}


def _difference(stage_1: dict[str, Any], here: dict[str, Any]) -> str:
    values = ("strength", "crf")
    return ", ".join(f"{k} {here[k]:g} ({stage_1[k]:g})" for k in values if here[k] != stage_1[k])
