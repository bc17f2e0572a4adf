"""Reading a block store on the CPU: cull blocks, find the nearest points, gather the readout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Thread

from jaxtyping import Bool, Float, Float32, Float64, Int
import numpy as np
import torch
from torch import Tensor

from mirage_model.memory import Readout, kernels
from mirage_model.memory.block_store import BlockSlot, BlockStore, BlockTable
from mirage_model.memory.points import IMAGINED_BIT, NO_POINT
from mirage_model.memory.visibility import CameraArrays, VisibilityRule, free_depth

POINTS_PER_THREAD = 50_000
"""Points for which another thread pays off."""


def frustum_planes(
    cameras: CameraArrays, rule: VisibilityRule, *, reach: int
) -> Float64[np.ndarray, 'n p 4']:
    """Return planes in the world that enclose all points that may cover a cell.

    A point is inside where normal . point + distance >= 0.

    Args:
        cameras: Cameras on the latent grid.
        rule: Rule that gives the depth range.
        reach: Cells that a point may lie outside the image. A hundredth of a cell is added.

    Returns:
        (normal, distance) of each plane of each camera.
    """
    rotation, shift = cameras.rotation.double().numpy(), cameras.translation.double().numpy()
    focal, centre = cameras.focal.double().numpy(), cameras.centre.double().numpy()
    margin = 0.51 + reach
    planes = []
    for axis, last in ((0, cameras.width - 1), (1, cameras.height - 1)):
        for sign, beyond in ((1, centre[:, axis] + margin), (-1, last + margin - centre[:, axis])):
            normal = (
                sign * focal[:, axis, None] * rotation[:, axis] + beyond[:, None] * rotation[:, 2]
            )
            distance = sign * focal[:, axis] * shift[:, axis] + beyond * shift[:, 2]
            planes.append(np.concatenate([normal, distance[:, None]], axis=1))
    along = np.concatenate([rotation[:, 2], shift[:, 2:]], axis=1)
    planes.append(along - [0, 0, 0, rule.near])
    if np.isfinite(rule.far):
        planes.append([0, 0, 0, rule.far] - along)
    return np.stack(planes, axis=1)


def frustum_corners(
    cameras: CameraArrays, rule: VisibilityRule, *, reach: int
) -> Float64[np.ndarray, 'c 3']:
    """Return points in the world whose bounding box encloses the frusta of all cameras."""
    if not np.isfinite(rule.far):
        return np.array([[-np.inf] * 3, [np.inf] * 3])
    rotation, shift = cameras.rotation.double().numpy(), cameras.translation.double().numpy()
    focal, centre = cameras.focal.double().numpy(), cameras.centre.double().numpy()
    margin = 0.51 + reach
    points = [np.zeros_like(shift)]
    for x in (-margin, cameras.width - 1 + margin):
        for y in (-margin, cameras.height - 1 + margin):
            aim = (np.array([x, y]) - centre) / focal
            points.append(rule.far * np.concatenate([aim, np.ones_like(aim[:, :1])], axis=1))
    in_camera = np.stack(points, axis=1) - shift[:, None]
    # `check_rigid` tolerates rotations whose transpose is not their inverse
    return (in_camera @ np.linalg.inv(rotation).swapaxes(1, 2)).reshape(-1, 3)


@dataclass(frozen=True, kw_only=True)
class BlocksInView:
    """Pairs of a camera and a block that it may see."""

    cameras: Int[np.ndarray, 'p']
    """Index of each pair's camera."""

    rows: Int[np.ndarray, 'p']
    """Row of ``table`` of each pair's block."""

    table: BlockTable
    """Blocks of the regions in view."""

    slots: Int[np.ndarray, 'b 2']
    """`BlockSlot` of each row."""

    @property
    def point_counts(self) -> Int[np.ndarray, 'p']:
        """Points in the block of each pair."""
        return self.table.count[self.rows]


def blocks_in_view(
    store: BlockStore, cameras: CameraArrays, rule: VisibilityRule, *, reach: int
) -> BlocksInView:
    """Return the blocks in view; cull regions first, so that cost follows the view."""
    planes = frustum_planes(cameras, rule, reach=reach)
    corners = frustum_corners(cameras, rule, reach=reach)
    box = (corners.min(axis=0), corners.max(axis=0))

    def pairs(boxes: BlockStore | BlockTable) -> tuple[Int[np.ndarray, 'p'], Int[np.ndarray, 'p']]:
        most = len(planes) * len(boxes.count)
        index, rows = np.empty(most, np.int64), np.empty(most, np.int64)
        count = kernels.cull(boxes.lower, boxes.upper, boxes.count, planes, *box, index, rows)
        return index[:count], rows[:count]

    table, slots = store.table(np.unique(pairs(store)[1]).tolist())
    index, rows = pairs(table)
    return BlocksInView(cameras=index, rows=rows, table=table, slots=slots)


@dataclass(frozen=True, kw_only=True)
class NearestPoints:
    """The point that each cell of n cameras sees."""

    best: Int[np.ndarray, 'n cells']
    """Packed word of the point, depth above and `LatentPoints.order` below, or NO_POINT."""

    winner: Int[np.ndarray, 'n cells 2']
    """Row of ``table`` and row of the point in its block."""

    table: BlockTable

    slots: Int[np.ndarray, 'b 2']
    """`BlockSlot` of each row of ``table``."""

    @property
    def covered(self) -> Bool[np.ndarray, 'n cells']:
        return self.best != NO_POINT

    @property
    def imagined(self) -> Bool[np.ndarray, 'n cells']:
        return self.covered & ((self.best & int(IMAGINED_BIT)) != 0)

    @property
    def rank_depth(self) -> Float32[np.ndarray, 'n cells']:
        """Depth by `VisibilityRule`, metres; infinite where no point covers the cell."""
        rank = (self.best >> 32).astype(np.int32).view(np.float32)
        return np.where(self.covered, rank, np.float32(np.inf))

    def size(self) -> Float32[np.ndarray, 'n cells']:
        """Return the points' sizes in metres; infinite where no point covers the cell."""
        size = np.full(self.best.shape, np.inf, np.float32)
        kernels.sizes(self.best, self.winner, self.table.count, self.table.address, size)
        return size

    def rows_by_block(
        self, where: Bool[np.ndarray, 'n cells']
    ) -> dict[BlockSlot, Bool[np.ndarray, 'm']]:
        """Return for each block the mask of its points that some cell of ``where`` sees."""
        result = {}
        winner = self.winner[where]
        for row in np.unique(winner[:, 0]).tolist():
            rows = np.zeros(self.table.count[row], np.bool_)
            rows[winner[winner[:, 0] == row, 1]] = True
            region, slot = self.slots[row].tolist()
            result[region, slot] = rows
        return result


def nearest(
    store: BlockStore, cameras: CameraArrays, rule: VisibilityRule, *, only_observed: bool = False
) -> NearestPoints:
    """Return the points that cells see, as `visibility.nearest` does.

    Args:
        store: Points to read.
        cameras: Cameras on the latent grid.
        rule: Visibility rule.
        only_observed: Whether imagined points are left out. Needs ``rule.splat_size`` > 1.
    """
    assert rule.splat_size > 1 or not only_observed
    reach = rule.splat_size // 2
    in_view = blocks_in_view(store, cameras, rule, reach=reach)
    parts = _split(in_view.point_counts)
    shape = (len(parts), len(cameras), cameras.height * cameras.width)
    best = np.full(shape, NO_POINT)
    winner = np.zeros((*shape, 2), np.int32)
    space = (in_view.table.count, in_view.table.address, *cameras.arrays())
    limits = (np.float32(rule.tolerance), np.float32(rule.near), np.float32(rule.far))

    def scan(part: int) -> None:
        pairs = (in_view.cameras[parts[part]], in_view.rows[parts[part]])
        size = (cameras.height, cameras.width)
        if rule.splat_size == 1:
            kernels.nearest_points(*pairs, *space, *size, *limits, best[part], winner[part])
        else:
            kernels.nearest_splats(
                *pairs, *space, *size, reach, *limits, only_observed, best[part], winner[part]
            )

    _run_threads(scan, len(parts))
    kernels.reduce_parts(best, winner)
    return NearestPoints(best=best[0], winner=winner[0], table=in_view.table, slots=in_view.slots)


def readout(
    store: BlockStore,
    cameras: CameraArrays,
    rule: VisibilityRule,
    times: Float32[np.ndarray, 'n'],
    *,
    channels: int,
    half: bool,
) -> Readout:
    """Return the readout of a store.

    Args:
        store: Points to read.
        cameras: Cameras on the latent grid.
        rule: Visibility rule.
        times: Time of each camera in seconds since the memory's origin.
        channels: Channels of the latents, or 0 to leave them out.
        half: Whether latents are held as bits of bfloat16.
    """
    n, height, width = len(cameras), cameras.height, cameras.width
    cells = height * width
    latents = np.zeros((n, cells, channels), np.uint32)
    visible, observed = np.zeros((2, n, cells), np.bool_)
    depth, age = np.zeros((2, n, cells), np.float32)
    ratio = np.ones((n, cells), np.float32)
    offset = np.zeros((n, 2, cells), np.float32)
    points = nearest(store, cameras, rule)
    kernels.gather(
        points.best, points.winner, points.table.count, points.table.address, half,
        *cameras.arrays(), width, times, latents, visible, observed, depth, ratio, age, offset,
    )  # fmt: skip
    grid = (n, height, width)
    return Readout(
        latents=torch.from_numpy(latents.view(np.float32)).view(*grid, channels).movedim(-1, 1),
        visible=torch.from_numpy(visible).view(grid),
        observed=torch.from_numpy(observed).view(grid),
        depth=torch.from_numpy(depth).view(grid),
        age=torch.from_numpy(age).view(grid),
        offset=torch.from_numpy(offset).view(n, 2, height, width),
        depth_ratio=torch.from_numpy(ratio).view(grid).log(),
    )


def observed_depth(
    store: BlockStore, cameras: CameraArrays, rule: VisibilityRule
) -> Float[Tensor, 'n h w']:
    """Return the depth by the rule of the nearest observed points, or infinity."""
    depth = nearest(store, cameras, rule, only_observed=True).rank_depth
    return torch.from_numpy(depth).view(len(cameras), cameras.height, cameras.width)


def in_free_space(
    store: BlockStore, cameras: CameraArrays, depth: Float[Tensor, 'n h w'], rule: VisibilityRule
) -> dict[BlockSlot, Bool[np.ndarray, 'm']]:
    """Return the mask of `visibility.in_free_space` for each block with such points."""
    limit = free_depth(depth, rule).numpy()
    # search up to the observed depth, also beyond the range of readouts
    farthest = float(limit.max(initial=0.0))
    if farthest <= rule.near:
        return {}
    in_view = blocks_in_view(store, cameras, replace(rule, far=farthest), reach=0)
    blocks, count = np.unique(in_view.rows), in_view.table.count
    stops = np.cumsum(count[blocks])
    start_of = np.zeros(len(count), np.int64)
    start_of[blocks] = stops - count[blocks]
    free = np.zeros(int(count[blocks].sum()), np.bool_)
    parts = _split(in_view.point_counts)

    def scan(part: int) -> None:
        kernels.in_free_space(
            in_view.cameras[parts[part]], in_view.rows[parts[part]], count, in_view.table.address,
            *cameras.arrays(), limit, np.float32(rule.near), start_of, free,
        )  # fmt: skip

    _run_threads(scan, len(parts))
    result = {}
    for row in np.unique(blocks[np.searchsorted(stops, np.flatnonzero(free), side='right')]):
        region, slot = in_view.slots[row].tolist()
        result[region, slot] = free[start_of[row] : start_of[row] + count[row]]
    return result


def _split(counts: Int[np.ndarray, 'p']) -> list[slice]:
    """Return slices of the pairs with about equally many points, one for each thread."""
    total = int(counts.sum())
    threads = max(1, min(torch.get_num_threads(), total // POINTS_PER_THREAD))
    stops = np.searchsorted(np.cumsum(counts), total * np.arange(1, threads) / threads)
    edges = [0, *stops.tolist(), len(counts)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:])]


def run_slices(work: Callable[[slice], None], count: int) -> None:
    """Call ``work`` with slices of range(count), one in each thread."""
    parts = max(1, min(torch.get_num_threads(), count))
    edges = [count * part // parts for part in range(parts + 1)]
    _run_threads(lambda part: work(slice(edges[part], edges[part + 1])), parts)


def _run_threads(work: Callable[[int], None], parts: int) -> None:
    """Call ``work`` with each part in a thread, the first in this one. Kernels release the GIL."""
    threads = [Thread(target=work, args=(part,)) for part in range(1, parts)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
