"""Pixels of `scenery.Scene`: an analytic renderer of soft light in torch, for any size and device.

Everything is a formula of place and time, so that any window of any frame at any size can be
rendered alone. Detail finer than about three pixels fades away as behind a soft lens (`lens`), so
that a small picture is what a reduced large one looks like.
"""

from __future__ import annotations

import dataclasses
import math
import random

import torch
from scenery import COLORS, HORIZON, Body, Scene, camera_path, trajectory
from torch import Tensor

LENS_PX = 1.0  # standard deviation of the lens
EDGE_PX = 2.0

# top, middle and horizon of the sky; light of the sun or moon; light from everywhere
SKIES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "day": ((0.30, 0.55, 0.86), (0.58, 0.77, 0.93), (0.91, 0.94, 0.95)),
    "dusk": ((0.24, 0.22, 0.48), (0.78, 0.44, 0.55), (1.00, 0.76, 0.50)),
    "night": ((0.03, 0.05, 0.15), (0.07, 0.13, 0.31), (0.20, 0.30, 0.48)),
}
SUNS = {"day": (1.0, 0.97, 0.90), "dusk": (1.0, 0.66, 0.40), "night": (0.62, 0.72, 1.0)}
SUN_HEIGHTS = {"day": 1.15, "dusk": 0.10, "night": 0.62}
DIRECT = {"day": 0.80, "dusk": 0.62, "night": 0.52}
AMBIENT = {"day": 0.46, "dusk": 0.46, "night": 0.34}
GROUNDS: dict[str, tuple[float, float, float]] = {
    "wood": (0.66, 0.45, 0.28),
    "water": (0.10, 0.26, 0.34),
    "sand": (0.86, 0.72, 0.50),
    "grass": (0.33, 0.52, 0.22),
}
HILLS: dict[str, tuple[float, float, float]] = {
    "day": (0.30, 0.46, 0.44),
    "dusk": (0.34, 0.22, 0.36),
    "night": (0.05, 0.09, 0.19),
}


def _rgb(color: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(color, device=like.device)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """a (..., 3) and b (..., 3) mixed by share (...)."""
    return a + share[..., None] * (b - a)


def _step(x: Tensor, low: float, high: float) -> Tensor:
    """Smoothstep from 0 at low to 1 at high."""
    u = ((x - low) / (high - low)).clamp(0, 1)
    return u * u * (3 - 2 * u)


def lens(frequency: Tensor) -> Tensor:
    """Share of the amplitude that the lens passes at a frequency in cycles per pixel."""
    return torch.exp(-2 * (math.pi * LENS_PX * frequency) ** 2)


def _numbers(seed: int, count: int, name: str) -> list[float]:
    """Fixed numbers in [0, 1) of a scene."""
    rng = random.Random(f"{seed}/{name}")
    return [rng.random() for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class View:
    """Where pixels are: x (1, 1, W) and y (1, H, 1) on the canvas, times t (T, 1, 1), camera x
    (T, 1, 1), `pixel` the size of one."""

    x: Tensor
    y: Tensor
    t: Tensor
    camera: Tensor
    pixel: float


# ------------------------------------------------------------------------------------------- sky


def _clouds(scene: Scene, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Density 0-1 of drifting clouds, flatter towards the horizon."""
    u = _numbers(scene.seed, 24, "clouds")
    depth = 1 / (y - HORIZON + 0.35).clamp(min=0.05)
    a, b = x * depth + 0.10 * t, 2.2 * depth
    total = torch.zeros(())
    for i, (scale, weight) in enumerate(((1.0, 1.0), (1.9, 0.6), (3.3, 0.36), (5.4, 0.2))):
        for j in range(2):
            angle = (0.35 + 0.5 * j) * (1 if (i + j) % 2 else -1)
            wave = scale * (math.cos(angle) * a * 1.7 + math.sin(angle) * b * 2.4)
            warp = 0.9 * torch.sin(0.7 * scale * a + 6.28 * u[4 * i + j + 2])
            total = total + weight * torch.sin(wave + warp + 6.28 * u[4 * i + j] + 0.12 * t * scale)
    return _step(total, -0.5, 2.2)


def _aurora(scene: Scene, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Light (..., 3) of two curtains."""
    u = _numbers(scene.seed, 12, "aurora")
    out = torch.zeros((*torch.broadcast_shapes(x.shape, y.shape, t.shape), 3), device=x.device)
    green, violet = _rgb((0.16, 0.95, 0.55), x), _rgb((0.55, 0.25, 0.85), x)
    for i in range(2):
        base = 0.22 + 0.24 * i + 0.10 * torch.sin(1.9 * x + 6.28 * u[i] + 0.5 * t)
        base = base + 0.05 * torch.sin(4.1 * x + 6.28 * u[i + 2] - 0.8 * t)
        rays = 0.62 + 0.24 * torch.sin(9 * x + 6.28 * u[i + 4] + 0.9 * t)
        rays = rays + 0.14 * torch.sin(21 * x + 6.28 * u[i + 6] - 1.3 * t)
        up = y - base
        profile = _step(up, -0.06, 0.05) * torch.exp(-up.clamp(min=0) / (0.30 - 0.06 * i))
        strength = (0.75 - 0.25 * i) * profile * rays
        out = out + strength[..., None] * _mix(
            green.expand_as(out), violet.expand_as(out), _step(up, 0.0, 0.5)
        )
    return out


def _stars(x: Tensor, y: Tensor, t: Tensor, pixel: float) -> Tensor:
    """Light of the stars: one in every cell of a grid, the same in all scenes."""
    cell = 0.17
    i, j = torch.floor(x / cell), torch.floor(y / cell)
    hashed = [torch.frac((torch.sin(i * a + j * b) * 43758.5).abs()) for a, b in
              ((12.9, 78.2), (39.3, 11.1), (73.1, 52.2))]  # fmt: skip
    dx = x - (i + 0.1 + 0.8 * hashed[0]) * cell
    dy = y - (j + 0.1 + 0.8 * hashed[1]) * cell
    true, seen = 0.0040, math.hypot(0.0040, LENS_PX * pixel)
    shape = (true / seen) ** 2 * torch.exp(-(dx**2 + dy**2) / (2 * seen**2))
    bright = 0.15 + 1.1 * hashed[2] ** 3
    return shape * bright * (0.85 + 0.15 * torch.sin(3 * t + 40 * hashed[2]))


def sky(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Colours (..., 3) of the sky at points of the canvas (x without the camera's movement)."""
    top, middle, low = (_rgb(c, x) for c in SKIES[scene.time])
    up = y - HORIZON
    shape = torch.broadcast_shapes(x.shape, y.shape, view.t.shape)
    color = _mix(_mix(low, middle, _step(up, -0.05, 0.5)), top, _step(up, 0.25, 1.25))
    color = color.expand(*shape, 3)
    sun = _rgb(SUNS[scene.time], x)
    sx, sy = scene.sun - 0.05 * view.camera, SUN_HEIGHTS[scene.time]
    far = torch.hypot(x - sx, (y - sy) * 1.1)
    wide = {"day": 0.18, "dusk": 0.55, "night": 0.26}[scene.time]
    color = _mix(color, sun.expand_as(color), (wide * torch.exp(-far / 0.42)).expand(shape))
    if scene.time == "night":
        thick = {"clear": 1.0, "clouds": 0.5, "mist": 0.25, "aurora": 1.0}[scene.weather]
        light = thick * _step(up, 0.05, 0.4) * _stars(x + 0.02 * view.camera, y, view.t, view.pixel)
        color = color + light[..., None].expand(*shape, 1)
    if scene.weather == "aurora":
        color = color + 0.62 * _aurora(scene, x + 0.1 * view.camera, y, view.t)
    radius = {"day": 0.10, "dusk": 0.15, "night": 0.10}[scene.time]
    disc = _step(radius - far, -0.012 - view.pixel, 0.012 + view.pixel)
    color = _mix(color, (0.35 * sun + 0.65).expand_as(color), (0.9 * disc).expand(shape))
    if scene.weather == "clouds":
        white = {"day": (0.98, 0.98, 0.98), "dusk": (0.98, 0.62, 0.50),
                 "night": (0.16, 0.21, 0.36)}[scene.time]  # fmt: skip
        dense = _clouds(scene, x + 0.12 * view.camera, y, view.t)
        dense = dense * _step(up, 0.06, 0.30)
        color = _mix(color, _rgb(white, x).expand_as(color), 0.85 * dense)
    return color


def _ridge(scene: Scene, x: Tensor, layer: int) -> Tensor:
    """Height of one line of hills."""
    u = _numbers(scene.seed, 4, f"hills{layer}")
    wave = torch.sin((1.3 + 0.5 * layer) * x + 6.28 * u[0])
    wave = wave + 0.45 * torch.sin((2.9 + 0.8 * layer) * x + 6.28 * u[1])
    return HORIZON + 0.20 - 0.085 * layer + (0.07 - 0.012 * layer) * wave


def far(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Sky with its hills: what lies above the horizon."""
    color = sky(scene, view, x, y)
    low, hill = _rgb(SKIES[scene.time][2], x), _rgb(HILLS[scene.time], x)
    misty = scene.weather == "mist"
    for layer in range(3):
        shifted = x + (0.12 + 0.12 * layer) * view.camera
        ridge = _ridge(scene, shifted, layer)
        cover = _step(ridge - y, -EDGE_PX * view.pixel, EDGE_PX * view.pixel)
        near = (0.34, 0.58, 0.82)[layer] * (0.55 if misty else 1.0)
        down = _step(ridge - y, 0.0, 0.22)  # mist lies in the valleys
        depth = near * (1 - (0.75 if misty else 0.45) * down)
        body = _mix(low.expand_as(color), hill.expand_as(color), depth.expand(color.shape[:-1]))
        color = _mix(color, body, cover.expand(color.shape[:-1]))
    if misty:
        veil = 0.72 * torch.exp(-(((y - HORIZON - 0.03) / 0.16) ** 2))
        wave = 0.8 + 0.2 * torch.sin(1.7 * x + 0.4 * view.t) * torch.cos(5 * y)
        color = _mix(color, low.expand_as(color), (veil * wave).expand(color.shape[:-1]))
    return color


# ---------------------------------------------------------------------------------------- ground


def _depth(y: Tensor) -> Tensor:
    """Distance of the ground seen at height y; 1 at the bottom of a square picture."""
    return (1 + HORIZON) / (HORIZON - y).clamp(min=0.012)


def _wood(_: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Boards that run towards the horizon, with seams and grain."""
    z = _depth(y)
    across, per_pixel = (x + view.camera) * z, z * view.pixel
    width = 0.36
    board = torch.floor(across / width)
    tone = torch.frac((torch.sin(board * 12.99) * 437.58).abs())
    place = across / width - board
    seam_px = 0.5 - (place - 0.5).abs()  # share of the board's width to the seam
    seam_width = 0.02 + 1.0 * per_pixel / width
    seam = (0.02 / seam_width) ** 0.5 * torch.exp(-((seam_px / seam_width) ** 2))
    passed = lens(2.0 * per_pixel / width)  # far away the boards merge
    bend = 0.35 * torch.sin(2.1 * z + 6 * tone) + 0.18 * torch.sin(5.3 * z + 9 * tone)
    grain = torch.zeros(())
    for frequency, size in ((9.0, 0.5), (37.0, 1.0), (61.0, 0.8)):
        wave = torch.sin(2 * math.pi * frequency * (across + 0.05 * bend) + 20 * tone)
        grain = grain + size * wave * lens(frequency * per_pixel)
    light = (1 + 0.20 * (tone - 0.5) * passed) * (1 + 0.075 * grain) * (1 - 0.55 * seam * passed)
    return light[..., None] * _rgb(GROUNDS["wood"], x)


def _sand(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Dunes with the ripples that wind leaves."""
    z = _depth(y)
    across = (x + view.camera) * z
    u = _numbers(scene.seed, 4, "sand")
    dune = torch.sin(1.1 * across + 2.0 * z + 6.28 * u[0]) + 0.6 * torch.sin(
        2.3 * across - 1.2 * z + 6.28 * u[1]
    )
    total = 0.10 * dune
    for frequency, size in ((7.0, 0.35), (19.0, 0.8)):
        wave = frequency * (z * 0.9 + 0.10 * torch.sin(2.2 * across + 6.28 * u[2])
                            + 0.04 * torch.sin(5.1 * across))  # fmt: skip
        steep = frequency * 0.9 * z * z * view.pixel  # dz/dy grows with distance
        total = total + 0.075 * size * torch.sin(2 * math.pi * wave) * lens(steep)
    return (1 + total)[..., None] * _rgb(GROUNDS["sand"], x)


def _grass(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """A meadow: soft waves of wind, and blades where the picture is large enough."""
    z = _depth(y)
    across, per_pixel = (x + view.camera) * z, z * view.pixel
    u = _numbers(scene.seed, 3, "grass")
    wind = torch.sin(1.7 * across + 1.9 * z - 1.1 * view.t + 6.28 * u[0])
    wind = wind + 0.6 * torch.sin(3.1 * across - 2.3 * z - 0.8 * view.t + 6.28 * u[1])
    lean = 0.035 * torch.sin(2.4 * across + 3.0 * z - 1.4 * view.t)
    blades = torch.zeros(())
    for frequency, size in ((23.0, 0.6), (41.0, 1.0)):
        row = torch.sin(2 * math.pi * frequency * (across + lean + 0.02 * torch.sin(9 * z)))
        tuft = 0.6 + 0.4 * torch.sin(11.0 * z + 7 * torch.sin(3.0 * across))
        blades = blades + size * row * tuft * lens(frequency * per_pixel)
    light = 1 + 0.10 * wind + 0.13 * blades
    return light[..., None] * _rgb(GROUNDS["grass"], x)


def ripples(scene: Scene, view: View, x: Tensor, y: Tensor, count: int = 4) -> Tensor:
    """Slope of the water towards the viewer, from its `count` longest waves."""
    z = _depth(y)
    across = (x + view.camera) * z
    u = _numbers(scene.seed, 6, "ripples")
    total = torch.zeros(())
    for i, (frequency, size, slant) in enumerate(
        ((0.9, 0.7, 0.35), (2.3, 0.8, -0.5), (6.5, 0.6, 0.3), (14.0, 0.9, -0.2))[:count]
    ):
        wave = frequency * (z + slant * across + 0.06 * torch.sin(3 * across + i))
        steep = frequency * z * z * view.pixel / 0.92
        phase = 6.28 * u[i] - (0.9 + 0.35 * i) * view.t * 2
        total = total + size * torch.sin(2 * math.pi * wave + phase) * lens(steep)
    return total


def _lit(scene: Scene, color: Tensor, y: Tensor) -> Tensor:
    """Ground in the light of the sky, with haze towards the horizon."""
    low, sun = _rgb(SKIES[scene.time][2], y), 0.3 + 0.7 * _rgb(SUNS[scene.time], y)
    middle = _rgb(SKIES[scene.time][1], y)
    around = 0.45 + 0.55 * middle / middle.max()
    light = AMBIENT[scene.time] * around + 0.62 * DIRECT[scene.time] * sun
    color = color * light * 1.12
    haze = torch.exp((y - HORIZON) / (0.42 if scene.weather == "mist" else 0.16))
    strength = 0.95 if scene.weather == "mist" else 0.75
    share = (strength * haze.clamp(max=1)).expand(color.shape[:-1])
    return _mix(color, low.expand_as(color), share)


def _water(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """The far side mirrored, with ripples, darker towards the viewer."""
    slope = ripples(scene, view, x, y)
    near = (HORIZON - y).clamp(min=0)
    mirrored = 2 * HORIZON - y + slope * (0.012 + 0.075 * near)
    color = far(scene, view, x + 0.012 * slope, mirrored.clamp(min=HORIZON + 0.002))
    deep = _rgb(GROUNDS["water"], x) * (AMBIENT[scene.time] + DIRECT[scene.time])
    share = (0.12 + 0.42 * _step(near, 0.0, 0.9) - 0.05 * slope).clamp(0, 0.8)
    return _mix(color, deep.expand_as(color), share.expand(color.shape[:-1]))


def ground(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Colours below the horizon."""
    if scene.ground == "water":
        return _water(scene, view, x, y)
    paint = {"wood": _wood, "sand": _sand, "grass": _grass}[scene.ground]
    return _lit(scene, paint(scene, view, x, y), y)


# ---------------------------------------------------------------------------------------- solids


def _star_distance(x: Tensor, y: Tensor, outer: float, inner: float) -> Tensor:
    """Signed distance to a five-pointed star."""
    sector = math.pi / 5
    angle = torch.atan2(x, y) % (2 * sector)
    angle = torch.minimum(angle, 2 * sector - angle)
    length = torch.hypot(x, y)
    px, py = length * torch.cos(angle), length * torch.sin(angle)
    ex, ey = inner * math.cos(sector) - outer, inner * math.sin(sector)
    along = (((px - outer) * ex + py * ey) / (ex**2 + ey**2)).clamp(0, 1)
    distance = torch.hypot(px - outer - along * ex, py - along * ey)
    inside = (px - outer) * ey - py * ex
    return torch.where(inside > 0, distance, -distance)


def _polygon_distance(x: Tensor, y: Tensor, corners: tuple[tuple[float, float], ...]) -> Tensor:
    """Signed distance to a convex polygon, corners anticlockwise."""
    best, inside = torch.full((), 1e9, device=x.device), torch.full((), -1e9, device=x.device)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2)).clamp(0, 1)
        best = torch.minimum(best, torch.hypot(x - ax - along * ex, y - ay - along * ey))
        side = ((x - ax) * ey - (y - ay) * ex) / math.hypot(ex, ey)
        inside = torch.maximum(inside, side)
    return torch.where(inside > 0, best, -best)


def distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the outline of a solid of radius 1 that stands on y = -1."""
    if shape == "ball":
        return torch.hypot(x, y) - 1
    if shape == "ring":
        return (torch.hypot(x, y) - 0.70).abs() - 0.30
    if shape == "cube":
        side, round_ = 0.80, 0.26
        qx, qy = x.abs() - side + round_, (y + 0.16).abs() - side - 0.04 + round_
        out = torch.hypot(qx.clamp(min=0), qy.clamp(min=0))
        return out + torch.maximum(qx, qy).clamp(max=0) - round_
    if shape == "cone":
        return _polygon_distance(x, y, ((-0.72, -0.82), (0.72, -0.82), (0.0, 0.72))) - 0.18
    return _star_distance(x, y + 0.06, 1.0, 0.47) - 0.10


def normals(shape: str, x: Tensor, y: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit normals of the front of a solid at points inside its outline."""
    if shape == "ball":
        z = (1 - x**2 - y**2).clamp(min=0).sqrt()
        return x, y, z
    bevel = {"ring": 0.30, "cube": 0.42, "cone": 0.55, "star": 0.38}[shape]
    step = 0.02
    gx = (distance(shape, x + step, y) - distance(shape, x - step, y)) / (2 * step)
    gy = (distance(shape, x, y + step) - distance(shape, x, y - step)) / (2 * step)
    lean = (1 + d / bevel).clamp(0, 1)  # 1 at the outline, 0 on the flat front
    lean = lean if shape == "ring" else 0.92 * lean * lean * (3 - 2 * lean)
    if shape == "cone":
        lean = 0.25 + 0.75 * lean
    size = torch.hypot(gx, gy).clamp(min=1e-3)
    gx, gy = gx / size * lean, gy / size * lean
    return gx, gy, (1 - gx**2 - gy**2).clamp(min=1e-4).sqrt()


def pattern(body: Body, x: Tensor, y: Tensor, nz: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """(stripe 0-1, brightness of the weave) at points of a solid; `pixel` in its radii."""
    if body.texture == "striped":
        v = y + 0.18 * x * x
        wave = torch.cos(2 * math.pi * v / 0.62 + 0.6)
        return _step(wave * 0.62 / (2 * math.pi) / (1.2 * pixel + 0.02), 0.2, 1.2), torch.ones(())
    if body.texture == "woven":
        frequency = 13.0
        bulge = 1 + 0.25 * (1 - nz)
        a, b = 2 * math.pi * frequency * x * bulge, 2 * math.pi * frequency * y * bulge
        fine = torch.sin(a) * torch.sin(b) + 0.35 * torch.sin(a / 2) * torch.sin(b / 2)
        passed = lens(1.414 * frequency * pixel / nz.clamp(min=0.45))
        return torch.zeros(()), 1 + 0.30 * fine * passed * _step(nz, 0.2, 0.6)
    return torch.zeros(()), torch.ones(())


def shaded(
    scene: Scene, body: Body, view: View, x: Tensor, y: Tensor, soft: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(colours, mask) of a solid at points of the canvas; `soft` half sides widen its edge."""
    cx, cy, radius = trajectory(body, view.t)
    px, py = (x - cx + view.camera) / radius, (y - cy) / radius
    d = distance(body.shape, px, py)
    edge = EDGE_PX / 2 * view.pixel + soft
    mask = _step(-d * radius, -edge, edge)
    nx, ny, nz = normals(body.shape, px, py, d)
    rolled = 0.0 * view.t
    if body.motion in ("left", "right") and body.shape in ("ball", "ring"):
        rolled = (cx - body.x) / radius
    turned_x = px * torch.cos(rolled) - py * torch.sin(rolled)
    turned_y = px * torch.sin(rolled) + py * torch.cos(rolled)
    stripe, weave = pattern(body, turned_x, turned_y, nz, view.pixel / radius)
    base = _rgb(COLORS[body.color], x)
    other = _rgb((0.30, 0.32, 0.40) if body.color == "white" else (0.96, 0.94, 0.90), x)
    albedo = _mix(base, other, stripe.expand(nz.shape)) * weave.expand(nz.shape)[..., None]
    if body.finish == "glowing":
        edge, core = albedo * 0.80, albedo * 0.55 + 0.50
        return _mix(edge, core, 0.95 * nz.expand(mask.shape) ** 2.5), mask
    angle = scene.light + 0.10 * view.t
    lx, ly, lz = torch.sin(angle) * 0.62, torch.full_like(angle, 0.60), torch.cos(angle) * 0.62
    norm = (lx**2 + ly**2 + lz**2).sqrt()
    lx, ly, lz = lx / norm, ly / norm, lz / norm
    facing = (nx * lx + ny * ly + nz * lz + 0.25).clamp(min=0) / 1.25
    sun, mid = 0.45 + 0.55 * _rgb(SUNS[scene.time], x), _rgb(SKIES[scene.time][1], x)
    floor = _rgb(GROUNDS[scene.ground], x)
    around = _mix(floor, 0.55 + 0.45 * mid / mid.max(), (0.5 + 0.5 * ny))
    light = AMBIENT[scene.time] * around + DIRECT[scene.time] * 1.25 * facing[..., None] * sun
    occlusion = 0.62 + 0.38 * _step(py, -1.0, -0.2)  # darker near the ground
    color = albedo * light * occlusion[..., None]
    hx, hy, hz = lx, ly, lz + 1
    norm = (hx**2 + hy**2 + hz**2).sqrt()
    shine = ((nx * hx + ny * hy + nz * hz) / norm).clamp(min=0) ** 28
    rim = (1 - nz).clamp(0, 1) ** 3
    color = color + (0.42 * DIRECT[scene.time] * shine)[..., None] * sun
    color = _mix(color, mid.expand_as(color), 0.28 * rim * _step(ny, -0.4, 0.6))
    return color, mask


def _shadow(scene: Scene, body: Body, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Darkness 0-1 on the ground below a solid."""
    cx, cy, radius = trajectory(body, view.t)
    height = (cy - radius - body.rest).clamp(min=0)
    wide = radius * (0.95 + 0.5 * height)
    angle = scene.light + 0.10 * view.t
    sx = cx - view.camera - torch.sin(angle) * (0.28 * radius + 0.35 * height)
    flat = 0.20 + 0.06 * height
    far_ = torch.hypot((x - sx) / wide, (y - body.rest - 0.01) / (wide * flat))
    soft = torch.exp(-((far_ / 0.95) ** 2.6))
    near = torch.hypot((x - cx + view.camera) / (0.55 * radius), (y - body.rest) / (0.10 * radius))
    contact = torch.exp(-(near**2))
    strength = {"day": 0.58, "dusk": 0.50, "night": 0.45}[scene.time]
    return strength * soft / (1 + 2.2 * height) + 0.4 * contact * torch.exp(-height / 0.06)


def _glow(body: Body, view: View, x: Tensor, y: Tensor, flat: float) -> Tensor:
    """Strength of the light around a glowing solid; `flat` < 1 squeezes it onto the ground."""
    cx, cy, radius = trajectory(body, view.t)
    level = cy if flat == 1 else torch.full_like(cy, body.rest)
    d = torch.hypot(x - cx + view.camera, (y - level) / flat) / radius
    return torch.exp(-(d**2) / 2.6) + 0.35 * torch.exp(-d / 1.6)


def _clear_of(color: Tensor, light: Tensor) -> Tensor:
    """Add light without burning out: 1 - (1 - a)(1 - b)."""
    return 1 - (1 - color.clamp(0, 1)) * (1 - light.clamp(0, 1))


def picture(scene: Scene, view: View) -> Tensor:
    """Colours (T, H, W, 3), 0-1, of a view."""
    x, y = view.x, view.y
    cover = _step(HORIZON - y, -1.5 * view.pixel, 1.5 * view.pixel)
    shape = torch.broadcast_shapes(x.shape, y.shape, view.t.shape)
    color = torch.zeros(*shape, 3, device=x.device)
    top = int((y > HORIZON - 2 * view.pixel).sum())  # rows that show what is far
    bottom = int((y > HORIZON + 2 * view.pixel).sum())
    if top:
        color[:, :top] = far(scene, view, x, y[:, :top])
    if bottom < shape[1]:
        low = ground(scene, view, x, y[:, bottom:])
        for body in scene.bodies:
            low = _on_ground(scene, body, view, low, y[:, bottom:])
        color[:, bottom:] = _mix(color[:, bottom:], low, cover[:, bottom:].expand(low.shape[:-1]))
    for body in scene.bodies:
        if body.finish == "glowing":
            strength = 0.30 if scene.time == "day" else 0.60
            light = (strength * _glow(body, view, x, y, 1.0))[..., None] * _rgb(
                COLORS[body.color], x
            )
            color = _clear_of(color, light)
        _paint(scene, body, view, color)
    return color.clamp(0, 1)


def _on_ground(scene: Scene, body: Body, view: View, low: Tensor, y: Tensor) -> Tensor:
    """Shadow, light and mirror image of a solid on the ground at rows y."""
    x = view.x
    if scene.ground != "water" and body.finish != "glowing":
        dark = _rgb(SKIES[scene.time][0], x) * 0.22
        low = _mix(low, dark.expand_as(low), _shadow(scene, body, view, x, y).clamp(max=0.85))
    if body.finish == "glowing":
        light = (0.55 * _glow(body, view, x, y, 0.42))[..., None] * _rgb(COLORS[body.color], x)
        low = _clear_of(low, light * (0.4 if scene.ground == "water" else 1.0))
    if scene.ground in ("water", "wood"):
        wet = scene.ground == "water"
        slope = ripples(scene, view, x, y, 3) if wet else 0 * y
        below = (body.rest - y).clamp(min=0)
        px, py = x + 0.022 * slope, 2 * body.rest - y + slope * (0.012 + 0.10 * below)
        color, mask = shaded(scene, body, view, px, py, 0.02 if wet else 0.01)
        share = 0.74 if wet else 0.16
        fade = torch.exp(-below / (1.1 if wet else 0.35))
        inside = _step(body.rest + 0.03 - y, 0.0, 0.04)
        low = _mix(low, color * 0.92, (share * mask * fade * inside).expand(low.shape[:-1]))
    return low


def _paint(scene: Scene, body: Body, view: View, color: Tensor) -> None:
    """Paint a solid over a picture, in place, only where it ever is."""
    cx, cy, radius = trajectory(body, view.t)
    cx = cx - view.camera
    reach = 1.25 * radius
    columns = ((view.x > (cx - reach).min()) & (view.x < (cx + reach).max())).flatten().nonzero()
    rows = ((view.y > (cy - reach).min()) & (view.y < (cy + reach).max())).flatten().nonzero()
    if not len(columns) or not len(rows):
        return
    c = slice(int(columns[0]), int(columns[-1]) + 1)
    r = slice(int(rows[0]), int(rows[-1]) + 1)
    own, mask = shaded(scene, body, view, view.x[..., c], view.y[:, r])
    color[:, r, c] = _mix(color[:, r, c], own, mask)


def render(
    scenes: list[Scene],
    frames: int,
    size: int | tuple[int, int],
    fps: float = 24,
    first_frame: int = 0,
    crop: tuple[int, int, int, int] | None = None,
    device: str | None = None,
) -> Tensor:
    """Pixels of scenes, uint8 (B, frames, H, W, 3); `size` is a side of a square or (height,
    width). `crop` = (top, left, height, width) in pixels renders only that window. The device is torch's
    default one."""
    height, width = (size, size) if isinstance(size, int) else size
    top, left, rows, columns = crop or (0, 0, height, width)
    pixel = 2 / min(height, width)
    device = device or str(torch.get_default_device())
    x = (torch.arange(left, left + columns, device=device) + 0.5 - width / 2) * pixel
    y = (height / 2 - 0.5 - torch.arange(top, top + rows, device=device)) * pixel
    t = ((first_frame + torch.arange(frames, device=device)) / fps)[:, None, None]
    out = torch.empty(len(scenes), frames, rows, columns, 3, dtype=torch.uint8, device=device)
    for clip, scene in zip(out, scenes, strict=True):
        view = View(x[None, None], y[None, :, None], t, camera_path(scene, t), pixel)
        clip.copy_(picture(scene, view).mul(255).add_(0.5).to(torch.uint8))
    return out
