"""Import of the nodes between the last latents and the saved file: decode, resize, save, audio."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.importer.graph_walker import (
    RUN_HINT,
    GraphWalker,
    OutputSlot,
    unsupported_node,
)
from latent_ladder.errors import WorkflowError
from latent_ladder.latents.shapes import PIXELS_PER_LATENT

SAVE_NODES = ("SaveVideo", "SaveWEBM", "SaveAnimatedWEBP", "SaveImage", "SaveAudio", "SaveAudioMP3")
"""Nodes that save a clip, in order of preference."""
PIXEL_NODES = frozenset(
    {"ImageCrop", "ImageScale", "ImageScaleBy", "ImageUpscaleWithModel", "RTXVideoSuperResolution"}
)
UNTILED_PX = 4096
"""A tile of this size or larger means "no tiles"."""
MIN_TILE_FRAMES = 16


@dataclass(frozen=True)
class SavedOutput:
    """The nodes between the last latents and the saved file.

    ``latents`` is the input of the decoder node ``decoder``; ``pixels`` are the nodes after it, in
    order. ``audio`` is the source of the saved audio, ``fps`` the saved frame rate, ``output`` the
    ``output`` table of a request.
    """

    latents: OutputSlot
    decoder: Node
    pixels: tuple[Node, ...]
    audio: OutputSlot | None
    fps: float | None
    output: dict[str, Any] = field(default_factory=dict)


def find_output(graph: Graph, wanted: str | None) -> Node:
    """Return the node that saves the clip.

    ``wanted`` is its id, title or file prefix. Raises :class:`WorkflowError` if there is none, or
    if there are several and none is named.
    """
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
    savers = _find_savers(graph)
    if not savers:
        raise WorkflowError(
            "the workflow saves nothing: it has no SaveVideo node",
            "add one after the node that makes the frames, or use ladder workflow check",
        )
    if len(savers) > 1:
        raise WorkflowError(
            f"the workflow saves {len(savers)} results: {_list_nodes(savers)}",
            f"choose one, for example --node {savers[0].id}",
        )
    return savers[0]


def _find_savers(graph: Graph) -> list[Node]:
    for types in (SAVE_NODES[:3], SAVE_NODES[3:]):
        savers = [n for n in graph.nodes.values() if n.class_type in types]
        if savers:
            return savers
    return []


def _list_nodes(nodes: list[Node]) -> str:
    return ", ".join(f"{n.id} ({n.title or n.class_type})" for n in nodes)


def read_output(walker: GraphWalker, saver: Node) -> SavedOutput:
    """Read the nodes from the saving node back to the decoder. Raises :class:`WorkflowError`."""
    walker.visited.add(saver.id)
    fps: float | None = None
    audio: OutputSlot | None = None
    output: dict[str, Any] = {}
    if saver.class_type == "SaveVideo":
        video, _ = walker.required_source(saver, "video")
        if video.class_type != "CreateVideo":
            raise unsupported_node(video, "creates the video with a node other than CreateVideo")
        fps, audio = walker.number(video, "fps"), walker.source(video, "audio")
        images = walker.required_source(video, "images")
        codecs = [walker.value(saver, name) for name in ("format.codec", "codec")]
        codec = next((c for c in codecs if c not in (None, "auto")), "auto")
        output = {"codec": codec} if codec != "auto" else {}
    elif saver.class_type in SAVE_NODES[1:4]:
        images = walker.required_source(saver, "images")
        if "fps" in saver.inputs:
            fps = walker.number(saver, "fps")
        walker.report_loss(saver, "saves another file format: choose it with -o of ladder make")
    else:
        raise unsupported_node(saver, "saves audio only")
    latents, decoder, pixels = _find_decoder(walker, images)
    return SavedOutput(latents, decoder, pixels, audio, fps, output)


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
        raise unsupported_node(node, "processes the frames between decoder and file")
    return walker.required_source(node, source), node, tuple(pixels)


# -- decoding -------------------------------------------------------------------------------------


def decode_fields(walker: GraphWalker, decoder: Node, frames: int) -> dict[str, Any]:
    """Return the ``decode`` table of a request for a decoder node and a clip of ``frames``."""
    if decoder.class_type == "VAEDecodeTiled":
        return _read_tiled_decode(walker, decoder, frames)
    fields: dict[str, Any] = {}
    if decoder.class_type == "LTXVTiledVAEDecode":
        across, down = (walker.integer(decoder, n) for n in ("horizontal_tiles", "vertical_tiles"))
        if across * down > 1:
            overlap = walker.integer(decoder, "overlap")
            fields = {"grid": [across, down], "overlap_px": overlap * PIXELS_PER_LATENT}
    elif decoder.class_type == "LTXVSpatioTemporalTiledVAEDecode":
        walker.report_loss(
            decoder, "decodes in tiles; a request decodes without tiles if memory allows"
        )
    if decoder.class_type != "VAEDecode" and walker.value(decoder, "last_frame_fix"):
        walker.report_loss(decoder, "has last_frame_fix on, which decoding here does not need")
    return fields


def _read_tiled_decode(walker: GraphWalker, decoder: Node, frames: int) -> dict[str, Any]:
    tile, overlap = walker.integer(decoder, "tile_size"), walker.integer(decoder, "overlap")
    tile_frames = walker.integer(decoder, "temporal_size")
    overlap_frames = walker.integer(decoder, "temporal_overlap")
    fields: dict[str, Any] = {}
    if tile < UNTILED_PX:
        fields |= {"tile_px": _round_to(tile, 32, 64), "overlap_px": _round_to(overlap, 32, 0)}
    if tile_frames < min(UNTILED_PX, frames):
        fields |= {
            "tile_frames": _round_to(tile_frames, 8, MIN_TILE_FRAMES),
            "overlap_frames": _round_to(overlap_frames, 8, 0),
        }
    values = {
        "tile_px": tile,
        "overlap_px": overlap,
        "tile_frames": tile_frames,
        "overlap_frames": overlap_frames,
    }
    for name, value in fields.items():
        if value != values[name]:
            walker.report_loss(decoder, f"{name} {values[name]} becomes {value}")
    return fields


def _round_to(value: int, multiple: int, minimum: int) -> int:
    return max(minimum, round(value / multiple) * multiple)


# -- pixels ---------------------------------------------------------------------------------------


@dataclass
class OutputSize:
    """The size of the clip after each node that follows the decoder, and its upscale stage."""

    width: int
    height: int
    upscale: dict[str, Any] | None = None


def read_output_size(
    walker: GraphWalker, pixels: tuple[Node, ...], canvas: tuple[int, int]
) -> OutputSize:
    """Return the size of the clip and its upscale stage, from the nodes after the decoder."""
    size = OutputSize(*canvas)
    for node in pixels:
        _SIZE_READERS[node.class_type](walker, node, size)
    return size


def _read_crop(walker: GraphWalker, node: Node, size: OutputSize) -> None:
    width, height = walker.integer(node, "width"), walker.integer(node, "height")
    if size.upscale is not None:
        raise unsupported_node(node, "crops upscaled frames")
    left, top = walker.integer(node, "x"), walker.integer(node, "y")
    if (left, top) != ((size.width - width) // 2, (size.height - height) // 2):
        walker.report_loss(node, f"crops at {left},{top}; a request crops around the centre")
    size.width, size.height = width, height


def _read_upscale_model(walker: GraphWalker, node: Node, size: OutputSize) -> None:
    loader, _ = walker.required_source(node, "upscale_model")
    if loader.class_type != "UpscaleModelLoader":
        raise unsupported_node(loader, "is an unsupported loader for an upscale model")
    if size.upscale is not None:
        raise unsupported_node(node, "upscales a second time")
    size.upscale = {"kind": "upscale", "name": walker.text(loader, "model_name")}


def _read_scale(walker: GraphWalker, node: Node, size: OutputSize) -> None:
    width, height = walker.integer(node, "width"), walker.integer(node, "height")
    width = width or round(size.width * height / size.height)
    height = height or round(size.height * width / size.width)
    _set_size(walker, node, size, (width, height))


def _read_scale_by(walker: GraphWalker, node: Node, size: OutputSize) -> None:
    by = walker.number(node, "scale_by")
    if size.upscale is not None:
        walker.report_loss(
            node, "scales the output of an upscale model: imported as twice the clip's size"
        )
        return
    _set_size(walker, node, size, (round(size.width * by), round(size.height * by)))


def _set_size(walker: GraphWalker, node: Node, size: OutputSize, target: tuple[int, int]) -> None:
    method = walker.text(node, "upscale_method")
    if size.upscale is None:
        if target[0] <= size.width and target[1] <= size.height:
            if target != (size.width, size.height):
                raise unsupported_node(node, f"scales the clip down to {target[0]}x{target[1]}")
            return
        if method != "lanczos":
            walker.report_loss(node, f"scales with {method}; a request scales with lanczos")
        size.upscale = {"kind": "upscale", "name": "lanczos"}
    elif size.upscale["name"] == "lanczos":
        raise unsupported_node(node, "scales a second time")
    size.upscale |= {"width": target[0], "height": target[1]}
    size.upscale.pop("factor", None)


def _read_rtx(walker: GraphWalker, node: Node, size: OutputSize) -> None:
    if size.upscale is not None:
        raise unsupported_node(node, "upscales a second time")
    size.upscale = {"kind": "upscale", "name": "rtx"}
    if walker.text(node, "resize_type") == "scale by multiplier":
        size.upscale["factor"] = walker.number(node, "resize_type.scale")
    else:
        for side in ("width", "height"):
            size.upscale[side] = walker.integer(node, f"resize_type.{side}")
    if (quality := walker.text(node, "quality")) != "ULTRA":
        walker.report_loss(node, f"has quality {quality}; a request uses ULTRA")


_SIZE_READERS = {
    "ImageCrop": _read_crop,
    "ImageUpscaleWithModel": _read_upscale_model,
    "ImageScale": _read_scale,
    "ImageScaleBy": _read_scale_by,
    "RTXVideoSuperResolution": _read_rtx,
}


# -- audio ----------------------------------------------------------------------------------------


def find_audio_latents(walker: GraphWalker, audio: OutputSlot) -> OutputSlot | None:
    """Return the latents that the saved audio is decoded from, or ``None`` for that of a file."""
    node, _ = audio
    if node.class_type in ("LTXVAudioVAEDecode", "VAEDecodeAudio"):
        return walker.required_source(node, "samples")
    if find_audio_file(walker, audio) is not None:
        return None
    raise node.error("is an unsupported source of audio", RUN_HINT)


def find_audio_file(walker: GraphWalker, audio: OutputSlot) -> str | None:
    """Return the audio file of an output, through trim nodes, or ``None`` if it is not a file."""
    node, _ = audio
    while node.class_type == "TrimAudioDuration":
        if walker.number(node, "start_index") != 0:
            walker.report_loss(
                node, "trims the start of the audio; a request uses it from its start"
            )
        node, _ = walker.required_source(node, "audio")
    return walker.text(node, "audio") if node.class_type == "LoadAudio" else None
