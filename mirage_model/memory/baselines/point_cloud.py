"""Point cloud with one point per voxel and a row of values per point, for the memories of pixels.

The arrays are flat and grow in place. Visibility follows `visibility`, in float32 in the same
order of operations.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import copy
import math
from typing import no_type_check

from jaxtyping import Bool, Float32, Int, Int32, Shaped
import numpy as np
import torch

from mirage_model.memory.kernels import compiled
from mirage_model.memory.points import IMAGINED_BIT, MAX_SERIAL
from mirage_model.memory.visibility import CameraArrays, VisibilityRule

ZERO, HALF = np.float32(0.0), np.float32(0.5)


@compiled
@no_type_check
def _voxel(point, voxel):
    """Return the level and coordinates of a point's voxel, as `points.block_and_voxel`."""
    level = min(max(math.frexp(np.float64(point[3]))[1] - 1, -12), 20)
    edge = math.ldexp(voxel, level)
    limit = 2.0**40
    x = np.int64(min(max(math.floor(point[0] / edge), -limit), limit))
    y = np.int64(min(max(math.floor(point[1] / edge), -limit), limit))
    z = np.int64(min(max(math.floor(point[2] / edge), -limit), limit))
    return np.int64(level), x, y, z


@compiled
@no_type_check
def _find(point, voxel, points, table):
    """Return the slot of the hash table that holds the point's voxel, or the free slot for it."""
    key = _voxel(point, voxel)
    hashed = np.uint64(key[0])
    for part in key[1:]:
        hashed = (hashed ^ np.uint64(part)) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)
    mask = np.uint64(len(table) - 1)
    at = hashed & mask
    while table[at] >= 0 and _voxel(points[table[at]], voxel) != key:
        at = (at + np.uint64(1)) & mask
    return at


@compiled
@no_type_check
def _rebuild(points, count, voxel, table):
    """Fill an empty table with rows that lie in different voxels."""
    for row in range(count):
        table[_find(points[row], voxel, points, table)] = row


@compiled
@no_type_check
def _insert(new, stamp, replace, voxel, points, order, count, table, rows, entered):
    """Put new points into their voxels; return the number of rows.

    rows takes the row of each point's voxel, entered whether the point was written to it.
    """
    for i in range(len(new)):
        at = _find(new[i], voxel, points, table)
        row = table[at]
        fresh = row < 0
        if fresh:
            row = count
            table[at] = row
            count += 1
        rows[i], entered[i] = row, fresh or replace
        if entered[i]:
            points[row] = new[i]
            order[row] = stamp
    return count


@compiled
@no_type_check
def _nearest(
    points, order, rotation, translation, focal, centre, height, width,
    reach, tolerance, near, far, winner, rank, depth,
):  # fmt: skip
    """Find the nearest points of a camera as `visibility.nearest`; the lowest row wins a tie."""
    r00, r01, r02 = rotation[0, 0], rotation[0, 1], rotation[0, 2]
    r10, r11, r12 = rotation[1, 0], rotation[1, 1], rotation[1, 2]
    r20, r21, r22 = rotation[2, 0], rotation[2, 1], rotation[2, 2]
    t0, t1, t2 = translation[0], translation[1], translation[2]
    fx, fy, cx, cy = focal[0], focal[1], centre[0], centre[1]
    low = np.float32(-reach - 1)
    high_u, high_v = np.float32(width + reach + 1), np.float32(height + reach + 1)
    for i in range(len(points)):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        along = ((r20 * x + r21 * y) + r22 * z) + t2
        if not (along >= near and along < far):
            continue
        across = ((r00 * x + r01 * y) + r02 * z) + t0
        down = ((r10 * x + r11 * y) + r12 * z) + t1
        u, v = (across / along) * fx + cx, (down / along) * fy + cy
        if not (u > low and u < high_u and v > low and v < high_v):
            continue
        size = points[i, 3]
        half_x, half_y = ((size * fx) / along) * HALF, ((size * fy) / along) * HALF
        column, row = np.int64(np.floor(u + HALF)), np.int64(np.floor(v + HALF))
        farther = tolerance if order[i] >= IMAGINED_BIT else ZERO
        for to_row in range(max(0, row - reach), min(height, row + reach + 1)):
            off_y = abs(v - np.float32(to_row))
            if to_row != row and not off_y < half_y:
                continue
            for to_column in range(max(0, column - reach), min(width, column + reach + 1)):
                off_x = abs(u - np.float32(to_column))
                if to_column != column and not off_x < half_x:
                    continue
                ranked = along
                if reach > 0:
                    ranked = along + along * max(off_x / fx, off_y / fy)
                ranked = ranked + ranked * farther
                cell = to_row * width + to_column
                if ranked < rank[cell] or (
                    ranked == rank[cell] and order[i] < order[winner[cell]]
                ):
                    rank[cell], depth[cell], winner[cell] = ranked, along, i


class PointCloud:
    """Points with a size, a stamp and a row of values each, one point per voxel.

    The edge of a voxel is ``voxel`` times the size of its point, rounded down to a power of two. A
    stamp is the number of the camera that wrote the point.
    """

    def __init__(self, *, values: int, dtype: np.dtype, voxel: float) -> None:
        self.voxel = voxel
        self._count = 0
        self._points = np.empty((0, 4), np.float32)
        self._order = np.empty(0, np.uint32)
        self._values = np.empty((0, values), dtype)
        self._table = np.full(1, -1, np.int32)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of the points, without the hash table."""
        return self.points.nbytes + self._order[: self._count].nbytes + self.values.nbytes

    @property
    def index_nbytes(self) -> int:
        """Bytes of the hash table."""
        return self._table.nbytes

    @property
    def points(self) -> Float32[np.ndarray, 'm 4']:
        """Position in the world and size, metres."""
        return self._points[: self._count]

    @property
    def values(self) -> Shaped[np.ndarray, 'm c']:
        return self._values[: self._count]

    def observed(self, rows: Int[np.ndarray, '*shape']) -> Bool[np.ndarray, '*shape']:
        return self._order[rows] < IMAGINED_BIT

    def stamps(self, rows: Int[np.ndarray, '*shape']) -> Int32[np.ndarray, '*shape']:
        return (MAX_SERIAL - (self._order[rows] & MAX_SERIAL)).astype(np.int32)

    def copy(self) -> PointCloud:
        result = copy.copy(self)
        for name in ('_points', '_order', '_values', '_table'):
            setattr(result, name, getattr(self, name).copy())
        return result

    def insert(
        self,
        points: Float32[np.ndarray, 'k 4'],
        values: Shaped[np.ndarray, 'k c'],
        *,
        stamp: int,
        observed: bool,
    ) -> tuple[Int32[np.ndarray, 'k'], Bool[np.ndarray, 'k']]:
        """Merge points into the cloud.

        An observed point replaces the point in its voxel. An imagined point enters only an empty
        voxel.

        Returns:
            The row of each point's voxel, and whether the point entered.
        """
        self._reserve(self._count + len(points))
        rows, entered = np.empty(len(points), np.int32), np.empty(len(points), np.bool_)
        order = np.uint32(MAX_SERIAL - stamp) | (np.uint32(0) if observed else IMAGINED_BIT)
        self._count = _insert(
            points, order, observed, self.voxel, self._points, self._order, self._count,
            self._table, rows, entered,
        )  # fmt: skip
        self._values[rows[entered]] = values[entered]
        return rows, entered

    def remove(self, rows: Bool[np.ndarray, 'm']) -> None:
        stays = ~rows
        self._points, self._order = self.points[stays], self._order[: self._count][stays]
        self._values, self._count = self.values[stays], int(stays.sum())
        self._table.fill(-1)
        _rebuild(self._points, self._count, self.voxel, self._table)

    def nearest(
        self, cameras: CameraArrays, rule: VisibilityRule
    ) -> tuple[Int32[np.ndarray, 'n h w'], Float32[np.ndarray, 'n h w']]:
        """Return the row of the point that each pixel sees, or -1, and its depth, or NaN."""
        shape = (len(cameras), cameras.height, cameras.width)
        winner = np.full(shape, -1, np.int32)
        rank, depth = np.full(shape, np.inf, np.float32), np.full(shape, np.nan, np.float32)
        arrays = cameras.arrays()
        limits = (np.float32(rule.tolerance), np.float32(rule.near), np.float32(rule.far))

        def scan(camera: int) -> None:
            _nearest(
                self.points, self._order, *(part[camera] for part in arrays),
                cameras.height, cameras.width, rule.splat_size // 2, *limits,
                *(part[camera].reshape(-1) for part in (winner, rank, depth)),
            )  # fmt: skip

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(scan, range(shape[0])))
        return winner, depth

    def _reserve(self, count: int) -> None:
        """Make room for ``count`` points; grow by half at least, so that few writes copy."""
        if count > len(self._points):
            room = max(count, len(self._points) + len(self._points) // 2)
            for name in ('_points', '_order', '_values'):
                held = getattr(self, name)
                grown = np.empty((room, *held.shape[1:]), held.dtype)
                grown[: self._count] = held[: self._count]
                setattr(self, name, grown)
        if 2 * count > len(self._table):
            self._table = np.full(1 << (2 * count - 1).bit_length(), -1, np.int32)
            _rebuild(self._points, self._count, self.voxel, self._table)
