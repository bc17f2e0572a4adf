"""The visibility rule in numba: inner loops of the memory, equal to `visibility` bit for bit.

The kernels take blocks by the addresses of their arrays, so that one call reads any number of
blocks, in memory or mapped from files, without copying. Floats are float32 in the order of
operations of `visibility`; fast-math is off and nothing is contracted. Kernels release the GIL.

Arrays of a block of m points: xyz_size (4, m) float32, order (m,) uint32, depth_time (2, m)
float32, latents (m, c) as bits of bfloat16 or float32; see `points.LatentPoints`.
"""

from __future__ import annotations

from typing import no_type_check

import numba
from numba import carray, njit
from numba.core import cgutils
from numba.extending import intrinsic
import numpy as np

from mirage_model.memory.points import IMAGINED_BIT, NO_POINT

TILE = 512
"""Points that are projected together, so that the compiler vectorises the projection."""

ZERO, HALF = np.float32(0.0), np.float32(0.5)
INFINITY, NAN = np.float32(np.inf), np.float32(np.nan)

compiled = njit(nogil=True, cache=True, error_model='numpy', fastmath=False)


@intrinsic
@no_type_check
def _pointer(typing_context, address):
    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(address), code


@compiled
@no_type_check
def _project(xyz_size, start, stop, rotation, translation, focal, centre, u, v, depth):
    """Project the points start to stop of a block, as `visibility.project`."""
    xs, ys, zs = xyz_size[0, start:stop], xyz_size[1, start:stop], xyz_size[2, start:stop]
    r00, r01, r02 = rotation[0, 0], rotation[0, 1], rotation[0, 2]
    r10, r11, r12 = rotation[1, 0], rotation[1, 1], rotation[1, 2]
    r20, r21, r22 = rotation[2, 0], rotation[2, 1], rotation[2, 2]
    t0, t1, t2 = translation[0], translation[1], translation[2]
    fx, fy, cx, cy = focal[0], focal[1], centre[0], centre[1]
    for i in range(len(xs)):
        x, y, z = xs[i], ys[i], zs[i]
        across = ((r00 * x + r01 * y) + r02 * z) + t0
        down = ((r10 * x + r11 * y) + r12 * z) + t1
        along = ((r20 * x + r21 * y) + r22 * z) + t2
        u[i] = (across / along) * fx + cx
        v[i] = (down / along) * fy + cy
        depth[i] = along


@compiled
@no_type_check
def _project_to_cells(
    xyz_size, order, start, stop, rotation, translation, focal, centre,
    height, width, tolerance, near, far, rank, cell,
):  # fmt: skip
    """Write the cell that each point falls into and its depth by the rule, NaN outside the view.

    The projection is that of `_project`, repeated to avoid storing intermediate arrays.
    """
    xs, ys, zs = xyz_size[0, start:stop], xyz_size[1, start:stop], xyz_size[2, start:stop]
    orders = order[start:stop]
    r00, r01, r02 = rotation[0, 0], rotation[0, 1], rotation[0, 2]
    r10, r11, r12 = rotation[1, 0], rotation[1, 1], rotation[1, 2]
    r20, r21, r22 = rotation[2, 0], rotation[2, 1], rotation[2, 2]
    t0, t1, t2 = translation[0], translation[1], translation[2]
    fx, fy, cx, cy = focal[0], focal[1], centre[0], centre[1]
    columns = np.float32(width)
    last_column, last_row = np.float32(width - 1), np.float32(height - 1)
    for i in range(len(xs)):
        x, y, z = xs[i], ys[i], zs[i]
        across = ((r00 * x + r01 * y) + r02 * z) + t0
        down = ((r10 * x + r11 * y) + r12 * z) + t1
        along = ((r20 * x + r21 * y) + r22 * z) + t2
        column = np.floor(((across / along) * fx + cx) + HALF)
        row = np.floor(((down / along) * fy + cy) + HALF)
        inside = (along >= near) & (along < far) & (column >= ZERO) & (column <= last_column)
        inside = inside & (row >= ZERO) & (row <= last_row)
        farther = tolerance if orders[i] >= IMAGINED_BIT else ZERO
        rank[i] = along + along * farther if inside else NAN
        cell[i] = np.int32(row * columns + column if inside else ZERO)


@compiled
@no_type_check
def cull(lower, upper, count, planes, reach_lower, reach_upper, cameras, blocks):
    """Write the pairs of a camera and a block that it may see, by block; return their number.

    A block is culled if its box is outside reach_lower to reach_upper, the bounds of all frusta,
    or outside one of the camera's planes, (n, p, 4) float64 as `cpu_reader.frustum_planes`.
    """
    pairs = 0
    for block in range(lower.shape[0]):
        if count[block] == 0:
            continue
        apart = False
        for axis in range(3):
            apart |= upper[block, axis] < reach_lower[axis]
            apart |= lower[block, axis] > reach_upper[axis]
        if apart:
            continue
        for camera in range(planes.shape[0]):
            inside = True
            for plane in range(planes.shape[1]):
                height = planes[camera, plane, 3]
                for axis in range(3):
                    normal = planes[camera, plane, axis]
                    height += normal * (upper[block, axis] if normal > 0 else lower[block, axis])
                if height < 0:
                    inside = False
                    break
            if inside:
                cameras[pairs], blocks[pairs] = camera, block
                pairs += 1
    return pairs


@compiled
@no_type_check
def nearest_points(
    cameras, blocks, count, address, rotation, translation, focal, centre,
    height, width, tolerance, near, far, best, winner,
):  # fmt: skip
    """Find the nearest points as `visibility.nearest` with splat_size 1, over camera-block pairs.

    best (n, h * w) int64 takes the packed word that wins a cell, winner (n, h * w, 2) int32 its
    block and row. Both are updated in place, so that `reduce_parts` can combine calls over parts
    of the pairs.
    """
    rank, cell = np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    bits, index = rank.view(np.int32), cell.view(np.uint32)
    lowest = np.full(best.shape, INFINITY, np.float32)
    for pair in range(len(cameras)):
        camera, block = cameras[pair], blocks[pair]
        m = count[block]
        xyz_size = carray(_pointer(address[block, 0]), (4, m), np.float32)
        order = carray(_pointer(address[block, 1]), (m,), np.uint32)
        so_far = lowest[camera]
        for start in range(0, m, TILE):
            stop = min(start + TILE, m)
            _project_to_cells(
                xyz_size, order, start, stop, rotation[camera], translation[camera],
                focal[camera], centre[camera], height, width, tolerance, near, far, rank, cell,
            )  # fmt: skip
            for i in range(stop - start):
                where = index[i]
                if rank[i] <= so_far[where]:
                    word = (np.int64(bits[i]) << 32) | np.int64(order[start + i])
                    if word < best[camera, where]:
                        best[camera, where] = word
                        winner[camera, where, 0] = block
                        winner[camera, where, 1] = start + i
                        so_far[where] = rank[i]


@compiled
@no_type_check
def nearest_splats(
    cameras, blocks, count, address, rotation, translation, focal, centre,
    height, width, reach, tolerance, near, far, only_observed, best, winner,
):  # fmt: skip
    """Find the nearest points, each covering up to reach cells on every side."""
    u, v, depth = (
        np.empty(TILE, np.float32),
        np.empty(TILE, np.float32),
        np.empty(TILE, np.float32),
    )
    low = np.float32(-reach - 1)
    high_u, high_v = np.float32(width + reach + 1), np.float32(height + reach + 1)
    one_bits = np.empty(1, np.float32)
    bits = one_bits.view(np.int32)
    for pair in range(len(cameras)):
        camera, block = cameras[pair], blocks[pair]
        fx, fy = focal[camera, 0], focal[camera, 1]
        m = count[block]
        xyz_size = carray(_pointer(address[block, 0]), (4, m), np.float32)
        order = carray(_pointer(address[block, 1]), (m,), np.uint32)
        for start in range(0, m, TILE):
            stop = min(start + TILE, m)
            _project(
                xyz_size, start, stop, rotation[camera], translation[camera],
                focal[camera], centre[camera], u, v, depth,
            )  # fmt: skip
            for i in range(stop - start):
                z, x, y = depth[i], u[i], v[i]
                if not (
                    z >= near and z < far and x > low and x < high_u and y > low and y < high_v
                ):
                    continue
                imagined = order[start + i] >= IMAGINED_BIT
                if only_observed and imagined:
                    continue
                size = xyz_size[3, start + i]
                half_x, half_y = ((size * fx) / z) * HALF, ((size * fy) / z) * HALF
                column, row = np.int64(np.floor(x + HALF)), np.int64(np.floor(y + HALF))
                for to_row in range(max(0, row - reach), min(height, row + reach + 1)):
                    off_y = abs(y - np.float32(to_row))
                    if to_row != row and not off_y < half_y:
                        continue
                    for to_column in range(max(0, column - reach), min(width, column + reach + 1)):
                        off_x = abs(x - np.float32(to_column))
                        if to_column != column and not off_x < half_x:
                            continue
                        rank = z + z * max(off_x / fx, off_y / fy)
                        if imagined:
                            rank = rank + rank * tolerance
                        one_bits[0] = rank
                        word = (np.int64(bits[0]) << 32) | np.int64(order[start + i])
                        where = to_row * width + to_column
                        if word < best[camera, where]:
                            best[camera, where] = word
                            winner[camera, where, 0] = block
                            winner[camera, where, 1] = start + i


@compiled
@no_type_check
def reduce_parts(best, winner):
    """Reduce best[0] and winner[0] to the smallest word over the first axis."""
    for part in range(1, best.shape[0]):
        for camera in range(best.shape[1]):
            for cell in range(best.shape[2]):
                if best[part, camera, cell] < best[0, camera, cell]:
                    best[0, camera, cell] = best[part, camera, cell]
                    winner[0, camera, cell, 0] = winner[part, camera, cell, 0]
                    winner[0, camera, cell, 1] = winner[part, camera, cell, 1]


@compiled
@no_type_check
def sizes(best, winner, count, address, size):
    """Write the sizes of the winners in metres; leave cells without a winner unchanged."""
    for camera in range(best.shape[0]):
        for cell in range(best.shape[1]):
            if best[camera, cell] != NO_POINT:
                block, i = winner[camera, cell, 0], winner[camera, cell, 1]
                xyz_size = carray(_pointer(address[block, 0]), (4, count[block]), np.float32)
                size[camera, cell] = xyz_size[3, i]


@compiled
@no_type_check
def gather(
    best, winner, count, address, half, rotation, translation,
    focal, centre, width, times, latents, visible, observed, depth, ratio, age, offset,
):  # fmt: skip
    """Fill a zeroed readout from the winners; latents is (n, h * w, c) as uint32 bits."""
    u, v, z = np.empty(1, np.float32), np.empty(1, np.float32), np.empty(1, np.float32)
    channels = latents.shape[2]
    for camera in range(best.shape[0]):
        for cell in range(best.shape[1]):
            if best[camera, cell] == NO_POINT:
                continue
            block, i = winner[camera, cell, 0], winner[camera, cell, 1]
            m = count[block]
            xyz_size = carray(_pointer(address[block, 0]), (4, m), np.float32)
            order = carray(_pointer(address[block, 1]), (m,), np.uint32)
            depth_time = carray(_pointer(address[block, 2]), (2, m), np.float32)
            _project(
                xyz_size, i, i + 1, rotation[camera], translation[camera],
                focal[camera], centre[camera], u, v, z,
            )  # fmt: skip
            visible[camera, cell] = True
            observed[camera, cell] = order[i] < IMAGINED_BIT
            depth[camera, cell] = z[0]
            ratio[camera, cell] = z[0] / depth_time[0, i]
            age[camera, cell] = times[camera] - depth_time[1, i]
            offset[camera, 0, cell] = u[0] - np.float32(cell % width)
            offset[camera, 1, cell] = v[0] - np.float32(cell // width)
            if half:
                short = carray(_pointer(address[block, 3]), (m, channels), np.uint16)
                for channel in range(channels):
                    latents[camera, cell, channel] = np.uint32(short[i, channel]) << np.uint32(16)
            else:
                whole = carray(_pointer(address[block, 3]), (m, channels), np.uint32)
                for channel in range(channels):
                    latents[camera, cell, channel] = whole[i, channel]


@compiled
@no_type_check
def in_free_space(
    cameras, blocks, count, address, rotation, translation, focal, centre,
    limit, near, start_of, free,
):  # fmt: skip
    """Mark points as `visibility.in_free_space`, those of a block from start_of[block] on."""
    u, v, depth = (
        np.empty(TILE, np.float32),
        np.empty(TILE, np.float32),
        np.empty(TILE, np.float32),
    )
    height, width = limit.shape[1], limit.shape[2]
    high_u, high_v = np.float32(width) - HALF, np.float32(height) - HALF
    for pair in range(len(cameras)):
        camera, block = cameras[pair], blocks[pair]
        m = count[block]
        xyz_size = carray(_pointer(address[block, 0]), (4, m), np.float32)
        for start in range(0, m, TILE):
            stop = min(start + TILE, m)
            _project(
                xyz_size, start, stop, rotation[camera], translation[camera],
                focal[camera], centre[camera], u, v, depth,
            )  # fmt: skip
            for i in range(stop - start):
                z, x, y = depth[i], u[i], v[i]
                if z >= near and x >= -HALF and x < high_u and y >= -HALF and y < high_v:
                    column, row = np.int64(np.floor(x + HALF)), np.int64(np.floor(y + HALF))
                    column, row = min(column, width - 1), min(row, height - 1)
                    if z + xyz_size[3, start + i] < limit[camera, row, column]:
                        free[start_of[block] + start + i] = True
