"""Pretrain the text tower, without video, to predict a scene's attributes from its caption.

    python training/pocket/text_train.py fresh       # tokenizer, random weights
    python training/pocket/text_train.py train --seconds 60    # of processor time
    python training/pocket/text_train.py report

Linear heads, used only here, classify every attribute from the mean of each stream's context, so
that the contexts are informative when training of the transformer starts. `train` and `report`
start from the files in runs/parts, or from `--encoder` and `--checkpoint` (the shipped files work
too).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import text
import torch
import worlds
from state import DEVICE, prepare
from torch import Tensor, nn
from torch.nn import functional as F

world = worlds.module("world")
HEADS = text.PARTS.parent / "text_heads.pt"  # only for training; new ones if missing
FILLERS_BEFORE = (
    "A cinematic shot: ", "A short clip of ", "Close-up, ", "An animation where ", "Simple scene. ",
    "Please show ", "Video: ", "In this video, ", "Static camera. ", "A toy film of ",
)  # fmt: skip
FILLERS_AFTER = (
    " High quality.", " The camera stays fixed.", ", smooth motion", ", soft light", ", 4k",
    " A clear tone follows the motion.", ", with sound", ", best quality, detailed", ", slowly",
)  # fmt: skip
PROSE = """\
A woman walks slowly along the beach while small waves roll over the sand and gulls cry above her.
The camera moves forward through a dark forest; leaves fall, rain drips and the wind blows softly.
An old man sits in a quiet kitchen, drinks coffee and reads the newspaper near the open window.
Close-up of a cat that looks into the lens, turns its head and jumps off the wooden table.
A car drives fast through the city at night, neon lights shine on the wet street, people cross.
Two children run across a field of tall grass, laughing, with a kite high in the bright summer sky.
Slow motion shot of water pouring into a glass, bubbles, soft light, shallow depth of field.
The singer stands on the stage and plays the guitar, the crowd claps, music and voices are heard.
Aerial view of mountains with snow, clouds drifting by, the sun setting behind a frozen lake.
A robot picks up an orange box, carries it over a bridge and places it next to another machine.
blurry, low quality, worst quality, distorted, watermark, jittery, noise, artifacts, text, logo
cinematic, detailed, realistic, sharp focus, dramatic lighting, handheld camera, film grain
Thick smoke rises from a chimney, birds fly in circles, a train whistle sounds in the distance.
She opens the door, smiles and says hello; then the dog barks and follows her into the garden.
A large ship sails on the ocean, flags waving, thunder rumbling, lightning flashing far away.
Macro shot of a flower opening its petals in the morning, dew drops, a bee buzzing around it.
The horse gallops past the house, dust flying, hooves beating on the ground, trees in background.
Inside a small workshop a person hammers metal, sparks jump, an engine hums, tools hang on walls.
Colorful paper shapes spin, shrink, fade and appear again on top of a dark orange or cyan screen.
What happens when the heavy stone drops from above? It hits the floor, cracks and stops moving.
"""


def augment_caption(caption: str, rng: random.Random) -> str:
    """Vary a caption as real prompts vary: letter case, filler phrases."""
    if rng.random() < 0.15:
        caption = caption[:1].lower() + caption[1:]
        caption = rng.choice(FILLERS_BEFORE) + caption
    if rng.random() < 0.15:
        caption = caption.rstrip(".") + rng.choice(FILLERS_AFTER)
    choice = rng.random()
    return caption.lower() if choice < 0.12 else caption.upper() if choice < 0.13 else caption


def tokenizer_lines(count: int = 12_000, seed: int = 5) -> list[str]:
    """Training text of the tokenizer: augmented captions, and prose for common English words."""
    rng = random.Random(seed)
    captions = [world.caption(world.random_scene(rng), rng) for _ in range(count)]
    letters = [" ".join(chr(c) for c in range(33, 127))] * 5
    return [augment_caption(c, rng) for c in captions] + PROSE.splitlines() * 40 + letters


def examples(count: int, rng: random.Random, plain: bool = False) -> tuple[list[str], Tensor]:
    """Captions of random scenes and their labels (count, attributes), -1 for unmentioned ones."""
    captions, rows = [], []
    for _ in range(count):
        scene = world.random_scene(rng)
        caption = world.caption(scene, rng)
        known = world.attributes(scene)
        rows.append([
            values.index(known[name]) if world.is_mentioned(name, known[name], caption) else -1
            for name, values in world.LABELS.items()
        ])  # fmt: skip
        captions.append(caption if plain else augment_caption(caption, rng))
    return captions, torch.tensor(rows)


class Heads(nn.Module):
    """Linear classifiers of the mean context, one per attribute and stream."""

    def __init__(self, video: int, audio: int) -> None:
        super().__init__()
        sizes = [len(values) for values in world.LABELS.values()]
        self.video = nn.ModuleList([nn.Linear(video, size) for size in sizes])
        self.audio = nn.ModuleList([nn.Linear(audio, size) for size in sizes])

    def forward(self, video: Tensor, audio: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits per attribute, from the video and from the audio context."""
        v, a = video.mean(1), audio.mean(1)
        return [(hv(v), ha(a)) for hv, ha in zip(self.video, self.audio, strict=True)]


def attribute_loss(logits: list[tuple[Tensor, Tensor]], targets: Tensor) -> Tensor:
    """Sum of the cross entropies of all attributes and both streams; ignores labels of -1."""
    return torch.stack([
        F.cross_entropy(stream, targets[:, column], ignore_index=-1)
        for column, pair in enumerate(logits)
        for stream in pair
    ]).sum()  # fmt: skip


def train(tower: text.TextTower, heads: Heads, seconds: float, lr: float, seed: int) -> None:
    """Train for `seconds` of processor time, with new captions in every step and a linear decay."""
    rng = random.Random(seed)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    start, step = time.process_time(), 0  # processor time, since machines are shared
    while (elapsed := (time.process_time() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = lr * (min(1, (step + 1) / 30) * (1 - elapsed) + 0.01)
        captions, targets = examples(48, rng)
        loss = attribute_loss(heads(*tower(captions)), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            log(stage="text", step=step, loss=float(loss.detach()))


@torch.no_grad()
def accuracies(tower: text.TextTower, heads: Heads, seed: int, plain: bool) -> dict[str, float]:
    """Accuracy per attribute on new captions, of the worse of the two streams."""
    captions, targets = examples(512, random.Random(seed), plain)
    logits = heads(*tower(captions))
    out = {}
    for column, name in enumerate(world.LABELS):
        is_labelled = targets[:, column] >= 0
        right = [
            (s.argmax(-1) == targets[:, column])[is_labelled].float().mean() for s in logits[column]
        ]
        out[name] = round(float(min(right)), 4)
    return out


def log(**figures: float | str | dict[str, float]) -> None:
    """Append one JSON line to runs/text.jsonl."""
    with (text.PARTS.parent / "text.jsonl").open("a") as file:
        file.write(json.dumps({"at": round(time.time(), 1), **figures}) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("fresh", "train", "report"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=12_000, help="captions for the tokenizer")
    parser.add_argument("--encoder", type=Path, default=text.PARTS / text.ENCODER_FILE)
    parser.add_argument("--checkpoint", type=Path, default=text.PARTS / text.CONNECTOR_FILE)
    options = parser.parse_args()
    prepare()
    torch.manual_seed(options.seed)
    if options.stage == "fresh":
        text.save(text.TextTower(text.train_tokenizer(tokenizer_lines(options.lines))))
        HEADS.unlink(missing_ok=True)
        return
    tower = text.load(options.encoder, options.checkpoint).to(DEVICE)
    widths = ("cross_attention_dim", "audio_cross_attention_dim")
    heads = Heads(*(text.CONNECTOR_CONFIG[name] for name in widths))
    if HEADS.exists():
        heads.load_state_dict(torch.load(HEADS, map_location=DEVICE))
    if options.stage == "train":
        train(tower, heads, options.seconds, options.lr, options.seed)
        torch.save(heads.state_dict(), HEADS)
        text.save(tower)
        tower = text.load().to(DEVICE)  # from the files, rounded to bf16
    for plain in (True, False):
        log(stage="accuracy", plain=str(plain), **accuracies(tower, heads, 99_991, plain))


if __name__ == "__main__":
    main()
