"""Pixels of `scenery.Scene`: an analytic renderer of soft light in torch, for any size and device.

Everything is a formula of place and time, so that any window of any frame at any size can be
rendered alone. Detail finer than about three pixels fades away as behind a soft lens, so that a
small picture is what a reduced large one looks like.
"""

from __future__ import annotations

import math

import torch
from scenery import COLORS, HORIZON, Body, Scene, camera_path, trajectory
from scenery_light import (
    AMBIENT,
    DIRECT,
    EDGE_PX,
    GROUNDS,
    HILLS,
    LENS_PX,
    SKIES,
    SUN_HEIGHTS,
    SUNS,
    View,
    lens,
    mix,
    numbers,
    rgb,
    step,
)
from scenery_solids import glow, shaded, shadow
from torch import Tensor

# ------------------------------------------------------------------------------------------- sky


def _clouds(scene: Scene, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Density 0-1 of drifting clouds, flatter towards the horizon."""
    u = numbers(scene.seed, 24, "clouds")
    depth = 1 / (y - HORIZON + 0.35).clamp(min=0.05)
    a, b = x * depth + 0.10 * t, 2.2 * depth
    total = torch.zeros(())
    for i, (scale, weight) in enumerate(((1.0, 1.0), (1.9, 0.6), (3.3, 0.36), (5.4, 0.2))):
        for j in range(2):
            angle = (0.35 + 0.5 * j) * (1 if (i + j) % 2 else -1)
            wave = scale * (math.cos(angle) * a * 1.7 + math.sin(angle) * b * 2.4)
            warp = 0.9 * torch.sin(0.7 * scale * a + 6.28 * u[4 * i + j + 2])
            total = total + weight * torch.sin(wave + warp + 6.28 * u[4 * i + j] + 0.12 * t * scale)
    return step(total, -0.5, 2.2)


def _aurora(scene: Scene, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Light (..., 3) of two curtains."""
    u = numbers(scene.seed, 12, "aurora")
    out = torch.zeros((*torch.broadcast_shapes(x.shape, y.shape, t.shape), 3), device=x.device)
    green, violet = rgb((0.16, 0.95, 0.55), x), rgb((0.55, 0.25, 0.85), x)
    for i in range(2):
        base = 0.22 + 0.24 * i + 0.10 * torch.sin(1.9 * x + 6.28 * u[i] + 0.5 * t)
        base = base + 0.05 * torch.sin(4.1 * x + 6.28 * u[i + 2] - 0.8 * t)
        rays = 0.62 + 0.24 * torch.sin(9 * x + 6.28 * u[i + 4] + 0.9 * t)
        rays = rays + 0.14 * torch.sin(21 * x + 6.28 * u[i + 6] - 1.3 * t)
        up = y - base
        profile = step(up, -0.06, 0.05) * torch.exp(-up.clamp(min=0) / (0.30 - 0.06 * i))
        strength = (0.75 - 0.25 * i) * profile * rays
        out = out + strength[..., None] * mix(
            green.expand_as(out), violet.expand_as(out), step(up, 0.0, 0.5)
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
    top, middle, low = (rgb(c, x) for c in SKIES[scene.time])
    up = y - HORIZON
    shape = torch.broadcast_shapes(x.shape, y.shape, view.t.shape)
    color = mix(mix(low, middle, step(up, -0.05, 0.5)), top, step(up, 0.25, 1.25))
    color = color.expand(*shape, 3)
    sun = rgb(SUNS[scene.time], x)
    sx, sy = scene.sun - 0.05 * view.camera, SUN_HEIGHTS[scene.time]
    far = torch.hypot(x - sx, (y - sy) * 1.1)
    wide = {"day": 0.18, "dusk": 0.55, "night": 0.26}[scene.time]
    color = mix(color, sun.expand_as(color), (wide * torch.exp(-far / 0.42)).expand(shape))
    if scene.time == "night":
        thick = {"clear": 1.0, "clouds": 0.5, "mist": 0.25, "aurora": 1.0}[scene.weather]
        light = thick * step(up, 0.05, 0.4) * _stars(x + 0.02 * view.camera, y, view.t, view.pixel)
        color = color + light[..., None].expand(*shape, 1)
    if scene.weather == "aurora":
        color = color + 0.62 * _aurora(scene, x + 0.1 * view.camera, y, view.t)
    radius = {"day": 0.10, "dusk": 0.15, "night": 0.10}[scene.time]
    disc = step(radius - far, -0.012 - view.pixel, 0.012 + view.pixel)
    color = mix(color, (0.35 * sun + 0.65).expand_as(color), (0.9 * disc).expand(shape))
    if scene.weather == "clouds":
        white = {"day": (0.98, 0.98, 0.98), "dusk": (0.98, 0.62, 0.50),
                 "night": (0.16, 0.21, 0.36)}[scene.time]  # fmt: skip
        dense = _clouds(scene, x + 0.12 * view.camera, y, view.t)
        dense = dense * step(up, 0.06, 0.30)
        color = mix(color, rgb(white, x).expand_as(color), 0.85 * dense)
    return color


def ridge_height(scene: Scene, x: Tensor, layer: int) -> Tensor:
    """Height of one line of hills."""
    u = numbers(scene.seed, 4, f"hills{layer}")
    wave = torch.sin((1.3 + 0.5 * layer) * x + 6.28 * u[0])
    wave = wave + 0.45 * torch.sin((2.9 + 0.8 * layer) * x + 6.28 * u[1])
    return HORIZON + 0.20 - 0.085 * layer + (0.07 - 0.012 * layer) * wave


def far(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Sky with its hills: what lies above the horizon."""
    color = sky(scene, view, x, y)
    low, hill = rgb(SKIES[scene.time][2], x), rgb(HILLS[scene.time], x)
    misty = scene.weather == "mist"
    for layer in range(3):
        shifted = x + (0.12 + 0.12 * layer) * view.camera
        ridge = ridge_height(scene, shifted, layer)
        cover = step(ridge - y, -EDGE_PX * view.pixel, EDGE_PX * view.pixel)
        near = (0.34, 0.58, 0.82)[layer] * (0.55 if misty else 1.0)
        down = step(ridge - y, 0.0, 0.22)  # mist lies in the valleys
        depth = near * (1 - (0.75 if misty else 0.45) * down)
        body = mix(low.expand_as(color), hill.expand_as(color), depth.expand(color.shape[:-1]))
        color = mix(color, body, cover.expand(color.shape[:-1]))
    if misty:
        veil = 0.72 * torch.exp(-(((y - HORIZON - 0.03) / 0.16) ** 2))
        wave = 0.8 + 0.2 * torch.sin(1.7 * x + 0.4 * view.t) * torch.cos(5 * y)
        color = mix(color, low.expand_as(color), (veil * wave).expand(color.shape[:-1]))
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
    return light[..., None] * rgb(GROUNDS["wood"], x)


def _sand(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Dunes with the ripples that wind leaves."""
    z = _depth(y)
    across = (x + view.camera) * z
    u = numbers(scene.seed, 4, "sand")
    dune = torch.sin(1.1 * across + 2.0 * z + 6.28 * u[0]) + 0.6 * torch.sin(
        2.3 * across - 1.2 * z + 6.28 * u[1]
    )
    total = 0.10 * dune
    for frequency, size in ((7.0, 0.35), (19.0, 0.8)):
        wave = frequency * (z * 0.9 + 0.10 * torch.sin(2.2 * across + 6.28 * u[2])
                            + 0.04 * torch.sin(5.1 * across))  # fmt: skip
        steep = frequency * 0.9 * z * z * view.pixel  # dz/dy grows with distance
        total = total + 0.075 * size * torch.sin(2 * math.pi * wave) * lens(steep)
    return (1 + total)[..., None] * rgb(GROUNDS["sand"], x)


def _grass(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """A meadow: soft waves of wind, and blades where the picture is large enough."""
    z = _depth(y)
    across, per_pixel = (x + view.camera) * z, z * view.pixel
    u = numbers(scene.seed, 3, "grass")
    wind = torch.sin(1.7 * across + 1.9 * z - 1.1 * view.t + 6.28 * u[0])
    wind = wind + 0.6 * torch.sin(3.1 * across - 2.3 * z - 0.8 * view.t + 6.28 * u[1])
    lean = 0.035 * torch.sin(2.4 * across + 3.0 * z - 1.4 * view.t)
    blades = torch.zeros(())
    for frequency, size in ((23.0, 0.6), (41.0, 1.0)):
        row = torch.sin(2 * math.pi * frequency * (across + lean + 0.02 * torch.sin(9 * z)))
        tuft = 0.6 + 0.4 * torch.sin(11.0 * z + 7 * torch.sin(3.0 * across))
        blades = blades + size * row * tuft * lens(frequency * per_pixel)
    light = 1 + 0.10 * wind + 0.13 * blades
    return light[..., None] * rgb(GROUNDS["grass"], x)


def ripples(scene: Scene, view: View, x: Tensor, y: Tensor, count: int = 4) -> Tensor:
    """Slope of the water towards the viewer, from its `count` longest waves."""
    z = _depth(y)
    across = (x + view.camera) * z
    u = numbers(scene.seed, 6, "ripples")
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
    low, sun = rgb(SKIES[scene.time][2], y), 0.3 + 0.7 * rgb(SUNS[scene.time], y)
    middle = rgb(SKIES[scene.time][1], y)
    around = 0.45 + 0.55 * middle / middle.max()
    light = AMBIENT[scene.time] * around + 0.62 * DIRECT[scene.time] * sun
    color = color * light * 1.12
    haze = torch.exp((y - HORIZON) / (0.42 if scene.weather == "mist" else 0.16))
    strength = 0.95 if scene.weather == "mist" else 0.75
    share = (strength * haze.clamp(max=1)).expand(color.shape[:-1])
    return mix(color, low.expand_as(color), share)


def _water(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """The far side mirrored, with ripples, darker towards the viewer."""
    slope = ripples(scene, view, x, y)
    near = (HORIZON - y).clamp(min=0)
    mirrored = 2 * HORIZON - y + slope * (0.012 + 0.075 * near)
    color = far(scene, view, x + 0.012 * slope, mirrored.clamp(min=HORIZON + 0.002))
    deep = rgb(GROUNDS["water"], x) * (AMBIENT[scene.time] + DIRECT[scene.time])
    share = (0.12 + 0.42 * step(near, 0.0, 0.9) - 0.05 * slope).clamp(0, 0.8)
    return mix(color, deep.expand_as(color), share.expand(color.shape[:-1]))


def ground(scene: Scene, view: View, x: Tensor, y: Tensor) -> Tensor:
    """Colours below the horizon."""
    if scene.ground == "water":
        return _water(scene, view, x, y)
    paint = {"wood": _wood, "sand": _sand, "grass": _grass}[scene.ground]
    return _lit(scene, paint(scene, view, x, y), y)


# -------------------------------------------------------------------------------------- pictures


def add_light(color: Tensor, light: Tensor) -> Tensor:
    """Add light without burning out: 1 - (1 - a)(1 - b)."""
    return 1 - (1 - color.clamp(0, 1)) * (1 - light.clamp(0, 1))


def picture(scene: Scene, view: View) -> Tensor:
    """Colours (T, H, W, 3), 0-1, of a view."""
    x, y = view.x, view.y
    cover = step(HORIZON - y, -1.5 * view.pixel, 1.5 * view.pixel)
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
        color[:, bottom:] = mix(color[:, bottom:], low, cover[:, bottom:].expand(low.shape[:-1]))
    for body in scene.bodies:
        if body.finish == "glowing":
            strength = 0.30 if scene.time == "day" else 0.60
            light = (strength * glow(body, view, x, y, 1.0))[..., None] * rgb(COLORS[body.color], x)
            color = add_light(color, light)
        _paint(scene, body, view, color)
    return color.clamp(0, 1)


def _on_ground(scene: Scene, body: Body, view: View, low: Tensor, y: Tensor) -> Tensor:
    """Shadow, light and mirror image of a solid on the ground at rows y."""
    x = view.x
    if scene.ground != "water" and body.finish != "glowing":
        dark = rgb(SKIES[scene.time][0], x) * 0.22
        low = mix(low, dark.expand_as(low), shadow(scene, body, view, x, y).clamp(max=0.85))
    if body.finish == "glowing":
        light = (0.55 * glow(body, view, x, y, 0.42))[..., None] * rgb(COLORS[body.color], x)
        low = add_light(low, light * (0.4 if scene.ground == "water" else 1.0))
    if scene.ground in ("water", "wood"):
        wet = scene.ground == "water"
        slope = ripples(scene, view, x, y, 3) if wet else 0 * y
        below = (body.rest - y).clamp(min=0)
        px, py = x + 0.022 * slope, 2 * body.rest - y + slope * (0.012 + 0.10 * below)
        color, mask = shaded(scene, body, view, px, py, 0.02 if wet else 0.01)
        share = 0.74 if wet else 0.16
        fade = torch.exp(-below / (1.1 if wet else 0.35))
        inside = step(body.rest + 0.03 - y, 0.0, 0.04)
        low = mix(low, color * 0.92, (share * mask * fade * inside).expand(low.shape[:-1]))
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
    color[:, r, c] = mix(color[:, r, c], own, mask)


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
    width). `crop` = (top, left, height, width) in pixels renders only that window. The device is
    torch's default one."""
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
