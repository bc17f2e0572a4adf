"""Reprojection of latents between two frames, as a memory does it, for the training of the codec.

The cell that is read depends on depth and cameras alone. So latents are reprojected by one gather,
which passes the gradient to the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
import numpy as np
import torch
from torch import Tensor, nn

from mirage_model.clip import Clip
from mirage_model.training.simulated_memory import readout_of

MAX_GAP = 16
"""Largest distance between the frames of a pair."""
BACKWARDS = 0.2
"""Share of pairs whose first frame is the later one."""


@dataclass(frozen=True, kw_only=True)
class FramePairs:
    """Two frames of each clip in 0..1, and the readout of a memory of the first by the second's
    camera.

    ``offset`` and ``depth_ratio`` are those of `Readout`.
    """

    first: Float[Tensor, 'b 3 H W']
    second: Float[Tensor, 'b 3 H W']
    cell: Int[Tensor, 'b h w']
    """Index of the first frame's cell that is read, row by row; -1 where none is visible."""
    offset: Float[Tensor, 'b 2 h w']
    depth_ratio: Float[Tensor, 'b h w']

    @staticmethod
    def of(clips: list[Clip], *, stride: int, rng: np.random.Generator) -> FramePairs:
        """Return a random pair of each clip, close pairs more often; ``stride`` is the side of a
        cell [px]."""
        parts = [_pair(clip, stride, rng) for clip in clips]
        return FramePairs(
            **{name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        )


def _pair(clip: Clip, stride: int, rng: np.random.Generator) -> dict[str, Tensor]:
    count = len(clip.frames)
    gap = min(int(np.exp(rng.uniform(0, np.log(MAX_GAP + 1)))), count - 1)
    first = int(rng.integers(count - gap))
    second = first + gap
    if rng.random() < BACKWARDS:
        first, second = second, first
    readout = readout_of(clip, first, cell=stride, cameras=slice(second, second + 1))[0]
    frames = clip.frames[[first, second]].permute(0, 3, 1, 2).float() / 255
    return {
        'first': frames[0],
        'second': frames[1],
        'cell': torch.where(readout.visible, readout.latents[0].long(), -1),
        'offset': readout.offset,
        'depth_ratio': readout.depth_ratio,
    }


class ReprojectionHead(nn.Module):
    """Network from reprojected latents to those of the frame at that camera; dropped after the
    codec's training.

    Its first part is linear in the latents of 3x3 cells, each times 1, x, y, r, x^2, y^2 and xy,
    with the offset (x, y) and the depth ratio r. Three convolutions add a correction.
    """

    def __init__(self, channels: int, *, width: int = 160):
        super().__init__()
        self.linear = nn.Conv2d(7 * channels + 4, channels, 3, padding=1)
        self.correction = nn.Sequential(
            nn.Conv2d(channels + 4, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        for convolution in (self.linear, self.correction[-1]):
            for parameter in convolution.parameters():
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.linear.weight[range(channels), range(channels), 1, 1] = 1

    def forward(
        self,
        latents: Float[Tensor, 'b c h w'],
        cell: Int[Tensor, 'b h w'],
        offset: Float[Tensor, 'b 2 h w'],
        depth_ratio: Float[Tensor, 'b h w'],
    ) -> Float[Tensor, 'b c h w']:
        """Return the latents of the second frame.

        Untrained, these are the first's at visible cells, and zero elsewhere.

        Args:
            latents: Latents of the first frame.
            cell, offset, depth_ratio: Fields of `FramePairs`.
        """
        visible = (cell >= 0)[:, None].to(latents.dtype)
        source = cell.clamp(min=0).flatten(1)[:, None].expand(-1, latents.shape[1], -1)
        read = latents.flatten(2).gather(2, source).view_as(latents) * visible
        geometry = torch.cat([offset, depth_ratio[:, None]], 1) * visible
        x, y, ratio = geometry.split(1, dim=1)
        weights = (1, x, y, ratio, x * x, y * y, x * y)
        conditions = torch.cat([visible, geometry], 1)
        linear = self.linear(torch.cat([*(read * weight for weight in weights), conditions], 1))
        return linear + self.correction(torch.cat([read, conditions], 1))
