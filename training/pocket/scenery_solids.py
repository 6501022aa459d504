"""The solids of the second world: outlines, normals, patterns, shading, shadow and glow."""

from __future__ import annotations

import math

import torch
from scenery import COLORS, Body, Scene, trajectory
from scenery_light import (
    AMBIENT,
    DIRECT,
    EDGE_PX,
    GROUNDS,
    SKIES,
    SUNS,
    View,
    lens,
    mix,
    rgb,
    step,
)
from torch import Tensor


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
    near = 0.02
    gx = (distance(shape, x + near, y) - distance(shape, x - near, y)) / (2 * near)
    gy = (distance(shape, x, y + near) - distance(shape, x, y - near)) / (2 * near)
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
        return step(wave * 0.62 / (2 * math.pi) / (1.2 * pixel + 0.02), 0.2, 1.2), torch.ones(())
    if body.texture == "woven":
        frequency = 11.0
        bulge = 1 + 0.25 * (1 - nz)
        a, b = 2 * math.pi * frequency * x * bulge, 2 * math.pi * frequency * y * bulge
        fine = torch.sin(a) * torch.sin(b)
        passed = lens(1.414 * frequency * pixel / nz.clamp(min=0.45))
        return torch.zeros(()), 1 + 0.60 * fine * passed * step(nz, 0.2, 0.6)
    return torch.zeros(()), torch.ones(())


def shaded(
    scene: Scene, body: Body, view: View, x: Tensor, y: Tensor, soft: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(colours, mask) of a solid at points of the canvas; `soft` half sides widen its edge."""
    cx, cy, radius = trajectory(body, view.t)
    px, py = (x - cx + view.camera) / radius, (y - cy) / radius
    d = distance(body.shape, px, py)
    edge = EDGE_PX / 2 * view.pixel + soft
    mask = step(-d * radius, -edge, edge)
    nx, ny, nz = normals(body.shape, px, py, d)
    rolled = 0.0 * view.t
    if body.motion in ("left", "right") and body.shape in ("ball", "ring"):
        rolled = (cx - body.x) / radius
    turned_x = px * torch.cos(rolled) - py * torch.sin(rolled)
    turned_y = px * torch.sin(rolled) + py * torch.cos(rolled)
    stripe, weave = pattern(body, turned_x, turned_y, nz, view.pixel / radius)
    base = rgb(COLORS[body.color], x)
    other = rgb((0.30, 0.32, 0.40) if body.color == "white" else (0.96, 0.94, 0.90), x)
    albedo = mix(base, other, stripe.expand(nz.shape)) * weave.expand(nz.shape)[..., None]
    if body.finish == "glowing":
        edge, core = albedo * 0.80, albedo * 0.55 + 0.50
        return mix(edge, core, 0.95 * nz.expand(mask.shape) ** 2.5), mask
    angle = scene.light + 0.10 * view.t
    lx, ly, lz = torch.sin(angle) * 0.62, torch.full_like(angle, 0.60), torch.cos(angle) * 0.62
    norm = (lx**2 + ly**2 + lz**2).sqrt()
    lx, ly, lz = lx / norm, ly / norm, lz / norm
    facing = (nx * lx + ny * ly + nz * lz + 0.25).clamp(min=0) / 1.25
    sun, mid = 0.45 + 0.55 * rgb(SUNS[scene.time], x), rgb(SKIES[scene.time][1], x)
    floor = rgb(GROUNDS[scene.ground], x)
    around = mix(floor, 0.55 + 0.45 * mid / mid.max(), (0.5 + 0.5 * ny))
    light = AMBIENT[scene.time] * around + DIRECT[scene.time] * 1.25 * facing[..., None] * sun
    occlusion = 0.62 + 0.38 * step(py, -1.0, -0.2)  # darker near the ground
    color = albedo * light * occlusion[..., None]
    hx, hy, hz = lx, ly, lz + 1
    norm = (hx**2 + hy**2 + hz**2).sqrt()
    shine = ((nx * hx + ny * hy + nz * hz) / norm).clamp(min=0) ** 28
    rim = (1 - nz).clamp(0, 1) ** 3
    color = color + (0.42 * DIRECT[scene.time] * shine)[..., None] * sun
    color = mix(color, mid.expand_as(color), 0.28 * rim * step(ny, -0.4, 0.6))
    return color, mask


def shadow(scene: Scene, body: Body, view: View, x: Tensor, y: Tensor) -> Tensor:
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


def glow(body: Body, view: View, x: Tensor, y: Tensor, flat: float) -> Tensor:
    """Strength of the light around a glowing solid; `flat` < 1 squeezes it onto the ground."""
    cx, cy, radius = trajectory(body, view.t)
    level = cy if flat == 1 else torch.full_like(cy, body.rest)
    d = torch.hypot(x - cx + view.camera, (y - level) / flat) / radius
    return torch.exp(-(d**2) / 2.6) + 0.35 * torch.exp(-d / 1.6)
