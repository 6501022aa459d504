"""Fit a scene to draft latents, to get the clip of the pocket world that a draft shows.

The encoder is affine and the world analytic: Gauss-Newton steps on the latents of the scene's masks
find position, size and phase, and least squares the colours.
"""

from __future__ import annotations

import dataclasses

import cache
import torch
import world
from torch import Tensor
from vae import Transform

FRAMES = 4  # latent frames
STRIDES = (0.1, 0.04, 0.012)  # of the finite differences, one Gauss-Newton step each
LIMITS = {"x": 0.2, "y": 0.2, "radius": 0.08, "phase": 0.3}
COLOR_RIDGE = 0.02
MAX_TINT = 20  # 8-bit steps by which a fitted colour may differ from the prompt's


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fits scenes to drafts; `weight` (C, 1, 1, 1) weighs squared errors of the latent channels."""

    encode: Transform
    offset: Tensor
    weight: Tensor

    def colors(self, parts: Tensor, rest: Tensor, prior: Tensor) -> Tensor:
        """Ridge estimate of colours (4, 3) around `prior`, for latents `rest` without offset."""
        rows = (parts * self.weight.sqrt()).flatten(2).flatten(0, 1)
        error = (rest * self.weight.sqrt()).flatten() - prior.flatten() @ rows
        gram = rows @ rows.T
        gram = gram + COLOR_RIDGE * gram.diagonal().max() * torch.eye(len(gram))
        return prior + torch.linalg.solve(gram, rows @ error).view(4, 3)

    def parts(self, scene: world.Scene) -> Tensor:
        """Latents of the scene's masks at 256 px."""
        return cache.geometry(self.encode, scene, 256, 8 * FRAMES - 7)

    def step(
        self, draft: Tensor, scene: world.Scene, start: world.Scene, stride: float
    ) -> world.Scene:
        """One Gauss-Newton step of position, size and phase, within `LIMITS` of `start`."""
        parts = self.parts(scene)
        rest = draft - self.offset
        colors = self.colors(parts, rest, cache.palette(scene))
        strides = {n: stride for n in LIMITS if n != "phase" or scene.background == "hills"}
        now = torch.tensordot(colors, parts, 2)
        derivatives = []
        for name, size in strides.items():
            shifted = [
                self.parts(dataclasses.replace(scene, **{name: getattr(scene, name) + d}))
                for d in (size / 2, -size / 2)
            ]
            change = torch.tensordot(colors, shifted[0] - shifted[1], 2)
            derivatives.append((change * self.weight.sqrt()).flatten() / size)
        rows = torch.stack(derivatives)
        error = ((rest - now) * self.weight.sqrt()).flatten()
        gram = rows @ rows.T
        gram = gram + 1e-3 * torch.diag(gram.diagonal())
        deltas = torch.linalg.solve(gram, rows @ error).tolist()
        values = {}
        for name, delta in zip(strides, deltas, strict=True):
            value, base, limit = getattr(scene, name) + delta, getattr(start, name), LIMITS[name]
            values[name] = min(max(value, base - limit), base + limit)
        return dataclasses.replace(scene, **values)

    def match_colors(self, draft: Tensor, scene: world.Scene) -> world.Scene:
        """A fitted scene with object and background in the colours of the draft."""
        colors = self.colors(self.parts(scene), draft - self.offset, cache.palette(scene)) * 127.5
        background, object_color = colors[cache.BACKGROUND], colors[cache.OBJECT]
        plain = dataclasses.replace(scene, tint=(0, 0, 0), background_tint=(0, 0, 0))
        tint, background_tint = (
            (fitted - prompted).round().int().clamp(-MAX_TINT, MAX_TINT).tolist()
            for fitted, prompted in (
                (object_color, world.object_color(plain)),
                (background, world.background_color(plain)),
            )
        )  # fmt: skip
        return dataclasses.replace(plain, tint=tuple(tint), background_tint=tuple(background_tint))

    def __call__(self, draft: Tensor, scene: world.Scene) -> tuple[Tensor, world.Scene, float]:
        """Fit a scene to a draft (C, 4, 8, 8), starting from `scene`.

        Returns its latents (C, 4, 16, 16) at 512 px, the scene, and the unexplained share of the
        draft's variance.
        """
        start = scene
        for stride in STRIDES:
            scene = self.step(draft, scene, start, stride)
        parts, rest = self.parts(scene), draft - self.offset
        colors = self.colors(parts, rest, cache.palette(scene))
        error = (torch.tensordot(colors, parts, 2) - rest).square() * self.weight
        variance = (rest - rest.mean((1, 2, 3), keepdim=True)).square() * self.weight
        large = cache.geometry(self.encode, scene, 512)[:, :, :, :FRAMES]
        high = torch.tensordot(colors, large, 2) + self.offset
        return high, scene, float(error.mean() / variance.mean())
