"""Definitions of sampling nodes: noise, samplers, sigmas, guiders, sampling runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType

from latent_ladder.comfyui.node_defs.builders import (
    KJ,
    LTXV,
    choice,
    flag,
    integer,
    link,
    node,
    number,
    seed,
    text,
)

SAMPLERS = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2",
    "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast",
    "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu",
    "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v",
    "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde",
    "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""All sampler names of ComfyUI; a graph may contain any of them."""
SAMPLER_ALIASES = MappingProxyType({"ddim": "euler"})
"""Samplers that run as another one: ComfyUI implements ddim with its euler sampler."""
RES4LYF_SAMPLER = re.compile(r"(?:.*/)?(res_2s|euler)$")
"""Sampler names of RES4LYF that are supported; the group is the sampler's name here."""
_MANUAL_SIGMA = re.compile(r"[-+]?(?:\d*\.*\d+)")


def parse_manual_sigmas(text: str) -> list[float]:
    """Return the numbers that ``ManualSigmas`` finds in its text: exponents are not part of them.

    Raises ``ValueError`` that names a number with several points, at which ComfyUI fails too.
    """
    found = _MANUAL_SIGMA.findall(text)
    wrong = next((number for number in found if number.count(".") > 1), None)
    if wrong is not None:
        raise ValueError(f"{wrong} in {text!r} is not a number")
    return [float(number) for number in found]


def split_by_denoise(
    sigmas: Sequence[float], denoise: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return both lists of ``SplitSigmasDenoise``: the second has round(steps * denoise) steps.

    With a denoise of 0 the first list is empty, as in ComfyUI.
    """
    whole = tuple(sigmas)
    low_steps = round(max(len(whole) - 1, 0) * denoise)
    high = whole[: len(whole) - low_steps] if low_steps else ()
    return high, whole[max(len(whole) - low_steps - 1, 0) :]


SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal",
    "linear_quadratic", "kl_optimal",
)  # fmt: skip

MODEL = link("model", "MODEL")
POSITIVE = link("positive", "CONDITIONING")
NEGATIVE = link("negative", "CONDITIONING")
SIGMAS = link("sigmas", "SIGMAS")
STEPS = integer("steps", 20, 1, 10000)
CFG = number("cfg", 8.0, 0, 100, 0.1)
PERCENTS = (number("start_percent", 0.0, 0, 1, 0.001), number("end_percent", 1.0, 0, 1, 0.001))
SHIFTS = (number("max_shift", 2.05, 0, 100), number("base_shift", 0.95, 0, 100))
CUSTOM_INPUTS = (
    link("noise", "NOISE"),
    link("guider", "GUIDER"),
    link("sampler", "SAMPLER"),
    SIGMAS,
    link("latent_image", "LATENT"),
)

NOISE = (
    node("RandomNoise", "RandomNoise", "model/sampling/noise", [seed("noise_seed")], "NOISE"),
    node("DisableNoise", "DisableNoise", "model/sampling/noise", [], "NOISE"),
)

SAMPLER_NODES = (
    node(
        "KSamplerSelect",
        "KSamplerSelect",
        "model/sampling/samplers",
        [choice("sampler_name", SAMPLERS)],
        "SAMPLER",
    ),
    node(
        "SamplerEulerAncestral",
        "SamplerEulerAncestral",
        "model/sampling/samplers",
        [number("eta", 1.0, 0, 100), number("s_noise", 1.0, 0, 100)],
        "SAMPLER",
    ),
    node(
        "SamplerEulerAncestralCFGPP",
        "SamplerEulerAncestralCFG++",
        "model/sampling/samplers",
        [number("eta", 1.0, 0, 1), number("s_noise", 1.0, 0, 10)],
        "SAMPLER",
    ),
    node(
        "ClownSampler_Beta",
        "ClownSampler",
        "RES4LYF/samplers",
        [
            number("eta", 0.5, -100, 100),
            # hundreds of names of the form "family/method"
            choice("sampler_name", (), "multistep/res_2m"),
            seed("seed", -1, -1),
            flag("bongmath", True),
            link("guides", "GUIDES", required=False),
            link("options", "OPTIONS", required=False),
        ],
        "SAMPLER sampler",
        pack="RES4LYF",
    ),
)

SIGMA_NODES = (
    node(
        "ManualSigmas",
        "ManualSigmas",
        "model/sampling/sigmas",
        [text("sigmas", "1, 0.5")],
        "SIGMAS",
    ),
    node(
        "LTXVScheduler",
        "LTXVScheduler",
        "model/sampling/schedulers",
        [
            STEPS,
            *SHIFTS,
            flag("stretch", True),
            number("terminal", 0.1, 0, 0.99),
            link("latent", "LATENT", required=False),
        ],
        "SIGMAS",
    ),
    node(
        "BasicScheduler",
        "BasicScheduler",
        "model/sampling/schedulers",
        [MODEL, choice("scheduler", SCHEDULERS), STEPS, number("denoise", 1.0, 0, 1)],
        "SIGMAS",
    ),
    node(
        "SplitSigmas",
        "SplitSigmas",
        "model/sampling/sigmas",
        [SIGMAS, integer("step", 0, 0, 10000)],
        "SIGMAS high_sigmas",
        "SIGMAS low_sigmas",
    ),
    node(
        "SplitSigmasDenoise",
        "SplitSigmasDenoise",
        "model/sampling/sigmas",
        [SIGMAS, number("denoise", 1.0, 0, 1)],
        "SIGMAS high_sigmas",
        "SIGMAS low_sigmas",
    ),
    node("FlipSigmas", "FlipSigmas", "model/sampling/sigmas", [SIGMAS], "SIGMAS"),
    node(
        "SetFirstSigma",
        "SetFirstSigma",
        "model/sampling/sigmas",
        [SIGMAS, number("sigma", 136.0, 0, 20000, 0.001)],
        "SIGMAS",
    ),
    node(
        "ExtendIntermediateSigmas",
        "ExtendIntermediateSigmas",
        "model/sampling/sigmas",
        [
            SIGMAS,
            integer("steps", 2, 1, 100),
            number("start_at_sigma", -1.0, -1, 20000),
            number("end_at_sigma", 12.0, 0, 20000),
            choice("spacing", ("linear", "cosine", "sine")),
        ],
        "SIGMAS",
    ),
    node(
        "ModelSamplingLTXV",
        "ModelSamplingLTXV",
        "model/patch/ltxv",
        [MODEL, *SHIFTS, link("latent", "LATENT", required=False)],
        "MODEL",
    ),
)

GUIDERS = (
    node(
        "CFGGuider",
        "CFGGuider",
        "model/sampling/guiders",
        [MODEL, POSITIVE, NEGATIVE, CFG],
        "GUIDER",
    ),
    node(
        "BasicGuider",
        "BasicGuider",
        "model/sampling/guiders",
        [MODEL, link("conditioning", "CONDITIONING")],
        "GUIDER",
    ),
    node(
        "LTXVDualCFGGuider",
        "LTXV Dual CFG Guider",
        "model/sampling/guiders",
        [
            MODEL,
            POSITIVE,
            NEGATIVE,
            number("video_cfg", 3.0, 0, 100, 0.1),
            number("audio_cfg", 7.0, 0, 100, 0.1),
        ],
        "GUIDER",
    ),
    node(
        "MultimodalGuider",
        "Multimodal Guider",
        "lightricks/LTXV",
        [
            MODEL,
            POSITIVE,
            NEGATIVE,
            link("parameters", "GUIDER_PARAMETERS"),
            text("skip_blocks", "", multiline=True),
        ],
        "GUIDER",
        pack=LTXV,
    ),
    node(
        "GuiderParameters",
        "Guider Parameters",
        "Lightricks/LTXV/Guidance",
        [
            choice("modality", ("VIDEO", "AUDIO")),
            number("cfg", 1.0, 0, 100, 0.1),
            number("stg", 1.0, 0, 100),
            flag("perturb_attn", True),
            number("rescale", 0.7, 0, 100),
            number("modality_scale", 0.0, 0, 100),
            integer("skip_step", 0, 0, 100),
            flag("cross_attn", True),
            link("parameters", "GUIDER_PARAMETERS", required=False),
        ],
        "GUIDER_PARAMETERS",
        pack=LTXV,
    ),
    node(
        "STGGuider",
        "STG Guider",
        "lightricks/LTXV",
        [
            MODEL,
            POSITIVE,
            NEGATIVE,
            number("cfg", 1.0, 0, 100, 0.1),
            number("stg", 1.0, 0, 100),
            number("rescale", 0.7, 0, 1),
        ],
        "GUIDER",
        pack=LTXV,
    ),
    node(
        "STGGuiderAdvanced",
        "STG Guider Advanced",
        "lightricks/LTXV",
        [
            MODEL,
            POSITIVE,
            NEGATIVE,
            number("skip_steps_sigma_threshold", 0.998, 0, 100, 0.001),
            flag("cfg_star_rescale", True),
            text("sigmas", "1.0, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180"),
            text("cfg_values", "8, 6, 6, 4, 3, 1"),
            text("stg_scale_values", "4, 4, 3, 2, 1, 0"),
            text("stg_rescale_values", "1, 1, 1, 1, 1, 1"),
            text("stg_layers_indices", "[29], [29], [29], [29], [29], [29]"),
            link("preset", "STG_ADVANCED_PRESET", required=False),
            flag("apply_apg", required=False),
            number("apg_cfg_scale", 1.0, 0, 100, required=False),
            number("eta", 1.0, 0, 100, required=False),
            number("norm_threshold", 0.0, 0, 100, required=False),
        ],
        "GUIDER",
        pack=LTXV,
    ),
    node(
        "LTXVApplySTG",
        "LTXV Apply STG",
        "lightricks/LTXV",
        [MODEL, text("block_indices", "14, 19")],
        "MODEL model",
        pack=LTXV,
    ),
    node(
        "LTXVModalityGuidance",
        "LTXV Modality Guidance (A/V coupling)",
        "advanced/guidance",
        [MODEL, number("modality_scale", 3.0, 1, 100, 0.1), *PERCENTS],
        "MODEL",
    ),
    node(
        "LTX2_NAG",
        "LTX2 NAG",
        "KJNodes/ltxv",
        [
            MODEL,
            number("nag_scale", 11.0, 0, 100, 0.001),
            number("nag_alpha", 0.25, 0, 1, 0.001),
            number("nag_tau", 2.5, 0, 10, 0.001),
            link("nag_cond_video", "CONDITIONING", required=False),
            link("nag_cond_audio", "CONDITIONING", required=False),
            flag("inplace", True, required=False),
        ],
        "MODEL model",
        pack=KJ,
    ),
    node(
        "LTXVSpatioTemporalGuidance",
        "LTXV Spatio-Temporal Guidance (STG)",
        "advanced/guidance",
        [MODEL, number("scale", 1.0, 0, 100), text("blocks", "29"), *PERCENTS],
        "MODEL",
    ),
)

SAMPLING_NODES = (
    node(
        "SamplerCustomAdvanced",
        "SamplerCustomAdvanced",
        "model/sampling",
        CUSTOM_INPUTS,
        "LATENT output",
        "LATENT denoised_output",
    ),
    node(
        "SamplerCustom",
        "SamplerCustom",
        "model/sampling",
        [
            MODEL,
            flag("add_noise", True),
            seed("noise_seed"),
            CFG,
            POSITIVE,
            NEGATIVE,
            link("sampler", "SAMPLER"),
            SIGMAS,
            link("latent_image", "LATENT"),
        ],
        "LATENT output",
        "LATENT denoised_output",
    ),
    node(
        "KSampler",
        "KSampler",
        "model/sampling",
        [
            MODEL,
            seed("seed"),
            STEPS,
            CFG,
            choice("sampler_name", SAMPLERS),
            choice("scheduler", SCHEDULERS),
            POSITIVE,
            NEGATIVE,
            link("latent_image", "LATENT"),
            number("denoise", 1.0, 0, 1),
        ],
        "LATENT",
    ),
    node(
        "KSamplerAdvanced",
        "KSampler (Advanced)",
        "model/sampling",
        [
            MODEL,
            choice("add_noise", ("enable", "disable")),
            seed("noise_seed"),
            STEPS,
            CFG,
            choice("sampler_name", SAMPLERS),
            choice("scheduler", SCHEDULERS),
            POSITIVE,
            NEGATIVE,
            link("latent_image", "LATENT"),
            integer("start_at_step", 0, 0, 10000),
            integer("end_at_step", 10000, 0, 10000),
            choice("return_with_leftover_noise", ("disable", "enable")),
        ],
        "LATENT",
    ),
    node(
        "LTXVNormalizingSampler",
        "LTXV Normalizing Sampler",
        "utility",
        [
            *CUSTOM_INPUTS,
            text("video_normalization_factors", "1,1,1,1,1,1,1,1"),
            text("audio_normalization_factors", "1,1,0.25,1,1,0.25,1,1"),
        ],
        "LATENT denoised_output",
        pack=LTXV,
    ),
    node(
        "LTXVLoopingSampler",
        "LTXV Looping Sampler",
        "sampling",
        [
            MODEL,
            link("vae", "VAE"),
            link("noise", "NOISE"),
            link("sampler", "SAMPLER"),
            SIGMAS,
            link("guider", "GUIDER"),
            link("latents", "LATENT"),
            integer("temporal_tile_size", 80, 24, 1000, 8),
            integer("temporal_overlap", 24, 16, 80, 8),
            number("guiding_strength", 1.0, 0, 1),
            number("temporal_overlap_cond_strength", 0.5, 0, 1),
            number("cond_image_strength", 1.0, 0, 1),
            integer("horizontal_tiles", 1, 1, 6),
            integer("vertical_tiles", 1, 1, 6),
            integer("spatial_overlap", 1, 1, 8),
            link("optional_cond_images", "IMAGE", required=False),
            link("optional_guiding_latents", "LATENT", required=False),
            number("adain_factor", 0.0, 0, 1, required=False),
            link("optional_positive_conditionings", "CONDITIONING", required=False),
            link("optional_negative_index_latents", "LATENT", required=False),
            integer("guiding_start_step", 0, 0, 1000, required=False),
            integer("guiding_end_step", 1000, 0, 1000, required=False),
            text("optional_cond_image_indices", "0", required=False),
            link("optional_normalizing_latents", "LATENT", required=False),
            number("optional_negative_index_strength", 1.0, 0, 1, required=False),
            flag("save_checkpoints", required=False),
        ],
        "LATENT denoised_output",
        pack=LTXV,
    ),
)

NODE_DEFS = (*NOISE, *SAMPLER_NODES, *SIGMA_NODES, *GUIDERS, *SAMPLING_NODES)
