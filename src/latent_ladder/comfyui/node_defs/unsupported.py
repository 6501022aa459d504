"""Types that LTX graphs use and that are not run here, each with the reason."""

from __future__ import annotations

from latent_ladder.comfyui.node_defs.builders import LTXV, node
from latent_ladder.comfyui.node_defs.schema import NodeType

PREPROCESSOR = "comfyui_controlnet_aux"
DEPTH = "comfyui-videodepthanything"
VHS = "comfyui-videohelpersuite"

_MISSING: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
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
    ("VHS_VideoCombine", VHS, "use CreateVideo and SaveVideo", ("VHS_FILENAMES",)),
    (
        "VHS_LoadVideo",
        VHS,
        "use LoadVideo and GetVideoComponents",
        ("IMAGE", "INT", "AUDIO", "VHS_VIDEOINFO"),
    ),
    ("VHS_LoadAudioUpload", VHS, "use LoadAudio", ("AUDIO", "FLOAT")),
)

ROWS = tuple(
    node(name, name, "elsewhere", [], *outs, pack=pack, why_not=f"{reason} (pack {pack})")
    for name, pack, reason, outs in _MISSING
)


def unknown(class_type: str, pack: str = "") -> NodeType:
    """The type of a node that no table has: it cannot run, and says which pack it is from."""
    if class_type.startswith(("workflow>", "workflow/")):
        reason = "group nodes are not read: convert it to a subgraph in ComfyUI and save"
    elif pack == "comfy-core":
        reason = "this node of ComfyUI's own is not known here"
    else:
        origin = f"pack {pack}" if pack else "no pack named in the file"
        reason = f"this type of node is not known here ({origin})"
    return NodeType(class_type, class_type, "elsewhere", pack=pack or "unknown", why_not=reason)
