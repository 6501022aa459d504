"""From the node that saves a clip back to its last latents: size, decoding, upscaling, sound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.importer.graph_walker import RUN_IT, Trail, does_not_fit
from latent_ladder.errors import WorkflowError
from latent_ladder.latents.shapes import PIXELS_PER_LATENT

SAVERS = ("SaveVideo", "SaveWEBM", "SaveAnimatedWEBP", "SaveImage", "SaveAudio", "SaveAudioMP3")
"""Nodes that save a clip, the likeliest first."""
PIXEL_NODES = frozenset(
    {"ImageCrop", "ImageScale", "ImageScaleBy", "ImageUpscaleWithModel", "RTXVideoSuperResolution"}
)
WHOLE = 4096
"""A tile as large as this is no tile."""
LEAST_TILE_FRAMES = 16

Place = tuple[Node, int]


@dataclass(frozen=True)
class Shown:
    """What stands between the latents and the file.

    ``latents`` feed the decoder ``decoder``; ``pixels`` are the nodes behind it, first to last.
    ``sound`` is where the saved sound comes from, ``fps`` the rate it is saved with.
    """

    latents: Place
    decoder: Node
    pixels: tuple[Node, ...]
    sound: Place | None
    fps: float | None
    output: dict[str, Any] = field(default_factory=dict)


def find_output(graph: Graph, wanted: str | None) -> Node:
    """The node that saves the clip. Raises :class:`WorkflowError` for none, or for several."""
    if wanted is not None:
        named = [n for n in graph.nodes.values() if wanted in (n.id, n.title)]
        named = named or [n for n in _savers(graph) if wanted == n.inputs.get("filename_prefix")]
        if len(named) != 1:
            raise WorkflowError(
                f"the workflow has {'several nodes' if named else 'no node'} {wanted}",
                f"its outputs are {_listed(_savers(graph)) or 'none'}",
            )
        return named[0]
    found = _savers(graph)
    if not found:
        raise WorkflowError(
            "the workflow saves nothing: it has no SaveVideo node",
            "add one behind the node that makes the frames, or use ladder workflow check",
        )
    if len(found) > 1:
        raise WorkflowError(
            f"the workflow saves {len(found)} results: {_listed(found)}",
            f"choose one, for example --node {found[0].id}",
        )
    return found[0]


def _savers(graph: Graph) -> list[Node]:
    for kinds in (SAVERS[:3], SAVERS[3:]):
        found = [n for n in graph.nodes.values() if n.class_type in kinds]
        if found:
            return found
    return []


def _listed(nodes: list[Node]) -> str:
    return ", ".join(f"{n.id} ({n.title or n.class_type})" for n in nodes)


def read_output(trail: Trail, saver: Node) -> Shown:
    """Everything from the saving node back to the decoder. Raises :class:`WorkflowError`."""
    trail.met.add(saver.id)
    fps: float | None = None
    sound: Place | None = None
    output: dict[str, Any] = {}
    if saver.class_type == "SaveVideo":
        made, _ = trail.needed(saver, "video")
        if made.class_type != "CreateVideo":
            raise does_not_fit(made, "makes a video in another way than CreateVideo")
        fps, sound = trail.number(made, "fps"), trail.source(made, "audio")
        images = trail.needed(made, "images")
        codecs = [trail.value(saver, name) for name in ("format.codec", "codec")]
        codec = next((c for c in codecs if c not in (None, "auto")), "auto")
        output = {"codec": codec} if codec != "auto" else {}
    elif saver.class_type in SAVERS[1:4]:
        images = trail.needed(saver, "images")
        if "fps" in saver.inputs:
            fps = trail.number(saver, "fps")
        trail.lose(saver, "saves another kind of file: name it with -o when you make the clip")
    else:
        raise does_not_fit(saver, "saves sound alone")
    latents, decoder, pixels = _decoded(trail, images)
    return Shown(latents, decoder, pixels, sound, fps, output)


def _decoded(trail: Trail, images: Place) -> tuple[Place, Node, tuple[Node, ...]]:
    pixels: list[Node] = []
    node, _ = images
    while node.class_type in PIXEL_NODES:
        pixels.insert(0, node)
        name = "images" if node.class_type == "RTXVideoSuperResolution" else "image"
        node, _ = trail.needed(node, name)
    source = {
        "VAEDecode": "samples",
        "VAEDecodeTiled": "samples",
        "LTXVTiledVAEDecode": "latents",
        "LTXVSpatioTemporalTiledVAEDecode": "latents",
    }.get(node.class_type)
    if source is None:
        raise does_not_fit(node, "stands between decoder and file")
    return trail.needed(node, source), node, tuple(pixels)


# -- decoding -------------------------------------------------------------------------------------


def decode_fields(trail: Trail, decoder: Node, frames: int) -> dict[str, Any]:
    """The request's ``decode`` table for a decoder node and a clip of ``frames``."""
    if decoder.class_type == "VAEDecodeTiled":
        return _tiled(trail, decoder, frames)
    found: dict[str, Any] = {}
    if decoder.class_type == "LTXVTiledVAEDecode":
        across, down = (trail.whole(decoder, n) for n in ("horizontal_tiles", "vertical_tiles"))
        if across * down > 1:
            overlap = trail.whole(decoder, "overlap")
            found = {"grid": [across, down], "overlap_px": overlap * PIXELS_PER_LATENT}
    elif decoder.class_type == "LTXVSpatioTemporalTiledVAEDecode":
        trail.lose(decoder, "decodes in tiles; a request decodes whole where memory allows")
    if decoder.class_type != "VAEDecode" and trail.value(decoder, "last_frame_fix"):
        trail.lose(decoder, "last_frame_fix: decoding here needs none")
    return found


def _tiled(trail: Trail, decoder: Node, frames: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tile, overlap = trail.whole(decoder, "tile_size"), trail.whole(decoder, "overlap")
    if tile < WHOLE:
        found |= {"tile_px": _near(tile, 32, 64), "overlap_px": _near(overlap, 32, 0)}
    length = trail.whole(decoder, "temporal_size")
    shared = trail.whole(decoder, "temporal_overlap")
    if length < min(WHOLE, frames):
        found |= {
            "tile_frames": _near(length, 8, LEAST_TILE_FRAMES),
            "overlap_frames": _near(shared, 8, 0),
        }
    asked = {"tile_px": tile, "overlap_px": overlap, "tile_frames": length}
    asked["overlap_frames"] = shared
    for name, value in found.items():
        if value != asked[name]:
            trail.lose(decoder, f"{name} {asked[name]} becomes {value}")
    return found


def _near(value: int, multiple: int, least: int) -> int:
    return max(least, round(value / multiple) * multiple)


# -- pixels ---------------------------------------------------------------------------------------


@dataclass
class Sized:
    """The size that the clip has after each node behind the decoder."""

    width: int
    height: int
    upscale: dict[str, Any] | None = None
    cropped: bool = False


def sized(trail: Trail, pixels: tuple[Node, ...], canvas: tuple[int, int]) -> Sized:
    """The clip's own size and its upscale stage, from the nodes behind the decoder."""
    found = Sized(*canvas)
    for node in pixels:
        _STEPS[node.class_type](trail, node, found)
    return found


def _crop(trail: Trail, node: Node, found: Sized) -> None:
    width, height = trail.whole(node, "width"), trail.whole(node, "height")
    if found.upscale is not None:
        raise does_not_fit(node, "crops upscaled frames")
    left, top = trail.whole(node, "x"), trail.whole(node, "y")
    if (left, top) != ((found.width - width) // 2, (found.height - height) // 2):
        trail.lose(node, f"crops at {left},{top}; a request crops around the centre")
    found.width, found.height, found.cropped = width, height, True


def _model(trail: Trail, node: Node, found: Sized) -> None:
    loader, _ = trail.needed(node, "upscale_model")
    if loader.class_type != "UpscaleModelLoader":
        raise does_not_fit(loader, "loads an upscale model in another way")
    if found.upscale is not None:
        raise does_not_fit(node, "upscales a second time")
    found.upscale = {"kind": "upscale", "name": trail.text(loader, "model_name")}


def _scale(trail: Trail, node: Node, found: Sized) -> None:
    width, height = trail.whole(node, "width"), trail.whole(node, "height")
    width = width or round(found.width * height / found.height)
    height = height or round(found.height * width / found.width)
    _to(trail, node, found, (width, height))


def _scale_by(trail: Trail, node: Node, found: Sized) -> None:
    by = trail.number(node, "scale_by")
    if found.upscale is not None:
        trail.lose(node, "scales by a share of what a model gives: taken as twice the clip's size")
        return
    _to(trail, node, found, (round(found.width * by), round(found.height * by)))


def _to(trail: Trail, node: Node, found: Sized, size: tuple[int, int]) -> None:
    method = trail.text(node, "upscale_method")
    if found.upscale is None:
        if size[0] <= found.width and size[1] <= found.height:
            if size != (found.width, found.height):
                raise does_not_fit(node, f"scales the clip down to {size[0]}x{size[1]}")
            return
        if method != "lanczos":
            trail.lose(node, f"scales with {method}; a request scales with lanczos")
        found.upscale = {"kind": "upscale", "name": "lanczos"}
    elif found.upscale["name"] == "lanczos":
        raise does_not_fit(node, "scales a second time")
    found.upscale |= {"width": size[0], "height": size[1]}
    found.upscale.pop("factor", None)


def _rtx(trail: Trail, node: Node, found: Sized) -> None:
    if found.upscale is not None:
        raise does_not_fit(node, "upscales a second time")
    found.upscale = {"kind": "upscale", "name": "rtx"}
    if trail.text(node, "resize_type") == "scale by multiplier":
        found.upscale["factor"] = trail.number(node, "resize_type.scale")
    else:
        for side in ("width", "height"):
            found.upscale[side] = trail.whole(node, f"resize_type.{side}")
    if (quality := trail.text(node, "quality")) != "ULTRA":
        trail.lose(node, f"has quality {quality}; a request takes ULTRA")


_STEPS = {
    "ImageCrop": _crop,
    "ImageUpscaleWithModel": _model,
    "ImageScale": _scale,
    "ImageScaleBy": _scale_by,
    "RTXVideoSuperResolution": _rtx,
}


# -- sound ----------------------------------------------------------------------------------------


def sound_latents(trail: Trail, sound: Place) -> Place | None:
    """The latents that the saved sound is decoded from; ``None`` where it is a file's own."""
    node, _ = sound
    if node.class_type in ("LTXVAudioVAEDecode", "VAEDecodeAudio"):
        return trail.needed(node, "samples")
    if audio_file(trail, sound) is not None:
        return None
    raise node.error("gives sound in a way that no request can say", RUN_IT)


def audio_file(trail: Trail, sound: Place) -> str | None:
    """The sound file behind trimming nodes, if it is one."""
    node, _ = sound
    while node.class_type == "TrimAudioDuration":
        if trail.number(node, "start_index") != 0:
            trail.lose(node, "begins in the middle of the sound; a request begins at its start")
        node, _ = trail.needed(node, "audio")
    return trail.text(node, "audio") if node.class_type == "LoadAudio" else None
