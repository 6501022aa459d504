"""From the node that saves a clip back to its last latents: size, decoding, upscaling, sound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.importer.graph_walker import RUN_HINT, GraphWalker, unsupported_node
from latent_ladder.errors import WorkflowError
from latent_ladder.latents.shapes import PIXELS_PER_LATENT

SAVE_NODES = ("SaveVideo", "SaveWEBM", "SaveAnimatedWEBP", "SaveImage", "SaveAudio", "SaveAudioMP3")
"""Nodes that save a clip, the likeliest first."""
PIXEL_NODES = frozenset(
    {"ImageCrop", "ImageScale", "ImageScaleBy", "ImageUpscaleWithModel", "RTXVideoSuperResolution"}
)
UNTILED_PX = 4096
"""A tile as large as this is no tile."""
MIN_TILE_FRAMES = 16

OutputSlot = tuple[Node, int]


@dataclass(frozen=True)
class SavedOutput:
    """What stands between the latents and the file.

    ``latents`` feed the decoder ``decoder``; ``pixels`` are the nodes behind it, first to last.
    ``sound`` is where the saved sound comes from, ``fps`` the rate it is saved with.
    """

    latents: OutputSlot
    decoder: Node
    pixels: tuple[Node, ...]
    sound: OutputSlot | None
    fps: float | None
    output: dict[str, Any] = field(default_factory=dict)


def find_output(graph: Graph, wanted: str | None) -> Node:
    """The node that saves the clip. Raises :class:`WorkflowError` for none, or for several."""
    if wanted is not None:
        named = [n for n in graph.nodes.values() if wanted in (n.id, n.title)]
        named = named or [
            n for n in _find_savers(graph) if wanted == n.inputs.get("filename_prefix")
        ]
        if len(named) != 1:
            raise WorkflowError(
                f"the workflow has {'several nodes' if named else 'no node'} {wanted}",
                f"its outputs are {_list_nodes(_find_savers(graph)) or 'none'}",
            )
        return named[0]
    found = _find_savers(graph)
    if not found:
        raise WorkflowError(
            "the workflow saves nothing: it has no SaveVideo node",
            "add one behind the node that makes the frames, or use ladder workflow check",
        )
    if len(found) > 1:
        raise WorkflowError(
            f"the workflow saves {len(found)} results: {_list_nodes(found)}",
            f"choose one, for example --node {found[0].id}",
        )
    return found[0]


def _find_savers(graph: Graph) -> list[Node]:
    for kinds in (SAVE_NODES[:3], SAVE_NODES[3:]):
        found = [n for n in graph.nodes.values() if n.class_type in kinds]
        if found:
            return found
    return []


def _list_nodes(nodes: list[Node]) -> str:
    return ", ".join(f"{n.id} ({n.title or n.class_type})" for n in nodes)


def read_output(walker: GraphWalker, saver: Node) -> SavedOutput:
    """Everything from the saving node back to the decoder. Raises :class:`WorkflowError`."""
    walker.visited.add(saver.id)
    fps: float | None = None
    sound: OutputSlot | None = None
    output: dict[str, Any] = {}
    if saver.class_type == "SaveVideo":
        made, _ = walker.required_source(saver, "video")
        if made.class_type != "CreateVideo":
            raise unsupported_node(made, "makes a video in another way than CreateVideo")
        fps, sound = walker.number(made, "fps"), walker.source(made, "audio")
        images = walker.required_source(made, "images")
        codecs = [walker.value(saver, name) for name in ("format.codec", "codec")]
        codec = next((c for c in codecs if c not in (None, "auto")), "auto")
        output = {"codec": codec} if codec != "auto" else {}
    elif saver.class_type in SAVE_NODES[1:4]:
        images = walker.required_source(saver, "images")
        if "fps" in saver.inputs:
            fps = walker.number(saver, "fps")
        walker.report_loss(
            saver, "saves another kind of file: name it with -o when you make the clip"
        )
    else:
        raise unsupported_node(saver, "saves sound alone")
    latents, decoder, pixels = _find_decoder(walker, images)
    return SavedOutput(latents, decoder, pixels, sound, fps, output)


def _find_decoder(
    walker: GraphWalker, images: OutputSlot
) -> tuple[OutputSlot, Node, tuple[Node, ...]]:
    pixels: list[Node] = []
    node, _ = images
    while node.class_type in PIXEL_NODES:
        pixels.insert(0, node)
        name = "images" if node.class_type == "RTXVideoSuperResolution" else "image"
        node, _ = walker.required_source(node, name)
    source = {
        "VAEDecode": "samples",
        "VAEDecodeTiled": "samples",
        "LTXVTiledVAEDecode": "latents",
        "LTXVSpatioTemporalTiledVAEDecode": "latents",
    }.get(node.class_type)
    if source is None:
        raise unsupported_node(node, "stands between decoder and file")
    return walker.required_source(node, source), node, tuple(pixels)


# -- decoding -------------------------------------------------------------------------------------


def decode_fields(walker: GraphWalker, decoder: Node, frames: int) -> dict[str, Any]:
    """The request's ``decode`` table for a decoder node and a clip of ``frames``."""
    if decoder.class_type == "VAEDecodeTiled":
        return _read_tiled_decode(walker, decoder, frames)
    found: dict[str, Any] = {}
    if decoder.class_type == "LTXVTiledVAEDecode":
        across, down = (walker.integer(decoder, n) for n in ("horizontal_tiles", "vertical_tiles"))
        if across * down > 1:
            overlap = walker.integer(decoder, "overlap")
            found = {"grid": [across, down], "overlap_px": overlap * PIXELS_PER_LATENT}
    elif decoder.class_type == "LTXVSpatioTemporalTiledVAEDecode":
        walker.report_loss(decoder, "decodes in tiles; a request decodes whole where memory allows")
    if decoder.class_type != "VAEDecode" and walker.value(decoder, "last_frame_fix"):
        walker.report_loss(decoder, "last_frame_fix: decoding here needs none")
    return found


def _read_tiled_decode(walker: GraphWalker, decoder: Node, frames: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tile, overlap = walker.integer(decoder, "tile_size"), walker.integer(decoder, "overlap")
    if tile < UNTILED_PX:
        found |= {"tile_px": _round_to(tile, 32, 64), "overlap_px": _round_to(overlap, 32, 0)}
    length = walker.integer(decoder, "temporal_size")
    shared = walker.integer(decoder, "temporal_overlap")
    if length < min(UNTILED_PX, frames):
        found |= {
            "tile_frames": _round_to(length, 8, MIN_TILE_FRAMES),
            "overlap_frames": _round_to(shared, 8, 0),
        }
    asked = {"tile_px": tile, "overlap_px": overlap, "tile_frames": length}
    asked["overlap_frames"] = shared
    for name, value in found.items():
        if value != asked[name]:
            walker.report_loss(decoder, f"{name} {asked[name]} becomes {value}")
    return found


def _round_to(value: int, multiple: int, least: int) -> int:
    return max(least, round(value / multiple) * multiple)


# -- pixels ---------------------------------------------------------------------------------------


@dataclass
class OutputSize:
    """The size that the clip has after each node behind the decoder."""

    width: int
    height: int
    upscale: dict[str, Any] | None = None
    cropped: bool = False


def read_output_size(
    walker: GraphWalker, pixels: tuple[Node, ...], canvas: tuple[int, int]
) -> OutputSize:
    """The clip's own size and its upscale stage, from the nodes behind the decoder."""
    found = OutputSize(*canvas)
    for node in pixels:
        _SIZE_READERS[node.class_type](walker, node, found)
    return found


def _read_crop(walker: GraphWalker, node: Node, found: OutputSize) -> None:
    width, height = walker.integer(node, "width"), walker.integer(node, "height")
    if found.upscale is not None:
        raise unsupported_node(node, "crops upscaled frames")
    left, top = walker.integer(node, "x"), walker.integer(node, "y")
    if (left, top) != ((found.width - width) // 2, (found.height - height) // 2):
        walker.report_loss(node, f"crops at {left},{top}; a request crops around the centre")
    found.width, found.height, found.cropped = width, height, True


def _read_upscale_model(walker: GraphWalker, node: Node, found: OutputSize) -> None:
    loader, _ = walker.required_source(node, "upscale_model")
    if loader.class_type != "UpscaleModelLoader":
        raise unsupported_node(loader, "loads an upscale model in another way")
    if found.upscale is not None:
        raise unsupported_node(node, "upscales a second time")
    found.upscale = {"kind": "upscale", "name": walker.text(loader, "model_name")}


def _read_scale(walker: GraphWalker, node: Node, found: OutputSize) -> None:
    width, height = walker.integer(node, "width"), walker.integer(node, "height")
    width = width or round(found.width * height / found.height)
    height = height or round(found.height * width / found.width)
    _set_size(walker, node, found, (width, height))


def _read_scale_by(walker: GraphWalker, node: Node, found: OutputSize) -> None:
    by = walker.number(node, "scale_by")
    if found.upscale is not None:
        walker.report_loss(
            node, "scales by a share of what a model gives: taken as twice the clip's size"
        )
        return
    _set_size(walker, node, found, (round(found.width * by), round(found.height * by)))


def _set_size(walker: GraphWalker, node: Node, found: OutputSize, size: tuple[int, int]) -> None:
    method = walker.text(node, "upscale_method")
    if found.upscale is None:
        if size[0] <= found.width and size[1] <= found.height:
            if size != (found.width, found.height):
                raise unsupported_node(node, f"scales the clip down to {size[0]}x{size[1]}")
            return
        if method != "lanczos":
            walker.report_loss(node, f"scales with {method}; a request scales with lanczos")
        found.upscale = {"kind": "upscale", "name": "lanczos"}
    elif found.upscale["name"] == "lanczos":
        raise unsupported_node(node, "scales a second time")
    found.upscale |= {"width": size[0], "height": size[1]}
    found.upscale.pop("factor", None)


def _read_rtx(walker: GraphWalker, node: Node, found: OutputSize) -> None:
    if found.upscale is not None:
        raise unsupported_node(node, "upscales a second time")
    found.upscale = {"kind": "upscale", "name": "rtx"}
    if walker.text(node, "resize_type") == "scale by multiplier":
        found.upscale["factor"] = walker.number(node, "resize_type.scale")
    else:
        for side in ("width", "height"):
            found.upscale[side] = walker.integer(node, f"resize_type.{side}")
    if (quality := walker.text(node, "quality")) != "ULTRA":
        walker.report_loss(node, f"has quality {quality}; a request takes ULTRA")


_SIZE_READERS = {
    "ImageCrop": _read_crop,
    "ImageUpscaleWithModel": _read_upscale_model,
    "ImageScale": _read_scale,
    "ImageScaleBy": _read_scale_by,
    "RTXVideoSuperResolution": _read_rtx,
}


# -- sound ----------------------------------------------------------------------------------------


def find_audio_latents(walker: GraphWalker, sound: OutputSlot) -> OutputSlot | None:
    """The latents that the saved sound is decoded from; ``None`` where it is a file's own."""
    node, _ = sound
    if node.class_type in ("LTXVAudioVAEDecode", "VAEDecodeAudio"):
        return walker.required_source(node, "samples")
    if find_audio_file(walker, sound) is not None:
        return None
    raise node.error("gives sound in a way that no request can say", RUN_HINT)


def find_audio_file(walker: GraphWalker, sound: OutputSlot) -> str | None:
    """The sound file behind trimming nodes, if it is one."""
    node, _ = sound
    while node.class_type == "TrimAudioDuration":
        if walker.number(node, "start_index") != 0:
            walker.report_loss(
                node, "begins in the middle of the sound; a request begins at its start"
            )
        node, _ = walker.required_source(node, "audio")
    return walker.text(node, "audio") if node.class_type == "LoadAudio" else None
