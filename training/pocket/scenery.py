"""The second world of the pocket model: soft solids over wood, water, sand or grass, under a sky.

A `Scene` is a value; caption, labels, paths and times of impact are pure functions of it, and
`scenery_render.py` and `scenery_sound.py` turn it into pixels and sound. Coordinates are in half
lengths of the shorter side of the picture: x to the right, y upwards, (0, 0) in the middle, so
that a landscape or portrait canvas shows more of the same scene. Times are in seconds.
"""

from __future__ import annotations

import dataclasses
import math
import random

import torch
from torch import Tensor

SHAPES = ("ball", "cube", "star", "ring", "cone")
COLORS: dict[str, tuple[float, float, float]] = {  # linear-looking albedo, 0-1
    "red": (0.86, 0.15, 0.16),
    "orange": (0.95, 0.50, 0.12),
    "yellow": (0.96, 0.80, 0.20),
    "green": (0.20, 0.62, 0.30),
    "blue": (0.16, 0.36, 0.86),
    "purple": (0.54, 0.24, 0.72),
    "white": (0.93, 0.92, 0.90),
}
TEXTURES = ("plain", "striped", "woven")
FINISHES = ("matte", "glowing")
MOTIONS = ("still", "left", "right", "up", "down", "bounce", "closer")
GROUNDS = ("wood", "water", "sand", "grass")
TIMES = ("day", "dusk", "night")
WEATHERS = ("clear", "clouds", "mist", "aurora")  # an aurora only at night
CAMERAS = ("fixed", "pan left", "pan right")

HORIZON = -0.08
SPEED = 0.3  # of an object, half sides per second
PANS = {"fixed": 0.0, "pan left": -0.1, "pan right": 0.1}  # half sides per second
CEILING = 0.52  # where a rising object stops and floats
REST = -0.56  # height at which the first object touches the ground
REST_BEHIND = -0.33  # the second
BOUNCE_HEIGHT, BOUNCE_S = 0.55, 1.2  # no damping: the object goes on bouncing
CLOSER = 0.22  # growth per second


@dataclasses.dataclass(frozen=True)
class Body:
    """One solid. `x`, `y` are its centre at time 0 and `radius` its size then."""

    shape: str
    color: str
    texture: str
    finish: str
    motion: str
    x: float
    y: float
    radius: float
    rest: float = REST  # height of the ground under it


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene. `sun` is the place of sun or moon along x, `light` the direction of the light in
    radians, `seed` all else that varies (hills, clouds, stars' twinkling, ripples)."""

    ground: str
    time: str
    weather: str
    camera: str
    first: Body
    second: Body | None = None
    sun: float = 0.4
    light: float = 0.8
    seed: int = 0

    @property
    def bodies(self) -> tuple[Body, ...]:
        """From back to front."""
        return (self.first,) if self.second is None else (self.second, self.first)


def random_body(rng: random.Random, motion: str, seconds: float, night: bool, pan: float) -> Body:
    """A first object whose path over `seconds` stays in a square picture whose camera moves at
    speed `pan`."""
    radius = rng.uniform(0.29, 0.36)
    x, y = rng.uniform(-0.22, 0.22), REST + radius
    speed = {"left": -SPEED, "right": SPEED}.get(motion, 0.0) - pan  # in the picture
    x = x * (1 if speed == 0 else 0.6) - max(-0.75, min(0.75, speed * seconds / 2))
    if motion == "up":
        y += rng.uniform(0.0, 0.12)
    elif motion == "down":
        y += min(SPEED * seconds, 0.8) + rng.uniform(0.0, 0.1)
    elif motion == "bounce":
        y += BOUNCE_HEIGHT
    elif motion == "closer":
        radius *= 0.8
        y = REST + radius
    texture = rng.choice(("plain", "plain", "striped", "woven"))
    finish = "glowing" if rng.random() < (0.4 if night else 0.12) else "matte"
    return Body(
        rng.choice(SHAPES), rng.choice(tuple(COLORS)), texture, finish, motion, x, y, radius
    )


def random_camera(rng: random.Random, motion: str, seconds: float) -> str:
    """Half of the cameras are fixed. In a long clip none moves against the object."""
    camera = rng.choice(("fixed", "fixed", *CAMERAS[1:]))
    against = {"left": "pan right", "right": "pan left"}.get(motion)
    return "fixed" if seconds > 2 and camera == against else camera


def random_scene(rng: random.Random, seconds: float = 1.0) -> Scene:
    """A scene drawn uniformly over its labels; half of the scenes have a second, smaller, still
    object behind the first, of another shape and colour."""
    time = rng.choice(TIMES)
    weather = rng.choice(WEATHERS if time == "night" else WEATHERS[:3])
    motion = rng.choice(MOTIONS)
    camera = random_camera(rng, motion, seconds)
    pan = PANS[camera]
    first = random_body(rng, motion, seconds, time == "night", pan)
    second = None
    if rng.random() < 0.5:
        radius = rng.uniform(0.17, 0.21)
        side = rng.choice((-1, 1))
        second = Body(
            rng.choice([s for s in SHAPES if s != first.shape]),
            rng.choice([c for c in COLORS if c != first.color]),
            "plain",
            "glowing" if time == "night" and rng.random() < 0.4 else "matte",
            "still",
            side * rng.uniform(0.5, 0.68) + pan * seconds / 2,
            REST_BEHIND + radius,
            radius,
            REST_BEHIND,
        )
    return Scene(
        ground=rng.choice(GROUNDS),
        time=time,
        weather=weather,
        camera=camera,
        first=first,
        second=second,
        sun=rng.uniform(-0.75, 0.75),
        light=rng.uniform(0.5, 1.1) * rng.choice((-1, 1)),
        seed=rng.randrange(2**31),
    )


# ---------------------------------------------------------------------------------------- motion


def bounce_height(t: Tensor) -> Tensor:
    """Height above the ground of an object let go at time 0, bouncing without loss."""
    u = (t / BOUNCE_S + 0.5) % 1.0  # 0 and 1 at an impact
    return 4 * BOUNCE_HEIGHT * u * (1 - u)


def trajectory(body: Body, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x, y, radius) of a body at times t, each of t's shape, in half sides, y up."""
    t = torch.as_tensor(t, dtype=torch.float32)
    x, y, radius = (torch.full_like(t, v) for v in (body.x, body.y, body.radius))
    if body.motion in ("left", "right"):
        x = x + (SPEED if body.motion == "right" else -SPEED) * t
    elif body.motion == "up":
        above = (SPEED * t - (CEILING - body.y)).clamp(min=0)
        y = y + SPEED * t - above + 0.04 * torch.sin(above / 0.08)
    elif body.motion == "down":  # sinks to the ground and stays there
        y = (y - SPEED * t).clamp(min=body.rest + body.radius)
    elif body.motion == "bounce":
        y = body.rest + body.radius + bounce_height(t)
    elif body.motion == "closer":
        radius = radius * (1 + CLOSER * t).clamp(max=1.7)
        y = body.rest + radius - 0.35 * (radius - body.radius)
    return x, y, radius


def camera_path(scene: Scene, t: Tensor) -> Tensor:
    """x of the camera at times t: a pan to the left moves it to negative x."""
    return PANS[scene.camera] * torch.as_tensor(t, dtype=torch.float32)


def impacts(scene: Scene, duration_s: float) -> list[float]:
    """Times in seconds at which the first object touches the ground."""
    if scene.first.motion == "down":
        hit = (scene.first.y - scene.first.rest - scene.first.radius) / SPEED
        return [hit] if hit < duration_s else []
    if scene.first.motion != "bounce":
        return []
    count = math.ceil(duration_s / BOUNCE_S) + 1
    times = [(i + 0.5) * BOUNCE_S for i in range(count)]
    return [time for time in times if time < duration_s]
