"""Definitions of node types that LTX graphs use and that cannot run here, with the reason."""

from __future__ import annotations

from latent_ladder.comfyui.node_defs.builders import LTXV, node
from latent_ladder.comfyui.node_defs.schema import NodeType

PREPROCESSOR = "comfyui_controlnet_aux"
DEPTH = "comfyui-videodepthanything"
VHS = "comfyui-videohelpersuite"

_UNSUPPORTED: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("DWPreprocessor", PREPROCESSOR, "it estimates poses", ("IMAGE", "POSE_KEYPOINT")),
    ("CannyEdgePreprocessor", PREPROCESSOR, "it finds edges", ("IMAGE",)),
    ("DepthAnythingV2Preprocessor", PREPROCESSOR, "it estimates depth", ("IMAGE",)),
    ("LoadVideoDepthAnythingModel", DEPTH, "it estimates depth", ("VDAMODEL",)),
    ("VideoDepthAnythingProcess", DEPTH, "it estimates depth", ("VDADEPTH",)),
    ("VideoDepthAnythingOutput", DEPTH, "it estimates depth", ("IMAGE",)),
    ("LoadMoGeModel", "comfy-core", "it estimates geometry", ("MOGE_MODEL",)),
    ("MoGeInference", "comfy-core", "it estimates geometry", ("MOGE_GEOMETRY",)),
    ("MoGeRender", "comfy-core", "it estimates geometry", ("IMAGE",)),
    ("LTXVSparseTrackEditor", LTXV, "it draws motion tracks in a browser", ("STRING", "STRING")),
    ("LTXVDrawTracks", LTXV, "it renders motion tracks", ("IMAGE",)),
    (
        "LTXVHDRDecodePostprocess",
        LTXV,
        "it turns a log-encoded decode into HDR",
        ("IMAGE", "IMAGE"),
    ),
    ("LTXVPromptEnhancer", LTXV, "it rewrites prompts with a language model", ("STRING",)),
    (
        "LTXVPromptEnhancerLoader",
        LTXV,
        "it rewrites prompts with a language model",
        ("LTXV_PROMPT_ENHANCER",),
    ),
    ("LTXVGemmaEnhancePrompt", LTXV, "it rewrites prompts with Gemma", ("STRING",)),
    ("LTXQ8Patch", LTXV, "it needs the q8 kernels", ("MODEL",)),
    # these are replaced (formats/pack_nodes.py), except with the settings that are named here
    (
        "VHS_VideoCombine",
        VHS,
        "its format, pingpong and loop_count have no equivalent: use CreateVideo and SaveVideo",
        ("VHS_FILENAMES",),
    ),
    *(
        (
            name,
            VHS,
            "force_rate, select_every_nth and one custom side have no equivalent: use LoadVideo "
            "and GetVideoComponents",
            ("IMAGE", "INT", "AUDIO", "VHS_VIDEOINFO"),
        )
        for name in ("VHS_LoadVideo", "VHS_LoadVideoPath")
    ),
    *(
        (name, VHS, "it names no file: use LoadAudio", ("AUDIO", "FLOAT"))
        for name in ("VHS_LoadAudioUpload", "VHS_LoadAudio")
    ),
)

NODE_DEFS = tuple(
    node(
        name,
        name,
        "unsupported",
        [],
        *outs,
        pack=pack,
        unsupported_reason=f"{reason} (pack {pack})",
    )
    for name, pack, reason, outs in _UNSUPPORTED
)


def unknown_node_type(class_type: str, pack: str = "") -> NodeType:
    """Return the definition of an unknown type; it states why it cannot run and names its pack."""
    if class_type.startswith(("workflow>", "workflow/")):
        reason = "group nodes are not supported: convert it to a subgraph in ComfyUI and save"
    elif pack == "comfy-core":
        reason = "this core node of ComfyUI is not supported"
    else:
        origin = f"pack {pack}" if pack else "the file names no pack"
        reason = f"this node type is unknown ({origin})"
    return NodeType(
        class_type, class_type, "unsupported", pack=pack or "unknown", unsupported_reason=reason
    )
