"""Remembered cells as arrays, and where in space they belong."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float32, Int32, Int64, Shaped, UInt8, UInt32
import numpy as np

IMAGINED = np.uint32(1 << 31)
LATEST = (1 << 31) - 1
VOXELS = 16
"""Voxels along the edge of a block."""

FINEST, COARSEST = -12, 20
"""The levels of the grids: a quarter of a millimetre, a thousand kilometres."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Remembered cells as the kernels read them, 29 bytes a cell and the latents.

    ``points`` are x, y, z in the world and the cell's size, metres; ``order`` is LATEST minus the
    cell's serial number, with the highest bit set where it was imagined, so that of two cells the
    smaller goes first; ``written`` are the depth in metres and the seconds since the memory's
    origin at which it was written; ``confidence`` is in 255ths; ``latents`` are float32, or the
    bits of bfloat16.
    """

    points: Float32[np.ndarray, '4 m']
    order: UInt32[np.ndarray, 'm']
    written: Float32[np.ndarray, '2 m']
    confidence: UInt8[np.ndarray, 'm']
    latents: Shaped[np.ndarray, 'm c']

    def __len__(self) -> int:
        return len(self.order)

    @property
    def observed(self) -> Bool[np.ndarray, 'm']:
        return self.order < IMAGINED

    def take(self, rows: Shaped[np.ndarray, '...'] | slice) -> Cells:
        return Cells(
            points=np.ascontiguousarray(self.points[:, rows]),
            order=self.order[rows],
            written=np.ascontiguousarray(self.written[:, rows]),
            confidence=self.confidence[rows],
            latents=self.latents[rows],
        )


def joined(parts: list[Cells]) -> Cells:
    return Cells(
        points=np.concatenate([part.points for part in parts], axis=1),
        order=np.concatenate([part.order for part in parts]),
        written=np.concatenate([part.written for part in parts], axis=1),
        confidence=np.concatenate([part.confidence for part in parts]),
        latents=np.concatenate([part.latents for part in parts]),
    )


def nbytes_each(channels: int, dtype: np.dtype) -> int:
    """Bytes of one cell."""
    return 29 + channels * dtype.itemsize


def no_cells(channels: int, dtype: np.dtype) -> Cells:
    return Cells(
        points=np.zeros((4, 0), np.float32),
        order=np.zeros(0, np.uint32),
        written=np.zeros((2, 0), np.float32),
        confidence=np.zeros(0, np.uint8),
        latents=np.zeros((0, channels), dtype),
    )


def level_of(size: Float32[np.ndarray, 'm']) -> Int64[np.ndarray, 'm']:
    """The level of the grid that a cell of this size belongs to: the power of two below it."""
    return np.clip(np.frexp(size)[1] - 1, FINEST, COARSEST).astype(np.int64)


def locate(
    points: Float32[np.ndarray, '4 m'], level: Int64[np.ndarray, 'm'], voxel: float
) -> tuple[Int64[np.ndarray, 'm 4'], Int32[np.ndarray, 'm']]:
    """The block of every point in the grid of a level, as (level, i, j, k), and its voxel there.

    A grid's edge is ``voxel`` times two to the level, in metres. Indices end at 2^40.
    """
    edge = np.ldexp(voxel, level.astype(np.int32))
    index = np.floor(points[:3].T / edge[:, None].astype(np.float64))
    index = np.clip(index, -(2.0**40), 2.0**40).astype(np.int64)
    block = np.concatenate([level[:, None], index // VOXELS], axis=1)
    local = index % VOXELS
    return block, ((local[:, 0] * VOXELS + local[:, 1]) * VOXELS + local[:, 2]).astype(np.int32)
