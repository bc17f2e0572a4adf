"""What the labels of a clip say of its frames, in the place of what perception would."""

from __future__ import annotations

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.clip import Clip
from mirage_model.perception import Estimate


def labels(clip: Clip, at: slice, *, dynamic_filter: bool = True) -> Estimate:
    """An estimate of the frames ``at`` that is as exact as the clip's labels.

    Without the filter nothing counts as moving. The depth of what moves is in no label: it gets that of
    what it stands on, the nearest pixel below it that has one.
    """
    depth, moving = clip.depth[at], clip.moving[at]
    if not dynamic_filter:
        depth, moving = standing(depth, moving), torch.zeros_like(moving)
    return Estimate(
        depth=depth,
        cameras=clip.cameras[at],
        confidence=(~depth.isnan()).float(),
        sky=clip.sky[at],
        moving=moving,
        scaled=torch.ones(len(depth), dtype=torch.bool),
    )


def standing(
    depth: Float[Tensor, 'n h w'], moving: Bool[Tensor, 'n h w']
) -> Float[Tensor, 'n h w']:
    """Depth in which every moving pixel has that of the nearest known pixel below it, if there is one."""
    known = ~depth.isnan() & ~moving
    rows = torch.arange(depth.shape[1])[:, None].expand_as(known)
    # from the bottom row up, the last row that was known
    below = torch.where(known, rows, depth.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    found = torch.nn.functional.pad(depth, (0, 0, 0, 1), value=torch.nan).gather(1, below)
    return torch.where(moving, found, depth)
