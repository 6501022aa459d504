"""The Muon optimizer, for small matrices: all matrices of one shape are updated together.

Follows K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the
update is the momentum with its singular values pushed to about one by five Newton-Schulz steps.
`lr` is the root mean square of an update's entries.
"""

from __future__ import annotations

import torch
from team import Team
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices of x (N, R, C), approximately: singular values near 1."""
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon:
    """Muon for a list of matrices, with the part of torch.optim's interface that training uses."""

    def __init__(
        self,
        weights: list[nn.Parameter],
        lr: float,
        team: Team | None = None,
        momentum: float = 0.95,
    ) -> None:
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for weight in weights:
            shapes.setdefault(tuple(weight.shape), []).append(weight)
        self.groups = list(shapes.values())
        self.lr, self.team, self.momentum = lr, team, momentum
        self.buffers = [torch.zeros(len(g), *g[0].shape) for g in self.groups]

    @torch.no_grad()
    def step(self) -> None:
        """Update all matrices; each process of the team orthogonalises its share of them."""
        rank, size = (self.team.rank, self.team.size) if self.team else (0, 1)
        updates = []
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradients = torch.stack([w.grad for w in group])
            buffer.lerp_(gradients, 1 - self.momentum)
            mine = slice(rank, None, size)
            update = torch.zeros_like(buffer)
            if len(update[mine]):
                update[mine] = orthogonal(gradients[mine].lerp(buffer[mine], self.momentum))
            updates.append(update)
        flat = torch.cat([u.flatten() for u in updates])
        whole = (self.team.sum(flat) if self.team else flat).split([u.numel() for u in updates])
        for group, update, part in zip(self.groups, updates, whole, strict=True):
            scale = self.lr * max(update.shape[1:]) ** 0.5
            for weight, change in zip(group, part.view_as(update), strict=True):
                weight.sub_(change, alpha=scale)

    def state_dict(self) -> list[Tensor]:
        """The momentum buffers."""
        return self.buffers

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Restore the momentum buffers."""
        for buffer, value in zip(self.buffers, state, strict=True):
            buffer.copy_(value)
