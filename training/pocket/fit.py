"""Solving for the scene that explains a draft: which clip of the world do these latents mean?

The encoder is affine and the world analytic, so place, size and phase follow from Gauss-Newton
steps on the latents of the scene's masks, and the colours from least squares.
"""

from __future__ import annotations

import dataclasses

import cache
import torch
import world
from torch import Tensor
from vae import Transform

FRAMES = 4  # latent frames
STRIDES = (0.1, 0.04, 0.012)  # of the finite differences: from coarse to fine
LIMITS = {"x": 0.2, "y": 0.2, "radius": 0.08, "phase": 0.3}
COLOR_RIDGE = 0.02
TINT = 20  # 8-bit steps by which a draft's colours may differ from the words


@dataclasses.dataclass(frozen=True)
class Fit:
    """Solves for the scene of a draft; `weight` (C, 1, 1, 1) is what a latent counts in pixels."""

    encode: Transform
    offset: Tensor
    weight: Tensor

    def colors(self, parts: Tensor, rest: Tensor, prior: Tensor) -> Tensor:
        """(4, 3) least squares for latents without offset, held near the colours of the words."""
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
        """One Gauss-Newton step of place, size and phase, inside `LIMITS` of the start."""
        parts = self.parts(scene)
        rest = draft - self.offset
        colors = self.colors(parts, rest, cache.palette(scene))
        strides = {n: stride for n in LIMITS if n != "phase" or scene.background == "hills"}
        now = torch.tensordot(colors, parts, 2)
        slopes = []
        for name, size in strides.items():
            both = [
                self.parts(dataclasses.replace(scene, **{name: getattr(scene, name) + d}))
                for d in (size / 2, -size / 2)
            ]
            change = torch.tensordot(colors, both[0] - both[1], 2)
            slopes.append((change * self.weight.sqrt()).flatten() / size)
        rows = torch.stack(slopes)
        error = ((rest - now) * self.weight.sqrt()).flatten()
        gram = rows @ rows.T
        gram = gram + 1e-3 * torch.diag(gram.diagonal())
        moved = torch.linalg.solve(gram, rows @ error).tolist()
        values = {}
        for name, delta in zip(strides, moved, strict=True):
            value, base, limit = getattr(scene, name) + delta, getattr(start, name), LIMITS[name]
            values[name] = min(max(value, base - limit), base + limit)
        return dataclasses.replace(scene, **values)

    def tinted(self, draft: Tensor, scene: world.Scene) -> world.Scene:
        """A fitted scene in the draft's colours of object and background."""
        colors = self.colors(self.parts(scene), draft - self.offset, cache.palette(scene)) * 127.5
        back, own = colors[cache.BACK_TINTED], colors[cache.OWN]
        plain = dataclasses.replace(scene, tint=(0, 0, 0), background_tint=(0, 0, 0))
        tint, behind = (
            (found - named).round().int().clamp(-TINT, TINT).tolist()
            for found, named in (
                (own, world.object_color(plain)), (back, world.background_color(plain))
            )
        )  # fmt: skip
        return dataclasses.replace(plain, tint=tuple(tint), background_tint=tuple(behind))

    def __call__(self, draft: Tensor, scene: world.Scene) -> tuple[Tensor, world.Scene, float]:
        """(latents (C, 4, 16, 16) at 512 px, scene, share of the draft that it leaves open)."""
        start = scene
        for stride in STRIDES:
            scene = self.step(draft, scene, start, stride)
        parts, rest = self.parts(scene), draft - self.offset
        colors = self.colors(parts, rest, cache.palette(scene))
        error = (torch.tensordot(colors, parts, 2) - rest).square() * self.weight
        spread = (rest - rest.mean((1, 2, 3), keepdim=True)).square() * self.weight
        large = cache.geometry(self.encode, scene, 512)[:, :, :, :FRAMES]
        high = torch.tensordot(colors, large, 2) + self.offset
        return high, scene, float(error.mean() / spread.mean())
