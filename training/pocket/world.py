"""The synthetic world of the pocket model: one large object in front of a simple background.

A `Scene` is an immutable value. Its captions, labels, object trajectory, impact times and pixels at
any size are functions of it. Coordinates are in half sides of the square picture: x in [-1, 1] to
the right, y in [-1, 1] *upwards*. This module does not depend on latents, networks or audio.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from typing import Any

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 40),
    "yellow": (250, 208, 30),
    "green": (24, 150, 60),
    "blue": (30, 72, 214),
    "purple": (138, 42, 170),
    "white": (250, 250, 250),
    "black": (20, 20, 24),
}
TEXTURES = ("plain", "striped")
MOTIONS = ("still", "left", "right", "up", "down", "grow", "bounce")
BACKGROUNDS = ("plain", "gradient", "floor", "hills")
BACKGROUND_COLORS: dict[str, tuple[int, int, int]] = {
    "grey": (140, 142, 146),
    "pink": (240, 160, 180),
    "mint": (150, 222, 186),
    "sand": (226, 196, 138),
    "brown": (124, 86, 58),
    "sky blue": (128, 190, 240),
}
WALL = (178, 186, 198)
HAZE = (206, 214, 220)
SPEED = 0.5  # half sides per second
GRAVITY = 2.0  # half sides per second squared; low, so that a fall is slow enough to see
RESTITUTION = 0.8
BOUNCE_FLOOR = -0.62
HORIZON = -0.25
BAND = 0.25  # height of one of the three bands of the floor
CLIP_S = 1.0  # seconds in which a growing object becomes 1.5 times as large
EDGE_PX = 1.5  # width of soft edges, in pixels

_SHAPE_WORDS = {
    "circle": ("ball", "ball", "circle", "disc"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star",),
}
_COLOR_WORDS = {
    "red": ("red", "red", "crimson"),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "white": ("white",),
    "black": ("black",),
}
_TEXTURE_WORDS = {"plain": ("", "", "plain"), "striped": ("striped", "stripy")}
_MOTION_WORDS = {
    "still": ("stands still", "stays still", "does not move"),
    "left": ("moves to the left", "slides to the left", "rolls to the left", "moves left"),
    "right": ("moves to the right", "slides to the right", "rolls to the right", "moves right"),
    "up": ("moves up", "rises", "floats upwards"),
    "down": ("moves down", "sinks", "floats downwards"),
    "grow": ("grows", "gets bigger", "grows larger"),
    "bounce": ("bounces", "falls and bounces", "drops and bounces off the ground"),
}
_SHORT_MOTION_WORDS = {
    "still": ("standing still", "not moving"),
    "left": ("moving left", "rolling to the left"),
    "right": ("moving right", "rolling to the right"),
    "up": ("moving up", "rising"),
    "down": ("moving down", "sinking"),
    "grow": ("growing", "getting bigger"),
    "bounce": ("bouncing", "falling and bouncing"),
}
_BACKGROUND_COLOR_WORDS = {
    "grey": ("grey", "gray"),
    "pink": ("pink",),
    "mint": ("mint", "mint green"),
    "sand": ("sand", "beige"),
    "brown": ("brown",),
    "sky blue": ("sky blue", "light blue"),
}
_BACKGROUND_WORDS = {
    "plain": ("in front of a {} background", "before a plain {} wall", "on a plain {} background"),
    "gradient": ("under a {} sky", "in a {} gradient sky", "in front of a {} gradient"),
    "floor": ("over a striped {} floor", "over a {} striped floor", "on a {} floor with stripes"),
    "hills": ("in front of {} hills", "over {} hills", "above rolling {} hills"),
}
_TEMPLATES = (
    "{A} {object} {moves} {background}.",
    "{A} {object} {moves} {background}.",
    "{Background}, {a} {object} {moves}.",
    "A video of {a} {object} that {moves} {background}.",
    "There is {a} {object} {background}. It {moves}.",
    "The {object} {moves} {background}.",
)
_SHORT_TEMPLATES = (
    "{object} {moving}",
    "{a} {object} {moving}",
    "{a} {object} {moves}",
    "{a} {object} {moves} {background}",
    "{object} {moving} {background}",
)


def _vocabulary() -> tuple[str, ...]:
    """All words of the captions, lower case, sorted."""
    tables = (
        _SHAPE_WORDS, _COLOR_WORDS, _TEXTURE_WORDS, _MOTION_WORDS, _SHORT_MOTION_WORDS,
        _BACKGROUND_COLOR_WORDS, _BACKGROUND_WORDS,
    )  # fmt: skip
    phrases = [p for table in tables for words in table.values() for p in words]
    text = " ".join(phrases + [re.sub(r"{\w*}", " ", t) for t in _TEMPLATES + _SHORT_TEMPLATES])
    return tuple(sorted({*re.findall(r"[a-z]+", text.lower()), "a", "an"}))


VOCABULARY = _vocabulary()


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene.

    `x`, `y` and `radius` are the object's centre and size at time 0, in half sides; `phase` in
    [0, 1) shifts the hills; `tint` and `background_tint` are the jitter of the object's and of the
    background's colour, in 8-bit steps.
    """

    shape: str
    color: str
    texture: str
    motion: str
    background: str
    background_color: str
    x: float
    y: float
    radius: float
    phase: float = 0.0
    tint: tuple[int, int, int] = (0, 0, 0)
    background_tint: tuple[int, int, int] = (0, 0, 0)
    seed: int = 0


def _start(motion: str, rng: random.Random) -> tuple[float, float]:
    """Random centre at time 0 from which a clip of one second stays in the picture."""
    half = SPEED * CLIP_S / 2
    centre = {
        "left": (half, -0.05), "right": (-half, -0.05), "up": (0.0, -half), "down": (0.0, half),
        "bounce": (0.0, 0.3),
    }.get(motion, (0.0, -0.05))  # fmt: skip
    return centre[0] + rng.uniform(-0.1, 0.1), centre[1] + rng.uniform(-0.05, 0.05)


def random_scene(rng: random.Random) -> Scene:
    """A random scene: labels uniform (texture: 80 % plain), with jitter of position and colours."""
    motion = rng.choice(MOTIONS)
    x, y = _start(motion, rng)
    radius = rng.uniform(0.40, 0.44)
    if motion == "grow":
        radius *= 0.75
    return Scene(
        shape=rng.choice(SHAPES),
        color=rng.choice(tuple(COLORS)),
        texture="striped" if rng.random() < 0.2 else "plain",
        motion=motion,
        background=rng.choice(BACKGROUNDS),
        background_color=rng.choice(tuple(BACKGROUND_COLORS)),
        x=x,
        y=y,
        radius=radius,
        phase=rng.random(),
        tint=(rng.randint(-6, 6), rng.randint(-6, 6), rng.randint(-6, 6)),
        background_tint=(rng.randint(-6, 6), rng.randint(-6, 6), rng.randint(-6, 6)),
        seed=rng.randrange(2**31),
    )


def _join(*words: str) -> str:
    return " ".join(" ".join(words).split())


def _article(phrase: str) -> str:
    return "an" if phrase[:1] in "aeiou" else "a"


def caption(scene: Scene, rng: random.Random) -> str:
    """A random caption like a user's prompt.

    85 % are whole sentences that name everything visible (80 % of them with the background's
    colour), 15 % short phrases, most without a background.
    """
    short = rng.random() < 0.15
    words = (_TEXTURE_WORDS[scene.texture], _COLOR_WORDS[scene.color], _SHAPE_WORDS[scene.shape])
    thing = _join(*(rng.choice(w) for w in words))
    named = rng.random() < (0.4 if short else 0.8)
    color = rng.choice(_BACKGROUND_COLOR_WORDS[scene.background_color]) if named else ""
    where = _join(rng.choice(_BACKGROUND_WORDS[scene.background]).format(color))
    text = rng.choice(_SHORT_TEMPLATES if short else _TEMPLATES).format(
        object=thing,
        a=_article(thing),
        A=_article(thing).capitalize(),
        moves=rng.choice(_MOTION_WORDS[scene.motion]),
        moving=rng.choice(_SHORT_MOTION_WORDS[scene.motion]),
        background=where,
        Background=where[:1].upper() + where[1:],
    )
    return text.rstrip(".") if rng.random() < 0.3 else text


def attributes(scene: Scene) -> dict[str, str]:
    """The scene's label of each attribute."""
    names = ("shape", "color", "texture", "motion", "background", "background_color")
    return {name: getattr(scene, name) for name in names}


LABELS: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "color": tuple(COLORS),
    "texture": tuple(TEXTURES),
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
    "background_color": tuple(BACKGROUND_COLORS),
}
"""The possible values of each attribute."""
_BACKGROUND_NOUNS = {
    "plain": ("background", "wall"), "gradient": ("sky", "gradient"), "floor": ("floor",),
    "hills": ("hills",),
}  # fmt: skip


def is_mentioned(attribute: str, value: str, text: str) -> bool:
    """True if a caption mentions this value; short captions may omit the background."""
    if attribute == "background":
        return any(word in text.lower() for word in _BACKGROUND_NOUNS[value])
    if attribute == "background_color":
        return any(word in text.lower() for word in _BACKGROUND_COLOR_WORDS[value])
    return True


def sound_key(scene: Scene) -> tuple[Any, ...]:
    """The values of a scene on which its sound depends."""
    return scene.shape, scene.texture, scene.motion, scene.x, scene.y, scene.radius


def _bounce_drop(scene: Scene) -> float:
    """Height of the fall from the start position to the ground."""
    return max(scene.y - scene.radius - BOUNCE_FLOOR, 0.05)


def impacts(scene: Scene, duration_s: float) -> list[float]:
    """Times in seconds at which the object hits the ground; empty if it does not `bounce`."""
    if scene.motion != "bounce":
        return []
    fall = math.sqrt(2 * _bounce_drop(scene) / GRAVITY)
    speed, time, times = GRAVITY * fall, fall, []
    while time < duration_s and speed > 0.2:
        times.append(time)
        speed *= RESTITUTION
        time += 2 * speed / GRAVITY
    return times


def _bounce_height(scene: Scene, t: Tensor) -> Tensor:
    """Centre y of a bouncing object at times t."""
    drop = _bounce_drop(scene)
    ground = scene.y - drop
    height = drop - GRAVITY * t**2 / 2
    speed = math.sqrt(2 * GRAVITY * drop)
    for hit in impacts(scene, float(t.max()) + 1e-6 if t.numel() else 0.0):
        speed *= RESTITUTION
        since = t - hit
        height = torch.where(since >= 0, speed * since - GRAVITY * since**2 / 2, height)
    return ground + height.clamp(min=0)


def trajectory(scene: Scene, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre x, y and radius at times t (seconds), each of the shape of t, in half sides."""
    t = torch.as_tensor(t, dtype=torch.float32)
    x, y, radius = (torch.full_like(t, v) for v in (scene.x, scene.y, scene.radius))
    step = SPEED * t
    if scene.motion in ("left", "right"):
        x = x + (step if scene.motion == "right" else -step)
    elif scene.motion in ("up", "down"):
        y = y + (step if scene.motion == "up" else -step)
    elif scene.motion == "grow":
        radius = radius * (1 + 0.5 * (t / CLIP_S).clamp(max=1.5))
    elif scene.motion == "bounce":
        y = _bounce_height(scene, t)
    return x, y, radius


def height(scene: Scene, t: Tensor) -> Tensor:
    """Height y of the object's centre at times t (seconds), of the shape of t, in half sides."""
    return trajectory(scene, t)[1]


def _distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance of points to a shape around the origin, negative inside."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    if shape == "triangle":
        side = 0.866 * x.abs() + 0.5 * y
        return torch.maximum(side - 0.62 * radius, -y - 0.62 * radius - 0.1 * radius)
    sector = math.pi / 5
    angle = torch.atan2(x, y) % (2 * sector)
    angle = torch.minimum(angle, 2 * sector - angle)
    length = torch.hypot(x, y)
    outer, inner = 1.2, 0.58  # tips and notches of the star, in radii
    # the edge from the tip (outer, angle 0) to the notch (inner, angle pi/5)
    edge = (inner * math.cos(sector) - outer, inner * math.sin(sector))
    norm = math.hypot(*edge)
    along, across = length * torch.cos(angle) - outer * radius, length * torch.sin(angle)
    return (across * -edge[0] + along * edge[1]) / norm


def _rgb(color: tuple[int, int, int], tint: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    return torch.tensor([float(c + t) for c, t in zip(color, tint, strict=True)])


def _mix(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Blend of the colours `inside` and `outside` (..., 3) by a mask (...)."""
    return outside + mask[..., None] * (inside - outside)


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """A background: `color_mask` * the scene's background colour + `fixed_mask` * `fixed_color`."""

    color_mask: Tensor  # (H, W)
    fixed_mask: Tensor  # (H, W)
    fixed_color: Tensor


def backdrop(scene: Scene, x: Tensor, y: Tensor, pixel: float) -> Backdrop:
    """The background at points x (W,) and y (H,); `pixel` is the width of a pixel."""
    shape = (len(y), len(x))
    haze, soft = _rgb(HAZE), EDGE_PX * pixel
    if scene.background == "plain":
        return Backdrop(torch.ones(shape), torch.zeros(shape), haze)
    if scene.background == "gradient":
        up = ((y + 1) / 2)[:, None].expand(shape)
        return Backdrop(up, 1 - up, haze)
    if scene.background == "floor":
        band = torch.sin(math.pi * (HORIZON - y) / BAND) * BAND / math.pi
        floor = 0.62 + 0.38 * (0.5 + band / soft).clamp(0, 1)
        ground = (0.5 + (HORIZON - y) / soft).clamp(0, 1)
        return Backdrop(
            (ground * floor)[:, None].expand(shape), (1 - ground)[:, None].expand(shape), _rgb(WALL)
        )
    crest = 0.18 * torch.sin(math.pi * (x * 1.1 + 2 * scene.phase)) - 0.15
    front = 0.12 * torch.sin(math.pi * (x * 0.8 + 2 * scene.phase + 1)) - 0.55
    far = (0.5 + (crest - y[:, None]) / soft).clamp(0, 1)
    near = (0.5 + (front - y[:, None]) / soft).clamp(0, 1)
    return Backdrop(0.72 * near + (1 - near) * far, (1 - near) * (1 - far), haze)


def stripes(x: Tensor, y: Tensor, radius: Tensor, soft: float) -> Tensor:
    """Share of the object's own colour in a striped texture, at points relative to its centre.

    The rest is `stripe_color`.
    """
    period = 0.8 * radius
    wave = torch.cos(2 * math.pi * y / period) * period / (2 * math.pi)
    return (0.5 + (wave + 0.12 * period) / soft).clamp(0, 1).expand(torch.broadcast_shapes(
        x.shape, y.shape))  # fmt: skip


def object_color(scene: Scene) -> Tensor:
    """RGB (0 to 255) of the object, with jitter."""
    return _rgb(COLORS[scene.color], scene.tint)


def stripe_color(scene: Scene) -> Tensor:
    """RGB (0 to 255) of the stripes of a striped object."""
    return _rgb((60, 60, 66) if scene.color == "white" else (250, 250, 250))


def background_color(scene: Scene) -> Tensor:
    """RGB (0 to 255) of the background, with jitter."""
    return _rgb(BACKGROUND_COLORS[scene.background_color], scene.background_tint)


def coverage(scene: Scene, x: Tensor, y: Tensor, t: Tensor, soft: float) -> tuple[Tensor, Tensor]:
    """The object's mask and its `stripes`, both (T, H, W), at points x (W,), y (H,), times t (T,).

    `soft` is the width of the edges in half sides.
    """
    cx, cy, radius = (v[:, None, None] for v in trajectory(scene, t))
    x, y = x[None, None] - cx, y[None, :, None] - cy
    mask = (0.5 - _distance(scene.shape, x, y, radius) / soft).clamp(0, 1)
    return mask, stripes(x, y, radius, soft)


def covered_range(points: Tensor, centre: Tensor, radius: Tensor) -> slice:
    """Range of indices that an object covers at any time, along one axis."""
    reach = 1.3 * radius
    inside = (points > (centre - reach).min()) & (points < (centre + reach).max())
    where = inside.nonzero()
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def render(
    scenes: list[Scene],
    frames: int,
    size: int,
    fps: float = 24,
    first_frame: int = 0,
    crop: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Render scenes to pixels, uint8 (B, frames, size, size, 3).

    `crop` = (top, left, height, width) in pixels renders only that window.
    """
    top, left, height, width = crop or (0, 0, size, size)
    pixel = 2 / size
    soft = EDGE_PX * pixel
    xs = (torch.arange(left, left + width) + 0.5) * pixel - 1
    ys = 1 - (torch.arange(top, top + height) + 0.5) * pixel
    t = (first_frame + torch.arange(frames)) / fps
    out = torch.empty(len(scenes), frames, height, width, 3, dtype=torch.uint8)
    for clip, scene in zip(out, scenes, strict=True):
        back = backdrop(scene, xs, ys, pixel)
        picture = back.color_mask[..., None] * background_color(scene)
        picture = picture + back.fixed_mask[..., None] * back.fixed_color
        clip.copy_((picture + 0.5).clamp_(0, 255))
        cx, cy, radius = trajectory(scene, t)
        rows, columns = (
            covered_range(ys, cy, radius),
            covered_range(xs, cx, radius),
        )  # the rest is still
        mask, color_share = coverage(scene, xs[columns], ys[rows], t, soft)
        color = object_color(scene)
        if scene.texture == "striped":
            color = _mix(color_share, color, stripe_color(scene))
        moving = _mix(mask, color, picture[rows, columns][None])
        clip[:, rows, columns] = moving.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return out


def example_scene() -> Scene:
    """The scene of the product's default prompt: a red ball rolls right over a striped floor."""
    return Scene("circle", "red", "plain", "right", "floor", "sand", -0.25, -0.05, 0.42)
