"""Latent points as arrays, and the grid of voxels and blocks that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float32, Int32, Int64, Shaped, UInt8, UInt32
import numpy as np

IMAGINED_BIT = np.uint32(1 << 31)
"""Bit of ``order`` that marks an imagined point."""

MAX_SERIAL = (1 << 31) - 1
"""Largest serial number that ``order`` holds."""

NO_POINT = (1 << 63) - 1
"""Packed word of a cell that no point covers."""

BLOCK_VOXELS = 16
"""Voxels along the edge of a block."""

MIN_LEVEL, MAX_LEVEL = -12, 20
"""Levels of the grids: sizes from a quarter of a millimetre to a thousand kilometres."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentPoints:
    """Latent points as the kernels read them: 29 bytes and the latents each."""

    xyz_size: Float32[np.ndarray, '4 m']
    """Position in the world, and the metres across a latent cell at the depth of writing."""

    order: UInt32[np.ndarray, 'm']
    """MAX_SERIAL minus serial number, plus IMAGINED_BIT if imagined. The smaller wins a tie."""

    depth_time: Float32[np.ndarray, '2 m']
    """Depth in metres at which a point was written, and seconds since the memory's origin."""

    confidence: UInt8[np.ndarray, 'm']
    """Confidence of the depth in 255ths."""

    latents: Shaped[np.ndarray, 'm c']
    """Latents as float32, or as the bits of bfloat16 in uint16."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def observed(self) -> Bool[np.ndarray, 'm']:
        return self.order < IMAGINED_BIT

    def take(self, rows: Shaped[np.ndarray, '...'] | slice) -> LatentPoints:
        """Return a copy of some rows, given as indices, mask or slice."""
        return LatentPoints(
            xyz_size=np.ascontiguousarray(self.xyz_size[:, rows]),
            order=self.order[rows],
            depth_time=np.ascontiguousarray(self.depth_time[:, rows]),
            confidence=self.confidence[rows],
            latents=self.latents[rows],
        )


def concatenate(parts: list[LatentPoints]) -> LatentPoints:
    """Return the points of all parts in order."""
    return LatentPoints(
        xyz_size=np.concatenate([part.xyz_size for part in parts], axis=1),
        order=np.concatenate([part.order for part in parts]),
        depth_time=np.concatenate([part.depth_time for part in parts], axis=1),
        confidence=np.concatenate([part.confidence for part in parts]),
        latents=np.concatenate([part.latents for part in parts]),
    )


def point_nbytes(channels: int, dtype: np.dtype) -> int:
    """Return the bytes of one point."""
    return 29 + channels * dtype.itemsize


def empty_points(channels: int, dtype: np.dtype) -> LatentPoints:
    return LatentPoints(
        xyz_size=np.zeros((4, 0), np.float32),
        order=np.zeros(0, np.uint32),
        depth_time=np.zeros((2, 0), np.float32),
        confidence=np.zeros(0, np.uint8),
        latents=np.zeros((0, channels), dtype),
    )


def grid_level(size: Float32[np.ndarray, 'm']) -> Int64[np.ndarray, 'm']:
    """Return the level of each point's grid: floor(log2(size)) within MIN_LEVEL to MAX_LEVEL."""
    return np.clip(np.frexp(size)[1] - 1, MIN_LEVEL, MAX_LEVEL).astype(np.int64)


def block_and_voxel(
    xyz_size: Float32[np.ndarray, '4 m'], level: Int64[np.ndarray, 'm'], voxel: float
) -> tuple[Int64[np.ndarray, 'm 4'], Int32[np.ndarray, 'm']]:
    """Return the block of each point as (level, i, j, k), and the index of its voxel in the block.

    A voxel's edge is ``voxel`` * 2**level metres. Voxel coordinates are clipped to +-2**40.
    """
    edge = np.ldexp(voxel, level.astype(np.int32))
    index = np.floor(xyz_size[:3].T / edge[:, None].astype(np.float64))
    index = np.clip(index, -(2.0**40), 2.0**40).astype(np.int64)
    block = np.concatenate([level[:, None], index // BLOCK_VOXELS], axis=1)
    local = index % BLOCK_VOXELS
    in_block = (local[:, 0] * BLOCK_VOXELS + local[:, 1]) * BLOCK_VOXELS + local[:, 2]
    return block, in_block.astype(np.int32)
