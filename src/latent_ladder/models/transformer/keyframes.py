"""Keyframes of LTX-2.5: tokens that get the learned mark, and slots that are generated.

A transformer of LTX-2.5 adds a learned vector to the tokens of keyframes. These are the first
latent frame of every clip, whether an image is given or not, and generated slots: single frames
behind the clip that are denoised with it and dropped again. Given keyframes and references have no
mark. Source: LTX-2 ``keyframe_slots.py``, ``create_initial_state``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keyframe_mask(positions: Tensor, appended: int, slots: slice | None = None) -> Tensor:
    """Mask (1, N, 1) of the video tokens that get the mark: 1 for keyframes, else 0.

    ``positions`` (1, 3, N, 2) are all tokens' bounds; the last ``appended`` of them follow the
    clip, ``slots`` among them are generated keyframes.
    """
    tokens = positions.shape[2]
    mask = torch.zeros(1, tokens, 1, device=positions.device)
    first = positions[:1, 0, : tokens - appended, 0] == 0
    mask[:, : tokens - appended, 0] = first.to(mask)
    if slots is not None:
        mask[:, slots] = 1.0
    return mask
