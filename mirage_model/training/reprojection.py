"""Stills that a memory moves, for a codec that is to bear it: which cell of one frame the camera of another is shown.

Which cell that is follows from depth and cameras alone, so that latents are moved by one gather, and the gradient
goes through it to the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
import numpy as np
import torch
from torch import Tensor, nn

from mirage_model.clip import Clip
from mirage_model.training.context import readout_of

MAX_GAP = 16
BACKWARDS = 0.2
"""Share of the pairs whose first frame is the later one."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two frames of each of b clips in 0..1, and what the second's camera is shown of a memory of the first.

    ``cell`` counts the first's cells row by row, -1 where nothing is shown; ``offset`` and ``depth_ratio`` are
    those of `Readout`.
    """

    first: Float[Tensor, 'b 3 H W']
    second: Float[Tensor, 'b 3 H W']
    cell: Int[Tensor, 'b h w']
    offset: Float[Tensor, 'b 2 h w']
    depth_ratio: Float[Tensor, 'b h w']

    @staticmethod
    def of(clips: list[Clip], *, stride: int, rng: np.random.Generator) -> Pairs:
        """A random pair of every clip, up to `MAX_GAP` frames apart, near ones oftener. ``stride`` is a cell's, in pixels."""
        parts = [_pair(clip, stride, rng) for clip in clips]
        return Pairs(**{name: torch.stack([part[name] for part in parts]) for name in parts[0]})


def _pair(clip: Clip, stride: int, rng: np.random.Generator) -> dict[str, Tensor]:
    count = len(clip.frames)
    gap = min(int(np.exp(rng.uniform(0, np.log(MAX_GAP + 1)))), count - 1)
    first = int(rng.integers(count - gap))
    second = first + gap
    if rng.random() < BACKWARDS:
        first, second = second, first
    readout = readout_of(clip, first, cell=stride, seen_from=slice(second, second + 1))[0]
    frames = clip.frames[[first, second]].permute(0, 3, 1, 2).float() / 255
    return {
        'first': frames[0],
        'second': frames[1],
        'cell': torch.where(readout.visible, readout.latents[0].long(), -1),
        'offset': readout.offset,
        'depth_ratio': readout.depth_ratio,
    }


class Mover(nn.Module):
    """From what a memory shows of a still to the still that is seen there. It is trained with the codec, and then dropped.

    A map that is linear in the latents of nine cells, each times a polynomial of degree two of its offset and times its
    depth ratio, as moving a picture is; and three convolutions on top.
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
            nn.init.zeros_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        with torch.no_grad():
            self.linear.weight[range(channels), range(channels), 1, 1] = 1

    def forward(
        self,
        latents: Float[Tensor, 'b c h w'],
        cell: Int[Tensor, 'b h w'],
        offset: Float[Tensor, 'b 2 h w'],
        depth_ratio: Float[Tensor, 'b h w'],
    ) -> Float[Tensor, 'b c h w']:
        """``latents`` are the first's; the rest are those of `Pairs`. Untrained, it returns what is shown, and zero elsewhere."""
        visible = (cell >= 0)[:, None].to(latents.dtype)
        source = cell.clamp(min=0).flatten(1)[:, None].expand(-1, latents.shape[1], -1)
        shown = latents.flatten(2).gather(2, source).view_as(latents) * visible
        geometry = torch.cat([offset, depth_ratio[:, None]], 1) * visible
        x, y, ratio = geometry.split(1, dim=1)
        weights = (1, x, y, ratio, x * x, y * y, x * y)
        about = torch.cat([visible, geometry], 1)
        moved = self.linear(torch.cat([*(shown * weight for weight in weights), about], 1))
        return moved + self.correction(torch.cat([shown, about], 1))
