"""Export of the nodes after sampling: decoding, cropping, upscaling and saving."""

from __future__ import annotations

from latent_ladder.comfyui.exporter.graph_builder import GraphBuilder
from latent_ladder.comfyui.graph import Link
from latent_ladder.latents.shapes import PIXELS_PER_LATENT
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.request.stages import UpscaleStage

WHOLE_PX, WHOLE_FRAMES = 4096, 4096
"""Tile sizes that mean "no tiles"."""
OVERLAP_PX, OVERLAP_FRAMES = 64, 4
"""Default overlaps between tiles, as in the official graphs."""
RTX_MAX_FACTOR = 4.0
CODECS = {"h264": "auto", "av1": "av1"}
"""Codecs that SaveVideo supports; its "auto" is H.264 in MP4."""


def add_output_nodes(
    builder: GraphBuilder, request: Request, video: Link, vae: Link, sound: Link | None
) -> None:
    """Add the nodes that decode the video latents, resize the frames and save the clip."""
    frames = _add_decoder(builder, request.decode, video, vae)
    last, crop = request.resolutions[-1], request.resolved.crop
    if (last.width, last.height) != (request.width, request.height):
        frames = builder.add_node(
            "ImageCrop",
            width=crop.width,
            height=crop.height,
            x=crop.left,
            y=crop.top,
            image=frames,
        )[0]
    if request.upscale is not None:
        frames = _add_upscaler(builder, request.upscale, (request.width, request.height), frames)
    audio = {} if sound is None else {"audio": sound}
    fps = float(request.fps)
    video_node = builder.add_node_with("CreateVideo", {"fps": fps, "images": frames, **audio})
    prefix = f"video/{request.preset or 'clip'}"
    codec = CODECS.get(request.output.codec, "auto")
    # newer versions of the node have the codec inside the format, older ones next to it
    builder.add_node_with(
        "SaveVideo",
        {
            "filename_prefix": prefix,
            "format": "auto",
            "format.codec": codec,
            "codec": codec,
            "video": video_node[0],
        },
    )


def _add_decoder(builder: GraphBuilder, stage: Decode, video: Link, vae: Link) -> Link:
    if stage == Decode():
        return builder.add_node("VAEDecode", samples=video, vae=vae)[0]
    if stage.grid != "auto":
        across, down = stage.grid
        return builder.add_node(
            "LTXVTiledVAEDecode",
            horizontal_tiles=across,
            vertical_tiles=down,
            overlap=stage.grid_overlap_px // PIXELS_PER_LATENT,
            last_frame_fix=False,
            latents=video,
            vae=vae,
        )[0]
    tile = WHOLE_PX if stage.tile_px == "auto" else stage.tile_px
    overlap = min(OVERLAP_PX, tile // 4) if stage.overlap_px == "auto" else stage.overlap_px
    frames = WHOLE_FRAMES if stage.tile_frames == "auto" else stage.tile_frames
    overlap_frames = OVERLAP_FRAMES if stage.overlap_frames == "auto" else stage.overlap_frames
    return builder.add_node(
        "VAEDecodeTiled",
        tile_size=tile,
        overlap=overlap,
        temporal_size=frames,
        temporal_overlap=overlap_frames,
        samples=video,
        vae=vae,
    )[0]


def _add_upscaler(
    builder: GraphBuilder, stage: UpscaleStage, size: tuple[int, int], frames: Link
) -> Link:
    width, height = stage.target(size)
    if stage.name == "rtx":
        return _add_rtx_upscaler(builder, stage, (width, height), frames)
    if stage.name != "lanczos":
        model = builder.add_node("UpscaleModelLoader", model_name=stage.name)
        frames = builder.add_node("ImageUpscaleWithModel", upscale_model=model[0], image=frames)[0]
    return _add_image_scale(builder, (width, height), frames)


def _add_rtx_upscaler(
    builder: GraphBuilder, stage: UpscaleStage, size: tuple[int, int], frames: Link
) -> Link:
    """Add RTX upscaling; as its sides are multiples of 8, another size is reached by resampling."""
    width, height = size
    factor = stage.factor or 2.0
    if stage.width is None and factor <= RTX_MAX_FACTOR:
        by: dict[str, object] = {
            "resize_type": "scale by multiplier",
            "resize_type.scale": factor,
        }
        is_exact = False
    else:
        by = {
            "resize_type": "target dimensions",
            "resize_type.width": -(-width // 8) * 8,
            "resize_type.height": -(-height // 8) * 8,
        }
        is_exact = width % 8 == 0 and height % 8 == 0
    inputs = {**by, "quality": "ULTRA", "images": frames}
    frames = builder.add_node_with("RTXVideoSuperResolution", inputs)[0]  # type: ignore[arg-type]
    return frames if is_exact else _add_image_scale(builder, size, frames)


def _add_image_scale(builder: GraphBuilder, size: tuple[int, int], frames: Link) -> Link:
    return builder.add_node(
        "ImageScale",
        upscale_method="lanczos",
        width=size[0],
        height=size[1],
        crop="disabled",
        image=frames,
    )[0]
