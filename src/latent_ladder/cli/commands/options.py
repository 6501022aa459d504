"""Types of the options that several commands share: name, unit, help text and panel of each.

A command uses them as annotations of its parameters; the groups in
:mod:`latent_ladder.cli.commands.flags` use them as annotations of their fields.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.commands.flag_groups import (
    INPUTS,
    MEMORY,
    MODELS,
    OTHER,
    OUTPUT,
    SOUND,
    STAGES,
)
from latent_ladder.models.device_names import DEVICES

DEFAULT_DENOISE = 0.6
"""``--denoise`` of mode v2v: layout and motion of the video stay, surfaces change."""

stage_option = partial(typer.Option, rich_help_panel=STAGES)
input_option = partial(typer.Option, rich_help_panel=INPUTS)
sound_option = partial(typer.Option, rich_help_panel=SOUND)
output_option = partial(typer.Option, rich_help_panel=OUTPUT)
model_option = partial(typer.Option, rich_help_panel=MODELS)
memory_option = partial(typer.Option, rich_help_panel=MEMORY)
other_option = partial(typer.Option, rich_help_panel=OTHER)

Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        help="What the clip shows, how it moves and how it sounds, in words.",
    ),
]
PresetName = Annotated[
    str | None,
    stage_option(
        "--preset",
        "-p",
        metavar="NAME",
        autocompletion=completion.complete_preset,
        help="Named settings to start from; `ladder presets list` shows them; a .toml file works "
        "too. Default: LADDER_PRESET, config.toml, else one that fits the models.",
    ),
]
Seed = Annotated[
    str | None,
    stage_option(
        "--seed",
        metavar="NUMBER",
        help="Whole number; the same seed gives the same clip. Default: the preset's, else that of "
        "the same command if it was stopped, else a random one; -1 always picks a random one.",
    ),
]
Windows = Annotated[
    str | None,
    stage_option(
        "--windows",
        metavar="FRAMES",
        autocompletion=completion.offer(completion.WINDOW_MODES),
        help="Make a long clip in overlapping windows of time: FRAMES, FRAMES:OVERLAP, off or "
        "auto. Default: auto, windows for clips above 20 s.",
    ),
]
Sets = Annotated[
    list[str] | None,
    stage_option(
        "--set",
        metavar="FIELD=VALUE",
        autocompletion=completion.complete_set,
        help="Set any field of the request, such as refine.denoise=0.4. Repeatable.",
    ),
]
Device = Annotated[
    str,
    memory_option(
        "--device",
        metavar="NAME",
        autocompletion=completion.offer(DEVICES),
        help="Where to compute: auto, cpu, cuda (cuda:1), xpu or mps.",
    ),
]
Folders = Annotated[
    list[Path] | None,
    model_option(
        "--models",
        metavar="FOLDER",
        help="Folder with model files, such as ComfyUI's models/. Repeatable. "
        "It is searched before LADDER_MODELS and ./models.",
    ),
]
Json = Annotated[bool, other_option("--json", help="Print the result as JSON.")]
Measure = Annotated[
    bool,
    output_option(
        "--measure/--no-measure",
        help="Measure motion, detail and sound of the clip and store the numbers with the run.",
    ),
]
Output = Annotated[
    Path | None,
    output_option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write: .mp4 .mov .mkv .webm .gif .webp .wav, or numbered pictures such as "
        "folder/%05d.png. Default: a new name made from the prompt, in LADDER_OUTPUT or the "
        "folder of config.toml. For several clips: a folder, or clip.mp4 to number.",
    ),
]
Overwrite = Annotated[
    bool,
    output_option("--overwrite", help="Replace the output if it exists."),
]
Quiet = Annotated[
    bool,
    other_option(
        "--quiet", "-q", help="Print the path of the result alone: no progress, no warnings."
    ),
]
Open = Annotated[
    bool,
    output_option("--open", help="Open the result when it is finished, in the desktop's program."),
]
PreviewStrip = Annotated[
    bool,
    output_option(
        "--preview",
        help="Also write CLIP.preview.png, a strip of pictures that grows while the clip is made.",
    ),
]
StoreFolder = Annotated[
    Path | None,
    other_option(
        "--store",
        metavar="FOLDER",
        help="Folder of stored results and runs. Default: LADDER_STORE, else a folder in the "
        "user's data folder.",
    ),
]
AllowPaths = Annotated[
    bool,
    input_option(
        "--allow-paths",
        help="Use absolute paths and model folders that the request of a clip names.",
    ),
]
SourceRequest = Annotated[
    Path | None,
    input_option(
        "--from",
        metavar="FILE",
        help="Start from the request that is stored in a clip, or in a .toml or .json file.",
    ),
]
Negative = Annotated[
    str | None,
    stage_option(
        "--negative",
        metavar="TEXT",
        help="What should not be seen or heard. No effect in presets without guidance (cfg 1), "
        "unless --nag-scale is set.",
    ),
]
NagScale = Annotated[
    str | None,
    stage_option(
        "--nag-scale",
        metavar="NUMBER",
        help="Push away from --negative inside the attention to the prompt, also at cfg 1 (NAG): 5 "
        "to 11 is usual, 1 is none.",
    ),
]
Size = Annotated[
    str | None,
    stage_option(
        "--size",
        metavar="SIZE",
        help="Width x height of the clip in pixels, such as 1280x720. Default: the preset's.",
    ),
]
Frames = Annotated[
    str | None,
    stage_option(
        "--frames",
        metavar="NUMBER",
        help="Number of frames: a multiple of 8, plus 1, such as 121. Default: the preset's.",
    ),
]
Duration = Annotated[
    str | None,
    stage_option(
        "--duration",
        metavar="SECONDS",
        help="Length in seconds, instead of --frames; auto or auto:MIN-MAX lets LTX-2.5 choose it "
        "from the prompt.",
    ),
]
Fps = Annotated[
    str | None,
    stage_option(
        "--fps",
        metavar="RATE",
        help="Frames per second, such as 24, 23.976 or 30000/1001. Default: the preset's.",
    ),
]
AudioMode = Annotated[
    str | None,
    sound_option(
        "--audio",
        metavar="MODE",
        autocompletion=completion.offer(completion.AUDIO_MODES),
        help="Sound of the clip: refine (improved in every refine stage), keep (as the first "
        "stage made it) or none. Default: the preset's, else refine.",
    ),
]
Upscaler = Annotated[
    str | None,
    stage_option(
        "--upscale",
        metavar="NAME",
        autocompletion=completion.complete_upscaler,
        help="Enlarge the finished frames with lanczos, rtx or a model file of "
        "upscale_models/. Default: not enlarged.",
    ),
]
UpscaleSize = Annotated[
    str | None,
    stage_option(
        "--to",
        metavar="SIZE",
        help="Size that --upscale enlarges to, in pixels, such as 3840x2160.",
    ),
]
UpscaleFactor = Annotated[
    str | None,
    stage_option(
        "--by",
        metavar="FACTOR",
        help="Factor that --upscale enlarges by, instead of --to. Default: 2.",
    ),
]
CodecName = Annotated[
    str | None,
    output_option(
        "--codec",
        metavar="NAME",
        autocompletion=completion.offer(completion.CODECS),
        help="Video codec: h264, h265, av1 or prores; on an NVIDIA GPU h264_nvenc, h265_nvenc. "
        "Default: the usual one of the file type.",
    ),
]
Crf = Annotated[
    str | None,
    output_option(
        "--crf",
        metavar="NUMBER",
        help="Quality of the video file: 0 is best and largest, 51 is worst. Default: the codec's.",
    ),
]
Poster = Annotated[
    bool,
    output_option(
        "--poster",
        help="Also write the middle frame as a picture.",
    ),
]
ContactSheet = Annotated[
    bool,
    output_option(
        "--sheet",
        help="Also write a contact sheet: one picture with many frames of the clip.",
    ),
]
NoAudio = Annotated[
    bool,
    sound_option(
        "--no-audio",
        help="Make a silent clip, as --audio none.",
    ),
]
Checkpoint = Annotated[
    str | None,
    model_option(
        "--checkpoint",
        metavar="FILE",
        autocompletion=completion.complete_checkpoint,
        help="Checkpoint to use: a path, or a name in a model folder. Default: the best one found.",
    ),
]
Precision = Annotated[
    str | None,
    model_option(
        "--precision",
        metavar="NAME",
        autocompletion=completion.offer(completion.PRECISIONS),
        help="Weights in memory: stored (as in the file) or fp8 (half the memory of a 16-bit "
        "transformer, another picture). Default: stored.",
    ),
]
Images = Annotated[
    list[str] | None,
    input_option(
        "--image",
        metavar="FILE",
        help="Picture that the clip shows: FILE, FILE:FRAME or FILE:FRAME:STRENGTH. FRAME is "
        "a number, first (default) or last; STRENGTH is 0 to 1 (default). Repeatable.",
    ),
]
Fit = Annotated[
    str | None,
    input_option(
        "--fit",
        metavar="MODE",
        autocompletion=completion.offer(completion.FITS),
        help="Input of another shape: cover (cut off its edges) or letterbox (black bars). "
        "Default: cover.",
    ),
]
AudioInput = Annotated[
    Path | None,
    input_option(
        "--audio-in",
        metavar="FILE",
        help="Sound file that the picture follows and that is the sound of the clip.",
    ),
]
VideoInput = Annotated[
    Path | None,
    input_option(
        "--video",
        metavar="FILE",
        help="Video to start from; --mode says what happens to it.",
    ),
]
VideoMode = Annotated[
    str | None,
    input_option(
        "--mode",
        metavar="MODE",
        autocompletion=completion.offer(completion.VIDEO_MODES),
        help="Use of --video: v2v (change all of it), retake (make a part again), extend (make "
        "it longer) or reference (guide an IC-LoRA). Default: v2v.",
    ),
]
Denoise = Annotated[
    float | None,
    input_option(
        "--denoise",
        metavar="AMOUNT",
        help="Mode v2v: how much of the video changes, from 0 (nothing) to 1 (everything). "
        f"Default: {DEFAULT_DENOISE}.",
    ),
]
Region = Annotated[
    str | None,
    input_option(
        "--region",
        metavar="START-END",
        help="Mode retake: the part to make again, in seconds, such as 1.5-3.0.",
    ),
]
Extend = Annotated[
    str | None,
    input_option(
        "--extend",
        metavar="SECONDS",
        help="Mode extend: seconds to add at the end, such as 2s; -2s adds them at the start.",
    ),
]
Count = Annotated[
    int,
    stage_option(
        "--count",
        "-n",
        metavar="NUMBER",
        help="Number of clips, each with a seed of its own, counting up from --seed.",
    ),
]
ManyPrompts = Annotated[
    Path | None,
    stage_option(
        "--prompts",
        metavar="FILE",
        help="Make a clip of each prompt in a file: one per line, or a .csv or .jsonl file with "
        "columns prompt, seed, size, image, output, refine.denoise ... The same command goes on "
        "where it stopped.",
    ),
]
Compare = Annotated[
    bool,
    output_option(
        "--compare",
        help="Also write CLIP.compare.mp4: the draft and the finished clip side by side.",
    ),
]
Notify = Annotated[
    bool,
    other_option("--notify", help="Ring the bell and show a desktop message at the end."),
]
Vram = Annotated[
    float | None,
    memory_option(
        "--vram",
        metavar="GIB",
        help="Device memory to use, in GiB. Default: what is free now.",
    ),
]
ReserveVram = Annotated[
    float,
    memory_option(
        "--reserve-vram",
        metavar="GIB",
        help="Device memory to leave free for other programs, in GiB.",
    ),
]
Ram = Annotated[
    float | None,
    memory_option(
        "--ram",
        metavar="GIB",
        help="RAM for weights that do not fit on the device, in GiB. Default: what is free.",
    ),
]
Offload = Annotated[
    str,
    memory_option(
        "--offload",
        metavar="MODE",
        autocompletion=completion.offer(completion.OFFLOADS),
        help="Weights that do not fit on the device: auto, none (fail), stream (from RAM) or "
        "disk (from the file).",
    ),
]
OomPolicy = Annotated[
    str,
    memory_option(
        "--oom-policy",
        metavar="CHANGES",
        autocompletion=completion.offer(completion.OOM_POLICIES),
        help="What may alter the picture a little to save memory: same (nothing), tiles "
        "(smaller decoder tiles), fp8 (fp8 weights) or tiles,fp8.",
    ),
]
Fast = Annotated[
    str,
    memory_option(
        "--fast",
        metavar="SWITCHES",
        autocompletion=completion.offer(completion.FAST),
        help="Faster kernels, none by default: attention (the fastest, measured), fused, fp8, "
        "fp4, loras, graphs, compile, or several (fused,loras).",
    ),
]
