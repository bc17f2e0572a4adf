"""Latent frames of a path so far, from which later chunks take references and preceding frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
import torch
from torch import Tensor

from mirage_model.camera import Cameras, concatenate, unproject
from mirage_model.memory import Memory, Readout

VOXEL = 0.1
"""Edge of the voxels whose overlap chooses references [m]."""

MIN_OVERLAP = 0.04
"""Smallest overlap of a reference with a chunk; both are those of the paper's code."""


@dataclass(frozen=True, kw_only=True)
class LatentFrames:
    """Latent frames with the memory that they were generated from."""

    latents: Float[Tensor, 'k c h w']
    scene: Float[Tensor, 'k s h w']
    """Channels of `conditioning.read_scene`."""
    cameras: Cameras
    """On the latent grid."""

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: slice) -> LatentFrames:
        return LatentFrames(
            latents=self.latents[index], scene=self.scene[index], cameras=self.cameras[index]
        )


class History:
    """The latent frames of a path, in order."""

    def __init__(self) -> None:
        self._frames: LatentFrames | None = None
        self._voxels: list[Tensor] = []

    def __len__(self) -> int:
        return 0 if self._frames is None else len(self._frames)

    def append(self, chunk: LatentFrames) -> None:
        """Add the frames of a chunk, without its context frame if that is here already."""
        if self._frames is None:
            self._frames = chunk
            return
        before, chunk = self._frames, chunk[1:]
        self._frames = LatentFrames(
            latents=torch.cat([before.latents, chunk.latents]),
            scene=torch.cat([before.scene, chunk.scene]),
            cameras=concatenate([before.cameras, chunk.cameras]),
        )

    def preceding(self, count: int) -> LatentFrames | None:
        """Return up to ``count`` frames before the last one; None if there are none."""
        last = len(self) - 1
        if self._frames is None or last < 1 or count < 1:
            return None
        return self._frames[max(0, last - count) : last]

    def references(
        self, count: int, memory: Memory, readout: Readout, cameras: Cameras
    ) -> Float[Tensor, 'r c h w'] | None:
        """Return the latents of up to ``count`` frames that see most of what a chunk sees.

        Args:
            readout: The memory at the chunk's latent frames.
            cameras: Their cameras, on the latent grid.
        """
        if self._frames is None or count < 1:
            return None
        new = self._frames.cameras[len(self._voxels) :]
        if len(new):
            seen = memory.readout(new, latents=False)
            self._voxels += [
                visible_voxels(seen.depth[i : i + 1], seen.visible[i : i + 1], new[i : i + 1])
                for i in range(len(new))
            ]
        wanted = visible_voxels(readout.depth, readout.visible, cameras)
        chosen = choose_references(wanted, self._voxels, count)
        return self._frames.latents[chosen] if chosen else None


def choose_references(
    wanted: Int[Tensor, 'v 3'], voxels: Sequence[Int[Tensor, '_ 3']], count: int
) -> list[int]:
    """Return the indices of up to ``count`` frames that overlap most, from `MIN_OVERLAP` on."""
    overlaps = [voxel_iou(wanted, frame) for frame in voxels]
    order = sorted(range(len(overlaps)), key=lambda i: -overlaps[i])
    return [i for i in order if overlaps[i] >= MIN_OVERLAP][:count]


def visible_voxels(
    depth: Float[Tensor, 'n h w'], visible: Bool[Tensor, 'n h w'], cameras: Cameras
) -> Int[Tensor, 'v 3']:
    """Return the voxels of the visible surfaces, each once."""
    points = unproject(depth, cameras)[visible]
    return (points / VOXEL).floor().long().unique(dim=0)


def voxel_iou(a: Int[Tensor, 'a 3'], b: Int[Tensor, 'b 3']) -> float:
    """Return intersection over union of two sets of voxels; 0 for two empty sets."""
    union = len(torch.cat([a, b]).unique(dim=0))
    return (len(a) + len(b) - union) / union if union else 0.0
