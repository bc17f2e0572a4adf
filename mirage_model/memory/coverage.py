"""Share of a view that the memory covers: exactly from a readout, or estimated from point counts.

The estimate counts points in voxels, 8 x 8 x 8 of them a brick, and traces a few rays through
them. A ray sums the points in the beam of the latent cell that it stands for. The share of covered
cells follows from that number, nearest voxels first. `evaluation.benchmarks.score` measures the
error against the readout.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import no_type_check

from jaxtyping import Float, Float32, Float64, Int32
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.memory import Readout
from mirage_model.memory.block_store import BlockStore
from mirage_model.memory.cpu_reader import run_slices
from mirage_model.memory.kernels import compiled
from mirage_model.memory.points import IMAGINED_BIT, LatentPoints
from mirage_model.memory.visibility import CameraArrays, VisibilityRule

RAYS = 96
"""Approximate number of rays of a view, evenly spread."""

VOXEL_EDGE = 2.0
"""Edge of a voxel as a multiple of the points' mean size."""

BRICK = 8
"""Voxels along the edge of a brick."""

MAX_BRICKS = 1 << 22
"""Largest number of bricks, occupied or not. A larger memory gets larger voxels."""

EVENNESS = 1.5
"""Coefficient c of the probability that a beam hits a point: 1 - exp(-(N + c N^3)).

N is the mean number of points in the beam. The probability lies between random points, 1 -
exp(-N), and a lattice, min(1, N).
"""

FULL_COVERAGE = 0.98
"""Coverage at which a ray stops."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Coverage of n views."""

    visible: Float[Tensor, 'n']
    """Share of the cells that the memory covers."""

    observed: Float[Tensor, 'n']
    """Share of the cells that observed points cover."""

    age: Float[Tensor, 'n']
    """Mean age of the visible points in seconds. Undefined where nothing is visible."""

    @classmethod
    def from_readout(cls, readout: Readout) -> Coverage:
        visible = readout.visible.flatten(1).float()
        return cls(
            visible=visible.mean(dim=1),
            observed=readout.observed.flatten(1).float().mean(dim=1),
            age=(readout.age.flatten(1) * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1),
        )

    def split(self, counts: list[int]) -> list[Coverage]:
        """Return parts with the given numbers of views."""
        parts = zip(*(values.split(counts) for values in vars(self).values()), strict=True)
        return [Coverage(visible=v, observed=o, age=a) for v, o, a in parts]


@dataclass(kw_only=True)
class _CountGrid:
    """Counts of points in voxels, held by brick."""

    origin: Float64[np.ndarray, '3']
    """Lower corner in the world, metres."""

    edge: float
    """Edge of a voxel, metres."""

    bricks: Int32[np.ndarray, 'x y z']
    """Row of each brick in ``sums``, or -1."""

    sums: Float32[np.ndarray, 'b 512 4']
    """Number of a voxel's points, sums of their sizes and times, and number of observed points."""

    filled: int = 0
    """Rows of ``sums`` in use."""

    @classmethod
    def around(cls, blocks: list[LatentPoints]) -> _CountGrid:
        """Return an empty grid with room for the blocks and half their extent on every side."""
        lower = np.min([block.xyz_size[:3].min(axis=1) for block in blocks], axis=0)
        upper = np.max([block.xyz_size[:3].max(axis=1) for block in blocks], axis=0)
        points = sum(len(block) for block in blocks)
        edge = VOXEL_EDGE * sum(float(block.xyz_size[3].sum()) for block in blocks) / points
        middle, half = (lower + upper) / 2.0, (upper - lower).astype(np.float64)
        while True:
            size = np.ceil(2 * half / (BRICK * edge)).astype(np.int64) + 2
            if size.prod() <= MAX_BRICKS:
                break
            edge *= 1.25
        return cls(
            origin=middle - size * BRICK * edge / 2,
            edge=edge,
            bricks=np.full(size, -1, np.int32),
            sums=np.zeros((64, BRICK**3, 4), np.float32),
        )

    def contains(self, block: LatentPoints) -> bool:
        size = np.array(self.bricks.shape) * BRICK * self.edge
        inside = block.xyz_size[:3] - self.origin[:, None]
        return bool((inside >= 0).all() and (inside < size[:, None]).all())

    def add(self, block: LatentPoints, sign: int) -> None:
        """Add the points of a block to the sums, or with sign -1 subtract them."""
        if self.filled + len(block) > len(self.sums):
            more = max(len(self.sums), len(block))
            self.sums = np.concatenate(
                [self.sums, np.zeros((more, *self.sums.shape[1:]), np.float32)]
            )
        self.filled = _add_counts(
            block.xyz_size, block.order, block.depth_time, self.origin, self.edge,
            np.float32(sign), self.bricks, self.sums, self.filled,
        )  # fmt: skip


class CoverageEstimator:
    """Coverage estimates of one memory; each call counts only the blocks that changed."""

    def __init__(self) -> None:
        self._store = BlockStore()
        self._grid: _CountGrid | None = None
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the counts; 0 before the first estimate."""
        grid = self._grid
        return 0 if grid is None else grid.bricks.nbytes + grid.sums.nbytes

    def coverage(
        self,
        store: BlockStore,
        cameras: Cameras,
        rule: VisibilityRule,
        times: Float32[np.ndarray, 'n'],
    ) -> Coverage:
        """Estimate the coverage of cameras.

        Args:
            store: Points to count.
            cameras: Cameras on the latent grid.
            rule: Visibility rule of the readout to estimate.
            times: Time of each camera in seconds since the memory's origin.
        """
        result = np.zeros((len(times), 3), np.float32)
        with self._lock:
            self._update(store)
            if self._grid is not None:
                self._trace(self._grid, cameras, rule, times, result)
        visible, observed, age = torch.from_numpy(result).unbind(dim=1)
        return Coverage(visible=visible, observed=observed, age=age)

    def _update(self, store: BlockStore) -> None:
        """Bring the counts from the last store to this one."""
        removed, new = store.changes(self._store)
        if self._grid is None or not all(self._grid.contains(block) for block in new):
            removed, new = [], store.blocks()
            self._grid = _CountGrid.around(new) if new else None
        if self._grid is not None:
            for block in removed:
                self._grid.add(block, -1)
            for block in new:
                self._grid.add(block, 1)
        self._store = store

    def _trace(
        self,
        grid: _CountGrid,
        cameras: Cameras,
        rule: VisibilityRule,
        times: Float32[np.ndarray, 'n'],
        result: Float32[np.ndarray, 'n 3'],
    ) -> None:
        arrays = CameraArrays.from_cameras(cameras).arrays()
        divisor = max(1.0, (cameras.height * cameras.width / RAYS) ** 0.5)
        rays = (max(1, round(cameras.height / divisor)), max(1, round(cameras.width / divisor)))

        def trace(part: slice) -> None:
            _trace_rays(
                grid.origin, grid.edge, grid.bricks, grid.sums,
                *(values[part] for values in arrays), cameras.height, cameras.width, *rays,
                float(rule.splat_size), rule.near, rule.far, times[part], result[part],
            )  # fmt: skip

        run_slices(trace, len(times))


@compiled
@no_type_check
def _add_counts(xyz_size, order, depth_time, origin, edge, sign, bricks, sums, filled):
    """Add the points of a block to the sums, times sign; return the number of bricks in use."""
    for i in range(xyz_size.shape[1]):
        x = np.int64((xyz_size[0, i] - origin[0]) / edge)
        y = np.int64((xyz_size[1, i] - origin[1]) / edge)
        z = np.int64((xyz_size[2, i] - origin[2]) / edge)
        brick = bricks[x // BRICK, y // BRICK, z // BRICK]
        if brick < 0:
            brick = bricks[x // BRICK, y // BRICK, z // BRICK] = filled
            filled += 1
        local = (x % BRICK * BRICK + y % BRICK) * BRICK + z % BRICK
        voxel = sums[brick, local]
        voxel[0] += sign
        voxel[1] += sign * xyz_size[3, i]
        voxel[2] += sign * depth_time[1, i]
        if order[i] < IMAGINED_BIT:
            voxel[3] += sign
    return filled


@compiled
@no_type_check
def _trace_rays(
    origin, edge, bricks, sums, rotation, translation, focal, centre,
    height, width, rows, columns, splat_size, near, far, times, result,
):  # fmt: skip
    """Fill result (n, 3) with visible, observed and age."""
    size = np.array(bricks.shape) * BRICK
    start, along = np.empty(3), np.empty(3)
    for view in range(len(times)):
        r = rotation[view]
        fx, fy = np.float64(focal[view, 0]), np.float64(focal[view, 1])
        # position of the camera, in voxels
        for axis in range(3):
            at = 0.0
            for k in range(3):
                at -= r[k, axis] * np.float64(translation[view, k])
            start[axis] = (at - origin[axis]) / edge
        visible, observed, time = 0.0, 0.0, 0.0
        for ray in range(rows * columns):
            u = (ray % columns + 0.5) * width / columns - 0.5 - centre[view, 0]
            v = (ray // columns + 0.5) * height / rows - 0.5 - centre[view, 1]
            first, last = near, far
            for axis in range(3):
                # voxels per metre of depth
                slope = (r[0, axis] * (u / fx) + r[1, axis] * (v / fy) + r[2, axis]) / edge
                if abs(slope) < 1e-9:
                    slope = 1e-9
                along[axis] = slope
                enter, leave = -start[axis] / slope, (size[axis] - start[axis]) / slope
                first, last = max(first, min(enter, leave)), min(last, max(enter, leave))
            depth, count, covered = first, 0.0, 0.0
            step = 1e-3 / max(abs(along[0]), abs(along[1]), abs(along[2]))
            while depth + step < last and covered < FULL_COVERAGE:
                x = np.int64(start[0] + (depth + step) * along[0])
                y = np.int64(start[1] + (depth + step) * along[1])
                z = np.int64(start[2] + (depth + step) * along[2])
                brick = bricks[x // BRICK, y // BRICK, z // BRICK]
                if brick < 0:
                    x, y, z = x // BRICK * BRICK, y // BRICK * BRICK, z // BRICK * BRICK
                    wide = BRICK
                else:
                    wide = 1
                end_x = (x + wide * (along[0] > 0) - start[0]) / along[0]
                end_y = (y + wide * (along[1] > 0) - start[1]) / along[1]
                end_z = (z + wide * (along[2] > 0) - start[2]) / along[2]
                end = max(depth + step, min(end_x, end_y, end_z, last))
                if brick >= 0:
                    voxel = sums[brick, (x % BRICK * BRICK + y % BRICK) * BRICK + z % BRICK]
                    if voxel[0] > 0.5:
                        middle = (depth + end) / 2
                        cells_across = voxel[1] / voxel[0] * np.sqrt(fx * fy) / middle
                        # a point covers one cell at least and splat_size cells at most
                        across = max(1.0, min(cells_across, splat_size))
                        beam = (end - depth) * middle * middle / (fx * fy)
                        count += voxel[0] / edge**3 * beam * across * across
                        share = 1.0 - np.exp(-count * (1.0 + EVENNESS * count * count))
                        observed += (share - covered) * voxel[3] / voxel[0]
                        time += (share - covered) * voxel[2] / voxel[0]
                        covered = share
                depth = end
            visible += covered
        result[view, 0] = visible / (rows * columns)
        result[view, 1] = observed / (rows * columns)
        result[view, 2] = times[view] - time / visible if visible > 0 else 0.0
