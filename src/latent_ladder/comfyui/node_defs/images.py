"""Definitions of image and mask nodes: load, save, resize, create, composite."""

from __future__ import annotations

from latent_ladder.comfyui.node_defs.builders import (
    CROPS,
    KJ,
    LTXV,
    MAX_SIDE,
    SCALE_METHODS,
    choice,
    dynamic_combo,
    file,
    flag,
    integer,
    link,
    node,
    number,
    text,
)
from latent_ladder.comfyui.node_defs.schema import Input


def rtx_size(width: float, height: float) -> tuple[int, int]:
    """Return the (width, height) that ``RTXVideoSuperResolution`` makes of requested sides.

    A fraction is cut off, then the sides are rounded to multiples of 8.
    """
    return max(8, round(int(width) / 8) * 8), max(8, round(int(height) / 8) * 8)


IMAGE = link("image", "IMAGE")
IMAGES = link("images", "IMAGE")
MASK = link("mask", "MASK")
PIXELS = "IMAGE,MASK"


def _side(name: str, default: int = 512) -> Input:
    return integer(name, default, 0, MAX_SIDE)


RESIZES = {
    "scale dimensions": [
        _side("resize_type.width"),
        _side("resize_type.height"),
        choice("resize_type.crop", CROPS, "center"),
    ],
    "scale by multiplier": [number("resize_type.multiplier", 1.0, 0.01, 8)],
    "scale longer dimension": [_side("resize_type.longer_size")],
    "scale shorter dimension": [_side("resize_type.shorter_size")],
    "scale width": [_side("resize_type.width")],
    "scale height": [_side("resize_type.height")],
    "scale total pixels": [number("resize_type.megapixels", 1.0, 0.01, 16)],
    "match size": [
        link("resize_type.match", PIXELS),
        choice("resize_type.crop", CROPS, "center"),
    ],
    "scale to multiple": [integer("resize_type.multiple", 8, 1, MAX_SIDE)],
}

FILES = (
    node(
        "LoadImage",
        "Load Image",
        "image",
        [file("image", "input", extra_widgets=("upload",))],
        "IMAGE",
        "MASK",
    ),
    node(
        "LoadImageMask",
        "Load Image (as Mask)",
        "mask",
        [
            file("image", "input"),
            choice("channel", ("alpha", "red", "green", "blue")),
        ],
        "MASK",
    ),
    node(
        "SaveImage",
        "Save Image",
        "image",
        [IMAGES, text("filename_prefix", "ComfyUI")],
        is_output=True,
    ),
    node("PreviewImage", "Preview Image", "image", [IMAGES], is_output=True),
    node(
        "SaveAnimatedWEBP",
        "Save Animated WEBP",
        "image",
        [
            IMAGES,
            text("filename_prefix", "ComfyUI"),
            number("fps", 6.0, 0.01, 1000),
            flag("lossless", True),
            integer("quality", 80, 0, 100),
            choice("method", ("default", "fastest", "slowest")),
        ],
        "IMAGE images",
        is_output=True,
    ),
)

SIZES = (
    node(
        "ResizeImageMaskNode",
        "Resize Image/Mask",
        "transform",
        [
            link("input", PIXELS),
            dynamic_combo("resize_type", RESIZES),
            choice("scale_method", SCALE_METHODS, "area"),
        ],
        f"{PIXELS} resized",
    ),
    node(
        "ImageScale",
        "Upscale Image",
        "image/upscaling",
        [
            IMAGE,
            choice("upscale_method", SCALE_METHODS),
            _side("width"),
            _side("height"),
            choice("crop", CROPS),
        ],
        "IMAGE",
    ),
    node(
        "ImageCrop",
        "Crop Image",
        "image/transform",
        [
            IMAGE,
            integer("width", 512, 1, MAX_SIDE),
            integer("height", 512, 1, MAX_SIDE),
            integer("x", 0, 0, MAX_SIDE),
            integer("y", 0, 0, MAX_SIDE),
        ],
        "IMAGE",
    ),
    node(
        "ImageScaleBy",
        "Upscale Image By",
        "image/upscaling",
        [IMAGE, choice("upscale_method", SCALE_METHODS), number("scale_by", 1.0, 0.01, 8)],
        "IMAGE",
    ),
    node(
        "ResizeImagesByLongerEdge",
        "Resize Images by Longer Edge",
        "dataset/image",
        [IMAGES, integer("longer_edge", 1024, 1, 8192)],
        "IMAGE images",
    ),
    node(
        "ResizeAndPadImage",
        "Resize And Pad Image",
        "image/transform",
        [
            IMAGE,
            integer("target_width", 512, 1, MAX_SIDE),
            integer("target_height", 512, 1, MAX_SIDE),
            choice("padding_color", ("white", "black")),
            choice("interpolation", ("area", "bicubic", "nearest-exact", "bilinear", "lanczos")),
        ],
        "IMAGE",
    ),
    node(
        "ImagePadForOutpaintTargetSize",
        "Image Pad For Outpaint Target Size",
        "image",
        [
            IMAGE,
            integer("target_width", 0, 0, MAX_SIDE, 8),
            integer("target_height", 0, 0, MAX_SIDE, 8),
            integer("feathering", 0, 0, MAX_SIDE),
            choice("upscale_method", SCALE_METHODS),
            link("mask", "MASK", required=False),
        ],
        "IMAGE",
        "MASK",
        pack=KJ,
    ),
    node(
        "ImageUpscaleWithModel",
        "Upscale Image (using Model)",
        "image/upscaling",
        [link("upscale_model", "UPSCALE_MODEL"), IMAGE],
        "IMAGE",
    ),
    node(
        "RTXVideoSuperResolution",
        "RTX Video Super Resolution",
        "image/upscaling",
        [
            IMAGES,
            dynamic_combo(
                "resize_type",
                {
                    "scale by multiplier": [number("resize_type.scale", 2.0, 1, 4)],
                    "target dimensions": [
                        integer("resize_type.width", 1920, 64, 8192, 8),
                        integer("resize_type.height", 1080, 64, 8192, 8),
                    ],
                },
            ),
            choice("quality", ("LOW", "MEDIUM", "HIGH", "ULTRA"), "ULTRA"),
        ],
        "IMAGE upscaled_images",
        pack="comfyui_nvidia_rtx_nodes",
    ),
    node(
        "GetImageSize",
        "Get Image Size",
        "image",
        [IMAGE],
        "INT width",
        "INT height",
        "INT batch_size",
    ),
    node(
        "GetImageSizeAndCount",
        "Get Image Size & Count",
        "KJNodes/image",
        [IMAGE],
        "IMAGE image",
        "INT width",
        "INT height",
        "INT count",
        pack=KJ,
    ),
)

CREATION = (
    node(
        "EmptyImage",
        "Empty Image",
        "image",
        [
            integer("width", 512, 1, MAX_SIDE),
            integer("height", 512, 1, MAX_SIDE),
            integer("batch_size", 1, 1, 4096),
            integer("color", 0, 0, 0xFFFFFF),
        ],
        "IMAGE",
    ),
    node(
        "RepeatImageBatch",
        "Repeat Image Batch",
        "image/batch",
        [IMAGE, integer("amount", 1, 1, 4096)],
        "IMAGE",
    ),
    node(
        "ImageFromBatch",
        "Get Image from Batch",
        "image/batch",
        [IMAGE, integer("batch_index", 0, -MAX_SIDE, MAX_SIDE), integer("length", 1, 1, 4096)],
        "IMAGE",
    ),
    node(
        "ImageToMask",
        "Convert Image to Mask",
        "mask",
        [IMAGE, choice("channel", ("red", "green", "blue", "alpha"))],
        "MASK",
    ),
    node("MaskToImage", "Convert Mask to Image", "mask", [MASK], "IMAGE"),
    node(
        "SolidMask",
        "Solid Mask",
        "mask",
        [
            number("value", 1.0, 0, 1),
            integer("width", 512, 1, MAX_SIDE),
            integer("height", 512, 1, MAX_SIDE),
        ],
        "MASK",
    ),
    node("InvertMask", "Invert Mask", "mask", [MASK], "MASK"),
    node("ThresholdMask", "Threshold Mask", "mask", [MASK, number("value", 0.5, 0, 1)], "MASK"),
)

INPAINTING = (
    node(
        "LTXVInpaintPreprocess",
        "LTXV Inpaint Preprocess",
        "Lightricks/image_processing",
        [IMAGES, MASK],
        "IMAGE image",
        pack=LTXV,
    ),
    node(
        "LTXVDilateVideoMask",
        "LTXV Dilate Video Mask",
        "Lightricks/mask_operations",
        [
            integer("spatial_radius", 1, 0, 300),
            integer("temporal_radius", 0, 0, 10),
            link("mask", "MASK", required=False),
            link("image_as_mask", "IMAGE", required=False),
        ],
        "MASK mask",
        pack=LTXV,
    ),
    node(
        "LTXVLaplacianPyramidBlend",
        "LTX Laplacian Pyramid Blend",
        "Lightricks/utility",
        [
            link("image_a", "IMAGE"),
            link("image_b", "IMAGE"),
            MASK,
            flag("trim_to_shortest", True),
            integer("mask_low_res_dilation", 5, 0, 15),
        ],
        "IMAGE image",
        pack=LTXV,
    ),
)

NODE_DEFS = (*FILES, *SIZES, *CREATION, *INPAINTING)
